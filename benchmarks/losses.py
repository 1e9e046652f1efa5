"""Throughput and memory of every loss, beside other implementations: `python -m benchmarks.losses`.

Each row of the catalogue runs forward and backward at sizes from CIFAR to ImageNet, and logit losses at a
vocabulary's. Where another implementation computes the same (`benchmarks/peers.py`), it runs in turns with
ours on the same tensors. Rules: `benchmarks/README.md`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference.catalogue import ROWS, Row, Size

from .common import (
    environment,
    geometric_mean,
    interleaved,
    mebibytes,
    microseconds,
    operations,
    parser,
    peak_memory,
    publish,
    published,
    pyplot,
    ratio,
    show,
    summary,
)
from .peers import Contender, contenders

LOGITS = {"CIFAR": Size(64, 100), "ImageNet": Size(256, 1000)}
EMBEDDINGS = {"CIFAR": Size(64, 256), "ImageNet": Size(256, 512)}
MAPS = {"CIFAR": Size(64, 64, 8), "ImageNet": Size(64, 512, 7)}
SIZES = {
    "logits": LOGITS,
    "divergences": LOGITS,
    "ranks": LOGITS,
    "sparse": LOGITS,
    "vocabularies": LOGITS,
    "temperatures": LOGITS,
    "detection": LOGITS,
    "relations": EMBEDDINGS,
    "contrastive": EMBEDDINGS,
    "features": MAPS,
    "maps": MAPS,
    "tokens": MAPS,
    "standardization": EMBEDDINGS,
}
VOCABULARY = {"cpu": Size(128, 32000), "cuda": Size(1024, 32000)}
OF_TOKENS = ("logits", "divergences", "sparse", "vocabularies")
TOO_LARGE = ("wkd_logit",)
"""Not run on a vocabulary: the class cost alone has a billion entries."""

LOOPS = (
    "wkd_logit",
    "hard_dark_rank",
    "cc_taylor_rbf",
    "nst_poly",
    "inter_channel_correlation",
    "mlkd_class_corr",
    "ikl",
    "gkl",
)
"""Naive formulas that loop over examples or pair all classes, measured at the first size only."""


class Case(NamedTuple):
    """One function of ours at one size, and who else computes it."""

    name: str
    row: Row
    label: str
    size: Size
    ours: Callable[..., Tensor]
    others: tuple[Contender, ...]


def cases(
    others: Sequence[Contender], device: str, *, quick: bool, only: Sequence[str] | None
) -> Iterator[Case]:
    """Every row at every size of its family; where only a composition has a peer, that too."""
    for row in ROWS:
        name = row.loss.__name__
        family = row.loss.__module__.rpartition(".")[2]
        sizes = dict(SIZES[family])
        if family in OF_TOKENS and name not in TOO_LARGE:
            sizes["vocabulary"] = VOCABULARY[device]
        if only is not None and not {name, family} & set(only):
            continue
        for label, size in list(sizes.items())[: 1 if quick else None]:
            rivals = [other for other in others if other.row == name]
            if label != "CIFAR":
                rivals = [other for other in rivals if other.source != "naive" or name not in LOOPS]
            yield Case(name, row, label, size, _mean_of(row), tuple(o for o in rivals if not o.ours))
            for named, ours in {other.ours for other in rivals if other.ours}:
                against = tuple(other for other in rivals if other.ours and other.ours[0] == named)
                yield Case(named, row, label, size, ours, against)


def _mean_of(row: Row) -> Callable[..., Tensor]:
    def run(*args: Any) -> Tensor:
        return row.read(row.loss(*args, **row.hyper)).mean()

    return run


def inputs(case: Case, device: str, dtype: torch.dtype = torch.float32) -> tuple[Sequence[Any], list[Tensor]]:
    """The arguments of a case, and those among its tensors that learn."""
    generator = torch.Generator(device).manual_seed(0)
    tensors = case.row.inputs(Size(*map(max, case.size, case.row.least)), generator, dtype)
    learned = [tensors[name].requires_grad_() for name in case.row.learns]
    return case.row.arrange(list(tensors.values())), learned


def check_same(case: Case, other: Contender, args: Sequence[Any], learned: Sequence[Tensor]) -> None:
    """Fail unless the other computes the same value and gradients, up to its constant factor."""
    factor = other.factor * (len(args[0]) if other.per_example else 1)
    ours, theirs = case.ours(*args), other.run(*args) * factor
    found = [ours, *torch.autograd.grad(ours, learned)], [theirs, *torch.autograd.grad(theirs, learned)]
    for mine, yours in zip(*found, strict=True):
        if not (mine - yours).norm() <= other.tolerance * mine.norm():
            raise ValueError(
                f"{case.name}: {other.source} computes something else: value {theirs:.6g} for {ours:.6g}, or "
                "another gradient."
            )


def measure(case: Case, device: str, *, compiled: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Ours and the others in turns, on the same tensors: one record for each, eager and then compiled."""
    args, learned = inputs(case, device)
    losses = {"fcfd": case.ours}
    for other in case.others:
        try:
            check_same(case, other, args, learned)
        except ValueError as error:
            print(f"left out: {case.label}, {error}")
        else:
            losses[other.source] = other.run
    for mode in ("eager", "compiled")[: 2 if compiled else 1]:
        if mode == "compiled":
            torch.compiler.reset()
            losses = {
                name: torch.compile(loss, dynamic=False, fullgraph=name == "fcfd")
                for name, loss in losses.items()
            }
        calls = {name: _forward_and_backward(loss, args, learned) for name, loss in losses.items()}
        samples = interleaved(calls, device=device, seconds=seconds)
        for name, call in calls.items():
            yield {
                "loss": case.name,
                "family": case.row.loss.__module__.rpartition(".")[2],
                "size": case.label,
                "shape": "×".join(map(str, args[0].shape)),
                "source": name,
                "mode": mode,
                **summary(samples[name])._asdict(),
                "peak": peak_memory(call, device=device),
                "operations": sum(operations(call).values()) if mode == "eager" else None,
                "time to fcfd": ratio(samples[name], samples["fcfd"]),
            }


def _forward_and_backward(
    loss: Callable[..., Tensor], args: Sequence[Any], learned: Sequence[Tensor]
) -> Callable[[], None]:
    def run() -> None:
        value = loss(*args)
        if learned:
            torch.autograd.grad(value, learned)

    return run


# What is printed and kept


def lines(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A line for each of our measurements, and one below it for each other implementation's."""
    ours: Mapping[str, Any] = {}
    for record in records:
        cells = (record["mode"], microseconds(record["median"]), mebibytes(record["peak"]))
        count = "" if record["operations"] is None else str(record["operations"])
        if record["source"] == "fcfd":
            ours = record
            yield (record["loss"], f"{record['size']} {record['shape']}", *cells, count, "", "")
        else:
            memory = record["peak"] / max(ours["peak"], 1)
            ratios = {"slower": round(record["time to fcfd"], 2), "hungrier": round(memory, 2)}
            loses = [word for word, value in ratios.items() if value < 1]
            times = " ".join(f"{value:.2f}×" for value in ratios.values())
            yield (
                f"  {record['source']}",
                "",
                *cells,
                count,
                times,
                f"◀ {' and '.join(loses)}" if loses else "",
            )


def overall(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The geometric mean of time and memory against each source, and in how many rows it is faster."""
    peaks = {_key(r): r["peak"] for r in records if r["source"] == "fcfd"}
    found = []
    for source, mode in dict.fromkeys((r["source"], r["mode"]) for r in records if r["source"] != "fcfd"):
        rows = [r for r in records if (r["source"], r["mode"]) == (source, mode)]
        found.append(
            {
                "source": source,
                "mode": mode,
                "rows": len(rows),
                "time": geometric_mean(r["time to fcfd"] for r in rows),
                "memory": geometric_mean(max(r["peak"], 1) / max(peaks[_key(r)], 1) for r in rows),
                "faster in": sum(round(r["time to fcfd"], 2) < 1 for r in rows),
            }
        )
    return found


def _key(record: Mapping[str, Any]) -> tuple[str, ...]:
    return record["loss"], record["size"], record["mode"]


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """How many times as long as ours the others take, by loss: right of the line, `fcfd` is faster."""
    figures = pyplot()
    others = [r for r in records if r["source"] != "fcfd" and r["mode"] == "eager"]
    if figures is None or not others:
        return
    names = sorted({r["loss"] for r in others}, reverse=True)
    figure, axes = figures.subplots(figsize=(6, 1 + 0.22 * len(names)), layout="constrained")
    for source in dict.fromkeys(r["source"] for r in others):
        rows = [r for r in others if r["source"] == source]
        axes.scatter(
            [r["time to fcfd"] for r in rows], [names.index(r["loss"]) for r in rows], s=14, label=source
        )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(
        xscale="log",
        xlabel="time, forward and backward, in units of fcfd's (eager)",
        yticks=range(len(names)),
    )
    axes.set_yticklabels(names)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def _merged(
    before: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Earlier records that no new one replaces, and the new ones."""
    new = {_key(record) for record in found}
    return [*(record for record in before if _key(record) not in new), *found]


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser(__doc__, "losses")
    command.add_argument("--quick", action="store_true", help="one size, few samples")
    command.add_argument("--only", metavar="NAME", nargs="+", help="rows of the catalogue, or families")
    command.add_argument("--add", action="store_true", help="keep what the file has of other losses")
    command.add_argument("--compile", choices=("none", "some", "all"), default="some", dest="compiled")
    command.add_argument("--seconds", type=float, default=0.2, help="of timing for each loss and size")
    command.add_argument("--minutes", type=float, default=9.0, help="begin no loss after these")
    options = command.parse_args(arguments)

    name = options.name or options.device
    deadline, about = perf_counter() + 60 * options.minutes, environment(options.device)
    before = published(options.out, name, about) if options.add else []
    others, status = contenders()
    found: list[dict[str, Any]] = []
    for case in cases(others, options.device, quick=options.quick, only=options.only):
        if perf_counter() > deadline:
            print(f"left out: {case.name} of {case.label} and what follows")
            break
        some = any(other.source != "naive" for other in case.others) and case.label == "CIFAR"
        compiled = options.compiled == "all" or (options.compiled == "some" and some)
        found += measure(
            case, options.device, compiled=compiled, seconds=0.05 if options.quick else options.seconds
        )
        publish(options.out, name, _merged(before, found), environment=about, beside=status)
    columns = ("loss", "size", "mode", "median", "peak MiB", "operations", "time, memory to fcfd's", "")
    show("Losses, forward and backward", columns, lines(found))
    if options.compiled == "some":
        print("Compiled: only where a library computes the same, at the first size; --compile all for all.")
    print("Beside:", ", ".join(f"{source} ({state})" for source, state in status.items()))
    every = _merged(before, found)
    totals = overall(every)
    for total in totals:
        print(
            f"{total['source']}, {total['mode']}: {total['time']:.2f}× the time and {total['memory']:.2f}× "
            f"the memory of fcfd (geometric means of {total['rows']}); faster in {total['faster in']}."
        )
    publish(options.out, name, every, environment=about, beside=status, overall=totals)
    plot(every, options.out / f"{name}.svg")


if __name__ == "__main__":
    main()
