"""What a run of `benchmarks.detect` says, as rows of a table: without the libraries that the run needs."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from .common import spread
from .statistics import paired

HEAD = ("student learns by", "AP50", "AP", "AP50 beside labels", "ahead", "CPU s")


def summary(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Means ± deviations over seeds, and the paired difference from labels alone, with 95 %."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for run in results["runs"]:
        by_method.setdefault(run["method"], []).append(run)
    base = {run["seed"]: 100 * run["AP50"] for run in by_method.get("labels", [])}
    rows = []
    for method, own in by_method.items():
        pairs = [(100 * run["AP50"], base[run["seed"]]) for run in own if run["seed"] in base]
        gain = ahead = ""
        if method != "labels" and len(pairs) > 1:
            found = paired(*zip(*pairs, strict=True))
            gain = f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f})"
            ahead = f"{found.ahead} of {found.pairs}"
        scores = (spread([100 * run[name] for run in own], ".1f") for name in ("AP50", "AP"))
        rows.append((method, *scores, gain, ahead, f"{fmean(run['cpu_seconds'] for run in own):.0f}"))
    if "teacher" in results:
        own = results["teacher"]
        rows.append(("the teacher itself", f"{100 * own['AP50']:.1f}", f"{100 * own['AP']:.1f}", "", "", ""))
    return rows
