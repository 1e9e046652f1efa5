"""What a step of FCFD keeps for its backward pass, and holds at its worst, by the transform of its teacher.

`python -m benchmarks.memory` runs pairs of networks with the teacher's column as it is, lean, checkpointed,
and both. What is kept is counted by hooks on what autograd saves, each storage once; the peak is that of the
whole step. Rules: `benchmarks/README.md`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fcfd
from fcfd import losses
from fcfd.stages import Column
from fcfd.transforms import checkpointed, compiled, lean
from reference import torchvision_cpu
from reference.zoo import NETWORKS

from .common import (
    Call,
    environment,
    interleaved,
    mebibytes,
    microseconds,
    parser,
    peak_memory,
    publish,
    pyplot,
    ratio,
    show,
    summary,
)

TRANSFORMS: dict[str, Callable[[Column], Column]] = {
    "plain": lambda stages: stages,
    "lean": lean,
    "checkpointed": checkpointed,
    "both": lambda stages: checkpointed(lean(stages)),
}
"""What is done to the teacher's column; the student learns and is left alone."""


class Pair(NamedTuple):
    """Two networks as functions that build them, and what they read."""

    teacher: Callable[[], nn.Module]
    student: Callable[[], nn.Module]
    at: tuple[Sequence[str] | None, Sequence[str] | None]  # where both are cut
    pixels: int
    batch: int


def _zoo(name: str, classes: int) -> tuple[Callable[[], nn.Module], Sequence[str]]:
    build, at = NETWORKS[name]
    return lambda: build(num_classes=classes), at


def _of_zoo(teacher: str, student: str, pixels: int, classes: int, batch: int) -> Pair:
    (build_t, at_t), (build_s, at_s) = _zoo(teacher, classes), _zoo(student, classes)
    return Pair(build_t, build_s, (list(at_t), list(at_s)), pixels, batch)


def _vit(width: int, depth: int, pixels: int, patch: int) -> nn.Module:
    torchvision_cpu.prepare()
    from torchvision.models import VisionTransformer

    model: nn.Module = VisionTransformer(pixels, patch, depth, width // 64, width, 4 * width, num_classes=100)
    nn.init.normal_(model.heads.head.weight, std=0.02)  # type: ignore[union-attr, arg-type]
    return model


def _blocks(*ends: int) -> list[str]:
    return [f"encoder.layers.encoder_layer_{at}" for at in ends]


PAIRS = {
    "cifar": _of_zoo("resnet32x4", "resnet8x4", 32, 100, 16),
    "imagenet": _of_zoo("resnet34IN", "resnet18IN", 224, 1000, 2),
    "vit": Pair(
        lambda: _vit(384, 8, 112, 8),
        lambda: _vit(192, 4, 112, 8),
        (_blocks(1, 3, 5), _blocks(0, 1, 2)),
        112,
        2,
    ),
    "resnet to vit": Pair(
        _zoo("resnet34IN", 100)[0],
        lambda: _vit(192, 4, 112, 16),
        (list(NETWORKS["resnet34IN"].at)[1:], _blocks(0, 1, 2)),
        112,
        4,
    ),
}


class Step(NamedTuple):
    """A linked pair, and a batch of images with labels."""

    nets: fcfd.Linked
    student: nn.Module
    images: Tensor
    labels: Tensor
    paths: tuple[str, ...]


def step(pair: Pair, batch: int, device: str) -> Step:
    """Build both networks, link them by the two longest paths from the student into the teacher."""
    torch.manual_seed(0)
    images = torch.randn(batch, 3, pair.pixels, pair.pixels, device=device)
    labels = torch.randint(100, (batch,), device=device)
    models = {"t": pair.teacher().to(device).eval(), "s": pair.student().to(device)}
    cut = {
        letter: fcfd.split(model, at=at, example=images[:2])
        for (letter, model), at in zip(models.items(), pair.at, strict=True)
    }
    depth = len(cut["s"].stages)
    paths = [path for path in fcfd.crossings(depth, first=depth - 3) if path[0] == "s"]
    bridged = fcfd.bridged(depth, first=depth - 3)
    nets = fcfd.link(cut, example=images[:2], paths=(*paths, *bridged))
    return Step(nets, models["s"], images, labels, tuple(paths[:2]))


def call(on: Step, transform: Callable[[Column], Column]) -> Callable[[], Tensor]:
    """The loss of a step whose teacher's column is transformed."""
    stages = {**on.nets.stages, "t": transform(on.nets.stages["t"])}

    def run() -> Tensor:
        return losses.fcfd(stages, *on.nets.columns[1:], on.images, on.labels, paths=on.paths)[0]

    return run


def kept(on: Step, run: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass beside weights, statistics and the batch."""
    held: dict[int, Tensor] = {}

    def hold(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        loss = run()
    dicts = (*on.nets.params.values(), *on.nets.buffers.values(), {"": on.images})
    own = {each.untyped_storage().data_ptr() for one in dicts for each in one.values()}
    count = sum(each.untyped_storage().nbytes() for at, each in held.items() if at not in own)
    del loss
    return count


def _whole(on: Step, run: Callable[[], Tensor]) -> Call:
    """Forward and backward; gradients are not left behind, so that they count as memory of the step."""
    learns = [*on.student.parameters(), *on.nets.bridges.parameters()]

    def both() -> None:
        run().backward()
        for parameter in learns:
            parameter.grad = None

    return both


def gradients(on: Step, run: Callable[[], Tensor]) -> list[Tensor]:
    """The gradients of the student and the bridges."""
    learns = [*on.student.parameters(), *on.nets.bridges.parameters()]
    return [each for each in torch.autograd.grad(run(), learns, allow_unused=True) if each is not None]


def compare(name: str, device: str, seconds: float, *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """One record for each transform, after its gradients were found to be those of the plain step."""
    pair = PAIRS[name]
    on = step(pair, 2 if quick else pair.batch, device)
    calls = {way: call(on, transform) for way, transform in TRANSFORMS.items()}
    wanted = gradients(on, calls["plain"])
    for way, run in calls.items():
        torch.testing.assert_close(gradients(on, run), wanted, rtol=1e-2, atol=1e-4, msg=way)
    whole = {way: _whole(on, run) for way, run in calls.items()}
    times = interleaved(whole, device=device, seconds=seconds, least=3, warm_up=1) if seconds else {}
    for way, run in calls.items():
        record = {
            "pair": name,
            "variant": way,
            "batch": len(on.images),
            "kept": kept(on, run),
            "peak": peak_memory(whole[way], device=device),
        }
        if times:
            record |= summary(times[way])._asdict()
            record["time to plain"] = ratio(times[way], times["plain"])
        yield record


def partitioned(name: str, device: str) -> Iterator[dict[str, Any]]:
    """What the partitioner of a compiled graph keeps: the teacher's column compiled; nothing is timed."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.compilers import nop  # part of torch; the old functorch package is not needed
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    backend = aot_autograd(
        fw_compiler=nop,
        bw_compiler=nop,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table,
    )
    on = step(PAIRS[name], 2, device)
    for way in ("plain", "lean"):
        torch.compiler.reset()
        transform = TRANSFORMS[way]

        def change(stages: Column, transform: Callable[[Column], Column] = transform) -> Column:
            return compiled(transform(stages), backend=backend, dynamic=False)

        yield {"pair": name, "variant": f"{way}, compiled", "batch": 2, "kept": kept(on, call(on, change))}


def lines(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A line for each record; sizes in units of the plain step of the same kind."""
    for record in records:
        end = ", compiled" if record["variant"].endswith("compiled") else ""
        plain = next(
            one for one in records if one["variant"] == f"plain{end}" and one["pair"] == record["pair"]
        )
        peak, timed = "peak" in record, "time to plain" in record
        yield (
            record["pair"],
            record["variant"],
            str(record["batch"]),
            mebibytes(record["kept"]),
            f"{record['kept'] / plain['kept']:.3f}×",
            mebibytes(record["peak"]) if peak else "",
            f"{record['peak'] / plain['peak']:.2f}×" if peak else "",
            microseconds(record["median"]) if timed else "",
            f"{record['time to plain']:.2f}×" if timed else "",
        )


COLUMNS = ("pair", "teacher", "batch", "kept MiB", "÷ plain", "peak MiB", "÷ plain", "step", "÷ plain")


def largest(record: Mapping[str, Any], budget: float) -> float:
    """The batch whose peak is a budget, if the peak grows with the batch as a whole."""
    return budget / record["peak"] * record["batch"]  # type: ignore[no-any-return]


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The largest batch against the memory of a device, a panel for each pair."""
    figures = pyplot()
    timed = [record for record in records if "peak" in record]
    names = list(dict.fromkeys(record["pair"] for record in timed))
    if figures is None or not names:
        return
    figure, axes = figures.subplots(
        1, len(names), figsize=(3 * len(names), 3), layout="constrained", squeeze=False
    )
    budgets = [2**power for power in range(30, 36)]
    for panel, name in zip(axes[0], names, strict=True):
        for record in timed:
            if record["pair"] == name:
                batches = [largest(record, budget) for budget in budgets]
                panel.plot([budget / 2**30 for budget in budgets], batches, label=record["variant"])
        panel.set(title=name, xlabel="GiB", ylabel="largest batch", xscale="log", yscale="log")
        panel.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    figures.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser(__doc__, "memory")
    command.add_argument("--quick", action="store_true", help="tiny batches, few samples")
    command.add_argument("--pairs", nargs="+", choices=tuple(PAIRS), default=list(PAIRS))
    command.add_argument("--seconds", type=float, default=10.0, help="of timing for each pair; 0: none")
    command.add_argument("--minutes", type=float, default=5.0, help="start no pair after these")
    command.add_argument("--compiled", action="store_true", help="what a compiled teacher keeps, too")
    options = command.parse_args(arguments)

    deadline = perf_counter() + 60 * options.minutes
    name = options.name or options.device
    records: list[dict[str, Any]] = []
    for pair in options.pairs:
        if perf_counter() > deadline:
            print(f"left out: {pair}")
            continue
        seconds = min(options.seconds, 0.1) if options.quick else options.seconds
        found = [compare(pair, options.device, seconds, quick=options.quick)]
        if options.compiled:
            found.append(partitioned(pair, options.device))
        for record in chain(*found):
            records.append(record)
            publish(options.out, name, records, environment=environment(options.device))
    show("Memory", COLUMNS, lines(records))
    plot(records, options.out / f"{name}.svg")


if __name__ == "__main__":
    main()
