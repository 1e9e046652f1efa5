"""torchvision's models and detection operators on a PyTorch for which its own operators do not load."""

import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from reference.torchvision_cpu import prepare

pytestmark = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")


@pytest.fixture(scope="module")
def ops():
    prepare()
    from torchvision import ops

    return ops


def test_a_fresh_process_imports_torchvision_after_prepare():
    program = "from reference.torchvision_cpu import prepare; prepare(); prepare(); import torchvision"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=root)


def test_resnet18_runs_forward_and_backward(ops):
    from torchvision.models import resnet18

    model = resnet18(num_classes=5)
    logits = model(torch.randn(2, 3, 64, 64))
    logits.sum().backward()
    assert logits.shape == (2, 5)
    assert model.conv1.weight.grad is not None


def test_nms_on_boxes_by_hand(ops):
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 8], [20, 20, 30, 30], [0, 0, 10, 4.0]])
    scores = torch.tensor([0.5, 0.9, 0.1, 0.8])
    # The second box overlaps the first by 0.8, the fourth by 0.5; only more than the threshold drops a box.
    assert ops.nms(boxes, scores, 0.5).tolist() == [1, 3, 2]
    assert ops.nms(boxes, scores, 0.49).tolist() == [1, 2]
    assert ops.nms(boxes, scores, 0.8).tolist() == [1, 3, 0, 2]
    assert ops.nms(boxes[:0], scores[:0], 0.5).shape == (0,)
    no_area = torch.zeros(2, 4)
    assert ops.nms(no_area, scores[:2], 0.5).tolist() == [1, 0]


def _naive_roi_align(maps, roi, scale, height, width, ratio, aligned):
    """One region, sample by sample, from the definition in the Mask R-CNN paper's code."""
    channels, rows, columns = maps.shape[1:]
    x1, y1, x2, y2 = (float(corner) * scale - 0.5 * aligned for corner in roi[1:])
    w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
    per_y, per_x = (ratio, ratio) if ratio > 0 else (math.ceil(h / height), math.ceil(w / width))
    out = torch.zeros(channels, height, width, dtype=maps.dtype)

    def sample(y, x):
        if y < -1 or y > rows or x < -1 or x > columns:
            return torch.zeros(channels, dtype=maps.dtype)
        y, x = min(max(y, 0.0), rows - 1.0), min(max(x, 0.0), columns - 1.0)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
        image, right_share = maps[int(roi[0])], x - left
        upper = torch.lerp(image[:, top, left], image[:, top, right], right_share)
        lower = torch.lerp(image[:, bottom, left], image[:, bottom, right], right_share)
        return torch.lerp(upper, lower, y - top)

    for i in range(height):
        for j in range(width):
            for a in range(per_y):
                for b in range(per_x):
                    y = y1 + h / height * (i + (a + 0.5) / per_y)
                    x = x1 + w / width * (j + (b + 0.5) / per_x)
                    out[:, i, j] += sample(y, x) / (per_y * per_x)
    return out


@pytest.mark.parametrize("ratio", [2, -1])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_and_its_gradient(ops, ratio, aligned):
    maps = torch.randn(2, 3, 9, 7, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(
        [[1, 2.0, 3, 11, 12], [0, 0.0, 0, 14, 18], [1, -7.0, -9, 4, 30], [0, 5.0, 5, 5.3, 5.4]],
        dtype=torch.float64,
    )
    found = ops.roi_align(maps, rois, (3, 2), spatial_scale=0.5, sampling_ratio=ratio, aligned=aligned)
    wanted = torch.stack([_naive_roi_align(maps, roi, 0.5, 3, 2, ratio, aligned) for roi in rois])
    torch.testing.assert_close(found, wanted)
    probe = torch.randn_like(found)
    (ours,) = torch.autograd.grad((found * probe).sum(), maps)
    (naive,) = torch.autograd.grad((wanted * probe).sum(), maps)
    torch.testing.assert_close(ours, naive)


@pytest.mark.parametrize("ratio", [2, -1])
def test_roi_align_without_regions_and_in_half_precision(ops, ratio):
    maps = torch.randn(2, 3, 9, 7)
    roi = torch.tensor([[1, 2.0, 3, 6, 7]])
    assert ops.roi_align(maps, roi[:0], 4, sampling_ratio=ratio).shape == (0, 3, 4, 4)
    half = ops.roi_align(maps.bfloat16(), roi.bfloat16(), 4, sampling_ratio=ratio)
    assert half.dtype == torch.bfloat16
    full = ops.roi_align(maps, roi, 4, sampling_ratio=ratio)
    torch.testing.assert_close(half.float(), full, rtol=0, atol=2e-2)


def _plain_nms(boxes, scores, threshold):
    """One box at a time."""
    from torchvision.ops import box_iou

    kept = []
    for at in scores.argsort(descending=True, stable=True).tolist():
        if not kept or box_iou(boxes[at : at + 1], boxes[kept]).max() <= threshold:
            kept.append(at)
    return kept


@pytest.mark.parametrize("count", [1, 60, 700])
def test_nms_in_blocks_is_that_of_one_box_at_a_time(ops, count):
    generator = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 40], 1)
    scores = (torch.rand(count, generator=generator) * 30).round() / 30  # some are equal
    for threshold in (0.3, 0.7):
        assert ops.nms(boxes, scores, threshold).tolist() == _plain_nms(boxes, scores, threshold)
