"""On paper: what a step over many processes holds and moves. `python -m benchmarks.accounting`.

Nothing runs. The plan of a step says how often each stage is computed; sizes of models and placements do the
rest. The tests count every collective of a small step on 64 processes, and compare.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

import fcfd
from fcfd import recipes

GIGA = 1e9
PROCESSES = 64


class Model(NamedTuple):
    """A decoder of text, by its sizes."""

    layers: int
    width: int
    keys: int  # width of keys and values
    inner: int
    vocabulary: int

    def stages(self, count: int) -> list[int]:
        """Parameters of each of some stages of as many layers; the first embeds, the last has the head."""
        layer = 2 * self.width * (self.width + self.keys) + 3 * self.width * self.inner + 2 * self.width
        found = [layer * (self.layers * (at + 1) // count - self.layers * at // count) for at in range(count)]
        found[0] += self.vocabulary * self.width
        found[-1] += (self.vocabulary + 1) * self.width
        return found


TEACHER = Model(layers=80, width=8192, keys=1024, inner=28672, vocabulary=128256)
"""Llama 3's of 70 billion parameters."""
STUDENT = Model(layers=32, width=4096, keys=1024, inner=14336, vocabulary=128256)
"""Llama 3's of 8 billion parameters."""


class Placement(NamedTuple):
    """Over how many processes a network's parameters are sharded; 1 is a replica on each."""

    name: str
    teacher: int
    student: int


PLACEMENTS = (
    Placement("replicas (DDP)", teacher=1, student=1),
    Placement("teacher sharded over 8, student by DDP", teacher=8, student=1),
    Placement("both sharded over 8 (HSDP)", teacher=8, student=8),
    Placement("both sharded over 64 (FSDP)", teacher=64, student=64),
)


class Count(NamedTuple):
    """How often one stage is computed in a step."""

    forward: int
    backward: int  # how many of these a gradient passes


class Row(NamedTuple):
    """Gigabytes a process, of a step."""

    placement: str
    held: float
    largest: float
    gathered: float
    reduced: float


def counts(paths: Iterable[str], depth: int) -> Mapping[tuple[str, int], Count]:
    """How often a step of FCFD over some paths computes each entry of each column."""
    terms = recipes.fcfd(depth, tuple(paths), fcfd.bridged(depth))
    forward, backward = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    for path in fcfd.plan(fcfd.reads(terms.values())):
        _, column, at = fcfd.step(path)
        forward[column, at] += 1
        backward[column, at] += set(path) != {"t"}
    return {key: Count(forward[key], backward[key]) for key in forward}


def gathered(count: Count, size: float, over: int) -> float:
    """Bytes a process receives of a stage: everything but its own shard, whenever the stage is computed."""
    return (count.forward + count.backward) * size * (over - 1) / over


def reduced(times: int, size: float, over: int, processes: int = PROCESSES) -> float:
    """Bytes a process sends of a stage's gradient, some times: whole to the shards, shards to the replicas.

    A reduction to shards over n processes moves (n − 1) / n of a tensor, one to replicas, by a ring, twice
    as much.
    """
    replicas = processes / over
    return times * size * ((over - 1) / over + 2 * (replicas - 1) / replicas / over)


def row(placement: Placement, paths: Iterable[str], depth: int, *, half: int = 2, full: int = 4) -> Row:
    """What a placement costs with every stage checkpointed, the teacher in `half` bytes a parameter.

    The student has float32 weights, gradients and the two moments of AdamW; so have the bridges, one linear
    map a depth and direction, replicated. `fcfd.gathered` reduces a gradient whenever one passes, DDP once.
    """
    teacher, student = TEACHER.stages(depth), STUDENT.stages(depth)
    bridge = full * TEACHER.width * STUDENT.width
    bridges = 2 * (depth - 1) * bridge
    held = half * sum(teacher) / placement.teacher + 4 * (full * sum(student) / placement.student + bridges)
    received = sent = 0.0
    for (column, at), count in counts(paths, depth).items():
        if column == "t":
            received += gathered(count, half * teacher[at], placement.teacher)
        elif column == "s":
            received += gathered(count, full * student[at], placement.student)
            sent += reduced(count.backward, full * student[at], placement.student)
        else:
            sent += reduced(count.backward, bridge, 1)
    if placement.student == 1:  # DDP: the whole gradient once, with zeros for bridges that were not drawn
        sent = reduced(1, full * sum(student) + bridges, 1)
    largest = float(max(half * max(teacher), full * max(student)))
    if placement.teacher == placement.student == 1:
        largest = 0.0
    return Row(placement.name, *(amount / GIGA for amount in (held, largest, received, sent)))


def main() -> None:
    """Print the table of the page."""
    for depth in (4, 16):
        half = depth // 2
        paths = ("s" * half + "t" * (depth - half), "t" * half + "s" * (depth - half))
        table = Table(
            "placement", "held", "largest stage", "gathered", "reduced", title=f"{depth} stages, GB"
        )
        for placement in PLACEMENTS:
            name, *amounts = row(placement, paths, depth)
            table.add_row(name, *(f"{amount:,.0f}" for amount in amounts))
        Console().print(table)


if __name__ == "__main__":
    main()
