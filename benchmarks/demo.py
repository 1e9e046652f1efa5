"""One student, distilled in six ways on real data: `make demo`, or `python -m benchmarks.demo`.

A teacher learns from many labelled images. A student with few parameters sees few of them and learns by each
of `METHODS`: from the same images, initial weights and batches, with the same optimizer and number of steps,
all fixed by a seed. The training loop is `distil`, made of public functions only; copy it.

Every finished run is a line of a file under `runs/`, named after the settings: interrupted, it resumes.

What was chosen, and how: in pilot runs with seeds from 100, which learned from the first 600 digits and were
scored on the next 400, so that no test image was seen. Ten labelled images a class leave a student far below
its teacher (with five, the gaps are wider and the order about the same). The rate, 0.1, was no worse for any
method than 0.05. The weight of feature terms, 30, was for every method that has some as good as the best of
0.5, 2, 5, 10 and 100, or within noise of it; from 10 on they hardly differ. The weight of DIST, 2, is the
best of 0.5, 1, 2 and 5 by as little. The temperature, 4, and two paths a step are as published.

For Fashion-MNIST, at 14×14 pixels, the weight is the best of the study's grid (`benchmarks/study`), for KD
with hints and for FCFD alike.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import fcfd
from fcfd import losses, recipes, schedules

from . import report
from .data import FASHION_MNIST, Data, batches, digits, fashion_mnist_14, few
from .networks import accuracy, network, sgd, size, train

ROOT = Path(__file__).parent.parent


class Setting(NamedTuple):
    """What a table is measured with, besides `METHODS`."""

    data: str
    images_per_class: int
    first_stride: int
    teacher_steps: int
    steps: int = 300
    bridge_steps: int = 100
    teacher_width: int = 16
    student_width: int = 4
    batch: int = 50
    rate: float = 0.1
    feature_weight: float = 30.0


SETTINGS = {
    "digits": Setting("digits", 10, 1, 300),
    "fashion-mnist": Setting("fashion-mnist", 20, 2, 1000, student_width=8, rate=0.05, feature_weight=100.0),
}

BRIDGED = fcfd.bridged(5, first=2)
READ = ("stttt", "ssttt", "ssstt", "sssst")
LABEL = {"label": fcfd.Term(losses.cross_entropy, "sssss", "Labels")}
DIST = {"dist": fcfd.Term(losses.dist, "sssss", "ttttt", 2.0)}


def _fcfd(paths: tuple[str, ...], weight: float, warm: float) -> dict[str, fcfd.Term]:
    """FCFD as recommended: every term on a crossed path is warmed up. Without paths it is KD with hints."""
    crossed = fcfd.scaled(recipes.function(5, paths), warm)
    terms = recipes.kd(5) | recipes.appearance(5, BRIDGED) | crossed
    return fcfd.scaled(terms, {"feature": weight, "pooled": weight})


METHODS: dict[str, Callable[[tuple[str, ...], float, float], dict[str, fcfd.Term]]] = {
    "labels alone": lambda paths, weight, warm: LABEL,
    "KD": lambda paths, weight, warm: recipes.kd(5),
    "hint": lambda paths, weight, warm: LABEL | fcfd.scaled(recipes.hints(["sss>t"]), weight),
    "KD + hints": lambda paths, weight, warm: _fcfd((), weight, warm),
    "FCFD": lambda paths, weight, warm: _fcfd(paths, weight, warm),
    "FCFD + DIST": lambda paths, weight, warm: _fcfd(paths, weight, warm) | DIST,
}


def distil(
    method: str,
    student: nn.Sequential,
    teacher: nn.Sequential,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    setting: Setting,
    progress: tqdm,
) -> None:
    """The training loop: the student learns, the teacher stays as it is."""
    networks = {"t": fcfd.split(list(teacher.eval())), "s": fcfd.split(list(student.train()))}
    nets = fcfd.link(networks, example=images[:2], first=2)
    optimizer = sgd([*student.parameters(), *nets.bridges.parameters()])
    for step, batch in enumerate(batches(len(images), setting.batch, setting.steps, seed=seed)):
        optimizer.param_groups[0]["lr"] = schedules.cosine(step, steps=setting.steps, start=setting.rate)
        weight = schedules.linear_warmup(step, steps=setting.steps / 10, end=setting.feature_weight)
        warm = schedules.linear_warmup(step, steps=setting.steps / 3)
        terms = METHODS[method](fcfd.draw(nets.crossings, 2, seed=seed, step=step), weight, warm)
        values = {"": images[batch], "Labels": labels[batch]}
        loss, aux = fcfd.objective(terms, *nets.columns, values)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fcfd.write_buffers_(student, aux.buffers["s"])
        progress.update()


def functional_distance(
    student: nn.Sequential,
    teacher: nn.Sequential,
    data: Data,
    *,
    seed: int,
    setting: Setting,
    progress: tqdm,
) -> dict[str, float]:
    """How far off the teacher's later layers are on the student's features, by the path that reads them.

    Every student gets new bridges, trained alike: both networks frozen, on the images that the teacher
    learned from, without labels, towards the loss that is then measured on the first 1,000 test images. So a
    student that was trained with bridges has no advantage, and no distance is due to an untrained bridge.

    Returns:
        The mean divergence from the teacher's own logits in nats, at temperature 1.
    """
    torch.manual_seed(seed)
    networks = {"t": fcfd.split(list(teacher.eval())), "s": fcfd.split(list(student.eval()))}
    nets = fcfd.link(networks, example=data.images[:2], paths=READ)
    params = nets.params | {"s": fcfd.frozen(nets.params["s"])}
    compare = partial(losses.function, paths=READ, temperature=1.0, feature_weight=0.0)
    optimizer = torch.optim.Adam(nets.bridges.parameters())
    for step, batch in enumerate(batches(len(data.images), 100, setting.bridge_steps, seed=seed)):
        optimizer.param_groups[0]["lr"] = schedules.cosine(step, steps=setting.bridge_steps, start=0.01)
        loss, aux = compare(nets.stages, params, nets.buffers, data.images[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fcfd.write_buffers_(nets.bridges["s>t"], aux.buffers["s>t"])
        progress.update()
    nets.bridges.eval()
    with torch.no_grad():
        _, aux = compare(nets.stages, params, nets.buffers, data.test_images[:1000])
    return {path: aux.parts[f"kl/{path}"].item() for path in READ}


def pair(setting: Setting) -> tuple[nn.Sequential, nn.Sequential]:
    """A new teacher and a new student."""
    teacher = network(setting.teacher_width, convolutions=2, first_stride=setting.first_stride)
    return teacher, network(setting.student_width, convolutions=1, first_stride=setting.first_stride)


def measure(
    method: str, teacher: nn.Sequential, data: Data, *, seed: int, setting: Setting, progress: tqdm
) -> dict[str, Any]:
    """One run: a record of what came out."""
    began = time.process_time()
    torch.manual_seed(seed)
    _, student = pair(setting)
    if method in METHODS:
        chosen = few(data.labels, setting.images_per_class, seed=seed)
        images, labels = data.images[chosen], data.labels[chosen]
        distil(method, student, teacher, images, labels, seed=seed, setting=setting, progress=progress)
    seconds = time.process_time() - began
    distance = functional_distance(student, teacher, data, seed=seed, setting=setting, progress=progress)
    score = accuracy(student, data)
    return {"method": method, "seed": seed, "accuracy": score, "distance": distance, "cpu_seconds": seconds}


def experiment(setting: Setting, data: Data, *, seeds: Iterable[int], folder: Path) -> dict[str, Any]:
    """Every method with every seed, but for those that the folder already holds."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [
        Path(__file__).with_name(f"{name}.py").read_text("utf-8") for name in ("demo", "data", "networks")
    ]
    key = hashlib.sha256(json.dumps([setting, sources, torch.__version__]).encode()).hexdigest()[:12]
    file, weights = folder / f"{setting.data}-{key}.jsonl", folder / f"{setting.data}-{key}.pt"
    runs, wanted = finished(file), [(method, seed) for seed in seeds for method in ("untrained", *METHODS)]
    todo = [run for run in wanted if run not in runs]
    steps = sum(setting.bridge_steps + setting.steps * (method in METHODS) for method, _ in todo)
    torch.manual_seed(0)
    teacher, student = pair(setting)
    with tqdm(total=steps + setting.teacher_steps * (not weights.exists()), unit="step") as progress:
        if weights.exists():
            teacher.load_state_dict(torch.load(weights, weights_only=True))
        else:
            progress.set_description("teacher")
            steps, rate = setting.teacher_steps, setting.rate
            train(teacher, data.images, data.labels, steps=steps, rate=rate, progress=progress)
            torch.save(teacher.state_dict(), weights.with_suffix(".part"))
            weights.with_suffix(".part").replace(weights)
        for method, seed in todo:
            progress.set_description(f"{method}, seed {seed}")
            run = measure(method, teacher, data, seed=seed, setting=setting, progress=progress)
            with file.open("a", encoding="utf-8") as lines:
                lines.write("\n" + json.dumps(run))
            runs[method, seed] = run
    return {
        "data": setting.data,
        "images": 10 * setting.images_per_class,
        "test_images": len(data.test_images),
        "setting": setting._asdict(),
        "environment": report.environment(),
        "student": {"parameters": size(student)},
        "teacher": {"parameters": size(teacher), "accuracy": accuracy(teacher, data)},
        "seeds": sorted({seed for _, seed in wanted}),
        "runs": [runs[run] for run in wanted],
    }


def finished(file: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The runs on file. A line that an interruption cut short counts as none."""
    runs = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            run = json.loads(line)
        except json.JSONDecodeError:
            continue
        runs[run["method"], run["seed"]] = run
    return runs


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=SETTINGS, default="digits")
    parser.add_argument("--folder", type=Path, default=FASHION_MNIST, help="where the IDX files are")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (default 3)")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where finished runs are kept")
    parser.add_argument("--publish", action="store_true", help="write to benchmarks/results and docs/figures")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; give at least 1")
    try:
        data = digits() if options.data == "digits" else fashion_mnist_14(options.folder)
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(1)  # networks this small gain nothing from more, and sums keep their order anywhere
    try:
        results = experiment(SETTINGS[options.data], data, seeds=range(options.seeds), folder=options.runs)
    except KeyboardInterrupt:
        parser.exit(
            130, f"\nFinished runs are kept in {options.runs}; the same command goes on from there.\n"
        )
    numbers, figure = options.runs / f"demo-{options.data}.json", options.runs / f"demo-{options.data}.png"
    if options.publish:
        numbers = ROOT / "benchmarks" / "results" / numbers.name
        figure = ROOT / "docs" / "figures" / figure.name
    report.table(results, against="KD + hints")
    report.write(results, numbers)
    report.figure(results, figure)
    print(f"Written: {numbers} and {figure}")


if __name__ == "__main__":
    main()
