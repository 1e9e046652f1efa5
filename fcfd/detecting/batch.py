"""The batch of a detector: images as it sees them, its targets, and regions in its pixels."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._text import check_mapping, check_type
from .._tree import shape
from ._parts import ONE, TWO, Sizes, check_parts, has_masks, listed


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
    transform: Any = check_parts("prepare", detector, ("transform",), f"{TWO}, or {ONE}").transform
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
        if has_masks(detector):
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
    entries = ("boxes", "labels", "masks") if has_masks(detector) else ("boxes", "labels")
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
        regions, listed(before), listed(after), strict=True
    ):
        ratios = (new_width / width, new_height / height)
        scaled.append(boxes if ratios == (1, 1) else boxes * boxes.new_tensor([*ratios, *ratios]))
    return scaled
