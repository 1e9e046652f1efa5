"""What every benchmark shares: timing in turns, peak memory, counts of operations, and how results are kept.

`benchmarks/README.md` is the contract that these functions keep.
"""

import argparse
import csv
import gc
import io
import json
import math
import os
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median, quantiles, stdev
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself otherwise

RESULTS = Path(__file__).parent / "results"

Call = Callable[[], Any]


class Summary(NamedTuple):
    """Seconds a call: the median, both quartiles, and how many samples there are."""

    median: float
    low: float
    high: float
    samples: int


# Time


def interleaved(
    calls: Mapping[str, Call], *, device: str = "cpu", seconds: float = 1.0, least: int = 5, warm_up: int = 2
) -> dict[str, list[float]]:
    """Time calls in turns, so that whatever disturbs the machine disturbs all of them.

    Every round runs each call once, or often enough for a sample of two milliseconds, and begins with another
    one. A GPU is timed by its own events.

    Args:
        calls: What to time, by name.
        device: `"cpu"` or `"cuda"`.
        seconds: Rounds are added until they have taken this long.
        least: But this many rounds at least.
        warm_up: Untimed calls of each before: compilation, caches, the allocator.

    Returns:
        The samples of each call in seconds, one for every round.
    """
    clock = _cuda_seconds if device == "cuda" else _cpu_seconds
    for call in calls.values():
        for _ in range(warm_up):
            call()
    repeats = {name: max(1, min(200, round(2e-3 / clock(call, 1)))) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, begun = list(calls), perf_counter()
    gc.collect()
    gc.disable()
    try:
        while len(samples[order[0]]) < least or perf_counter() - begun < seconds:
            for name in order:
                samples[name].append(clock(calls[name], repeats[name]))
            order.append(order.pop(0))
    finally:
        gc.enable()
    return samples


def _cpu_seconds(call: Call, repeats: int) -> float:
    begun = perf_counter()
    for _ in range(repeats):
        call()
    return (perf_counter() - begun) / repeats


def _cuda_seconds(call: Call, repeats: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3 / repeats


def summary(samples: Sequence[float]) -> Summary:
    """Median and quartiles."""
    if len(samples) == 1:
        return Summary(samples[0], samples[0], samples[0], 1)
    low, middle, high = quantiles(samples, n=4, method="inclusive")
    return Summary(middle, low, high, len(samples))


def ratio(samples: Sequence[float], unit: Sequence[float]) -> float:
    """How many times as long as the unit: the median of the rounds' own quotients."""
    return median(sample / one for sample, one in zip(samples, unit, strict=True))


def geometric_mean(ratios: Iterable[float]) -> float:
    """The mean for ratios: twice as fast and half as fast cancel."""
    logs = [math.log(value) for value in ratios]
    return math.exp(sum(logs) / len(logs))


# Memory and operations


def peak_memory(call: Call, *, device: str = "cpu", warm_up: bool = True) -> int:
    """Bytes that a call holds at its worst, beyond what was held before it; by default that of a second call.

    On a GPU it is what the caching allocator counts. On the CPU it is the running sum of every allocation and
    release that PyTorch's profiler records, oneDNN's workspaces included; memory that does not come from
    PyTorch's allocator (Python's own, BLAS's) is left out.
    """
    if warm_up:
        call()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return max(accumulate(_allocations(call), initial=0))


def held_memory(call: Call, *, device: str = "cpu", warm_up: bool = True) -> int:
    """Bytes that are held when a call has returned, for as long as its result lives.

    Of a forward pass, it is what autograd keeps for the backward pass, and the loss. Counted as the peak is.
    """
    if warm_up:
        call()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated() - before
        del result
        return held
    return sum(_allocations(call))


def _allocations(call: Call) -> list[int]:
    """The bytes of every allocation on the CPU, in order; those of a release are negative."""
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        result = call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    del result
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, note: Callable[..., None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.note = note

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operator(*args, **(kwargs or {}))
        self.note(operator, args, kwargs or {}, out)
        return out


def recorded(call: Call, note: Callable[..., None]) -> None:
    """Run a call in eager mode; every operation it dispatches goes to `note(operator, args, kwargs, out)`."""
    with _Recorder(note):
        call()


NO_WORK = re.compile(r"(new_)?empty(_like|_strided)?|_unsafe_view|_record_function_\w+")
"""Operations besides views that compute nothing."""

READ_BACK = "_local_scalar_dense"
"""The operation behind `.item()`, `float(tensor)` and `if tensor:`: the host waits for the device."""


def operations(call: Call) -> Counter[str]:
    """How often a call in eager mode runs each operation; views and bare allocations are not counted."""
    counts: Counter[str] = Counter()

    def note(operator: Any, *_: Any) -> None:
        name = operator.overloadpacket.__name__
        if not operator.is_view and not NO_WORK.fullmatch(name):
            counts[name] += 1

    recorded(call, note)
    return counts


# Results


def environment(device: str = "cpu") -> dict[str, Any]:
    """What a result depends on besides the code. No name of a machine or a folder is in it."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "float32 matrix products": torch.get_float32_matmul_precision(),
    }
    if device == "cuda":
        found |= {
            "device": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        }
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def parser(description: str | None, folder: str) -> argparse.ArgumentParser:
    """The options that every command has; the first line of its module's docstring describes it."""
    found = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    found.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    found.add_argument("--out", type=Path, default=RESULTS / folder)
    found.add_argument("--name", help="of the files; the device by default")
    return found


def publish(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], **about: Any) -> None:
    """Write the rows as `name.csv`, and with all that is known about them as `name.json`.

    A program calls it anew with every row, so that one that is stopped leaves what it has measured. Each file
    is replaced as a whole: there is no moment at which it is half written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {**about, "rows": list(rows)}
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    texts = {"json": json.dumps(record, indent=1, ensure_ascii=False) + "\n", "csv": table.getvalue()}
    for kind, text in texts.items():
        new = folder / f".{name}.{kind}"
        new.write_text(text, encoding="utf-8", newline="")
        new.replace(folder / f"{name}.{kind}")


def published(folder: Path, name: str, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that `publish` wrote, none without a file.

    Raises:
        ValueError: They are of another machine or version.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["environment"] != about:
        raise ValueError(f"{path.name} was measured on {found['environment']}, not on {about}")
    rows: list[dict[str, Any]] = found["rows"]
    return rows


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, mark: str = "◀") -> None:
    """Print a table; a row whose last cell holds the mark stands out. Plain text where rich is missing."""
    rows = list(rows)
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
        for cells in ([title], columns, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)).rstrip())
        return
    table = Table(title=title, title_justify="left", header_style="")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row, style="bold red" if mark in row[-1] else None)
    Console(width=None if os.isatty(1) else 140).print(table)


def spread(values: Sequence[float], form: str) -> str:
    """The mean ± the deviation of a sample."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{fmean(values):{form}} ± {deviation:{form.lstrip('+')}}"


def microseconds(seconds: float) -> str:
    """A time in the unit that suits it: `"12.3 µs"`, `"4.56 ms"`, `"7.89 s"`."""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def mebibytes(count: float) -> str:
    """A size in MiB."""
    return f"{count / 2**20:.3g}"


def pyplot() -> Any:
    """matplotlib's pyplot for files, or None where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return None
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "fcfd", "svg.fonttype": "none", "font.size": 8}
    import matplotlib.pyplot

    return matplotlib.pyplot
