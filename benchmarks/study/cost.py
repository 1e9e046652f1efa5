"""What a step of each method costs, in steps of KD: `python -m benchmarks.study.cost`."""

import argparse
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch

import fcfd

from .. import common
from . import training
from .driver import RESULTS
from .methods import METHODS, Moment
from .settings import SETTINGS, Setting

SHOWN = (
    *("labels", "KD", "hints", "KD + hints", "DKD", "DIST", "standardised KD", "SRRL", "KD + HCL"),
    *("FCFD", "FCFD, one path", "FCFD, all paths", "FCFD, into the student", "FCFD, into the teacher"),
    *("FCFD, late", "FCFD, gated", "FCFD + DIST"),
)


def stepper(setting: Setting, method: str, device: str) -> Callable[[], None]:
    """A function that takes the next step of a run, of 300 different ones."""
    torch.manual_seed(0)
    how, data = METHODS[method], training.parts(setting, "validation")
    images, labels = data.images[:200].to(device), data.labels[:200].to(device)
    student, teacher = setting.student().to(device), setting.teacher().to(device)
    example = setting.feed(images[: setting.batch])
    networks = {"t": setting.cut(teacher.eval(), example), "s": setting.cut(student.train(), example)}
    nets = fcfd.link(networks, example=example, first=setting.first, layouts=dict(setting.layouts))
    depth = len(nets.stages["s"])
    candidates = fcfd.crossings(depth, how.directions, first=setting.first)
    number = len(candidates) if how.paths is None else min(how.paths, len(candidates))
    known = {path: value[: setting.batch] for path, value in training.cached(setting, nets, images).items()}
    values = {"": example, "Labels": labels[: setting.batch]} | known
    optimizer = setting.optimizer([*student.parameters(), *nets.bridges.parameters()])
    steps, bridged = count(), fcfd.bridged(depth, first=setting.first)

    def step() -> None:
        at = 97 * next(steps) % setting.steps  # early and late ones in turns
        paths = fcfd.draw(candidates, number, seed=0, step=at)
        terms = how.terms(Moment(depth, paths, bridged, how.weight, setting.features, at, setting.steps))
        loss, aux = fcfd.objective(terms, *nets.columns, values)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fcfd.write_buffers_(student, aux.buffers["s"])

    return step


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("setting", choices=SETTINGS, nargs="?", default="small-200")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    setting = SETTINGS[options.setting]
    calls = {method: stepper(setting, method, options.device) for method in SHOWN}
    memory = {
        method: max(common.peak_memory(call, device=options.device) for _ in range(5))
        for method, call in calls.items()
    }
    samples = common.interleaved(calls, device=options.device, seconds=options.seconds)
    rows = [
        {
            "method": method,
            "time": round(common.ratio(samples[method], samples["KD"]), 3),
            "memory": round(memory[method] / memory["KD"], 3),
            "samples": len(samples[method]),
        }
        for method in SHOWN
    ]
    about = {"setting": options.setting, "environment": common.environment(options.device)}
    common.publish(options.out, f"cost-{options.setting}-{options.device}", rows, **about)
    shown = [(str(row["method"]), f"{row['time']:.2f}", f"{row['memory']:.2f}") for row in rows]
    common.show("a step, in steps of KD", ("method", "time", "memory"), shown)


if __name__ == "__main__":
    main()
