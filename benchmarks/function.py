"""What later layers make of a feature: `python -m benchmarks.function` (`--quick` in minutes).

Four experiments, a file of JSON and a figure each; `docs/function.md` shows them.

* `anisotropy`: how differently steps of one length are read, by direction. On MobileNetV2 with its ImageNet
  weights and ten photographs, and on the demo's teacher and test digits.
* `first-order`: the function distance by one product with a Jacobian, beside the true one, on features of the
  demo's students that affine stitches bring to the teacher.
* `crossed`: the accuracy of every crossed path of the demo's networks, before and after each method. All
  bridges are affine stitches, fitted in closed form on the images that the teacher learned from.
* `stitching`: what the best stitch from any depth of one network to any depth of another is worth.

`cost` measures time, memory and operations of the first-order distance as a loss; it wants the machine alone.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import fcfd
from fcfd import losses, recipes, schedules
from fcfd.analysis import crossed_accuracy, distance, linearized, response, spectrum, tail
from fcfd.stitching import stitch, stitched
from reference.zoo import NETWORKS

from . import demo, function_figures as figures
from .common import RESULTS, environment, interleaved, operations, peak_memory, ratio, summary
from .data import Data, batches, digits, few
from .networks import accuracy, train
from .photographs import mobilenet, photographs

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
DEPTH = 5
RELATIVE = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
"""Lengths of a perturbation, as shares of the feature's own."""
CUTS = tuple(f"features.{at}" for at in (1, 3, 6, 10, 13, 16, 17, 18))
LEARNED = ("untrained", "labels alone", "KD", "hint", "KD + hints", "FCFD", "FCFD + DIST")
TARGETS = ("closed form", "stitch point", "penultimate", "every later stage", "logits")


class Size(NamedTuple):
    """How much of everything."""

    pixels: int = 160
    pictures: int = 10
    directions: int = 6
    iterations: int = 3
    digits: int = 100
    teacher_steps: int = 300
    steps: int = 300
    stitch_steps: int = 100
    seeds: int = 3


QUICK = Size(96, 2, 2, 1, 8, 30, 10, 2, 1)


def columns_of(letter: str, network: fcfd.Network) -> fcfd.Columns:
    """One frozen network, ready to walk."""
    return fcfd.Columns(
        {letter: network.stages}, {letter: fcfd.frozen(network.params)}, {letter: network.buffers}
    )


# Anisotropy


def anisotropy(size: Size, data: Data) -> Iterator[dict[str, Any]]:
    """A row for each network and depth: gains by direction, and how far steps move the logits."""
    for name, module, images in _readers(size, data):
        cut = fcfd.split(module, at=CUTS, example=images[:2]) if name == "MobileNetV2" else None
        network = cut or fcfd.split(list(module.children()))
        columns, depth = columns_of("t", network), len(network.stages)
        with torch.no_grad():
            values, _ = fcfd.walk(fcfd.plan((f"t{depth}",)), *columns, {"": images})
        for at in tqdm(range(1, depth), desc=f"anisotropy, {name}"):
            path = "t" * at
            yield {"network": name, "depth": at, "ends at": str(network.names[at - 1])} | _read(
                tail(path, "t" * depth, *columns), values[path], values["t" * depth], size
            )


def _readers(size: Size, data: Data) -> Iterator[tuple[str, nn.Module, Tensor]]:
    try:
        _, pictures = photographs(size.pixels)
        yield "MobileNetV2", mobilenet()[0], pictures[: size.pictures]
    except (ValueError, ModuleNotFoundError) as missing:
        print(f"MobileNetV2 is left out: {missing}")
    yield "the demo's teacher", teacher_of(0, size, data), data.test_images[: size.digits]


def _read(function: Callable[[Any], Any], feature: Tensor, logits: Tensor, size: Size) -> dict[str, Any]:
    found = spectrum(function, feature, count=size.directions, iterations=size.iterations)
    noise = torch.randn(feature.shape, generator=torch.Generator().manual_seed(1))
    directions = {"top": found.directions[0], "random": noise, "bottom": found.bottom}
    length, base = feature.flatten(1).norm(dim=1), logits.norm(dim=1)
    moved = {}
    with torch.no_grad():
        for name, direction in directions.items():
            moved[name] = [
                _listed(response(function, feature, direction, size=share * length) / base)
                for share in RELATIVE
            ]
    return {
        "numbers": feature[0].numel(),
        "gains": [_listed(gains) for gains in found.gains],
        "errors": [_listed(errors) for errors in found.errors],
        "random gain": _listed(found.random_gain),
        "bottom gain": _listed(found.bottom_gain),
        "relative": list(RELATIVE),
        "moved": moved,
    }


def _listed(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]


# The demo's networks


def teacher_of(seed: int, size: Size, data: Data) -> nn.Sequential:
    """A teacher of the demo on digits, trained."""
    torch.manual_seed(seed)
    teacher, _ = demo.pair(demo.SETTINGS["digits"])
    with tqdm(total=size.teacher_steps, desc=f"teacher {seed}", leave=False) as progress:
        train(teacher, data.images, data.labels, steps=size.teacher_steps, rate=0.1, progress=progress)
    return teacher.eval()


def student_of(method: str, seed: int, teacher: nn.Sequential, size: Size, data: Data) -> nn.Sequential:
    """A student of the demo, which learned by a method from a hundred images."""
    setting = demo.SETTINGS["digits"]._replace(steps=size.steps)
    torch.manual_seed(seed)
    _, student = demo.pair(setting)
    if method != "untrained":
        chosen = few(data.labels, setting.images_per_class, seed=seed)
        with tqdm(total=size.steps, desc=f"{method}, seed {seed}", leave=False) as progress:
            images, labels = data.images[chosen], data.labels[chosen]
            demo.distil(
                method, student, teacher, images, labels, seed=seed, setting=setting, progress=progress
            )
    return student.eval()


def networks_of(**modules: nn.Sequential) -> fcfd.Columns:
    """Frozen networks of five stages side by side, by letter."""
    alone = [columns_of(letter, fcfd.split(list(module))) for letter, module in modules.items()]
    return fcfd.Columns(
        {key: own for one in alone for key, own in one.stages.items()},
        {key: own for one in alone for key, own in one.params.items()},
        {key: own for one in alone for key, own in one.buffers.items()},
    )


def features_of(columns: fcfd.Columns, images: Tensor) -> dict[str, Any]:
    """Every value of every network on some images."""
    with torch.no_grad():
        pure = fcfd.plan([letter * DEPTH for letter in columns.stages if len(letter) == 1])
        return fcfd.walk(pure, *columns, {"": images})[0]


def with_stitches(columns: fcfd.Columns, values: Mapping[str, Any]) -> fcfd.Columns:
    """The networks and, both ways after every stage but the last, the closed-form stitch."""
    stages, params = dict(columns.stages), dict(columns.params)
    for here, there in (("s", "t"), ("t", "s")):
        built = [stitch(values[here * at], values[there * at]) for at in range(1, DEPTH)]
        named = nn.ModuleList(built)
        column = f"{here}>{there}"
        stages[column] = tuple(fcfd.stage(module, f"{at}.") for at, module in enumerate(built))
        params[column] = fcfd.frozen(dict(named.named_parameters()))
    return fcfd.Columns(stages, params, {**{key: {} for key in stages}, **columns.buffers})


# First order


def first_order(size: Size, data: Data) -> Iterator[dict[str, Any]]:
    """A row for each method and depth: how well the first order tells the true function distance."""
    teacher = teacher_of(0, size, data)
    for method in tqdm(("untrained", "labels alone", "KD + hints", "FCFD"), desc="first order"):
        columns = networks_of(s=student_of(method, 0, teacher, size, data), t=teacher)
        columns = with_stitches(columns, features_of(columns, data.images))
        values = features_of(columns, data.test_images[: 2 * size.digits])
        for at in range(1, DEPTH):
            function = tail("t" * at, "t" * DEPTH, *columns)
            with torch.no_grad():
                bridged = tail("s" * at, f"{'s' * at}>t", *columns)(values["s" * at])
                own = values["t" * at]
                apart = distance(bridged, own)
                true = distance(function(bridged), function(own))
                first = linearized(function)(bridged, own)
                nearer = {}
                for share in (0.01, 0.1, 0.3):
                    between = own + share * (bridged - own)
                    part = distance(function(between), function(own))
                    nearer[str(share)] = (linearized(function)(between, own) / part).median().item()
            yield {
                "method": method,
                "path": "s" * at + "t" * (DEPTH - at),
                "feature distance": _listed(apart),
                "function distance": _listed(true),
                "first order": _listed(first),
                "rank correlation, first order": rank_correlation(first, true),
                "rank correlation, feature distance": rank_correlation(apart, true),
                "median ratio": (first / true).median().item(),
                "median ratio at a share of the step": nearer,
            }


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's: the correlation of the places in the order."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


# Crossed accuracy


def crossed(size: Size, data: Data) -> Iterator[dict[str, Any]]:
    """A row for each method and seed: the accuracy of every path."""
    teacher = teacher_of(0, size, data)
    runs = list(product(LEARNED, range(size.seeds)))
    paths = ("s" * DEPTH, "t" * DEPTH, *fcfd.crossings(DEPTH))
    paths += ("sssst", "tttts")
    for method, seed in tqdm(runs, desc="crossed accuracy"):
        columns = networks_of(s=student_of(method, seed, teacher, size, data), t=teacher)
        columns = with_stitches(columns, features_of(columns, data.images))
        found = crossed_accuracy(*columns, data.test_images, data.test_labels, paths=paths)
        yield {"method": method, "seed": seed, "accuracy": {path: float(hit) for path, hit in found.items()}}


# Stitching


def stitching(size: Size, data: Data) -> Iterator[dict[str, Any]]:
    """A row for each pair of networks, of depths, and what the stitch was fitted to."""
    teachers = [teacher_of(seed, size, data) for seed in (0, 1)]
    student = student_of("FCFD", 0, teachers[0], size, data)
    sources = {"another teacher → teacher": teachers[1], "student → teacher": student}
    for name, source in sources.items():
        columns = networks_of(s=source, t=teachers[0])
        learned, test = features_of(columns, data.images), features_of(columns, data.test_images)
        about = {
            "pair": name,
            "accuracy of the source": accuracy(source, data),
            "accuracy of the target": accuracy(teachers[0], data),
        }
        depths = list(product(range(1, DEPTH), range(1, DEPTH)))
        for here, there in tqdm(depths, desc=f"stitching, {name}"):
            path = "s" + "t" * (DEPTH - there)
            known = [seen_by(path, values, here, there) for values in (learned, test)]
            for fitted in TARGETS:
                module = stitch(known[0]["s"], known[0]["t"])
                cut = stitched(*columns, module, "s" * here, "t" * there)
                if fitted != "closed form":
                    learn(module, cut, path, fitted, size, known[0])
                with torch.no_grad():
                    found, _ = fcfd.walk(fcfd.plan((path,)), *cut, known[1])
                own = known[1]["t" * len(path)].argmax(1)
                yield about | {
                    "from": here,
                    "to": there,
                    "fitted to": fitted,
                    "accuracy": (found[path].argmax(1) == data.test_labels).double().mean().item(),
                    "agreement": (found[path].argmax(1) == own).double().mean().item(),
                    "error at the stitch": float(
                        losses.relative_squared_error(found["s>t"], known[1]["t"]).mean()
                    ),
                }


def seen_by(path: str, values: Mapping[str, Any], here: int, there: int) -> dict[str, Any]:
    """What a walk of the stitched path need not compute: the source, and every target."""
    targets = {"t" * at: values["t" * (there + at - 1)] for at in range(1, len(path) + 1)}
    return {"s": values["s" * here], **targets}


def learn(
    module: nn.Module, cut: fcfd.Columns, path: str, fitted: str, size: Size, known: Mapping[str, Any]
) -> None:
    """Improve a stitch by some steps towards one of `TARGETS`; the networks stay as they are."""
    terms = recipes.fula(path, weights=weights_of(fitted, len(path)))
    optimizer = torch.optim.Adam(module.parameters())
    for step, batch in enumerate(batches(len(known["s"]), 100, size.stitch_steps, seed=0)):
        optimizer.param_groups[0]["lr"] = schedules.cosine(step, steps=size.stitch_steps, start=0.01)
        loss, _ = fcfd.objective(terms, *cut, {name: value[batch] for name, value in known.items()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def weights_of(fitted: str, depths: int) -> list[float]:
    """The weights of `recipes.fula` that say what a stitch is fitted to."""
    if fitted == "every later stage":
        return [1 / depths] * depths
    at = {"stitch point": 0, "penultimate": depths - 2, "logits": depths - 1}[fitted]
    return [float(depth == at) for depth in range(depths)]


# Cost


def cost(size: Size, data: Data) -> Iterator[dict[str, Any]]:
    """A row for each loss between two features: time, memory and operations, forward and backward."""
    torch.manual_seed(0)
    name, batch = ("resnet20", 64) if size != QUICK else ("resnet8", 2)
    build, at = NETWORKS[name]
    network = fcfd.split(build(num_classes=100).eval(), at=at, example=torch.zeros(2, 3, 32, 32))
    columns = columns_of("t", network)
    images = torch.randn(batch, 3, 32, 32)
    values = features_of(columns, images)
    function = tail("tt", "t" * DEPTH, *columns)
    other = (values["tt"] + 0.1 * torch.randn_like(values["tt"])).requires_grad_()
    own, logits = values["tt"], values["t" * DEPTH]
    first = linearized(function, losses.squared_error)
    measured: dict[str, Callable[[], Tensor]] = {
        "feature": lambda: losses.squared_error(other, own),
        "function": lambda: losses.squared_error(function(other), logits),
        "first order": lambda: first(other, own),
    }
    calls = {key: partial(_backward, loss, other) for key, loss in measured.items()}
    samples = interleaved(calls, seconds=20.0 if size != QUICK else 0.1)
    for key, call in calls.items():
        counts = operations(call)
        yield {
            "loss": key,
            "network": name,
            "batch": batch,
            "median": summary(samples[key]).median,
            "time to function": ratio(samples[key], samples["function"]),
            "peak": peak_memory(call),
            "operations": counts.total(),
            "convolutions": counts["convolution"] + counts["convolution_backward"],
        }


def _backward(loss: Callable[[], Tensor], feature: Tensor) -> None:
    torch.autograd.grad(loss().sum(), feature)


# The command

PARTS: dict[str, Callable[[Size, Data], Iterator[dict[str, Any]]]] = {
    "anisotropy": anisotropy,
    "first-order": first_order,
    "crossed": crossed,
    "stitching": stitching,
    "cost": cost,
}


def main(arguments: Sequence[str] | None = None) -> None:
    command = argparse.ArgumentParser(
        prog="python -m benchmarks.function", description=__doc__.splitlines()[0]
    )
    command.add_argument("parts", nargs="*", help=f"which of {', '.join(PARTS)}; all by default")
    command.add_argument("--quick", action="store_true", help="little of everything")
    command.add_argument("--draw", action="store_true", help="only the figures, from what is there")
    command.add_argument("--publish", action="store_true", help="draw into docs/figures too")
    command.add_argument("--out", type=Path, default=RESULTS / "function")
    options = command.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        command.error(f"there is no part {unknown[0]!r}, only {', '.join(PARTS)}")
    torch.set_num_threads(1)
    size, data = (QUICK if options.quick else Size()), digits()
    for part in options.parts or PARTS:
        file = options.out / f"{part}.json"
        if not options.draw:
            rows = list(PARTS[part](size, data))
            write({"size": size._asdict(), "environment": environment()}, rows, file)
        if part in figures.FIGURES:
            drawn = [options.out / f"{part}.svg"]
            drawn += [FIGURES / f"function-{part}.svg"] * options.publish
            for path in drawn:
                figures.FIGURES[part](json.loads(file.read_text())["rows"], path)
        print(f"Written: {file}")


def write(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """JSON with every row on a line of its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    head = json.dumps({**about, "rows": []}, indent=1, ensure_ascii=False)
    file.write_text(head.replace('"rows": []', f'"rows": [\n  {lines}\n ]') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
