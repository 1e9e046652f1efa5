"""What a step of FCFD keeps for its backward pass, and holds at its worst, by what is done to its teacher.

`python -m benchmarks.memory` runs pairs of networks with the teacher's column as it is, lean, checkpointed,
and both; of language models also with losses between hidden states and heads. What is kept is held once the
forward pass has returned; the peak is that of the whole step; the largest batch is searched by measuring.
Compiled, it is what the partitioner keeps. Rules: `benchmarks/README.md`.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

import fcfd
from fcfd import losses
from fcfd.stages import Column
from fcfd.transforms import compiled, deferred

from .common import (
    Call,
    environment,
    held_memory,
    interleaved,
    mebibytes,
    microseconds,
    parser,
    peak_memory,
    publish,
    published,
    pyplot,
    ratio,
    show,
    summary,
)
from .memory_pairs import HEAD, PAIRS, Pair, Way, of_tokens
from .step import TOLERANCE, difference

TIMES = {"cpu": 1, "cuda": 16}
"""A batch is so many times that of a CPU."""
CHUNK = {"cpu": 2**27, "cuda": 2**29}
"""Bytes that a chunk of logits may take."""


class Step(NamedTuple):
    """A linked pair, and a batch with labels."""

    pair: Pair
    nets: fcfd.Linked
    student: nn.Module
    batch: Tensor
    labels: Tensor
    paths: tuple[str, ...]


def step(pair: Pair, batch: int, device: str) -> Step:
    """Build both networks, link them by the two longest paths from the student into the teacher."""
    torch.manual_seed(0)
    inputs, labels = pair.draw(batch, device)
    models = {"t": pair.teacher().to(device).eval(), "s": pair.student().to(device)}
    cut = {
        letter: fcfd.split(model, at=None if at is None else list(at), example=inputs[:2])
        for (letter, model), at in zip(models.items(), pair.at, strict=True)
    }
    depth = len(cut["s"].stages)
    paths = [path for path in fcfd.crossings(depth, first=depth - 3) if path[0] == "s"]
    bridged = fcfd.bridged(depth, first=depth - 3)
    nets = fcfd.link(cut, example=inputs[:2], paths=(*paths, *bridged))
    return Step(pair, nets, models["s"], inputs, labels, tuple(paths[:2]))


def call(on: Step, way: Way, change: Callable[[Column], Column] | None = None) -> Callable[[], Tensor]:
    """The loss of a step in some way; every column is changed further, if that is given."""
    stages = dict(on.nets.stages)
    of_logits = None
    if not on.batch.is_floating_point():
        heads = way.heads and (lambda loss: way.heads(loss, memory=CHUNK[on.batch.device.type]))  # type: ignore[misc]
        of_logits = partial(of_tokens, heads=heads)
        if heads is not None:
            stages |= {letter: deferred(stages[letter], HEAD) for letter in "st"}
    stages["t"] = way.column(stages["t"])
    if change is not None:
        stages = {name: change(column) for name, column in stages.items()}

    def run() -> Tensor:
        columns = (stages, *on.nets.columns[1:])
        return losses.fcfd(*columns, on.batch, on.labels, paths=on.paths, change=of_logits)[0]

    return run


def _learns(on: Step) -> list[Tensor]:
    return [*on.student.parameters(), *on.nets.bridges.parameters()]


def _whole(on: Step, run: Callable[[], Tensor]) -> Call:
    """Forward and backward; gradients are not left behind, so that they count as memory of the step."""
    learns = _learns(on)

    def both() -> None:
        run().backward()
        for parameter in learns:
            parameter.grad = None

    return both


def gradients(on: Step, run: Callable[[], Tensor]) -> list[Tensor]:
    """The loss, and the gradients of the student and the bridges."""
    loss = run()
    found = torch.autograd.grad(loss, _learns(on), allow_unused=True)
    return [loss.detach(), *(each for each in found if each is not None)]


def largest(on: Step, way: Way, budget: int) -> tuple[int, int]:
    """The largest batch whose peak was measured to be within a budget, and that peak; 0 if none is.

    A line through the two largest measurements proposes the next batch. The search ends where a batch that
    is larger by an eighth, or by one, was measured not to fit.
    """
    device = on.batch.device.type

    def peak(batch: int) -> int:
        inputs, labels = on.pair.draw(batch, device)
        other = on._replace(batch=inputs, labels=labels)
        return peak_memory(_whole(other, call(other, way)), device=device, warm_up=False)

    found = {batch: peak(batch) for batch in (1, 2)}
    while True:
        fits = max((batch for batch, size in found.items() if size <= budget), default=0)
        fails = min((batch for batch, size in found.items() if size > budget), default=16 * max(found))
        if fails in found and fails - fits <= max(1, fits // 8):
            return fits, found.get(fits, 0)
        (low, below), (high, above) = sorted(found.items())[-2:]
        line = low + int((budget - below) * (high - low) / max(above - below, 1))
        proposed = min(max(line, fits + max(1, fits // 8)), fails - 1)
        found[proposed] = peak(proposed)


# What is measured of a pair: for each way, entries of its record


Entries: TypeAlias = Iterator[tuple[str, dict[str, Any]]]


def memory(on: Step, options: argparse.Namespace) -> Entries:
    """What is kept, and the peak, after the gradients were found to be those of the plain step."""
    wanted: list[Tensor] = []
    for name, way in on.pair.ways.items():
        try:
            run = call(on, way)
            found = gradients(on, run)
            wanted = wanted or found
            if not difference(found, wanted) <= TOLERANCE["float32"]:
                raise ValueError(f"gradients differ by {difference(found, wanted):.1e}")
            counted = {"device": options.device, "warm_up": False}  # it ran already
            peak = peak_memory(_whole(on, run), **counted)
            sizes = {"kept": held_memory(run, **counted), "peak": peak}
        except Exception as error:  # too little memory for the plain step, say
            yield name, _why(error)
        else:
            yield name, sizes


def _why(error: Exception) -> dict[str, Any]:
    return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def times(on: Step, options: argparse.Namespace) -> Entries:
    """Seconds of a step, and in units of the plain one's, if that runs."""
    calls: dict[str, Call] = {}
    for name, way in on.pair.ways.items():
        whole = _whole(on, call(on, way))
        try:
            whole()
        except Exception as error:
            yield name, _why(error)
        else:
            calls[name] = whole
    found = interleaved(calls, device=options.device, seconds=options.seconds, least=3, warm_up=0)
    for name, samples in found.items():
        unit = {"time to plain": ratio(samples, found["plain"])} if "plain" in found else {}
        yield name, {**summary(samples)._asdict(), **unit}


def batches(on: Step, options: argparse.Namespace) -> Entries:
    """The largest batch within a budget."""
    budget = int(options.budget * 2**30)
    for name, way in on.pair.ways.items():
        batch, peak = largest(on, way, budget)
        yield name, {"budget": budget, "largest batch": batch, "its peak": peak}


def partitioned(on: Step, options: argparse.Namespace) -> Entries:
    """What partitioners keep of compiled columns, a graph a stage; no code is generated, nothing timed."""
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
    for name, way in on.pair.ways.items():
        torch.compiler.reset()
        run = call(on, way, partial(compiled, backend=backend, dynamic=False))
        yield name, {"kept compiled": held_memory(run, device=options.device)}


MEASURES: dict[str, Callable[[Step, argparse.Namespace], Entries]] = {
    "memory": memory,
    "time": times,
    "largest": batches,
    "compiled": partitioned,
}


# What is printed and kept


COLUMNS = (
    *("pair", "variant", "batch", "kept MiB", "÷ plain", "compiled", "÷ plain"),
    *("peak MiB", "÷ plain", "largest batch", "time", "÷ plain"),
)


def lines(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A line for each record; sizes in units of the plain step, compiled in units of the compiled one."""
    plain = {record["pair"]: record for record in records if record["variant"] == "plain"}
    for record in records:
        unit = plain.get(record["pair"], {})
        sizes = [
            (mebibytes(record[key]), f"{record[key] / unit[key]:.2f}×" if key in unit else "")
            if key in record
            else ("", "")
            for key in ("kept", "kept compiled", "peak")
        ]
        timed = "median" in record
        yield (
            record["pair"],
            record["variant"],
            str(record["batch"]),
            *(cell for pair in sizes for cell in pair),
            str(record.get("largest batch", "")),
            microseconds(record["median"]) if timed else "",
            f"{record['time to plain']:.2f}×" if "time to plain" in record else "",
        )


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The largest batch that was measured to fit a budget, a panel for each pair."""
    figures = pyplot()
    found = [record for record in records if "largest batch" in record]
    names = list(dict.fromkeys(record["pair"] for record in found))
    if figures is None or not names:
        return
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure, axes = figures.subplots(
        down, across, figsize=(3 * across, 2 * down), layout="constrained", squeeze=False
    )
    for panel in axes.flat[len(names) :]:
        panel.axis("off")
    for panel, name in zip(axes.flat, names, strict=False):
        own = [record for record in found if record["pair"] == name][::-1]
        bars = panel.barh([record["variant"] for record in own], [record["largest batch"] for record in own])
        panel.bar_label(bars, padding=2)
        panel.margins(x=0.15)
        panel.set(title=name, xlabel=f"largest batch in {own[0]['budget'] / 2**30:g} GiB")
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    figures.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser(__doc__, "memory")
    command.add_argument("--quick", action="store_true", help="tiny batches, few samples")
    command.add_argument("--pairs", nargs="+", choices=tuple(PAIRS), default=list(PAIRS))
    command.add_argument("--measure", nargs="+", choices=tuple(MEASURES), default=list(MEASURES))
    command.add_argument("--ways", nargs="+", metavar="WAY", help="a few of them only")
    command.add_argument("--seconds", type=float, default=10.0, help="of timing for each pair")
    command.add_argument("--budget", type=float, default=1.0, help="GiB that the largest batch may take")
    command.add_argument("--minutes", type=float, default=math.inf, help="begin nothing after these")
    command.add_argument("--add", action="store_true", help="to the records that the file has")
    options = command.parse_args(arguments)
    if options.quick:
        options.seconds, options.budget = 0.1, 0.1

    deadline = perf_counter() + 60 * options.minutes
    name = options.name or options.device
    about = environment(options.device)
    before = published(options.out, name, about) if options.add else []
    records: Records = {(record["pair"], record["variant"]): record for record in before}
    failed = []
    for pair in options.pairs:
        if perf_counter() > deadline:
            print(f"left out: {pair}")
            continue
        batch = 1 if options.quick else PAIRS[pair].batch * TIMES[options.device]
        try:
            on = step(PAIRS[pair], batch, options.device)
            ways = {name: way for name, way in on.pair.ways.items() if name in (options.ways or on.pair.ways)}
            on = on._replace(pair=on.pair._replace(ways=ways))
        except ImportError as error:
            print(f"left out: {pair}, {error}")
            continue
        for measure in options.measure:
            try:
                for variant, entries in MEASURES[measure](on, options):
                    record = records.setdefault((pair, variant), {"pair": pair, "variant": variant})
                    record |= {"batch": batch, **entries}
                    publish(options.out, name, list(records.values()), environment=about)
                    print(f"  {pair}, {variant}: {', '.join(entries)}", flush=True)
            except Exception as error:  # one fault must not hide the next
                failed.append(f"{measure} of {pair}: {type(error).__name__}: {error}")
    show("Memory", COLUMNS, lines(list(records.values())))
    plot(list(records.values()), options.out / f"{name}.svg")
    failed += [
        f"{' of '.join(at[::-1])}: {each['failed']}" for at, each in records.items() if "failed" in each
    ]
    if failed:
        raise SystemExit("\n".join(f"FAILED: {each}" for each in failed))


Records: TypeAlias = dict[tuple[str, str], dict[str, Any]]


if __name__ == "__main__":
    main()
