"""Compare methods on real data: `python -m benchmarks.study SETTING...`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .driver import RESULTS, chosen, execute, lines, prepare, spread_out, wanted
from .methods import METHODS, SCHEDULES, TUNED
from .settings import SETTINGS, Setting


def quick(setting: Setting) -> Setting:
    """A few steps of everything: to see that it runs."""
    return setting._replace(steps=6, teacher_steps=6, seeds=2, distance=())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("settings", nargs="*", help=f"of {', '.join(SETTINGS)}; by default all")
    parser.add_argument("--tune", action="store_true", help="the grid, on validation data and pilot seeds")
    parser.add_argument("--quick", action="store_true", help="a few steps, two seeds: minutes")
    parser.add_argument("--seeds", type=int, help="how many; by default as the setting says, 4 to tune")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="some of the setting's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=int, default=1, help="of one thread each (default 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files of lines")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "study", help="where teachers are kept")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.settings if name not in SETTINGS]
    unknown += [name for name in options.methods or () if name not in METHODS]
    if unknown:
        parser.error(f"there is no {', '.join(map(repr, unknown))}; settings are {', '.join(SETTINGS)}")
    torch.set_num_threads(1)
    names = options.settings or list(SETTINGS)
    change = quick if options.quick else lambda setting: setting
    settings = {name: change(SETTINGS[name]) for name in names}
    out, folder = options.out, options.runs
    if options.quick:
        out, folder = folder / "quick", folder / "quick"
    file = out / ("tuning.jsonl" if options.tune else "runs.jsonl")
    tuned = lines(RESULTS / "tuning.jsonl")
    jobs = []
    for name, setting in settings.items():
        methods = options.methods or setting.methods
        if options.tune:
            methods = [name for name in methods if name in ("labels", *TUNED, *SCHEDULES)]
        seeds = options.seeds or (4 if options.tune and not options.quick else setting.seeds)
        factors = chosen(tuned, setting.tuned_on)
        jobs += wanted(name, setting, tune=options.tune, seeds=seeds, factors=factors, methods=methods)
    try:
        if not options.share:
            prepare(jobs, settings, file, folder, options.device)
            if options.processes > 1:
                return spread_out(list(arguments or sys.argv[1:]), options.processes)
        share, of = map(int, (options.share or "0/1").split("/"))
        execute(jobs[share::of], settings, file, folder, device=options.device, place=share)
    except KeyboardInterrupt:
        print(f"\nFinished runs are kept in {file}; the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
