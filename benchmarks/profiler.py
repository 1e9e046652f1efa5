"""What a call does on the device, by PyTorch's profiler: kernels, their times, and what the host asks for.

On the CPU, an operation that PyTorch dispatches stands for a kernel.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch._C._autograd import DeviceType

from .common import Call

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
    place = DeviceType.CUDA if cuda else DeviceType.CPU
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
