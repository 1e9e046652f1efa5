"""Where a training step spends its time on the device: `python -m benchmarks.timeline`.

Profiles one step of each variant and tells how many kernels run, how long the device is busy, how long it is
from its first kernel to the end of its last, how often the host launches and waits, and which kernels take
longest. On the CPU, an operation that PyTorch dispatches stands for a kernel.
"""

import argparse
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

from .common import RESULTS, Call, environment, microseconds, publish, show

LAUNCHES = (
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cudaGraphLaunch",
)
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


class Kernel(NamedTuple):
    """What the device did, from when, for how long; nanoseconds."""

    name: str
    start: int
    duration: int


class Timeline(NamedTuple):
    """What the device did, by start, and how often the host called what."""

    kernels: list[Kernel]
    host: Counter[str]


def timeline(call: Call, *, device: str = "cpu") -> Timeline:
    """Profile one call, which should have run before."""
    cuda = device == "cuda"
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU, kinds.CUDA] if cuda else [kinds.CPU]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        call()
        if cuda:
            torch.cuda.synchronize()
    place = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    events = [event for event in profile.profiler.kineto_results.events() if not event.is_user_annotation()]
    kernels = [
        Kernel(event.name(), event.start_ns(), event.duration_ns())
        for event in events
        if event.device_type() == place and (cuda or event.name().startswith("aten::"))
    ]
    kernels.sort(key=lambda kernel: (kernel.start, -kernel.duration))
    host = Counter(event.name() for event in events if event.device_type() != place or not cuda)
    return Timeline(kernels if cuda else _outermost(kernels), host)


def _outermost(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Without the operations that run inside another one."""
    outer: list[Kernel] = []
    for kernel in kernels:
        if not outer or kernel.start >= outer[-1].start + outer[-1].duration:
            outer.append(kernel)
    return outer


def busy(kernels: Sequence[Kernel]) -> int:
    """Nanoseconds in which at least one kernel runs."""
    total = end = 0
    for _, start, duration in kernels:
        total += max(0, start + duration - max(start, end))
        end = max(end, start + duration)
    return total


def totals(found: Timeline) -> dict[str, Any]:
    """Counts, and times in seconds."""
    kernels, host = found
    span = max((start + duration for _, start, duration in kernels), default=0)
    span -= min((kernel.start for kernel in kernels), default=0)
    longest: Counter[str] = Counter()
    for kernel in kernels:
        longest[kernel.name] += kernel.duration
    return {
        "kernels": len(kernels),
        "launches": sum(host[name] for name in LAUNCHES),
        "waits": sum(host[name] for name in WAITS),
        "busy": busy(kernels) / 1e9,
        "span": span / 1e9,
        "longest": {name: nanoseconds / 1e9 for name, nanoseconds in longest.most_common(10)},
    }


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
    from .step import CIFAR, pair, variants

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="tiny networks, eager mode only")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no variant after these")
    parser.add_argument("--out", type=Path, default=RESULTS / "timeline")
    parser.add_argument("--name", help="of the files; the device by default")
    options = parser.parse_args(arguments)

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
