"""Many runs: what is wanted, what is there, and the rest, one line of JSON each as it comes."""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

import fcfd

from .. import demo, report
from ..data import Data
from ..networks import size
from . import training
from .methods import METHODS, TUNED
from .settings import FACTORS, MEASURED, PILOT, REPORTED, Setting, fingerprint

RESULTS = Path(__file__).parent.parent / "results" / "study"


class Job(NamedTuple):
    """One run, by what tells it from all others."""

    setting: str
    fingerprint: str
    method: str
    factor: float
    seed: int
    part: str


def wanted(
    name: str, setting: Setting, *, tune: bool, seeds: int, factors: dict[str, float], methods: Sequence[str]
) -> list[Job]:
    """The runs of a setting, seed by seed: what is complete at any time is paired."""
    mark = fingerprint(setting)
    if tune:
        grid = [(method, factor) for method in methods for factor in (FACTORS if method in TUNED else (1.0,))]
        return [
            Job(name, mark, method, round(factor, 4), PILOT + seed, "validation")
            for seed in range(seeds)
            for method, factor in grid
        ]
    return [
        Job(name, mark, method, factors.get(METHODS[method].tuned_as or method, 1.0), REPORTED + seed, "test")
        for seed in range(seeds)
        for method in methods
    ]


def lines(file: Path) -> list[dict[str, Any]]:
    """Every line of a file of runs. A line that an interruption cut short counts as none."""
    found = []
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def job_of(line: dict[str, Any]) -> Job:
    """The job that a line finished."""
    return Job(*(line[field] for field in Job._fields))


def append(file: Path, record: dict[str, Any]) -> None:
    """Add a line by one write, so that several processes may share a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab", buffering=0) as end:
        end.write(f"\n{json.dumps(record)}".encode())


def chosen(runs: Iterable[dict[str, Any]], setting: str) -> dict[str, float]:
    """The factor of each method with the best mean accuracy on validation data; 1 where there is a tie."""
    scores: dict[tuple[str, float], list[float]] = {}
    for run in runs:
        if run["setting"] == setting and run["part"] == "validation":
            scores.setdefault((run["method"], run["factor"]), []).append(run["accuracy"])
    best: dict[str, tuple[float, bool, float]] = {}
    for (method, factor), found in scores.items():
        candidate = (sum(found) / len(found), factor == 1, factor)
        best[method] = max(best.get(method, candidate), candidate)
    return {method: factor for method, (_, _, factor) in best.items()}


def execute(
    jobs: Sequence[Job],
    settings: dict[str, Setting],
    file: Path,
    folder: Path,
    *,
    device: str,
    place: int = 0,
) -> None:
    """Do the jobs that the file lacks, one after another in this process."""
    done = {job_of(line) for line in lines(file)}
    todo = [job for job in jobs if job not in done]
    steps = sum(settings[job.setting].steps for job in todo)
    loaded: dict[tuple[str, str], tuple[Any, Any]] = {}
    with tqdm(total=steps, unit="step", position=place, smoothing=0.02) as progress:
        for job in todo:
            progress.set_description(f"{job.setting}: {job.method}, seed {job.seed}")
            setting = settings[job.setting]
            if (job.setting, job.part) not in loaded:
                data = training.parts(setting, job.part)
                teacher = training.taught(setting, data, folder, device=device)
                loaded = {(job.setting, job.part): (data, teacher)}
            data, teacher = loaded[job.setting, job.part]
            student, record = training.run(
                setting,
                METHODS[job.method],
                teacher,
                data,
                factor=job.factor,
                seed=job.seed,
                device=device,
                progress=progress,
            )
            measured = job.method in setting.distance and job.seed < REPORTED + MEASURED
            if job.part == "test" and measured and isinstance(student, nn.Sequential):
                here = Data(*(part.to(device) for part in data))
                distance = demo.functional_distance(
                    student,
                    teacher,
                    here,
                    seed=job.seed,
                    setting=demo.SETTINGS["digits"],
                    progress=tqdm(disable=True),
                )
                record["distance"] = {path: round(value, 5) for path, value in distance.items()}
            append(file, {**job._asdict(), **record, "device": device, "torch": torch.__version__})


def prepare(jobs: Sequence[Job], settings: dict[str, Setting], file: Path, folder: Path, device: str) -> None:
    """Teach every teacher that some job needs, and say how good it is."""
    known = {line["setting"] for line in lines(file.with_name("teachers.jsonl"))}
    for name in dict.fromkeys(job.setting for job in jobs):
        data = training.parts(settings[name], "test")
        teacher = training.taught(settings[name], data, folder, device=device)
        if name not in known:
            record = training.scores(settings[name], teacher, data, device) | {"parameters": size(teacher)}
            about = {"fcfd": fcfd.__version__, **report.environment()}
            append(file.with_name("teachers.jsonl"), {"setting": name, **record, "environment": about})


def spread_out(arguments: Sequence[str], processes: int) -> int:
    """Run this command in several processes of one thread; each takes every n-th job."""
    command = [sys.executable, "-m", "benchmarks.study", *arguments]
    running = [subprocess.Popen([*command, "--share", f"{share}/{processes}"]) for share in range(processes)]
    return max(process.wait() for process in running)
