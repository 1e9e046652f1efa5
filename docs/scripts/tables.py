"""Fill the tables and lists of the pages from what runs: `python -m docs.scripts.tables` writes them.

A table stands between `<!-- table: losses of logits -->` and `<!-- end -->`. Those of losses come from the
rows of `reference.catalogue`, which the tests hold to the laws; those of recipes from the recipes; those of
results from what the benchmarks published; those of published pairs and methods from the commands that run
them. `<!-- list: members of logits -->` begins the part of the page of `fcfd.losses` that shows the functions
of one file.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import torch

import fcfd
from benchmarks import (
    accounting,
    cifar100,
    detect_report,
    imagenet,
    losses,
    memory,
    quantised,
    scaling,
    step,
)
from benchmarks.common import mebibytes, spread
from benchmarks.methods import METHODS
from benchmarks.step import Setting
from benchmarks.study import report as study
from fcfd import recipes, scaled
from fcfd.paths import bridged
from fcfd.terms import Term, _multi_level
from reference.catalogue import ROWS, Row, Size

Rows: TypeAlias = list[dict[str, Any]]

DOCS = Path(__file__).parents[1]
RESULTS = DOCS.parent / "benchmarks" / "results"
PAGES = [
    DOCS.parent / "README.md",
    *(
        DOCS / f"{name}.md"
        for name in (
            *("api/losses", "compile", "detection", "evidence", "function", "losses"),
            *("memory", "migrating", "published", "scale", "vocabulary"),
        )
    ),
    *sorted(DOCS.glob("recipes/*.md")),
]

RECIPES: dict[str, Mapping[str, Term]] = {
    "kd": recipes.kd(5),
    "hints": scaled(recipes.hints(("sss>t",)), 100.0),
    "appearance": recipes.appearance(5, bridged(5, first=2)),
    "function": recipes.function(5, ("ssttt", "ttsss")),
    "fcfd": recipes.fcfd(5, ("ssttt", "ttsss"), bridged(5, first=2)),
    "simkd": recipes.simkd(5),
    "srrl": recipes.srrl(5),
    "fula": recipes.fula("ssttt"),
    "hybrid_assistant": recipes.hybrid_assistant(5),
    "multi_teacher": recipes.multi_teacher(
        {
            "a": recipes.fcfd(5, ("ssaaa",), ("sss>a",), teacher="a"),
            "b": recipes.fcfd(5, ("bbsss",), ("sss>b",), teacher="b"),
        }
    ),
    "two crossings": recipes.function(5, ("sstss",)),
}
"""What the pages of recipes show, for networks of five stages."""

_MARK = re.compile(r"(<!-- (?:table|list): (\w+) of ([\w ,+-]+) -->\n).*?<!-- end -->", re.DOTALL)


def written(text: str) -> str:
    """A page with its tables and lists filled."""
    return _MARK.sub(_filled, text)


def _filled(mark: re.Match[str]) -> str:
    kinds: dict[str, Callable[[str], list[tuple[str, ...]]]] = {
        "losses": _losses,
        "index": _index,
        "quantised": _quantised,
        "detection": _detection,
        "terms": _terms,
        "study": study.study_rows,
        "main": study.main_rows,
        "gains": study.summary_rows,
        "tuning": study.tuning_rows,
        "distance": study.distance_rows,
        "gradients": study.gradient_rows,
        "sizes": partial(study.gradient_rows, what="size"),
        "shares": partial(study.gradient_rows, what="share"),
        "costs": study.cost_rows,
        "step": _step,
        "memory": _memory,
        "kept": _kept,
        "heads": partial(_kept, tokens=True),
        "chunks": _chunks,
        "compiling": _compiling,
        "rivals": _rivals,
        "slower": _slower,
        "pairs": _pairs,
        "methods": _methods,
        "accounting": _accounting,
        "lines": _lines,
        "function": _function,
    }
    if mark[2] == "members":
        lines = _members(mark[3])
    else:
        lines = [f"| {' | '.join(row)} |" for row in kinds[mark[2]](mark[3])]
    return "\n".join([mark[1].rstrip(), *lines, "<!-- end -->"])


def _accounting(depth: str) -> list[tuple[str, ...]]:
    half = int(depth) // 2
    paths = ("s" * half + "t" * half, "t" * half + "s" * half)
    rows = [accounting.row(placement, paths, int(depth)) for placement in accounting.PLACEMENTS]
    head = ("placement", "held", "largest stage", "gathered", "reduced")
    cells = [(row.placement, *(f"{amount:,.0f}" for amount in row[1:])) for row in rows]
    return [head, ("---", *["---:"] * 4), *cells]


def _members(file: str) -> list[str]:
    """What the file's docstring says, and everything public of it, by the name that users import."""
    origin = f"fcfd.{file}" if file == "objectives" else f"fcfd.families.{file}"
    names = [name for name, thing in vars(fcfd.losses).items() if _origin(thing) == origin]
    return [
        f"::: {origin}",
        "    options: {members: false}",
        "",
        "::: fcfd.losses",
        "    options:",
        "      heading_level: 3",
        "      members:",
        *(f"        - {name}" for name in names),
    ]


def _origin(thing: Any) -> str | None:
    return getattr(thing, "__module__", None)


def _losses(family: str) -> list[tuple[str, ...]]:
    rows = [row for row in ROWS if row.loss.__module__ == f"fcfd.families.{family}"]
    head = ("function", "what for", "cost", "returns", "coupled by the batch?")
    return [head, ("---",) * len(head), *map(_loss, rows)]


def _loss(row: Row) -> tuple[str, ...]:
    name = row.loss.__name__
    link = f"[`{name}`](api/losses.md#fcfd.losses.{name})"
    return link, row.purpose, row.cost, _returned(row), row.couples or "no"


THINGS = {
    "logits": "logits",
    "divergences": "logits",
    "ranks": "logits",
    "sparse": "logits",
    "vocabularies": "logits",
    "temperatures": "logits",
    "features": "features in one space",
    "maps": "maps",
    "tokens": "tokens, or their attention",
    "standardization": "features",
    "relations": "embeddings",
    "contrastive": "embeddings",
    "detection": "scores of a detection head",
}
"""What the functions of a family read of a network."""


def _index(name: str) -> list[tuple[str, ...]]:
    """Every function by what it reads: of which networks, and what else."""
    places: dict[tuple[str, str], list[str]] = {}
    for row in ROWS:
        family = row.loss.__module__.rpartition(".")[2]
        inputs = list(row.inputs(Size(), torch.Generator().manual_seed(0), torch.float64))
        both = len(inputs) > 1 and inputs[1] in ("target", "positive", "y")
        have = f"{THINGS[family]}, {'both networks' if both else 'one network'}"
        beside = ", ".join(f"`{other}`" for other in inputs[1 + both :]) or "—"
        link = f"[`{row.loss.__name__}`](api/losses.md#fcfd.losses.{row.loss.__name__})"
        places.setdefault((have, beside), []).append(link)
    head = ("you have", "beside it", "functions")
    ordered = sorted(places, key=lambda place: [each[0] for each in places].index(place[0]))
    return [head, ("---",) * len(head), *((*place, ", ".join(places[place])) for place in ordered)]


def _returned(row: Row) -> str:
    if row.output:
        return f"`[{row.output}]`"
    inputs = row.inputs(Size(), torch.Generator().manual_seed(0), torch.float64)
    result = row.read(row.loss(*row.arrange(list(inputs.values())), **row.hyper))
    return f"`{list(result.shape)}`" if result.ndim else "a scalar"


def _terms(recipe: str) -> list[tuple[str, ...]]:
    head = ("term", "loss", "prediction", "target", "weight")
    return [head, ("---",) * len(head), *(_term(name, term) for name, term in RECIPES[recipe].items())]


def _term(name: str, term: Term) -> tuple[str, ...]:
    targets = (term.target,) if isinstance(term.target, str) else term.target
    target = ", ".join(f"`{path}`" if path.islower() else path for path in targets)
    return f"`{name}`", _called(term.loss), f"`{term.prediction}`", target, f"{term.weight:g}"


def _called(loss: Callable[..., Any]) -> str:
    """A loss with what was bound to it; a private one in the words of its docstring."""
    if isinstance(loss, partial) and loss.func is _multi_level:
        return _called(loss.args[0])
    if not isinstance(loss, partial):
        return f"`{loss.__name__}`"
    bound = ", ".join(f"{key}={value!r}" for key, value in loss.keywords.items())
    if not loss.func.__name__.startswith("_"):
        return f"`{loss.func.__name__}({bound})`"
    sentence = (loss.func.__doc__ or "").split("\n")[0].rstrip(".")
    return f"{sentence} (`{bound}`)"


def _pairs(data: str) -> list[tuple[str, ...]]:
    """The published pairs of a data set, with what was published with them."""
    head = ("`--pair`", "rate", "T", "feature weight", "path weight", "teacher", "alone", "FCFD")
    rows: list[tuple[str, ...]] = [head, ("---", *("---:",) * (len(head) - 1))]
    for name, pair in {"cifar100": cifar100, "imagenet": imagenet}[data].PAIRS.items():
        weights = (pair.rate, pair.temperature, pair.feature_weight, pair.path_weight)
        quoted = ["–" if top1 is None else f"{top1:.2f}" for top1 in pair.published]
        rows.append((f"`{name}`", *(f"{weight:g}" for weight in weights), *quoted))
    return rows


def _methods(_: str) -> list[tuple[str, ...]]:
    """What a student can learn by."""
    rows = [(f"`{name}`", str(method.__doc__).rstrip(".")) for name, method in METHODS.items()]
    return [("`--method`", "what it is"), ("---", "---"), *rows]


def _lines(page: str) -> list[tuple[str, ...]]:
    """Lines of code before and after, a row for each section of a page on other libraries."""
    rows: list[tuple[str, ...]] = [("job", "before", "after"), ("---", "---:", "---:")]
    for section in (DOCS / f"{page}.md").read_text(encoding="utf-8").split("\n## "):
        if not section.startswith("From "):
            continue
        counts = {"before": 0, "after": 0}
        for kind, code in re.findall(
            r"^```(py|yaml|python)\b[^\n]*\n(.*?)^```$", section, re.MULTILINE | re.DOTALL
        ):
            lines = [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]
            counts["after" if kind == "python" else "before"] += len(lines)
        heading = section.partition("\n")[0]
        anchor = re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-"))
        job = section.split("\n\n")[1].partition(".")[0].replace("\n", " ")
        rows.append((f"[{heading}](#{anchor}): {job[0].lower() + job[1:]}", *map(str, counts.values())))
    return rows


def _quantised(name: str) -> list[tuple[str, ...]]:
    """Accuracy and divergence of networks of few bits, mean ± deviation over seeds."""
    rows = json.loads((RESULTS / f"quantised-{name}.json").read_text())["rows"]
    head = ("bits", "student learns by", "accuracy, %", "divergence, nats")
    return [head, ("---:", "---", "---:", "---:"), *quantised.summary(rows)]


def _detection(name: str) -> list[tuple[str, ...]]:
    """Average precision by what a detector learns from."""
    rows = detect_report.summary(json.loads((RESULTS / "detect" / f"{name}.json").read_text()))
    return [detect_report.HEAD, ("---", *("---:",) * (len(detect_report.HEAD) - 1)), *rows]


def _step(name: str) -> list[tuple[str, ...]]:
    """Ratios of one run: to the floor, and to the usual implementation under the same conditions."""
    head = ("dtype, teacher", "variant", "time ÷ floor", "time ÷ stand-in", "memory ÷ stand-in", "operations")
    return [
        head,
        ("---", "---", *("---:",) * 4),
        *(
            (
                f"{record['dtype']}, {record['teacher_mode']}",
                record["variant"],
                f"{record['time to floor']:.2f}",
                f"{record['time to stand-in']:.2f}",
                f"{record['peak'] / usual['peak']:.2f}",
                str(record["operations"] or ""),
            )
            for record, usual in _beside_stand_in(name)
            if record["variant"] != "floor"
        ),
    ]


def _memory(name: str) -> list[tuple[str, ...]]:
    """A compiled step by how much it keeps for the backward pass."""
    rows: list[tuple[str, ...]] = [("keep", "time ÷ stand-in", "memory ÷ stand-in"), ("---:",) * 3]
    for record, usual in _beside_stand_in(name):
        if record["variant"] == "fcfd whole":
            ratios = record["time to stand-in"], record["peak"] / usual["peak"]
            rows.append((f"{record['keep']:g}", *(f"{ratio:.2f}" for ratio in ratios)))
    return rows


def _kept(name: str, *, tokens: bool = False) -> list[tuple[str, ...]]:
    """What a step keeps and holds at its worst, in units of the plain one; without what no row has."""
    head = ("pair", "variant", "kept", "kept, compiled", "peak", "time", "largest batch")
    found = [record for record in _published("memory", name) if "failed" not in record]
    records = [record for record in found if record["pair"].endswith("tokens") == tokens]
    plain = {record["pair"]: record for record in records if record["variant"] == "plain"}
    rows: list[tuple[str, ...]] = [head, ("---", "---", *("---:",) * 5)]
    for record in records:
        unit = plain[record["pair"]]
        kept, compiled, peak = (
            f"{record[each] / unit[each]:.2f}" if each in record else ""
            for each in ("kept", "kept compiled", "peak")
        )
        time = f"{record['time to plain']:.2f}" if "time to plain" in record else ""
        largest = str(record.get("largest batch", ""))
        rows.append((record["pair"], record["variant"], kept, compiled, peak, time, largest))
    columns = [column for column in zip(*rows, strict=True) if any(column[2:])]
    return list(zip(*columns, strict=True))


def _chunks(name: str) -> list[tuple[str, ...]]:
    """A loss between heads by each way, in units of the loss of whole logits."""
    head = ("tokens × classes", "way", "time", "peak")
    rows: list[tuple[str, ...]] = [head, ("---", "---", "---:", "---:")]
    for record in _published("heads", name):
        size = f"{record['tokens']:,} × {record['classes']:,}"
        ratios = record["time to whole"], record["peak to whole"]
        rows.append((size, record["way"], *(f"{ratio:.2f}" for ratio in ratios)))
    return rows


def _beside_stand_in(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every record of a step that ran, with the stand-in's of the same comparison."""
    records = [record for record in _published("step", name) if "failed" not in record]
    usual = {_comparison(record): record for record in records if record["variant"] == "stand-in"}
    return [(record, usual[_comparison(record)]) for record in records]


def _comparison(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(name, getattr(step.CIFAR, name)) for name in Setting._fields)


def _compiling(name: str) -> list[tuple[str, ...]]:
    """What compiling from cold costs, in units of one plan by stages."""
    head = ("compiled", "plans", "time ÷ one plan by stages", "graphs", "graphs added in a second round")
    records = _published("compile", name)
    unit = records[0]["first round"]
    return [
        head,
        ("---", *("---:",) * 4),
        *(
            (
                {"stages": "by stages", "whole": "as a whole"}[record["by"]],
                str(record["plans"]),
                f"{record['first round'] / unit:.2f}",
                str(record["graphs"]),
                str(record["added later"]),
            )
            for record in records
        ),
    ]


def _rivals(name: str) -> list[tuple[str, ...]]:
    """Geometric means of time and memory beside other implementations."""
    head = ("beside", "mode", "losses and sizes", "its time ÷ ours", "its memory ÷ ours", "it is faster in")
    totals = json.loads((RESULTS / "losses" / f"{name}.json").read_text())["overall"]
    return [
        head,
        ("---", "---", *("---:",) * 4),
        *(
            (
                total["source"],
                total["mode"],
                str(total["rows"]),
                f"{total['time']:.2f}",
                f"{total['memory']:.2f}",
                str(total["faster in"]),
            )
            for total in totals
        ),
    ]


def _slower(name: str) -> list[tuple[str, ...]]:
    """Losses that take more than 1.05 times as long as the fastest other one, at each size where they do."""
    fastest: dict[tuple[str, str], tuple[float, str]] = {}
    for row in _published("losses", name):
        if row["source"] != "fcfd" and row["mode"] == "eager":
            place, found = (row["loss"], row["size"]), (row["time to fcfd"], row["source"])
            fastest[place] = min(fastest.get(place, found), found)
    lost: dict[tuple[str, str], list[str]] = {}
    for (loss, size), (ratio, source) in fastest.items():
        if 1 / ratio > 1.05:
            lost.setdefault((loss, source), []).append(f"{1 / ratio:.2f} ({size})")
    rows = sorted((loss, source, ", ".join(found)) for (loss, source), found in lost.items())
    return [("loss", "beside", "our time ÷ its"), ("---",) * 3, *rows]


def _anisotropy(rows: Rows) -> list[tuple[str, ...]]:
    """Gains in units of that of a random direction, and what a step of a hundredth does: medians."""
    head = ("network", "depth", "numbers", "gain of the first", "of the sixth", "of the bottom")
    steps = ("top: logits move, %", "random", "bottom")
    return [(*head, *steps), ("---", *("---:",) * 8), *map(_direction, rows)]


def _direction(row: Mapping[str, Any]) -> tuple[str, ...]:
    at = row["relative"].index(0.01)
    firsts, sixths = ([gains[rank] for gains in row["gains"]] for rank in (0, -1))
    gains = [
        median(gain / random for gain, random in zip(own, row["random gain"], strict=True))
        for own in (firsts, sixths, row["bottom gain"])
    ]
    moved = [f"{100 * median(row['moved'][way][at]):.2g}" for way in ("top", "random", "bottom")]
    bottom = f"{gains[2]:.2f}" if gains[2] > 1e-6 else "0"
    return (
        row["network"],
        str(row["depth"]),
        f"{row['numbers']:,}",
        f"{gains[0]:.1f}",
        f"{gains[1]:.1f}",
        bottom,
        *moved,
    )


def _first_order(rows: Rows) -> list[tuple[str, ...]]:
    """How well two distances of features tell that of the logits."""
    head = (
        "student learned by",
        "path",
        "features: rank correlation",
        "first order: rank correlation",
        "÷ true",
    )
    shares = [f"÷ true, at {share} of the step" for share in rows[0]["median ratio at a share of the step"]]
    return [
        (*head, *shares),
        ("---", "---", *("---:",) * (3 + len(shares))),
        *(
            (
                row["method"],
                f"`{row['path']}`",
                f"{row['rank correlation, feature distance']:.2f}",
                f"{row['rank correlation, first order']:.2f}",
                f"{row['median ratio']:.2f}",
                *(f"{part:.2f}" for part in row["median ratio at a share of the step"].values()),
            )
            for row in rows
        ),
    ]


def _crossed(rows: Rows) -> list[tuple[str, ...]]:
    """Accuracy of every path by method."""
    paths = sorted(rows[0]["accuracy"], key=lambda path: (path[0], path.count(path[0])), reverse=True)
    paths = [path for path in paths if path != "ttttt"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return [
        ("student learned by", *(f"`{path}`" for path in paths)),
        ("---", *("---:",) * len(paths)),
        *(
            (
                method,
                *(
                    spread([100 * row["accuracy"][path] for row in rows if row["method"] == method], ".1f")
                    for path in paths
                ),
            )
            for method in methods
        ),
    ]


def _cost(rows: Rows) -> list[tuple[str, ...]]:
    """What a loss between two features costs, forward and backward."""
    head = ("loss", "time ÷ function", "peak MiB", "operations", "convolutions")
    return [
        head,
        ("---", *("---:",) * 4),
        *(
            (
                row["loss"],
                f"{row['time to function']:.2g}",
                mebibytes(row["peak"]),
                str(row["operations"]),
                str(row["convolutions"]),
            )
            for row in rows
        ),
    ]


_FUNCTION: dict[str, Callable[[Rows], list[tuple[str, ...]]]] = {
    "anisotropy": _anisotropy,
    "first-order": _first_order,
    "crossed": _crossed,
    "cost": _cost,
}


def _function(part: str) -> list[tuple[str, ...]]:
    return _FUNCTION[part](_published("function", part))


def _published(benchmark: str, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((RESULTS / benchmark / f"{name}.json").read_text())["rows"]
    return found


def draw() -> None:
    """The figures of published benchmarks."""
    for benchmark in (losses, memory, scaling, step):
        folder = benchmark.__name__.rpartition(".")[2]
        records = [record for record in _published(folder, "cpu") if "failed" not in record]
        benchmark.plot(records, DOCS / "figures" / f"{folder}-cpu.svg")


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page.read_text()))
    draw()
