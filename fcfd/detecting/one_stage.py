"""Detectors of one stage: the pyramid, the towers of the head up to a block, and the rest of the head."""

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._text import check_integer
from ..splitting import Network
from ..stages import Stage, stage
from ._parts import ONE, Images, Pyramid, changed, check_parts, first, listed, with_batch
from .batch import Found, Prepared


def one_stage(detector: nn.Module, *, at: int = 3) -> Network:
    """A RetinaNet, FCOS or SSD as stages: the pyramid, the towers up to a block, the rest of the head.

    | path | value |
    |---|---|
    | `"s"` | the pyramid: maps by the names of its levels |
    | `"ss"`: `classes`, `boxes` | features of both towers before an activation, each as the pyramid |
    | `"sss"`: `cls_logits` | `[batch, anchors, classes]` |
    | `bbox_regression` | `[batch, anchors, 4]`, and of FCOS `bbox_ctrness` |
    | `boxes` | `[batch, anchors, 4]`: decoded, in pixels |

    Args:
        detector: The detector. Its parts are not touched; their modes are read at every call.
        at: How many of the towers' convolutions stand before the cut; published 3 of 4. With 0 the whole head
            is one stage, and the network has two; so it must be of a SSD, whose head has no towers.

    Raises:
        TypeError: It is no detector of one stage.
        ValueError: The towers do not have so many convolutions.
    """
    wanted = ("transform", "backbone", "anchor_generator", "head", "box_coder")
    head: Any = check_parts("one_stage", detector, wanted, ONE).head
    check_integer("one_stage", "at", at, least=0)
    batch = ("images", "sizes")
    stages: list[Stage] = [partial(first, stage(Pyramid(detector)))]
    if at:
        towers = {name: _halves(head, name, at) for name in _TOWERS}
        stages.append(stage(_Towers({name: first for name, (first, _) in towers.items()}), protect=False))
        rest = {name: changed(getattr(head, name), conv=late) for name, (_, late) in towers.items()}
    else:
        rest = {name: getattr(head, name) for name in _TOWERS}
    # The rest begins with an activation, which may be in place.
    stages.append(partial(with_batch, stage(_Outputs(detector, rest)), batch))
    return Network(
        stages=tuple(stages),
        params=dict(detector.named_parameters()),
        buffers=dict(detector.named_buffers()),
        names=("backbone", *(("towers",) if at else ()), "head"),
        shapes=(None,) * len(stages),
        cuts=(),
        proof="",
        layouts=("b c h w",) * (len(stages) - 1) + (None,),
    )


def labels(detector: nn.Module) -> Callable[[Prepared, Mapping[str, Tensor], Mapping[str, Tensor]], Found]:
    """What the labels say of a student of one stage: its own losses, and which anchors count.

    Args:
        detector: A RetinaNet, FCOS or SSD.

    Returns:
        A function `(prepared, pyramid, outputs) -> found` of the values `"s"` and `"sss"`. `found.losses` are
        the detector's own; `found.labels` has `counts` `[batch, anchors]`, 0 where an anchor is neither of
        an object nor of the background, and `positives`, the number of anchors of an object, at least 1.

    Raises:
        TypeError: It is no detector of one stage.
    """
    wanted = ("anchor_generator", "head", "compute_loss", "backbone", "transform")
    check_parts("labels", detector, wanted, ONE)
    return partial(_labels, detector)


def _labels(
    detector: Any, prepared: Prepared, pyramid: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> Found:
    if prepared.targets is None:
        raise ValueError("labels: there are no targets; give prepare(detector, images, targets).")
    maps, targets = list(pyramid.values()), prepared.targets
    anchors = _anchors(detector.anchor_generator, prepared.inputs["images"], prepared.inputs["sizes"], maps)
    seen: list[list[Tensor]] = []
    noting = changed(detector, head=_Noting(detector.head, seen))
    own = {name: value for name, value in outputs.items() if name != "boxes"}
    wants = inspect.signature(detector.compute_loss).parameters
    if "matched_idxs" in wants:  # a SSD matches in its forward
        pairs = zip(targets, anchors, strict=True)
        seen.append([_matched(detector, target["boxes"], of_image) for target, of_image in pairs])
        losses = detector.compute_loss(targets, own, anchors, seen[0])
    elif "num_anchors_per_level" in wants:
        losses = noting.compute_loss(targets, own, anchors, [one.shape[-2] * one.shape[-1] for one in maps])
    else:
        losses = noting.compute_loss(targets, own, anchors)
    matched = torch.stack(seen[0])
    counts = (matched != _BETWEEN).to(own["cls_logits"].dtype)
    return Found(losses, {"counts": counts, "positives": (matched >= 0).sum().clamp(min=1)})


_TOWERS = ("classification_head", "regression_head")
_BETWEEN = -2  # torchvision's mark of an anchor that is neither


class _Towers(nn.Module):
    """The first blocks of both towers, under the names that they have in the detector."""

    def __init__(self, firsts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.head = nn.ModuleDict({name: nn.ModuleDict({"conv": first}) for name, first in firsts.items()})

    def forward(self, pyramid: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        heads: Any = self.head
        return {
            what: {level: heads[name]["conv"](one) for level, one in pyramid.items()}
            for what, name in zip(("classes", "boxes"), _TOWERS, strict=True)
        }


class _Outputs(nn.Module):
    """The rest of a head, and boxes from what it returns."""

    def __init__(self, detector: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.head = nn.ModuleDict(dict(heads))
        self.anchor_generator = detector.anchor_generator
        self.box_coder = detector.box_coder

    def forward(self, x: Any) -> dict[str, Tensor]:
        features, images, sizes = x
        of_classes = list(features.get("classes", features).values())
        of_boxes = list(features.get("boxes", features).values())
        heads: Any = self.head
        out = {"cls_logits": heads["classification_head"](of_classes)}
        found = heads["regression_head"](of_boxes)
        names = ("bbox_regression", "bbox_ctrness")
        out |= dict(zip(names, found, strict=True)) if isinstance(found, tuple) else {names[0]: found}
        anchors = _anchors(self.anchor_generator, images, sizes, of_classes)
        return {**out, "boxes": _decoded(self.box_coder, out["bbox_regression"], torch.stack(anchors))}


class _Noting:
    """A head that notes which objects its anchors were matched with."""

    def __init__(self, head: Any, seen: list[list[Tensor]]) -> None:
        self.head, self.seen = head, seen

    def compute_loss(self, targets: Any, outputs: Any, anchors: Any, matched: list[Tensor]) -> Any:
        self.seen.append(matched)
        return self.head.compute_loss(targets, outputs, anchors, matched)


def _anchors(generator: Any, images: Tensor, sizes: Tensor, maps: list[Tensor]) -> list[Tensor]:
    """Anchors by image. A generator remembers their type and device, so a copy of it makes them."""
    found: list[Tensor] = copy.copy(generator)(Images(images, listed(sizes)), maps)
    return found


def _decoded(coder: Any, deltas: Tensor, anchors: Tensor) -> Tensor:
    if hasattr(coder, "decode_single"):
        boxes: Tensor = coder.decode_single(deltas.reshape(-1, 4), anchors.to(deltas).reshape(-1, 4))
    else:
        boxes = coder.decode(deltas, anchors.to(deltas))
    return boxes.view_as(deltas)


def _matched(detector: Any, boxes: Tensor, anchors: Tensor) -> Tensor:
    """The object of each anchor, as a SSD matches them."""
    if not len(boxes):
        return torch.full(anchors.shape[:1], -1, dtype=torch.int64, device=anchors.device)
    low = torch.maximum(boxes[:, None, :2], anchors[:, :2])
    high = torch.minimum(boxes[:, None, 2:], anchors[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(own[:, 2:] - own[:, :2]).prod(-1) for own in (boxes, anchors)]
    found: Tensor = detector.proposal_matcher(shared / (areas[0][:, None] + areas[1] - shared))
    return found


# Cutting a tower


def _halves(head: nn.Module, name: str, at: int) -> tuple[nn.Sequential, nn.Sequential]:
    """A tower up to a convolution with its normalisation, and from its activation on."""
    tower = getattr(getattr(head, name), "conv", None)
    if not isinstance(tower, nn.Sequential):
        raise ValueError(
            f"one_stage: {type(head).__name__}.{name} has no tower 'conv' to cut; with at=0 the whole "
            "head is one stage."
        )
    parts = list(_parts(tower))
    convolutions = [place for place, (_, part) in enumerate(parts) if isinstance(part, nn.Conv2d)]
    if at > len(convolutions):
        raise ValueError(
            f"one_stage: at={at}, and the towers have {len(convolutions)} convolutions; give 0 to "
            f"{len(convolutions)}."
        )
    end = convolutions[at - 1] + 1
    while end < len(parts) and "Norm" in type(parts[end][1]).__name__:
        end += 1
    names = [name for name, _ in parts]
    return _only(tower, names[:end]), _only(tower, names[end:])


def _parts(tower: nn.Sequential, prefix: str = "") -> Any:
    for name, part in tower.named_children():
        if isinstance(part, nn.Sequential):
            yield from _parts(part, f"{prefix}{name}.")
        else:
            yield prefix + name, part


def _only(tower: nn.Sequential, names: Sequence[str]) -> nn.Sequential:
    """Some parts of a tower, under the names that they have in it."""
    kept: OrderedDict[str, nn.Module] = OrderedDict()
    for name, part in tower.named_children():
        inner = [one.removeprefix(f"{name}.") for one in names if one.startswith(f"{name}.")]
        if isinstance(part, nn.Sequential) and inner:
            kept[name] = _only(part, inner)
        elif name in names:
            kept[name] = part
    return nn.Sequential(kept)
