"""Where a training step spends its time on the device: `python -m benchmarks.timeline`.

Profiles one step of each variant and tells how many kernels run, how long the device is busy, how long it is
from its first kernel to the end of its last, how often the host launches and waits, and which kernels take
longest. On the CPU, an operation that PyTorch dispatches stands for a kernel.
"""

import math
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

from .common import environment, microseconds, parser, publish, show
from .profiler import timeline, totals
from .step import CIFAR, pair, variants


def lines(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each variant."""
    return [
        (
            record["variant"],
            *(str(record[name]) for name in ("kernels", "launches", "waits")),
            *(microseconds(record[name]) for name in ("busy", "span")),
            f"{record['busy'] / max(record['span'], 1e-9):.0%}",
        )
        for record in records
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser(__doc__, "timeline")
    command.add_argument("--quick", action="store_true", help="tiny networks, eager mode only")
    command.add_argument("--minutes", type=float, default=math.inf, help="begin no variant after these")
    options = command.parse_args(arguments)

    setting = CIFAR._replace(device=options.device)
    names = ["KD", "stand-in", "fcfd", "fcfd whole", "fcfd graphs"]
    if options.quick:
        setting = setting._replace(teacher="resnet14", student="resnet8", batch=4)
        names = names[:3]
    deadline = perf_counter() + 60 * options.minutes
    records: list[dict[str, Any]] = []
    for name, call in variants(pair(setting), names).items():
        if perf_counter() > deadline:
            print(f"left out: {name}")
            continue
        for _ in range(3):
            call()
        records.append({"variant": name, **totals(timeline(call, device=options.device))})
        publish(options.out, options.name or options.device, records, environment=environment(options.device))
    columns = ("variant", "kernels", "launches", "host waits", "busy", "span", "")
    show(f"One step of {setting.teacher} → {setting.student}, batch {setting.batch}", columns, lines(records))
    for record in records:
        most = (f"{microseconds(time)} {name[:60]}" for name, time in list(record["longest"].items())[:4])
        print(f"{record['variant']}: {', '.join(most)}")


if __name__ == "__main__":
    main()
