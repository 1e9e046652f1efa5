"""Tiny detectors of torchvision: narrow pyramids on small images, with BatchNorm in every backbone."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from reference.torchvision_cpu import prepare

prepare()

from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet  # noqa: E402
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator  # noqa: E402
from torchvision.models.detection.backbone_utils import BackboneWithFPN  # noqa: E402
from torchvision.models.detection.fcos import FCOSHead  # noqa: E402
from torchvision.models.detection.retinanet import RetinaNetHead  # noqa: E402
from torchvision.models.detection.ssd import SSD  # noqa: E402
from torchvision.ops import MultiScaleRoIAlign  # noqa: E402
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7  # noqa: E402

CLASSES = 4
SIDE = 64


def body(width: int, blocks: int = 4) -> nn.Sequential:
    """Blocks that halve their maps; the first quarters them."""
    parts, channels = OrderedDict(), 3
    for at in range(blocks):
        conv = nn.Conv2d(channels, width, 3, 4 if at == 0 else 2, 1, bias=False)
        parts[f"layer{at + 1}"] = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        channels = width
    return nn.Sequential(parts)


def pyramid(
    width: int, out: int, levels: int = 4, first: int = 0, extra: nn.Module | None = None
) -> nn.Module:
    """A backbone with a pyramid of some levels and one more above them."""
    layers = {f"layer{at + 1}": str(at - first) for at in range(first, levels)}
    return BackboneWithFPN(
        body(width, levels), layers, [width] * len(layers), out, extra_blocks=extra or LastLevelMaxPool()
    )


def anchors(levels: int) -> AnchorGenerator:
    return AnchorGenerator(tuple((8 * 2**at,) for at in range(levels)), ((0.5, 1.0, 2.0),) * levels)


def two_stage(
    width: int, out: int, *, classes: int = CLASSES, masks: bool = False, side: int = SIDE, levels: int = 4
) -> nn.Module:
    names = [str(at) for at in range(levels)]
    pool = MultiScaleRoIAlign(names, 3, 2, canonical_scale=32)
    options = {
        "min_size": side,
        "max_size": 2 * side,
        "rpn_anchor_generator": anchors(levels + 1),
        "box_roi_pool": pool,
        "rpn_pre_nms_top_n_train": 40,
        "rpn_post_nms_top_n_train": 20,
        "box_batch_size_per_image": 12,
    }
    if masks:
        options["mask_roi_pool"] = MultiScaleRoIAlign(names, 4, 2, canonical_scale=32)
    return (MaskRCNN if masks else FasterRCNN)(pyramid(width, out, levels), classes, **options)


def retinanet(width: int, out: int, *, classes: int = CLASSES, side: int = SIDE, norm=None) -> nn.Module:
    backbone = pyramid(width, out, 4, 1, LastLevelP6P7(out, out))
    generator = anchors(5)
    head = RetinaNetHead(out, generator.num_anchors_per_location()[0], classes, norm_layer=norm)
    return RetinaNet(
        backbone, classes, anchor_generator=generator, head=head, min_size=side, max_size=2 * side
    )


def fcos(width: int, out: int = 32, *, classes: int = CLASSES, side: int = SIDE) -> nn.Module:
    backbone = pyramid(width, out, 4, 1, LastLevelP6P7(out, out))
    return FCOS(backbone, classes, head=FCOSHead(out, 1, classes), min_size=side, max_size=2 * side)


class Levels(nn.Module):
    """The last maps of a body, each with its own width, as SSD reads them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = body(width, 3)
        self.out_channels = [width, width]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.features.layer2(self.features.layer1(x))
        return OrderedDict([("0", first), ("1", self.features.layer3(first))])


def ssd(width: int, *, classes: int = CLASSES) -> nn.Module:
    generator = DefaultBoxGenerator([[2], [2]], scales=[0.2, 0.5, 0.9])
    return SSD(Levels(width), generator, (SIDE, SIDE), classes)


def scenes(
    sizes: tuple[tuple[int, int], ...] = ((64, 80), (72, 64)),
    *,
    objects: tuple[int, ...] = (2, 1),
    masks: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 3,
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Random images with random objects."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for (height, width), count in zip(sizes, objects, strict=True):
        images.append(torch.rand(3, height, width, generator=generator, dtype=dtype))
        corner = torch.rand(count, 2, generator=generator, dtype=dtype) * 30
        size = 12 + torch.rand(count, 2, generator=generator, dtype=dtype) * 20
        boxes = torch.cat([corner, corner + size], 1)
        target = {"boxes": boxes, "labels": torch.randint(1, CLASSES, (count,), generator=generator)}
        if masks:
            drawn = torch.zeros(count, height, width, dtype=torch.uint8)
            for one, (x1, y1, x2, y2) in zip(drawn, boxes.round().int().tolist(), strict=True):
                one[y1:y2, x1 : (x1 + x2) // 2 + 1] = 1
            target["masks"] = drawn
        targets.append(target)
    return images, targets
