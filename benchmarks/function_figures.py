"""The figures of `benchmarks.function`, each from the rows of one file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from .common import pyplot

Rows = Sequence[Mapping[str, Any]]

DIRECTIONS = {"top": "#c4622d", "random": "#868d98", "bottom": "#4c7fb0"}
COLOURS = ("#c3c8cf", "#868d98", "#4c7fb0", "#8f7ac0", "#e0a63f", "#c4622d", "#16a077")
STYLE = {"axes.spines.right": False, "axes.spines.top": False, "axes.titlelocation": "left"}


def anisotropy(rows: Rows, path: Path) -> None:
    """Left, gains by direction and depth; right, how far steps of one length move the logits."""
    figures = pyplot()
    if figures is None:
        return
    networks = list(dict.fromkeys(row["network"] for row in rows))
    with figures.rc_context(STYLE):
        figure, axes = figures.subplots(
            len(networks), 2, figsize=(6.8, 2.6 * len(networks)), layout="constrained", squeeze=False
        )
        for row, network in enumerate(networks):
            own = [each for each in rows if each["network"] == network]
            _gains(axes[row, 0], own)
            middle = own[len(own) // 2]
            _moved(axes[row, 1], middle)
            axes[row, 0].set_title(network)
            axes[row, 1].set_title(f"a step at depth {middle['depth']}")
        axes[0, 0].legend(frameon=False, ncols=2)
        axes[0, 1].legend(frameon=False)
        _saved(figures, figure, path)


def _gains(axes: Any, rows: Rows) -> None:
    """Each gain in units of the random one: the median of the examples, and the middle half of the first."""
    depths = [row["depth"] for row in rows]
    count = len(rows[0]["gains"][0])
    shown = [at for at in (0, 1, 2, 5) if at < count]
    for rank in shown:
        ratios = [_ratios(row, [gains[rank] for gains in row["gains"]]) for row in rows]
        shade = 1 - 0.75 * shown.index(rank) / len(shown)
        axes.plot(
            depths,
            [median(own) for own in ratios],
            "o-",
            ms=3,
            color=DIRECTIONS["top"],
            alpha=shade,
            label=f"direction {rank + 1}",
        )
        if rank == 0:
            low, high = zip(*map(_middle_half, ratios), strict=True)
            axes.fill_between(depths, low, high, color=DIRECTIONS["top"], alpha=0.15, lw=0)
    axes.axhline(1, color=DIRECTIONS["random"], lw=1, label="random")
    axes.set_yscale("log")
    axes.set_xticks(depths)
    axes.set_xlabel("depth of the feature")
    axes.set_ylabel("gain ÷ gain of a random direction")


def _ratios(row: Mapping[str, Any], gains: Sequence[float]) -> list[float]:
    return [gain / random for gain, random in zip(gains, row["random gain"], strict=True)]


def _middle_half(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 4], ordered[(3 * len(ordered) - 1) // 4]


def _moved(axes: Any, row: Mapping[str, Any]) -> None:
    for name, colour in DIRECTIONS.items():
        values = row["moved"][name]
        low, high = zip(*map(_middle_half, values), strict=True)
        axes.plot(row["relative"], [median(own) for own in values], "o-", ms=3, color=colour, label=name)
        axes.fill_between(row["relative"], low, high, color=colour, alpha=0.2, lw=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("length of the step ÷ the feature's")
    axes.set_ylabel("change of the logits ÷ their length")


def first_order(rows: Rows, path: Path) -> None:
    """Every example: the true function distance, and the first-order one or that of the features."""
    figures = pyplot()
    if figures is None:
        return
    own = [row for row in rows if row["method"] == rows[-1]["method"]]
    with figures.rc_context(STYLE):
        figure, axes = figures.subplots(1, 2, figsize=(6.8, 3.1), layout="constrained", sharey=True)
        for panel, key in zip(axes, ("feature distance", "first order"), strict=True):
            for row, colour in zip(own, COLOURS[2:], strict=False):
                panel.plot(
                    row[key],
                    row["function distance"],
                    ".",
                    ms=3,
                    alpha=0.6,
                    color=colour,
                    mew=0,
                    label=row["path"],
                )
            panel.set(xscale="log", yscale="log")
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_locator(figures.matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("")
        axes[0].set_xlabel("distance of the features")
        axes[1].set_xlabel("first-order function distance")
        axes[0].set_ylabel("function distance, of logits")
        ends = [
            min(axes[1].get_xlim()[0], axes[1].get_ylim()[0]),
            max(axes[1].get_xlim()[1], axes[1].get_ylim()[1]),
        ]
        axes[1].plot(ends, ends, color="#444444", lw=0.8, zorder=0)
        axes[1].legend(frameon=False, prop={"family": "monospace"}, markerscale=3)
        _saved(figures, figure, path)


def crossed(rows: Rows, path: Path) -> None:
    """Accuracy by path, a line for each method; left into the teacher, right into the student."""
    figures = pyplot()
    if figures is None:
        return
    methods = list(dict.fromkeys(row["method"] for row in rows))
    with figures.rc_context(STYLE):
        figure, axes = figures.subplots(1, 2, figsize=(7.8, 3.0), layout="constrained", sharey=True)
        for panel, (first, other) in zip(axes, (("s", "t"), ("t", "s")), strict=True):
            paths = [first * at + other * (5 - at) for at in range(6)]
            for method, colour in zip(methods, COLOURS, strict=False):
                runs = [row["accuracy"] for row in rows if row["method"] == method]
                panel.plot(
                    range(6),
                    [100 * fmean(run[name] for run in runs) for name in paths],
                    "o-",
                    ms=3,
                    color=colour,
                    label=method,
                )
                for run in runs:
                    panel.plot(
                        range(6),
                        [100 * run[name] for name in paths],
                        ".",
                        ms=4,
                        color=colour,
                        alpha=0.5,
                        mew=0,
                    )
            panel.set_xticks(range(6), paths, family="monospace", fontsize=7)
            panel.grid(axis="y", color="#eeeeee")
        axes[0].set_title("student first, then the teacher", fontsize=8)
        axes[1].set_title("teacher first, then the student", fontsize=8)
        axes[0].set_ylabel("accuracy, %")
        figure.legend(*axes[1].get_legend_handles_labels(), frameon=False, loc="outside right center")
        _saved(figures, figure, path)


def stitching(rows: Rows, path: Path) -> None:
    """A matrix of accuracies for each pair of networks and each way to fit the stitch."""
    figures = pyplot()
    if figures is None:
        return
    pairs, fits = (list(dict.fromkeys(row[key] for row in rows)) for key in ("pair", "fitted to"))
    figure, axes = figures.subplots(
        len(pairs),
        len(fits),
        figsize=(1.75 * len(fits), 2.0 * len(pairs)),
        layout="constrained",
        squeeze=False,
    )
    for line, pair in enumerate(pairs):
        for column, fitted in enumerate(fits):
            own = [row for row in rows if (row["pair"], row["fitted to"]) == (pair, fitted)]
            depths = max(row["from"] for row in own)
            matrix = [[0.0] * depths for _ in range(depths)]
            for row in own:
                matrix[row["from"] - 1][row["to"] - 1] = 100 * row["accuracy"]
            panel = axes[line, column]
            panel.imshow(matrix, vmin=10, vmax=100, cmap="Blues", origin="lower")
            for here, there in ((a, b) for a in range(depths) for b in range(depths)):
                value = matrix[here][there]
                panel.text(
                    there,
                    here,
                    f"{value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if value > 65 else "#222222",
                )
            panel.set_xticks(range(depths), range(1, depths + 1))
            panel.set_yticks(range(depths), range(1, depths + 1))
            panel.tick_params(length=0)
            if line == 0:
                panel.set_title(fitted)
            if line == len(pairs) - 1:
                panel.set_xlabel("to depth")
        axes[line, 0].set_ylabel(f"{pair}\nfrom depth")
    _saved(figures, figure, path)


def _saved(figures: Any, figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=130)
    figures.close(figure)


FIGURES: dict[str, Callable[[Rows, Path], None]] = {
    "anisotropy": anisotropy,
    "first-order": first_order,
    "crossed": crossed,
    "stitching": stitching,
}
