"""What the demo shows: a table, a figure, and the machine that it ran on."""

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import torch
from rich.console import Console
from rich.table import Table

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MultipleLocator

from .common import spread
from .statistics import paired

COLOURS = ("#c3c8cf", "#868d98", "#4c7fb0", "#e0a63f", "#c4622d", "#16a077", "#0b4a3b")
STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#888888",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "font.size": 9.5,
}


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they bear on numbers and seconds."""
    packages = ("fcfd", "torch", "numpy", "scikit-learn")
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "machine": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def table(results: dict[str, Any], *, against: str) -> None:
    """Print a row a method: accuracy, the paired difference to one method, distance, time."""
    shown = Table(
        title="{data}: {images} images to learn from, {test_images} to test on".format(**results),
        caption=f"mean ± deviation over {len(results['seeds'])} seeds; differences with intervals of 95 %\n"
        f"teacher: {results['teacher']['accuracy']:.1%}",
    )
    for heading in ("method", "accuracy, %", f"− {against}", "distance, nats", "CPU s"):
        shown.add_column(heading, justify="left" if heading == "method" else "right")
    methods = _by_method(results)
    for method, runs in methods.items():
        shown.add_row(
            method,
            spread([100 * run["accuracy"] for run in runs], ".1f"),
            "" if method == against else _difference(runs, methods[against]),
            spread([fmean(run["distance"].values()) for run in runs], ".3f"),
            f"{fmean(run['cpu_seconds'] for run in runs):.1f}",
        )
    Console().print(shown)


def _difference(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
    """The mean of paired differences of accuracy, and its interval where there are two pairs."""
    one, other = ([100 * run["accuracy"] for run in each] for each in (runs, others))
    if len(one) < 2:
        return f"{one[0] - other[0]:+.1f}"
    found = paired(one, other)
    return f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


def write(results: dict[str, Any], path: Path) -> None:
    """Write JSON, each run on a line of its own."""
    head = json.dumps({**results, "runs": []}, indent=2)
    runs = ",\n    ".join(json.dumps(run) for run in results["runs"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head.replace('"runs": []', f'"runs": [\n    {runs}\n  ]') + "\n", encoding="utf-8")


def figure(results: dict[str, Any], path: Path) -> None:
    """Left, every run's accuracy; right, how far off the teacher's later layers are on its feature."""
    methods = _by_method(results)
    colours = dict(zip(methods, COLOURS, strict=False))
    with plt.rc_context(STYLE):
        drawn, axes = plt.subplots(1, 2, figsize=(10.5, 4.2), width_ratios=(1, 1.15), layout="constrained")
        _accuracies(axes[0], results, methods, colours)
        _distances(axes[1], methods, colours)
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, dpi=150, metadata={"Software": None})
        plt.close(drawn)


def _accuracies(
    axes: Axes, results: dict[str, Any], methods: dict[str, Any], colours: dict[str, str]
) -> None:
    trained = [method for method in methods if method != "untrained"]
    teacher = 100 * results["teacher"]["accuracy"]
    axes.axvline(teacher, color="#444444", linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("teacher", (teacher, -0.55), (-5, 0), textcoords="offset points", ha="right", va="center")
    for row, method in enumerate(trained):
        values = [100 * run["accuracy"] for run in methods[method]]
        mean = fmean(values)
        axes.plot([min(values), max(values)], [row, row], color=colours[method], linewidth=1.5, alpha=0.5)
        axes.plot(values, [row] * len(values), "o", color=colours[method], markersize=5, alpha=0.55, mew=0)
        axes.plot(mean, row, "D", color=colours[method], markersize=8.5, mec="white")
        axes.annotate(f"{mean:.1f}", (mean, row), (0, 8), textcoords="offset points", ha="center", fontsize=9)
    axes.set_yticks(range(len(trained)), trained)
    axes.set_ylim(len(trained) - 0.5, -0.9)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MultipleLocator(5))
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"test accuracy, %: {len(results['seeds'])} seeds, and the mean")
    sizes = [results[network]["parameters"] for network in ("student", "teacher")]
    axes.set_title("{data}: {images} images, {:,} parameters (teacher {:,})".format(*sizes, **results))


def _distances(axes: Axes, methods: dict[str, Any], colours: dict[str, str]) -> None:
    paths = list(next(iter(methods.values()))[0]["distance"])
    for at, (method, runs) in enumerate(methods.items()):
        places = [place + 0.05 * (at - (len(methods) - 1) / 2) for place in range(len(paths))]
        for run in runs:
            axes.plot(
                places, list(run["distance"].values()), "o", color=colours[method], ms=3, alpha=0.4, mew=0
            )
        means = [fmean(run["distance"][path] for run in runs) for path in paths]
        axes.plot(places, means, "-D", color=colours[method], linewidth=1.5, ms=6, mec="white", label=method)
    axes.set_xticks(range(len(paths)), paths, family="monospace")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_xlabel("path: the student's first stages, a bridge, the teacher's later stages")
    axes.set_ylabel("KL to the teacher's own path, nats (log)")
    axes.set_title("functional distance, by the stage after which the path crosses")
    axes.legend(frameon=False, fontsize=8.5, ncols=2)


def _by_method(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    methods: dict[str, list[dict[str, Any]]] = {}
    for run in results["runs"]:
        methods.setdefault(run["method"], []).append(run)
    return methods
