"""What compiling FCFD costs, from cold: by stages or as a whole, for one plan or for all.

`python -m benchmarks.compile` starts a process with an empty cache for each way. It runs plans of two
crossings of a five-stage pair, and reports the seconds of the first round, the graphs that it made, and how
many a second round added. Rules: `benchmarks/README.md`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import combinations
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from fcfd import losses
from fcfd.transforms import compiled

from .common import environment, parser, publish, show
from .step import CIFAR, HYPER, Columns, pair


class Way(NamedTuple):
    """How to compile, and for how many plans."""

    by: str
    plans: int


WAYS = {
    f"{by}, {plans}": Way(by, plans)
    for by, plans in (("stages", 1), ("stages", 15), ("whole", 1), ("whole", 3))
}
"""Fifteen plans are all; as a whole, three show what each costs."""


def measure(way: Way, device: str, *, quick: bool = False, backend: str = "inductor") -> dict[str, Any]:
    """Compile in this process, which should not have compiled anything yet."""
    setting = CIFAR._replace(teacher="resnet14", student="resnet8", batch=16, first=1, device=device)
    on = pair(setting._replace(teacher="resnet8", batch=2) if quick else setting)
    options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": backend}
    stages = on.nets.stages
    if way.by == "stages":
        stages = {column: compiled(own, **options) for column, own in stages.items()}

    def objective(
        params: Columns, buffers: Columns, images: Tensor, labels: Tensor, paths: tuple[str, ...]
    ) -> tuple[Tensor, Columns]:
        loss, aux = losses.fcfd(stages, params, buffers, images, labels, paths=paths, **HYPER)
        return loss, aux.buffers

    call = torch.compile(objective, **options) if way.by == "whole" else objective
    seconds, graphs = [], []
    for _ in range(2):
        begun = perf_counter()
        for paths in list(combinations(on.nets.crossings, 2))[: way.plans]:
            call(on.nets.params, on.nets.buffers, on.images, on.labels, paths)[0].backward()
        seconds.append(perf_counter() - begun)
        graphs.append(counters["stats"]["unique_graphs"])
    return {
        **way._asdict(),
        "first round": seconds[0],
        "second round": seconds[1],
        "graphs": graphs[0],
        "added later": graphs[1] - graphs[0],
    }


def _apart(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure in a new process with an empty cache."""
    with TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "benchmarks.compile", "--way", name, "--device", options.device]
        found = subprocess.run(
            [*command, "--quick"] if options.quick else command,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    record: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser(__doc__, "compile")
    command.add_argument("--quick", action="store_true", help="tiny networks")
    command.add_argument("--way", choices=tuple(WAYS), help="measure this one here, and print it as JSON")
    options = command.parse_args(arguments)
    if options.way:
        print(json.dumps(measure(WAYS[options.way], options.device, quick=options.quick)))
        return
    records = [_apart(name, options) for name in WAYS]
    unit = records[0]["first round"]
    cells = [
        (
            record["by"],
            str(record["plans"]),
            f"{record['first round']:.0f} s",
            f"{record['first round'] / unit:.2f}×",
            str(record["graphs"]),
            str(record["added later"]),
        )
        for record in records
    ]
    show(
        "Compiling",
        ("compiled by", "plans", "first round", "÷ one plan by stages", "graphs", "added later"),
        cells,
    )
    publish(options.out, options.name or options.device, records, environment=environment(options.device))


if __name__ == "__main__":
    main()
