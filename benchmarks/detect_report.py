"""What a run of `benchmarks.detect` says, as rows of a table: without the libraries that the run needs."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from .common import spread
from .statistics import paired

LABELS = "labels"
LONGER = "labels, as long as FCFD"
"""What the gain of a method is measured from, in as many steps and in as much time."""

HEAD = ("student learns by", "AP50", "AP", "AP50 beside labels", "beside labels as long", "CPU s")


def summary(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Means ± deviations over seeds; paired differences with 95 %, and how many are above 0."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for run in results["runs"]:
        by_method.setdefault(run["method"], []).append(run)
    rows = []
    for method, own in by_method.items():
        scores = (spread([100 * run[name] for run in own], ".1f") for name in ("AP50", "AP"))
        gains = (
            "" if method in (LABELS, base) else _gain(own, by_method.get(base, []))
            for base in (LABELS, LONGER)
        )
        rows.append((method, *scores, *gains, f"{fmean(run['cpu_seconds'] for run in own):.0f}"))
    if "teacher" in results:
        own = results["teacher"]
        rows.append(("the teacher itself", f"{100 * own['AP50']:.1f}", f"{100 * own['AP']:.1f}", "", "", ""))
    return rows


def _gain(runs: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> str:
    theirs = {run["seed"]: 100 * run["AP50"] for run in base}
    pairs = [(100 * run["AP50"], theirs[run["seed"]]) for run in runs if run["seed"] in theirs]
    if len(pairs) < 2:
        return ""
    found = paired(*zip(*pairs, strict=True))
    return f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f}), {found.ahead} of {found.pairs}"
