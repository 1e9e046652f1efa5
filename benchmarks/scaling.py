"""A training step against batch, number of paths, depth and image size: `python -m benchmarks.scaling`.

One thing changes at a time. For each value KD, FCFD as it is usually written, FCFD in eager mode and (with
`--compiled`) compiled as a whole run in turns with the floor. Rules: `benchmarks/README.md`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .common import environment, mebibytes, microseconds, parser, publish, pyplot, show
from .step import CIFAR, Setting, compare

SWEEPS: dict[str, list[dict[str, Any]]] = {
    "batch": [{"batch": batch} for batch in (8, 16, 32, 64, 128)],
    "paths": [{"paths": count} for count in range(7)],
    "teacher": [{"teacher": name} for name in ("resnet8", "resnet14", "resnet20", "resnet32", "resnet56")],
    "pixels": [{"pixels": pixels} for pixels in (16, 32, 48, 64)],
}
"""What changes, and its values."""

BASE = CIFAR._replace(teacher="resnet20", student="resnet8", batch=32, first=1)
"""Five stages, six crossings."""


def settings(base: Setting, *, quick: bool) -> Iterator[tuple[str, Setting]]:
    """What changes, and a setting for each of its values."""
    for name, changes in SWEEPS.items():
        for change in changes[: 2 if quick else None]:
            yield name, base._replace(**change)


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Time and memory of each variant, a column of panels for each thing that changes."""
    figures = pyplot()
    if figures is None:
        return
    sweeps = list(dict.fromkeys(record["sweep"] for record in records))
    figure, axes = figures.subplots(2, len(sweeps), figsize=(2.6 * len(sweeps), 4.5), layout="constrained")
    for column, sweep in enumerate(sweeps):
        rows = [record for record in records if record["sweep"] == sweep]
        for variant in dict.fromkeys(record["variant"] for record in rows):
            of = [record for record in rows if record["variant"] == variant]
            values = [str(record[sweep]) for record in of]
            unit = next(record["median"] for record in rows if record["variant"] == "floor")
            axes[0, column].plot(
                values, [record["median"] / unit for record in of], marker=".", label=variant
            )
            if variant != "floor":
                axes[1, column].plot(values, [record["peak"] / 2**20 for record in of], marker=".")
        axes[0, column].tick_params(axis="x", labelbottom=False)
        axes[1, column].set_xlabel(sweep)
        axes[1, column].tick_params(axis="x", rotation=30)
    axes[0, 0].set_ylabel("time ÷ the first floor")
    axes[1, 0].set_ylabel("peak MiB")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    figures.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser(__doc__, "scaling")
    command.add_argument("--quick", action="store_true", help="tiny networks, two values of each")
    command.add_argument("--compiled", action="store_true", help="compile too: a compilation for each value")
    command.add_argument("--seconds", type=float, default=5.0, help="of timing for each value")
    options = command.parse_args(arguments)

    base = BASE._replace(device=options.device)
    if options.quick:
        base = base._replace(teacher="resnet8", batch=2)
    variants = ["KD", "stand-in", "fcfd", *(["fcfd whole"] if options.compiled else [])]
    seconds = 0.1 if options.quick else options.seconds
    records = [
        {"sweep": sweep, **record}
        for sweep, setting in settings(base, quick=options.quick)
        for record in compare(setting, variants, seconds=seconds)
    ]
    cells = [
        (
            f"{record['sweep']} {record[record['sweep']]}",
            record["variant"],
            microseconds(record["median"]),
            f"{record['time to floor']:.2f}×",
            f"{record['time to stand-in']:.2f}×",
            mebibytes(record["peak"]),
        )
        for record in records
    ]
    show("One training step", ("changed", "variant", "step", "÷ floor", "÷ stand-in", "peak MiB"), cells)
    name = options.name or options.device
    publish(options.out, name, records, environment=environment(options.device))
    plot(records, options.out / f"{name}.svg")


if __name__ == "__main__":
    main()
