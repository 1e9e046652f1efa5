"""One run: a student learns by one method, and is scored. Everything is fixed by the setting and the seed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import fcfd
from fcfd import schedules
from fcfd.paths import pure

from ..data import Data, batches, few
from ..networks import size
from .methods import Method, Moment
from .networks import calibrate_
from .settings import Setting, fingerprint

Watch = Callable[[int, fcfd.terms.Terms, fcfd.Aux, fcfd.Linked], None]
CACHE = 512 * 2**20
"""Bytes of the teacher's values that are kept rather than computed again."""


def parts(setting: Setting, part: str) -> Data:
    """What to learn from, without validation data; and what to score on: `"validation"` or `"test"`."""
    data = setting.data()
    pool, held = slice(None, -setting.held_out), slice(-setting.held_out, None)
    scored = (
        (data.test_images, data.test_labels) if part == "test" else (data.images[held], data.labels[held])
    )
    return Data(data.images[pool], data.labels[pool], *scored)


def taught(setting: Setting, data: Data, folder: Path, *, device: str, progress: bool = True) -> nn.Module:
    """The teacher: learned from labels once, in batches twice the student's, and kept in the folder."""
    torch.manual_seed(0)
    teacher = setting.teacher().to(device)
    same = setting._replace(
        student=setting.teacher, per_class=None, steps=0, batch=0, rate=0.0, first=0, layouts=(), features=0.0
    )
    file = folder / f"teacher-{fingerprint(same)}-{setting.rate}.pt"
    if file.exists():
        teacher.load_state_dict(torch.load(file, weights_only=True, map_location=device))
        return teacher
    optimizer = setting.optimizer(teacher.train().parameters())
    steps = setting.teacher_steps
    generator = torch.Generator().manual_seed(0)
    drawn = batches(len(data.images), 2 * setting.batch, steps, seed=0)
    for step, batch in enumerate(tqdm(drawn, "teacher", steps, disable=not progress)):
        optimizer.param_groups[0]["lr"] = schedules.cosine(step, steps=steps, start=setting.rate)
        seen = data.images[batch]
        seen = setting.augment(seen, generator) if setting.augment else seen
        loss = F.cross_entropy(answers(setting, teacher, seen.to(device)), data.labels[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(teacher.state_dict(), file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)
    return teacher


def run(
    setting: Setting,
    method: Method,
    teacher: nn.Module,
    data: Data,
    *,
    factor: float,
    seed: int,
    device: str,
    progress: tqdm | None = None,
    watch: Watch | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Distil one student; return it, and what there is to report."""
    began, cpu = time.perf_counter(), time.process_time()
    torch.manual_seed(seed)
    student = setting.student().to(device)
    chosen = slice(None) if setting.per_class is None else few(data.labels, setting.per_class, seed=seed)
    own, labels = data.images[chosen].to(device), data.labels[chosen].to(device)
    distil(
        setting,
        method,
        student,
        teacher,
        own,
        labels,
        factor=factor,
        seed=seed,
        progress=progress,
        watch=watch,
    )
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    record = scores(setting, student, data, device) | {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
    }
    return student, record | {"parameters": size(student), "labelled": len(labels), "steps": setting.steps}


def distil(
    setting: Setting,
    method: Method,
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    factor: float,
    seed: int,
    progress: tqdm | None = None,
    watch: Watch | None = None,
) -> None:
    """The training loop, of public functions only."""
    example = setting.feed(images[: setting.batch])
    networks = {
        "t": setting.cut(teacher.train(method.train_teacher), example),
        "s": setting.cut(student.train(), example),
    }
    nets = fcfd.link(networks, example=example, first=setting.first, layouts=dict(setting.layouts))
    depth, bridged = len(nets.stages["s"]), fcfd.bridged(len(nets.stages["s"]), first=setting.first)
    candidates = fcfd.crossings(depth, method.directions, first=setting.first)
    count = len(candidates) if method.paths is None else min(method.paths, len(candidates))
    known = {}
    if not (method.train_teacher or setting.augment):
        known = cached(setting, nets, images)
    if method.calibrated:
        _calibrate_(nets, example)
    optimizer = setting.optimizer([*student.parameters(), *nets.bridges.parameters()])
    generator = torch.Generator().manual_seed(seed)
    for step, batch in enumerate(batches(len(images), setting.batch, setting.steps, seed=seed)):
        optimizer.param_groups[0]["lr"] = schedules.cosine(step, steps=setting.steps, start=setting.rate)
        paths = fcfd.draw(candidates, count, seed=seed, step=step)
        weight = factor * method.weight
        moment = Moment(depth, paths, bridged, weight, setting.features, step, setting.steps)
        terms = masked(method.terms(moment)) if setting.mask else method.terms(moment)
        batch = batch.to(images.device)
        seen = setting.augment(images[batch], generator) if setting.augment else images[batch]
        values = {"": setting.feed(seen), "Labels": labels[batch]}
        values |= {path: value[batch] for path, value in known.items()}
        if setting.mask:
            values["Mask"] = setting.mask(seen)
        loss, aux = fcfd.objective(terms, *nets.columns, values)
        if watch is not None:
            watch(step, terms, aux, nets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fcfd.write_buffers_(student, aux.buffers["s"])
        if progress is not None:
            progress.update()


@torch.no_grad()
def cached(setting: Setting, nets: fcfd.Linked, images: Tensor) -> dict[str, Tensor]:
    """The teacher's values on all images by its paths, or none where they are too large."""
    depth = len(nets.stages["t"])
    plan = fcfd.plan((pure("t", depth),))
    chunks = []
    for chunk in images.split(200):
        values, _ = fcfd.walk(plan, *nets.columns, {"": setting.feed(chunk)})
        values = {path: values[path] for path in plan}
        bytes_each = sum(value[0].numel() * value.element_size() for value in values.values())
        if bytes_each * len(images) > CACHE:
            return {}
        chunks.append(values)
    return {path: torch.cat([chunk[path] for chunk in chunks]) for path in plan}


@torch.no_grad()
def _calibrate_(nets: fcfd.Linked, images: Any) -> None:
    targets = {}
    for column, built in nets.bridges.items():
        for at, _ in built.named_children():
            target = pure(column[-1], int(at) + 1)
            values, _ = fcfd.walk(fcfd.plan((target,)), *nets.columns, {"": images})
            targets[f"{column}.{at}"] = values[target]
    calibrate_(nets.bridges, targets)


def masked(terms: dict[str, fcfd.Term]) -> dict[str, fcfd.Term]:
    """The terms that compare features, over the positions that count."""
    kinds = {name.split("/")[0] for name in terms} & {"feature", "pooled"}
    return fcfd.masked(terms, dict.fromkeys(sorted(kinds), "Mask")) if kinds else terms


def answers(setting: Setting, model: nn.Module, rows: Tensor) -> Tensor:
    """The logits of a model for rows of the data."""
    batch = setting.feed(rows)
    logits: Tensor = model(**batch) if isinstance(batch, dict) else model(batch)
    return logits


@torch.no_grad()
def scores(setting: Setting, student: nn.Module, data: Data, device: str) -> dict[str, float]:
    """The share of correct answers, and the mean cross-entropy in nats."""
    student.eval()
    logits = torch.cat(
        [answers(setting, student, rows.to(device)).float().cpu() for rows in data.test_images.split(1000)]
    )
    loss = F.cross_entropy(logits, data.test_labels).item()
    correct = (logits.argmax(1) == data.test_labels).double().mean().item()
    return {"accuracy": round(correct, 6), "loss": round(loss, 6)}
