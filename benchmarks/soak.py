"""Thousands of steps with random everything: does memory grow, does a number stop being finite?

`python -m benchmarks.soak --steps 5000` runs legs of steps. A leg draws its networks, precision, teacher,
transforms and optimizer from its number, and appends one line of what was seen; the same command goes on
after the last line. A process of one thread; nothing is timed.
"""

import argparse
import gc
import json
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import fcfd
from fcfd import losses, schedules

from .common import RESULTS
from .networks import network

LEG = 100


class Draw(NamedTuple):
    """What a leg draws."""

    student: str
    precision: str
    teacher: str
    transform: str
    optimizer: str
    crossings: int


class Seen(NamedTuple):
    """What is left after a leg, and whether all it saw was finite."""

    loss: float
    finite: bool
    skipped: int
    resident: float  # MiB
    tensors: int


STUDENTS: dict[str, Callable[[], nn.Sequential]] = {
    "narrow": partial(network, 4, convolutions=1, first_stride=1),
    "deep": partial(network, 8, convolutions=2, first_stride=1),
    "strided": partial(network, 8, convolutions=1, first_stride=2),
}
PRECISIONS = ("float32", "teacher in bfloat16", "autocast bfloat16", "autocast float16, scaled")
TRANSFORMS: dict[str, Callable[[fcfd.stages.Column], fcfd.stages.Column]] = {
    "plain": lambda column: column,
    "checkpointed": fcfd.checkpointed,
    "compiled": partial(fcfd.compiled, backend="aot_eager"),
}
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda own: torch.optim.SGD(own, 0.02, momentum=0.9),
    "adamw": lambda own: torch.optim.AdamW(own, 1e-3),
}


def draw(leg: int) -> Draw:
    """The same for the same number of a leg."""
    chance = random.Random(leg)
    often = ("plain", "plain", "plain", "checkpointed", "checkpointed", "compiled")  # tracing takes long
    return Draw(
        student=chance.choice([*STUDENTS]),
        precision=chance.choice(PRECISIONS),
        teacher=chance.choice(("eval", "train")),
        transform=chance.choice(often),
        optimizer=chance.choice([*OPTIMIZERS]),
        crossings=chance.choice((0, 1, 2, 4)),
    )


def run(leg: int, steps: int) -> Seen:
    """Train through one leg, and look at what is left."""
    drawn = draw(leg)
    torch.manual_seed(leg)
    torch.compiler.reset()
    teacher = network(8, convolutions=1, first_stride=1).train(drawn.teacher == "train")
    student = STUDENTS[drawn.student]()
    networks = {"t": fcfd.split(list(teacher)), "s": fcfd.split(list(student))}
    if drawn.precision == "teacher in bfloat16":
        half = fcfd.cast(networks["t"].stages, torch.bfloat16)
        networks["t"] = networks["t"]._replace(stages=half)
    nets = fcfd.link(networks, example=torch.randn(8, 1, 8, 8), first=2)
    change = TRANSFORMS[drawn.transform]
    columns = nets.columns._replace(stages={name: change(own) for name, own in nets.stages.items()})
    parameters = [*student.parameters(), *nets.bridges.parameters()]
    optimizer = OPTIMIZERS[drawn.optimizer](parameters)
    scaler = torch.amp.GradScaler("cpu", enabled=drawn.precision.endswith("scaled"))
    finite, skipped, loss = True, 0, torch.zeros(())
    for step in range(steps):
        images, labels = torch.randn(16, 1, 8, 8), torch.randint(10, (16,))
        paths = fcfd.draw(nets.crossings, drawn.crossings, seed=leg, step=step)
        warm = schedules.linear_warmup(step, steps=steps / 3)
        with _autocast(drawn.precision):
            crossed = torch.tensor(warm)  # as a float it is another graph at 1
            loss, aux = losses.fcfd(*columns, images, labels, paths=paths, crossed=crossed)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= before:
            fcfd.write_buffers_(student, aux.buffers["s"])
            for name, bridges in nets.bridges.items():
                fcfd.write_buffers_(bridges, aux.buffers[name])
        else:
            skipped += 1
        finite = finite and bool(loss.isfinite())
    held = [*parameters, *(tensor for own in nets.buffers.values() for tensor in own.values())]
    finite = finite and all(bool(tensor.isfinite().all()) for tensor in held)
    return Seen(loss.item(), finite, skipped, 0.0, 0)


def _autocast(precision: str) -> AbstractContextManager[Any]:
    if not precision.startswith("autocast"):
        return nullcontext()
    return torch.autocast("cpu", torch.bfloat16 if "bfloat16" in precision else torch.float16)


def left() -> tuple[float, int]:
    """Resident memory in MiB, and how many tensors are alive, the compiler's fake ones among them."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    alive = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
    return pages * 4096 / 2**20, alive


def added(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """MiB that memory grew over the later two thirds of some legs, by the transform of the leg."""
    found = dict.fromkeys(TRANSFORMS, 0.0)
    for before, row in list(pairwise(rows))[len(rows) // 3 :]:
        # After a leg that compiled, the next one resets the compiler and traces nothing.
        kind = "compiled" if "compiled" in (before["transform"], row["transform"]) else row["transform"]
        found[kind] += row["resident"] - before["resident"]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=RESULTS / "soak" / "legs.jsonl")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    legs = max(1, options.steps // LEG)
    process = max((row["process"] for row in rows), default=-1) + 1
    for leg in tqdm(range(len(rows), legs), initial=len(rows), total=legs, unit="leg"):
        seen = run(leg, min(LEG, options.steps))
        resident, tensors = left()
        seen = seen._replace(resident=round(resident, 1), tensors=tensors)
        row = {"leg": leg, "process": process, **draw(leg)._asdict(), **seen._asdict()}
        row["torch"] = torch.__version__
        rows.append(row)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    last = [row for row in rows if row["process"] == rows[-1]["process"]]
    bad = [row["leg"] for row in rows if not row["finite"]]
    grown = ", ".join(f"{kind} {amount:+.1f}" for kind, amount in added(last).items())
    print(
        f"{len(rows)} legs of {LEG} steps; not finite in legs {bad or 'none'}. MiB that the later two thirds "
        f"of the last process' {len(last)} legs added: {grown}."
    )
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())
