"""A small teacher and student of four stages, with what goes wrong in practice: BatchNorm, in-place ReLU."""

import torch
from torch import Tensor, nn

import fcfd


def stages(width: int, classes: int = 10) -> list[nn.Module]:
    def block(channels: int, out: int, stride: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
        )

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))
    return [block(3, width, 1), block(width, 2 * width, 2), block(2 * width, 4 * width, 2), head]


def batch(size: int = 4, classes: int = 10, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, 8, 8, generator=generator, dtype=dtype)
    return images, torch.randint(classes, (size,), generator=generator)


def pair(
    *, teacher_classes: int = 10, teacher_mode: str = "eval", dtype: torch.dtype = torch.float64
) -> tuple[nn.ModuleList, nn.ModuleList, fcfd.Linked]:
    """Teacher, student, and both linked."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = nn.ModuleList(stages(4, teacher_classes)).to(dtype).train(teacher_mode == "train")
        student = nn.ModuleList(stages(3)).to(dtype)
        networks = {"t": fcfd.split(list(teacher)), "s": fcfd.split(list(student))}
        return teacher, student, fcfd.link(networks, example=batch(dtype=dtype)[0])
