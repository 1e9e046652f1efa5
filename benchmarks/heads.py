"""A loss between heads, chunk by chunk, beside the loss of whole logits: `python -m benchmarks.heads`.

`kl` of tokens whose logits are a product of hidden states and a head. The student's hidden states and head
learn. The products of a step alone, in chunks too, are what no way can save. Rules: `benchmarks/README.md`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcfd import losses
from fcfd.losses import Logits

from .common import (
    Call,
    environment,
    interleaved,
    mebibytes,
    microseconds,
    parser,
    peak_memory,
    publish,
    ratio,
    show,
    summary,
)


class Size(NamedTuple):
    """Tokens and classes, and the widths of the student's and the teacher's hidden states."""

    tokens: int
    classes: int
    width: int
    teacher_width: int


SIZES = (Size(1024, 20_000, 256, 512), Size(4096, 50_000, 128, 256))
QUICK = Size(64, 1000, 16, 32)
MEMORY = (64, 512)
"""MiB that a chunk may take."""

PRODUCTS = "products alone"


def heads(size: Size, device: str) -> tuple[Logits, Logits]:
    """Student and teacher at random; the student learns."""
    generator = torch.Generator(device).manual_seed(0)
    pair = []
    for width in (size.width, size.teacher_width):
        hidden = torch.randn(size.tokens, width, generator=generator, device=device)
        head = torch.randn(size.classes, width, generator=generator, device=device) / math.sqrt(width)
        pair.append(Logits(hidden, head))
    for learned in pair[0][:2]:
        learned.requires_grad_()
    return pair[0], pair[1]


def ways(student: Logits, teacher: Logits, memory: Sequence[int]) -> dict[str, Callable[[], Tensor]]:
    """The mean over tokens, by each way."""

    def whole() -> Tensor:
        return losses.kl(student.hidden @ student.weight.mT, teacher.hidden @ teacher.weight.mT).mean()

    found = {"whole logits": whole}
    for mebi in memory:
        chunked = losses.chunked(losses.kl, memory=mebi * 2**20)
        fused = losses.fused(losses.kl, memory=mebi * 2**20)
        found[f"chunked, {mebi} MiB"] = lambda loss=chunked: loss(student, teacher).mean()  # type: ignore[misc]
        found[f"fused, {mebi} MiB"] = lambda loss=fused: loss(student, teacher)  # type: ignore[misc]
    return found


def products(student: Logits, teacher: Logits, memory: int) -> None:
    """The matrix products of a step: logits of both networks, and two gradients of the student's."""
    rows = memory * 2**20 // (32 * len(student.weight))
    hidden, weight = student.hidden.detach(), student.weight.detach()
    of_weight = torch.zeros_like(weight)
    for mine, theirs in zip(hidden.split(rows), teacher.hidden.split(rows), strict=True):
        _, logits = theirs @ teacher.weight.mT, mine @ weight.mT
        _ = logits @ weight
        of_weight.addmm_(logits.mT, mine)


def _gradients(run: Callable[[], Tensor], learned: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(run(), learned)


def measure(size: Size, device: str, *, memory: Sequence[int], seconds: float) -> Iterator[dict[str, Any]]:
    """A record for each way, once all were found to have the same gradients."""
    student, teacher = heads(size, device)
    learned = [student.hidden, student.weight]
    calls: dict[str, Call] = {
        name: partial(_gradients, run, learned) for name, run in ways(student, teacher, memory).items()
    }
    wanted = calls["whole logits"]()
    for name, call in calls.items():
        for a, b in zip(call(), wanted, strict=True):
            if not (a - b).norm() <= 1e-4 * b.norm():
                raise ValueError(f"heads: {name} has other gradients than whole logits, at {size}.")
    calls[PRODUCTS] = lambda: products(student, teacher, memory[0])
    samples = interleaved(calls, device=device, seconds=seconds, least=3, warm_up=0)
    unit = peak_memory(calls["whole logits"], device=device, warm_up=False)
    for name, call in calls.items():
        yield {
            **size._asdict(),
            "way": name,
            **summary(samples[name])._asdict(),
            "time to whole": ratio(samples[name], samples["whole logits"]),
            "peak": (peak := peak_memory(call, device=device, warm_up=False)),
            "peak to whole": peak / unit,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser(__doc__, "heads")
    command.add_argument("--quick", action="store_true", help="one tiny size, few samples")
    command.add_argument("--seconds", type=float, default=30.0, help="of timing for each size")
    command.add_argument("--minutes", type=float, default=math.inf, help="begin no size after these")
    options = command.parse_args(arguments)
    deadline, about = perf_counter() + 60 * options.minutes, environment(options.device)
    found: list[dict[str, Any]] = []
    for size in (QUICK,) if options.quick else SIZES:
        if perf_counter() > deadline:
            print(f"left out: {size} and what follows")
            break
        seconds = 0.1 if options.quick else options.seconds
        found += measure(size, options.device, memory=MEMORY, seconds=seconds)
        publish(options.out, options.name or options.device, found, environment=about)
    columns = ("tokens × classes", "way", "time", "÷ whole", "peak MiB", "÷ whole")
    rows = [
        (
            f"{record['tokens']:,} × {record['classes']:,}",
            record["way"],
            microseconds(record["median"]),
            f"{record['time to whole']:.2f}",
            mebibytes(record["peak"]),
            f"{record['peak to whole']:.2f}",
        )
        for record in found
    ]
    show("A loss between heads, forward and backward", columns, rows)


if __name__ == "__main__":
    main()
