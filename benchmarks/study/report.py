"""What the committed lines say: rows of tables, and figures: `python -m benchmarks.study.report`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from ..report import STYLE
from ..statistics import Difference, interval, paired
from .driver import RESULTS, lines
from .methods import METHODS
from .settings import MAIN

FIGURES = Path(__file__).parents[2] / "docs" / "figures"
AGAINST = "KD + hints"
Rows = list[tuple[str, ...]]
Scores = dict[str, dict[int, float]]


def scores(runs: Sequence[dict[str, Any]], setting: str, what: str = "accuracy") -> Scores:
    """Of each method of a setting, what is asked for by seed; accuracy in %."""
    found: Scores = {}
    for run in runs:
        if run["setting"] == setting and what in run:
            value = fmean(run[what].values()) if isinstance(run[what], dict) else run[what]
            found.setdefault(run["method"], {})[run["seed"]] = 100 * value if what == "accuracy" else value
    return {method: found[method] for method in METHODS if method in found}


def difference(found: Scores, one: str, other: str) -> Difference | None:
    """One method minus another, on the seeds that both have."""
    seeds = sorted(found.get(one, {}).keys() & found.get(other, {}).keys())
    if len(seeds) < 2 or one == other:
        return None
    return paired([found[one][seed] for seed in seeds], [found[other][seed] for seed in seeds])


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, and a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def study_rows(setting: str) -> Rows:
    """A row a method: mean and interval; the paired difference with all that tells how sure it is."""
    found = scores(lines(RESULTS / "runs.jsonl"), setting)
    against = AGAINST if AGAINST in found else "KD"
    head = ("student learns by", "seeds", "accuracy, %", f"− {against}", "95 % interval", "effect", "ahead")
    rows: Rows = [head, ("---", *["---:"] * (len(head) - 1))]
    for method, by_seed in found.items():
        values = list(by_seed.values())
        mean, half = interval(values) if len(values) > 1 else (values[0], float("nan"))
        delta = difference(found, method, against)
        told: tuple[str, ...] = ("", "", "", "")
        if delta is not None:
            told = (
                signed(delta.mean),
                f"{signed(delta.low)} to {signed(delta.high)}",
                signed(delta.effect, 1),
                f"{delta.ahead} of {delta.pairs}",
            )
        rows.append((method, str(len(values)), f"{mean:.1f} ± {half:.1f}", *told))
    return rows


def summary_rows(method: str) -> Rows:
    """A row a setting: what a method gains on KD with hints and on FCFD as published."""
    runs = lines(RESULTS / "runs.jsonl")
    head = ("setting", "seeds", f"− {AGAINST}", "the same in loss, nats", "− FCFD, published")
    rows: Rows = [head, ("---", *["---:"] * (len(head) - 1))]
    for setting in dict.fromkeys(run["setting"] for run in runs):
        found, losses = scores(runs, setting), scores(runs, setting, "loss")
        delta = difference(found, method, AGAINST)
        if delta is not None:
            cells = [delta, difference(losses, method, AGAINST), difference(found, method, "FCFD, published")]
            told = [_told(each, digits) for each, digits in zip(cells, (2, 3, 2), strict=True)]
            rows.append((f"`{setting}`", str(delta.pairs), *told))
    return rows


def _told(delta: Difference | None, digits: int) -> str:
    return "" if delta is None else f"{signed(delta.mean, digits)} ({_span(delta, digits)})"


def main_rows(setting: str) -> Rows:
    """The rows of the methods that every setting compares."""
    head, line, *rows = study_rows(setting)
    return [head, line, *(row for row in rows if row[0] in MAIN)]


def tuning_rows(setting: str) -> Rows:
    """A row a method: mean accuracy on validation data by the factor of its weight; the best in bold."""
    runs = [run for run in lines(RESULTS / "tuning.jsonl") if run["setting"] == setting]
    factors = sorted({run["factor"] for run in runs})
    rows: Rows = [("method", *(f"× {factor:.2g}" for factor in factors), "seeds")]
    rows.append(("---", *["---:"] * (len(factors) + 1)))
    for method in METHODS:
        own = [run for run in runs if run["method"] == method]
        means = {
            factor: fmean(100 * run["accuracy"] for run in own if run["factor"] == factor)
            for factor in {run["factor"] for run in own}
        }
        if not means:
            continue
        best = max(means, key=lambda factor: (means[factor], factor == 1))
        cells = [f"{means[factor]:.1f}" if factor in means else "" for factor in factors]
        cells[factors.index(best)] = f"**{means[best]:.1f}**"
        rows.append((method, *cells, str(len({run["seed"] for run in own}))))
    return rows


def distance_rows(setting: str) -> Rows:
    """A row a method: functional distance with new bridges, and its paired difference."""
    found = scores(lines(RESULTS / "runs.jsonl"), setting, "distance")
    rows: Rows = [
        ("student learns by", "seeds", "functional distance, nats", f"− {AGAINST}", "95 % interval")
    ]
    rows.append(("---", "---:", "---:", "---:", "---:"))
    for method, by_seed in found.items():
        delta = difference(found, method, AGAINST)
        told = ("", "") if delta is None else (signed(delta.mean, 3), _span(delta, 3))
        rows.append((method, str(len(by_seed)), f"{fmean(by_seed.values()):.3f}", *told))
    return rows


def _span(delta: Difference, digits: int) -> str:
    return f"{signed(delta.low, digits)} to {signed(delta.high, digits)}"


def gradient_rows(method: str, what: str = "cosine_logits") -> Rows:
    """A row a path: what was asked for about its gradient or its logits, by step; means over seeds."""
    every = lines(RESULTS / "gradients.jsonl")
    found = [line for line in every if line["method"] == method and what in line]
    steps = sorted({line["step"] for line in found})
    show = "{:.0f}".format if what == "size" else "{:.2f}".format if what == "share" else signed
    rows: Rows = [("terms of", *(f"step {step}" for step in steps)), ("---", *["---:"] * len(steps))]
    for path in dict.fromkeys(line["path"] for line in found):
        of_path = [line for line in found if line["path"] == path]
        means = [fmean(line[what] for line in of_path if line["step"] == step) for step in steps]
        rows.append((path if path == "appearance" else f"`{path}`", *map(show, means)))
    return rows


def cost_rows(name: str) -> Rows:
    """A row a method: time and memory of a step, in steps of KD."""
    rows: Rows = [("method", "time", "memory"), ("---", "---:", "---:")]
    for row in json.loads((RESULTS / f"cost-{name}.json").read_text("utf-8"))["rows"]:
        rows.append((row["method"], f"{row['time']:.2f}", f"{row['memory']:.2f}"))
    return rows


def differences_figure(file: Path, settings: Sequence[str], methods: Sequence[str]) -> None:
    """Paired differences from KD with hints, with their intervals: a column a setting, a row a method."""
    runs = lines(RESULTS / "runs.jsonl")
    every = {setting: scores(runs, setting) for setting in settings}
    settings = [one for one in settings if any(difference(every[one], method, AGAINST) for method in methods)]
    with plt.rc_context(STYLE):
        width = max(6.5, 2.2 + 2.1 * len(settings))
        drawn, axes = plt.subplots(
            1,
            len(settings),
            figsize=(width, 1.3 + 0.34 * len(methods)),
            sharex=True,
            sharey=True,
            layout="constrained",
        )
        for at, setting in enumerate(settings):
            panel = axes[at] if len(settings) > 1 else axes
            found = every[setting]
            panel.axvline(0, color="#444444", linewidth=1)
            pairs = 0
            for row, method in enumerate(methods):
                delta = difference(found, method, AGAINST)
                if delta is None:
                    continue
                pairs = max(pairs, delta.pairs)
                colour = "#16a077" if method == "FCFD" else "#4c7fb0" if "FCFD" in method else "#868d98"
                panel.plot([delta.low, delta.high], [row, row], color=colour, linewidth=2, alpha=0.6)
                panel.plot(delta.mean, row, "D", color=colour, markersize=6, mec="white")
            panel.set_title(f"{setting}\n{pairs} seeds at most")
            panel.grid(axis="x", color="#eeeeee")
            panel.set_axisbelow(True)
            panel.tick_params(axis="y", length=0)
            panel.set_yticks(range(len(methods)), methods)
        first = axes[0] if len(settings) > 1 else axes
        first.set_ylim(len(methods) - 0.5, -0.5)
        drawn.supxlabel(
            f"accuracy minus that of {AGAINST} on the same seeds, points; 95 % intervals", fontsize=9.5
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(file, metadata={"Date": None})
        plt.close(drawn)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=FIGURES)
    options = parser.parse_args(arguments)
    matplotlib.rcParams |= {"svg.hashsalt": "fcfd", "svg.fonttype": "none"}
    runs = lines(RESULTS / "runs.jsonl")
    present = dict.fromkeys(run["setting"] for run in runs)
    several = [name for name in present if len(scores(runs, name).get("FCFD", {})) > 1]
    differences_figure(options.out / "study.svg", several, ("FCFD, published", "FCFD"))
    near = [name for name in scores(runs, "small-200") if "FCFD" in name or "HCL" in name]
    differences_figure(options.out / "study-methods.svg", ["small-200"], near)


if __name__ == "__main__":
    main()
