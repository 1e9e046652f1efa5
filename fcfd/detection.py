"""Detectors as networks: from a detector of torchvision, without an edit to it, to stages.

A stage here is a part of the detector, under the detector's own names, so `write_buffers_(student, ...)`
and `student.parameters()` work as ever:

| function | stages |
|---|---|
| `two_stage` | the pyramid; the box head (and mask head) on given regions |
| `one_stage` | the pyramid; the towers of the head up to a block; the rest of the head |

Both networks read a batch of their own, as their own transforms make it (`prepare`). A box head also reads
regions. They are known after the student's pyramid (`proposals`), and flow in the batch (`with_regions`):

```
batch = {"s": prepare(student, images, targets).inputs, "t": prepare(teacher, images).inputs}
walk "s"; propose on its value; with_regions(batch, found); the objective, with "s" known
```

Nothing of torchvision is imported: a detector is what has its attributes (`transform`, `backbone`, `rpn`,
`roi_heads`; or `anchor_generator`, `head`, `compute_loss`).
"""

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._text import check_integer, check_mapping, check_type
from ._tree import shape
from .splitting import Network
from .stages import Buffers, Params, Stage, stage

Sizes = Sequence[Sequence[int]]
_TWO = "a Faster R-CNN or a Mask R-CNN of torchvision"
_ONE = "a RetinaNet, a FCOS or a SSD of torchvision"


class Prepared(NamedTuple):
    """What a detector's own transform makes of images and targets.

    Args:
        inputs: What its stages read: `images` in one tensor; `sizes` `[images, 2]`, height and width of each
            within it; and for a detector of two stages `regions`, which `with_regions` fills.
        targets: The targets, resized with the images; `None` where there are none.
    """

    inputs: dict[str, Any]
    targets: list[dict[str, Tensor]] | None = None


class Found(NamedTuple):
    """What the labels say of a student's own pyramid.

    Args:
        losses: The detector's own losses, those that no term computes.
        labels: Data for the terms of a recipe, as its `"Labels"`.
        regions: Boxes by image, in the student's pixels: what both box heads read.
        positives: Those of them that hold an object, for a mask head.
    """

    losses: dict[str, Tensor]
    labels: dict[str, Tensor]
    regions: Sequence[Tensor] = ()
    positives: Sequence[Tensor] = ()


class _Images(NamedTuple):
    """What anchors are made for; the names are torchvision's."""

    tensors: Tensor
    image_sizes: Sizes


# The batch


def prepare(
    detector: nn.Module,
    images: Sequence[Tensor],
    targets: Sequence[Mapping[str, Tensor]] | None = None,
    *,
    sizes: Tensor | None = None,
) -> Prepared:
    """Normalise, resize and batch images as a detector does, and its targets with them.

    In train mode a detector may draw one of several sizes, as it does by itself. Its teacher then follows:
    `prepare(teacher, images, sizes=ours.inputs["sizes"])`.

    Args:
        detector: The detector, whose `transform` runs.
        images: Images `[channels, height, width]` of any sizes.
        targets: For each of them `boxes` `[objects, 4]` as corners, `labels` `[objects]`, and `masks`
            `[objects, height, width]` for a mask head. An image may have no object.
        sizes: Height and width of each image, where they are not the detector's own choice.

    Raises:
        TypeError: The detector has no transform, or a target is of a wrong type.
        ValueError: There is no image, or no target for one; or a box has no area.

    Example:
        >>> images = [torch.rand(3, 40, 60), torch.rand(3, 60, 30)]
        >>> inputs = prepare(detector, images).inputs  # doctest: +SKIP
        >>> inputs["images"].shape, inputs["sizes"].tolist()  # doctest: +SKIP
        (torch.Size([2, 3, 96, 96]), [[64, 96], [96, 48]])
    """
    transform: Any = _check_parts("prepare", detector, ("transform",), f"{_TWO}, or {_ONE}").transform
    check_type("prepare", "images", images, (list, tuple, Tensor), "a list of images")
    if len(images) == 0:
        raise ValueError("prepare: there is no image; give a list of at least one.")
    for at, image in enumerate(images):
        check_type("prepare", f"images[{at}]", image, Tensor, "an image [channels, height, width]")
        if image.ndim != 3 or not image.is_floating_point():
            raise ValueError(
                f"prepare: images[{at}] is {shape(image)} of {image.dtype}; give floats "
                "[channels, height, width]."
            )
    if targets is not None:
        _check_targets(detector, images, targets)
    given = None if targets is None else [dict(target) for target in targets]
    if sizes is None:
        batch, resized = transform(list(images), given)
        tensors, sizes = batch.tensors, torch.tensor(batch.image_sizes)
    else:
        tensors, resized = _resized(transform, images, given, sizes)
    inputs: dict[str, Any] = {"images": tensors, "sizes": sizes}
    if hasattr(detector, "roi_heads"):
        inputs["regions"] = ()
        if _has_masks(detector):
            inputs["positives"] = ()
    return Prepared(inputs, resized)


def _resized(transform: Any, images: Sequence[Tensor], targets: Any, sizes: Tensor) -> tuple[Tensor, Any]:
    """Images of given sizes, normalised by a detector's own transform, and their targets."""
    check_type("prepare", "sizes", sizes, Tensor, "the inputs['sizes'] of another detector")
    if sizes.shape != (len(images), 2):
        raise ValueError(f"prepare: sizes is {shape(sizes)}; give height and width of {len(images)} images.")
    twin, found, moved = copy.copy(transform), [], []
    twin.training = False  # it draws no size
    for at, (height, width) in enumerate(sizes.tolist()):
        twin.fixed_size = (width, height)
        image, target = twin.resize(twin.normalize(images[at]), None if targets is None else targets[at])
        found.append(image)
        moved.append(target)
    return twin.batch_images(found, size_divisible=twin.size_divisible), None if targets is None else moved


def _check_targets(detector: nn.Module, images: Sequence[Tensor], targets: Any) -> None:
    check_type("prepare", "targets", targets, (list, tuple), "a list of targets, one for each image")
    if len(targets) != len(images):
        raise ValueError(f"prepare: {len(images)} images have {len(targets)} targets; give one for each.")
    entries = ("boxes", "labels", "masks") if _has_masks(detector) else ("boxes", "labels")
    for at, target in enumerate(targets):
        check_mapping("prepare", f"targets[{at}]", target, "a dict of boxes and labels")
        for name in entries:
            check_type("prepare", f"targets[{at}][{name!r}]", target.get(name), Tensor, "a tensor")
        boxes, labels = target["boxes"], target["labels"]
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
            raise ValueError(
                f"prepare: targets[{at}]['boxes'] is {shape(boxes)} of {boxes.dtype}; give floats "
                "[objects, 4], and [0, 4] where there is no object."
            )
        if labels.shape != boxes.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(
                f"prepare: targets[{at}]['labels'] is {shape(labels)} of {labels.dtype}; give int64 "
                f"[{len(boxes)}], a class for each box."
            )
        if not bool((boxes[:, 2:] > boxes[:, :2]).all()):
            raise ValueError(
                f"prepare: targets[{at}] has a box without an area; corners are (left, top, right, bottom)."
            )


def with_regions(
    batch: Mapping[str, Mapping[str, Any]], found: Found, *, student: str = "s"
) -> dict[str, dict[str, Any]]:
    """The batch with the student's regions in it, for each network in its own pixels.

    Args:
        batch: The inputs of each network by its letter, as `prepare` makes them.
        found: What `proposals` returned for the student.
        student: The letter of the network whose pixels the regions are in.

    Raises:
        ValueError: There are no regions, or the batch lacks the student, or numbers of images differ.
    """
    check_mapping("with_regions", "batch", batch, "{'s': prepare(student, ...).inputs, 't': ...}")
    if student not in batch:
        others = ", ".join(map(repr, batch))
        raise ValueError(f"with_regions: the batch has no network {student!r}, only {others}.")
    if not found.regions:
        raise ValueError("with_regions: there are no regions; a detector of one stage needs none.")
    own, filled = batch[student]["sizes"], {}
    for letter, inputs in batch.items():
        filled[letter] = {**inputs, "regions": rescale(found.regions, own, inputs["sizes"])}
        if "positives" in inputs:
            if not found.positives:
                raise ValueError(f"with_regions: network {letter!r} has a mask head, and the student none.")
            filled[letter]["positives"] = rescale(found.positives, own, inputs["sizes"])
    return filled


def rescale(regions: Sequence[Tensor], before: Sizes | Tensor, after: Sizes | Tensor) -> list[Tensor]:
    """Boxes by image, from the pixels of one detector to those of another that resizes differently.

    Args:
        regions: Boxes `[regions, 4]` as corners, for each image.
        before: Height and width of each image as the first detector sees it.
        after: As the second sees it.

    Raises:
        ValueError: The numbers of images differ.

    Example:
        >>> rescale([torch.tensor([[0.0, 10.0, 20.0, 30.0]])], [(40, 20)], [(80, 60)])
        [tensor([[ 0., 20., 60., 60.]])]
    """
    if not len(regions) == len(before) == len(after):
        raise ValueError(
            f"rescale: regions of {len(regions)} images, sizes of {len(before)} before and {len(after)} "
            "after; give all of the same images."
        )
    scaled = []
    for boxes, (height, width), (new_height, new_width) in zip(
        regions, _listed(before), _listed(after), strict=True
    ):
        ratios = (new_width / width, new_height / height)
        scaled.append(boxes if ratios == (1, 1) else boxes * boxes.new_tensor([*ratios, *ratios]))
    return scaled


def _listed(sizes: Sizes | Tensor) -> list[tuple[int, int]]:
    rows = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    return [(height, width) for height, width in rows]


# Two stages


def two_stage(detector: nn.Module) -> Network:
    """A Faster R-CNN or Mask R-CNN as two stages: the pyramid, and the heads on given regions.

    | path | value |
    |---|---|
    | `"s"` | the pyramid: maps by the names of its levels |
    | `"ss"`: `classes` | `[regions, classes]`, of all images in a row |
    | `boxes` | `[regions, 4 · classes]` |
    | `masks`, of a mask head | `[positives, classes, height, width]` |

    Args:
        detector: The detector. Its parts are not touched; their modes are read at every call.

    Raises:
        TypeError: It is no detector of two stages.
        ValueError: It has a keypoint head.
    """
    heads: Any = _check_two_stage("two_stage", detector).roi_heads
    batch, pools = ["sizes", "regions"], [heads.box_roi_pool]
    if _has_masks(detector):
        batch.append("positives")
        pools.append(heads.mask_roi_pool)
    levels = frozenset(name for pool in pools for name in pool.featmap_names)
    return Network(
        stages=(
            partial(_first, stage(_Pyramid(detector))),
            partial(_with_batch, stage(_Heads(detector), protect=False), batch),
        ),
        params=dict(detector.named_parameters()),
        buffers=dict(detector.named_buffers()),
        names=("backbone", "roi_heads"),
        shapes=(None, None),
        cuts=(),
        proof="",
        layouts=("b c h w", None),
        reads=(None, levels),
    )


def proposals(detector: nn.Module) -> Stage:
    """The regions of a student with its labels, as a stage of the input `(prepared, pyramid)`.

    The detector's own region proposals, its own matching to targets and its own sampling, which draw from
    torch's generator as it does. Regions get no gradient, as in the detector.

    Args:
        detector: A Faster R-CNN or Mask R-CNN in train mode.

    Returns:
        A stage `(params, buffers, (prepared, pyramid)) -> (found, new_buffers)`. `found.losses` are the
        losses of the region proposals; those of the heads are terms, of `found.labels`.

    Raises:
        TypeError: It is no detector of two stages.
        ValueError: It has a keypoint head. The stage: the detector is in eval mode, or has no targets.
    """
    _check_two_stage("proposals", detector)
    return partial(_of_proposals, stage(_Proposals(detector), protect=False))


def _of_proposals(run: Stage, params: Params, buffers: Buffers, x: Any) -> tuple[Any, dict[str, Tensor]]:
    """Statistics of the heads belong to the path through them, and not to the proposals."""
    found, new = run(params, buffers, x)
    return found, {name: tensor for name, tensor in new.items() if name.startswith("rpn.")}


class _Pyramid(nn.Module):
    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = detector.backbone

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        backbone: Any = self.backbone
        maps = backbone(images)
        return {"0": maps} if isinstance(maps, Tensor) else dict(maps)


class _Heads(nn.Module):
    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.roi_heads = detector.roi_heads
        self.has_masks = _has_masks(detector)

    def forward(self, x: Any) -> dict[str, Tensor]:
        heads: Any = self.roi_heads
        pyramid, sizes, regions = x[0], _listed(x[1]), x[2]
        if not regions:
            raise ValueError("the batch holds no regions yet; fill it: fcfd.detection.with_regions")
        classes, boxes = heads.box_predictor(heads.box_head(heads.box_roi_pool(pyramid, regions, sizes)))
        out = {"classes": classes, "boxes": boxes}
        if self.has_masks:
            out["masks"] = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(pyramid, x[3], sizes)))
        return out


class _Proposals(nn.Module):
    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.rpn = detector.rpn
        self.roi_heads = detector.roi_heads
        self.has_masks = _has_masks(detector)

    def forward(self, x: tuple[Prepared, dict[str, Tensor]]) -> Found:
        (inputs, targets), pyramid = x
        rpn: Any = self.rpn
        if not rpn.training:
            raise ValueError("the detector is in eval mode, and has no losses there; call train().")
        if targets is None:
            raise ValueError("there are no targets; give prepare(detector, images, targets).")
        heads: Any = self.roi_heads
        boxes, losses = rpn(_Images(inputs["images"], _listed(inputs["sizes"])), pyramid, targets)
        regions, matched, classes, deltas = heads.select_training_samples(boxes, targets)
        labels = {"classes": torch.cat(classes), "boxes": torch.cat(deltas)}
        if not self.has_masks:
            return Found(losses, labels, regions)
        positive = [own > 0 for own in classes]
        positives = [own[kept] for own, kept in zip(regions, positive, strict=True)]
        size = self._mask_size(pyramid)
        masks, own_classes = [], []
        for target, boxes_of_one, at, kept in zip(targets, positives, matched, positive, strict=True):
            masks.append(self._cropped(target["masks"], boxes_of_one, at[kept], size))
            own_classes.append(target["labels"][at[kept]])
        labels |= {"masks": torch.cat(masks), "mask_classes": torch.cat(own_classes)}
        return Found(losses, labels, regions, positives)

    def _mask_size(self, pyramid: dict[str, Tensor]) -> int:
        """The side of the masks that the head draws."""
        heads: Any = self.roi_heads
        level = next(iter(pyramid.values()))
        pooled = level.detach().new_zeros(1, level.shape[1], *heads.mask_roi_pool.output_size)
        with torch.no_grad():
            size: int = heads.mask_predictor(heads.mask_head(pooled)).shape[-1]
        return size

    def _cropped(self, masks: Tensor, boxes: Tensor, at: Tensor, size: int) -> Tensor:
        """The masks of matched objects, cut out by their regions, as the detector's own loss reads them."""
        heads: Any = self.roi_heads
        kind = type(heads.mask_roi_pool)
        pool = kind(["0"], size, -1)
        order = at.argsort(stable=True)
        rows = [boxes[order][at[order] == one] for one in range(len(masks))]
        if not len(boxes):
            return boxes.new_zeros(0, size, size)
        drawn: Tensor = pool({"0": masks[:, None].to(boxes)}, rows, [tuple(masks.shape[-2:])] * len(masks))
        return drawn[order.argsort(), 0]


# One stage


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
    head: Any = _check_parts("one_stage", detector, wanted, _ONE).head
    check_integer("one_stage", "at", at, least=0)
    batch = ("images", "sizes")
    stages: list[Stage] = [partial(_first, stage(_Pyramid(detector)))]
    if at:
        towers = {name: _halves(head, name, at) for name in _TOWERS}
        stages.append(stage(_Towers({name: first for name, (first, _) in towers.items()}), protect=False))
        rest = {name: _changed(getattr(head, name), conv=late) for name, (_, late) in towers.items()}
    else:
        rest = {name: getattr(head, name) for name in _TOWERS}
    # The rest begins with an activation, which may be in place.
    stages.append(partial(_with_batch, stage(_Outputs(detector, rest)), batch))
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
    _check_parts("labels", detector, wanted, _ONE)
    return partial(_labels, detector)


def _labels(
    detector: Any, prepared: Prepared, pyramid: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> Found:
    if prepared.targets is None:
        raise ValueError("labels: there are no targets; give prepare(detector, images, targets).")
    maps, targets = list(pyramid.values()), prepared.targets
    anchors = _anchors(detector.anchor_generator, prepared.inputs["images"], prepared.inputs["sizes"], maps)
    seen: list[list[Tensor]] = []
    noting = _changed(detector, head=_Noting(detector.head, seen))
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
    found: list[Tensor] = copy.copy(generator)(_Images(images, _listed(sizes)), maps)
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


def _changed(module: Any, **parts: Any) -> Any:
    """A module with other parts. It shares the rest with the original, which stays as it is."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = {**module._modules, **parts}
    return twin


# Stages that read the batch


def _first(run: Stage, params: Params, buffers: Buffers, x: Any) -> tuple[Any, dict[str, Tensor]]:
    check_mapping("detection", "the batch", x, "fcfd.detection.prepare(detector, images).inputs")
    return run(params, buffers, x["images"])


def _with_batch(
    run: Stage, names: Sequence[str], params: Params, buffers: Buffers, x: Any
) -> tuple[Any, dict[str, Tensor]]:
    """Run a stage on a feature and entries of the batch, which a walk puts among the buffers."""
    for name in names:
        if name not in buffers:
            raise ValueError(
                f"the batch has no {name!r}; give each network its own: "
                "{'s': prepare(student, images).inputs, ...}"
            )
    return run(params, buffers, (x, *(buffers[name] for name in names)))


# Checks


def _check_parts(function: str, detector: Any, parts: Sequence[str], wanted: str) -> Any:
    missing = [name for name in parts if not hasattr(detector, name)]
    if not isinstance(detector, nn.Module) or missing:
        raise TypeError(
            f"{function}: detector is of type {type(detector).__name__}, without {', '.join(missing)}; "
            f"give {wanted}."
        )
    return detector


def _check_two_stage(function: str, detector: Any) -> Any:
    heads = _check_parts(function, detector, ("transform", "backbone", "rpn", "roi_heads"), _TWO).roi_heads
    parts = ("box_roi_pool", "box_head", "box_predictor", "select_training_samples")
    _check_parts(function, heads, parts, f"the heads of {_TWO}")
    if getattr(heads, "keypoint_predictor", None) is not None:
        raise ValueError(
            f"{function}: {type(detector).__name__} has a keypoint head, of which no recipe knows. Set its "
            "roi_heads.keypoint_predictor to None to leave it out, or split the detector at 'backbone' for "
            "hints."
        )
    return detector


def _has_masks(detector: Any) -> bool:
    heads = getattr(detector, "roi_heads", None)
    return getattr(heads, "mask_predictor", None) is not None
