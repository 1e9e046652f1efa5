"""Which models `fcfd.split` cuts, and whether the stages are the model to the last bit.

    python -m benchmarks.coverage                  every model; a second run goes on where the first stopped
    python -m benchmarks.coverage swin resnet18    those with one of these words in their names
    python -m benchmarks.coverage --page           write what was found into docs/models.md

Every model is split, then run and differentiated beside its stages: logits and buffers in train and eval must
have the same bits, gradients must agree to a relative 1e-5. Image classifiers also take one FCFD step with a
ResNet-18. What was found is kept in `results/coverage.json` after every model.
"""

import argparse
import copy
import json
import random
import re
import signal
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fcfd
from fcfd.splitting.record import logits

from .common import RESULTS, environment
from .coverage_models import Model, models

RESULT = RESULTS / "coverage.json"
PAGE = Path(__file__).parent.parent / "docs" / "models.md"
LIBRARIES = ("torchvision", "timm", "transformers")
CHECKS = ("train", "eval", "gradients", "step")


class Late(BaseException):
    """A model took too long. Not an `Exception`, which code under test may catch."""


def measure(name: str, seconds: int = 900) -> dict[str, Any]:
    """Everything about one model, in plain values."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(seconds)
    model = models(name.partition("/")[0])[name]
    row: dict[str, Any] = {"model": name, "family": model.family}
    try:
        for key, value in _findings(model):
            row[key] = value
    except Late:
        row["late"] = seconds
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:500]
    finally:
        signal.alarm(0)
    return row


def _late(*_: Any) -> None:
    raise Late


def _findings(model: Model) -> Iterable[tuple[str, Any]]:
    torch.manual_seed(0)
    module = model.build()
    started = perf_counter()
    try:
        network = fcfd.split(module, model.at, example=model.batch if model.example else None)
    except ValueError as error:
        yield "refused", str(error)
        return
    yield "seconds", round(perf_counter() - started, 2)
    yield "stages", [list(name) if isinstance(name, tuple) else name for name in network.names]
    for mode in ("eval", "train"):
        module.train(mode == "train")
        twin = copy.deepcopy(module)
        expected = _seeded(_whole, twin, model.batch)
        found = _seeded(_chain, network, model.batch)
        yield mode, _same(expected, found)
    slopes = _gradients(expected[0], twin.parameters()), _gradients(found[0], network.params.values())
    yield "gradients", all(_close(a, b) for a, b in zip(*slopes, strict=True))
    images = model.batch.get("pixel_values") if isinstance(model.batch, Mapping) else model.batch
    if isinstance(images, Tensor) and isinstance(found[0], Tensor) and found[0].ndim == 2:
        yield "step", _step(network, model.batch, images, found[0].shape[1])


def _seeded(function: Callable[..., Any], *arguments: Any) -> Any:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    return function(*arguments)


def _whole(module: nn.Module, batch: Any) -> tuple[Any, dict[str, Tensor]]:
    """The logits of a copy of the model, and its buffers afterwards."""
    batch = pytree.tree_map_only(Tensor, torch.clone, batch)
    output = module(**batch) if isinstance(batch, Mapping) else module(batch)
    return logits(output), dict(module.named_buffers())


def _chain(network: fcfd.Network, batch: Any) -> tuple[Any, dict[str, Tensor]]:
    """The same by the stages."""
    context = batch if isinstance(batch, Mapping) else {}
    value, buffers = batch, dict(network.buffers)
    for stage in network.stages:
        assert stage is not None
        value, new = stage(network.params, {**network.buffers, **context}, value)
        buffers |= new
    return value, buffers


def _same(a: Any, b: Any) -> bool:
    """Whether all tensors have the same bits; nan equals nan."""
    pairs = list(zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True))
    return all(
        x.shape == y.shape
        and torch.equal(x.nan_to_num(), y.nan_to_num())
        and torch.equal(x.isnan(), y.isnan())
        for x, y in pairs
        if isinstance(x, Tensor)
    )


def _gradients(value: Any, params: Iterable[Tensor]) -> list[Tensor | None]:
    leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.requires_grad]
    total = torch.stack([leaf.float().square().mean() for leaf in leaves]).sum()
    params = [param for param in params if param.requires_grad]
    return list(torch.autograd.grad(total, params, allow_unused=True))


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return all(x is None or not x.any() for x in (a, b))
    return float((a - b).abs().max()) <= 1e-5 * max(float(b.abs().max()), 1e-30)


def _step(network: fcfd.Network, batch: Any, images: Tensor, classes: int) -> bool | str:
    """One step with a ResNet-18 as the teacher: every gradient is finite and some are there."""
    from torchvision.models import resnet18

    teacher = fcfd.split(resnet18(num_classes=classes).eval())
    networks, example = {"s": network, "t": teacher}, batch
    if isinstance(batch, Mapping):
        example = {"s": batch, "t": images}
    try:
        nets = fcfd.link(networks, example=example)
        paths = fcfd.draw(nets.crossings, min(2, len(nets.crossings)), seed=0, step=0)
        labels = torch.arange(len(images)) % classes
        loss, _ = fcfd.losses.fcfd(*nets.columns, example, labels, paths=paths)
        params = [param for param in network.params.values() if param.requires_grad]
        slopes = [
            slope for slope in torch.autograd.grad(loss, params, allow_unused=True) if slope is not None
        ]
    except ValueError as error:
        return str(error)
    return bool(slopes) and all(bool(slope.isfinite().all()) for slope in slopes)


def _kept() -> dict[str, dict[str, Any]]:
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    return {row["model"]: row for row in rows}


def _keep(rows: Mapping[str, Mapping[str, Any]]) -> None:
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    ordered = [rows[name] for name in sorted(rows)]
    RESULT.write_text(json.dumps({**environment(), "rows": ordered}, indent=1, ensure_ascii=False) + "\n")


def run(words: Iterable[str], *, jobs: int, again: bool) -> None:
    """Measure what is not measured yet, one process for each model at a time."""
    rows, words = _kept(), list(words)
    names = [name for library in LIBRARIES for name in models(library)]
    todo = [name for name in names if not words or any(word in name for word in words)]
    todo = [name for name in todo if again or name not in rows]
    with get_context("spawn").Pool(jobs, maxtasksperchild=16) as pool:
        for at, row in enumerate(pool.imap_unordered(measure, todo), start=1):
            rows[row["model"]] = row
            _keep(rows)
            print(f"{at}/{len(todo)} {row['model']}: {verdict(row)}", flush=True)


def verdict(row: Mapping[str, Any]) -> str:
    """One word for a row: exact, refused, differs, late or not run."""
    if "refused" in row:
        return "refused"
    if "error" in row or "late" in row:
        return "late" if "late" in row else "not run"
    return "exact" if all(row[check] for check in CHECKS[:3]) else "differs"


def _trouble(row: Mapping[str, Any]) -> str:
    if verdict(row) == "exact":
        return f"exact, but no step: {row['step']}"
    return f"{verdict(row)}. {row.get('refused') or row.get('error') or ''}"


def page(text: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """A page with its part between `<!-- coverage -->` and `<!-- end -->` written from results."""
    rows = list(rows)
    columns = ["library", "models", "split", *CHECKS[:3], "FCFD step", "seconds"]
    lines = [" | ".join(columns), " | ".join(["---"] * len(columns))]
    for library in LIBRARIES:
        own = [row for row in rows if row["model"].startswith(f"{library}/")]
        cells = [library, str(len(own)), str(sum("stages" in row for row in own))]
        for check in CHECKS:
            asked = [row[check] for row in own if check in row]
            cells.append(f"{asked.count(True)} of {len(asked)}")
        seconds = [row["seconds"] for row in own if "seconds" in row]
        lines.append(" | ".join([*cells, f"{median(seconds):.1f}" if seconds else "–"]))
    table = "\n".join(f"| {line} |" for line in lines)
    reasons = "\n".join(
        f"- `{row['model']}`: {_trouble(row)}"
        for row in rows
        if verdict(row) != "exact" or row.get("step", True) is not True
    )
    body = f"{table}\n\nWhat is not exact, or takes no step:\n\n{reasons or '- nothing'}\n"
    return re.sub(r"(?s)(?<=<!-- coverage -->\n).*?(?=<!-- end -->)", lambda _: body, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="parts of names of models; without any, all")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--again", action="store_true", help="measure also what is measured")
    parser.add_argument("--page", action="store_true", help="only write docs/models.md from the results")
    options = parser.parse_args()
    if not options.page:
        run(options.words, jobs=options.jobs, again=options.again)
    PAGE.write_text(page(PAGE.read_text(), _kept().values()))


if __name__ == "__main__":
    main()
