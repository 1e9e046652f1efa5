"""A whole training run on fcfd's public API: `train` is the loop; copy it.

Mixed precision, several processes, exact resume. Order, views and paths are functions of seed, epoch and
step, so a resumed run sees what the first would have seen, and every process its share of the same.
"""

import argparse
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import fcfd
from fcfd import schedules
from reference.zoo import NETWORKS

from . import runs
from .common import environment
from .methods import METHODS, Now, Pair, Terms

PATHS = 2
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROOT = Path(__file__).parent.parent

Views: TypeAlias = Iterable[tuple[Tensor, Tensor]]
"""Images and labels, a batch at a time."""


class Training(Protocol):
    """Views of batches of indices, as an epoch of a seed shows them."""

    def __call__(self, batches: Sequence[Tensor], *, seed: int, epoch: int) -> Views: ...


class Data(NamedTuple):
    """What a run reads.

    Args:
        classes: How many.
        images: How many to learn from.
        test_images: How many to test on.
        whole: Whether these are all images of the data set.
        views: How an image is seen in training, in words.
        train: Views of training images, by batches of indices.
        test: Views of test images, by batches of indices.
    """

    classes: int
    images: int
    test_images: int
    whole: bool
    views: str
    train: Training
    test: Callable[[Sequence[Tensor]], Views]


def normalised(images: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """Bytes `[..., 3, height, width]` to floats, every channel by its mean and deviation."""
    return (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)


class Schedule(NamedTuple):
    """How long and how fast, in epochs.

    Args:
        epochs: How many.
        batch: Images in a step, of all processes together.
        milestones: Epochs from which the rate is a tenth of what it was.
        warmup: Epochs until features have their full weight.
        weight_decay: Of SGD.
    """

    epochs: int
    batch: int
    milestones: tuple[float, ...]
    warmup: float
    weight_decay: float

    def of_length(self, epochs: int) -> "Schedule":
        """The same in more or fewer epochs, everything in proportion."""
        factor = epochs / self.epochs
        milestones = tuple([milestone * factor for milestone in self.milestones])
        return self._replace(epochs=epochs, milestones=milestones, warmup=self.warmup * factor)


class Place(NamedTuple):
    """Where this process stands among all of the run."""

    device: torch.device
    rank: int = 0
    world: int = 1


# The loop


class Step(nn.Module):
    """The module whose forward is the step: DDP reduces gradients of what comes out of it.

    The teacher is no submodule, so that nothing turns its mode.
    """

    def __init__(self, student: nn.Module, nets: fcfd.Linked) -> None:
        super().__init__()
        self.student, self.bridges, self.columns = student, nets.bridges, nets.columns

    def forward(self, images: Tensor, labels: Tensor, terms: Terms) -> tuple[Tensor, dict[str, Tensor]]:
        loss, aux = fcfd.objective(terms, *self.columns, {"": images, "Labels": labels})
        return loss, aux.buffers["s"]


def train(
    pair: Pair, schedule: Schedule, data: Data, options: argparse.Namespace, place: Place
) -> dict[str, Any]:
    """Distil, or go on where the run's folder stands; returns what came out.

    Raises:
        ValueError: A teacher is missing or does not fit, a batch cannot be divided among the processes, or
            the folder holds another run.
        FloatingPointError: The loss of an epoch is not finite.
    """
    device, precision = place.device, PRECISIONS[options.precision]
    student, teacher = models(pair, data, options, device)
    step = Step(student, linked(pair, student, teacher, data, options, device))
    everywhere: nn.Module = step
    if place.world > 1:
        everywhere = DistributedDataParallel(step, find_unused_parameters=True, broadcast_buffers=False)
    decay = schedule.weight_decay
    optimizer = torch.optim.SGD(step.parameters(), momentum=0.9, nesterov=True, weight_decay=decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    run = settings(pair, schedule, data, options)
    parts = {"step": step, "optimizer": optimizer, "scaler": scaler}
    state = runs.resume_(options.out, run, parts) or beginning(teacher, data, schedule, options, place)
    teacher.train(options.teacher_mode == "train")
    began = time.monotonic() - state["seconds"]

    def save() -> None:
        state["seconds"] = time.monotonic() - began
        if place.rank == 0:
            runs.save(options.out, run, state, parts)

    while state["epoch"] < schedule.epochs:
        student.train()
        optimizer.param_groups[0]["lr"] = rate(pair, schedule, state["epoch"])
        batches = order(data.images, schedule.batch, options.seed, state["epoch"], place)
        views = data.train(batches[state["step"] :], seed=options.seed, epoch=state["epoch"])
        for images, labels in progress(views, state, len(batches), place):
            terms = terms_at(pair, schedule, options, state, len(batches))
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                loss, statistics = everywhere(images.to(device), labels.to(device), terms)
            if updated(loss, optimizer, scaler):
                fcfd.write_buffers_(student, averaged(statistics, place))
                state["loss"] = state["loss"] + averaged({"": loss.detach()}, place)[""]
            else:
                state["skipped"] += 1
            state["step"] += 1
            if state["step"] % options.save_steps == 0:
                save()
        row = ended(state, optimizer.param_groups[0]["lr"])
        row["top1"] = top1(student, data, schedule.batch, place)
        save()
        if place.rank == 0:
            runs.write_results(options.out, result(run, state, pair, place), student)
    return result(run, state, pair, place)


def updated(loss: Tensor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> bool:
    """Take a step, unless gradients in half precision overflowed: then say so, and scale less next time."""
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    before = scaler.get_scale()
    scaler.update()
    return scaler.get_scale() >= before


def averaged(tensors: Mapping[str, Tensor], place: Place) -> dict[str, Tensor]:
    """Floating tensors as means over all processes, in one message; the others as they are."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if place.world == 1 or not floating:
        return dict(tensors)
    together = torch.cat([tensor.flatten() for tensor in floating.values()]) / place.world
    distributed.all_reduce(together)
    parts = together.split([tensor.numel() for tensor in floating.values()])
    means = {name: part.view_as(floating[name]) for name, part in zip(floating, parts, strict=True)}
    return {**tensors, **means}


# What a step depends on


def generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """A generator that depends on these alone."""
    return torch.Generator().manual_seed(random.Random(f"{seed}:{epoch}:{purpose}").getrandbits(63))


def order(count: int, batch: int, seed: int, epoch: int, place: Place) -> list[Tensor]:
    """This process's share of every batch: all images once, but for what cannot be divided evenly."""
    if batch % place.world:
        raise ValueError(f"train: a batch of {batch} cannot be divided among {place.world} processes.")
    shuffled = torch.randperm(count, generator=generator(seed, epoch, "order"))
    even = shuffled[: count - count % place.world]
    return [whole[place.rank :: place.world] for whole in even.split(batch)]


def rate(pair: Pair, schedule: Schedule, epoch: int) -> float:
    """The learning rate: a tenth of what it was from each milestone on."""
    rates = [pair.rate * 0.1**at for at in range(len(schedule.milestones) + 1)]
    return schedules.piecewise_constant(epoch, boundaries=schedule.milestones, values=rates)


def terms_at(
    pair: Pair, schedule: Schedule, options: argparse.Namespace, state: runs.State, steps: int
) -> Terms:
    """The method's terms in this step, over the paths that are drawn for it."""
    depth, step = _depth(pair), state["epoch"] * steps + state["step"]
    paths = fcfd.draw(fcfd.crossings(depth, first=2), PATHS, seed=options.seed, step=step)
    warm = schedules.linear_warmup(state["epoch"], steps=schedule.warmup)
    crossed = schedules.linear_warmup(step, steps=schedule.epochs * steps / 3)
    return METHODS[options.method](pair, Now(depth, paths, warm, crossed))


def _depth(pair: Pair) -> int:
    return len(NETWORKS[pair.student].at) + 1  # the classifier follows the last cut


def progress(views: Views, state: runs.State, steps: int, place: Place) -> Views:
    """The views, with a bar of the epoch on the first process."""
    last = f", {state['epochs'][-1]['top1']:.2%}" if state["epochs"] else ""
    bar: Views = tqdm(
        views,
        f"epoch {state['epoch'] + 1}{last}",
        total=steps,
        initial=state["step"],
        unit="step",
        disable=place.rank > 0,
    )
    return bar


# Before the loop


def models(
    pair: Pair, data: Data, options: argparse.Namespace, device: torch.device
) -> tuple[nn.Module, nn.Module]:
    """A new student, and the teacher from its file. A method that reads no teacher needs no file."""
    torch.manual_seed(options.seed)
    student, teacher = (
        NETWORKS[name].build(num_classes=data.classes) for name in (pair.student, pair.teacher)
    )
    if options.teacher is not None:
        runs.load_strictly_(teacher, options.teacher)
    elif any("t" in path for path in used(pair, options)):
        raise ValueError(
            f"train: the method {options.method} learns from a teacher; name its file: --teacher."
        )
    return student.to(device), teacher.to(device)


def used(pair: Pair, options: argparse.Namespace) -> tuple[str, ...]:
    """Every path that the method may read."""
    depth = _depth(pair)
    now = Now(depth, fcfd.crossings(depth, first=2))
    return fcfd.reads(METHODS[options.method](pair, now).values())


def linked(
    pair: Pair,
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    options: argparse.Namespace,
    device: torch.device,
) -> fcfd.Linked:
    """Both networks cut where they were published to be, and the bridges that the method needs."""
    example = next(iter(data.test([torch.arange(2)])))[0].to(device)
    networks = {
        "s": fcfd.split(student, at=NETWORKS[pair.student].at, example=example),
        "t": fcfd.split(teacher, at=NETWORKS[pair.teacher].at, example=example),
    }
    nets = fcfd.link(networks, example=example, first=2, paths=used(pair, options))
    nets.bridges.to(device)
    return nets


def settings(pair: Pair, schedule: Schedule, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """What makes a run this run: one that goes on must have the same."""
    return {
        "pair": pair._asdict(),
        "schedule": schedule._asdict(),
        "method": options.method,
        "paths": PATHS,
        "teacher_mode": options.teacher_mode,
        "teacher_sha256": runs.fingerprint(options.teacher),
        "precision": options.precision,
        "seed": options.seed,
        "classes": data.classes,
        "images": data.images,
        "test_images": data.test_images,
        "views": data.views,
    }


def beginning(
    teacher: nn.Module, data: Data, schedule: Schedule, options: argparse.Namespace, place: Place
) -> runs.State:
    """The counters of a new run, and how good its teacher is."""
    known = None if options.teacher is None else top1(teacher, data, schedule.batch, place)
    return {
        "epoch": 0,
        "step": 0,
        "loss": torch.zeros((), dtype=torch.float64),
        "skipped": 0,
        "seconds": 0.0,
        "epochs": [],
        "teacher_top1": known,
    }


# After an epoch


@torch.no_grad()
def top1(model: nn.Module, data: Data, batch: int, place: Place) -> float:
    """The share of test images that are classified correctly, in full precision and in eval mode."""
    model.eval()
    right = torch.zeros((), dtype=torch.float64, device=place.device)
    for images, labels in data.test(torch.arange(data.test_images)[place.rank :: place.world].split(batch)):
        right += (model(images.to(place.device)).argmax(1) == labels.to(place.device)).sum()
    return averaged({"": right}, place)[""].item() * place.world / data.test_images


def ended(state: runs.State, rate: float) -> dict[str, Any]:
    """Close an epoch: its row, at the end of all rows, and the counters of the next."""
    taken = state["step"] - state["skipped"]
    loss = state["loss"].item() / taken if taken else math.nan
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"train: the loss of epoch {state['epoch'] + 1} is {loss}; {state['skipped']} of {state['step']} "
            "steps were skipped. Try bf16 or fp32, or a smaller rate."
        )
    row = {"epoch": state["epoch"] + 1, "rate": rate, "loss": loss, "skipped": state["skipped"]}
    state["epochs"].append(row)
    state["epoch"] += 1
    state |= {"step": 0, "skipped": 0, "loss": torch.zeros_like(state["loss"])}
    return row


def result(run: Mapping[str, Any], state: runs.State, pair: Pair, place: Place) -> dict[str, Any]:
    """What came out: the best epoch, chosen by test images as the paper does, and the last one."""
    quoted = dict(zip(("teacher", "student alone", "fcfd"), pair.published, strict=True))
    return {
        "settings": dict(run),
        "environment": environment(place.device.type),
        "processes": place.world,
        "seconds": state["seconds"],
        "published, unverified here, %": quoted,
        "teacher_top1": state["teacher_top1"],
        "best": max(state["epochs"], key=lambda row: float(row["top1"])),
        "last": state["epochs"][-1],
        "epochs": state["epochs"],
    }


# The command


def parser(command: str, text: str, pairs: Iterable[str], schedule: Schedule) -> argparse.ArgumentParser:
    """The options that every data set has."""
    made = argparse.ArgumentParser(prog=command, description=text.splitlines()[0])
    add = made.add_argument
    add("--pair", required=True, choices=tuple(pairs), metavar="PAIR", help=f"one of {', '.join(pairs)}")
    add("--data", required=True, type=Path, help="the folder of the data set's files")
    add("--teacher", type=Path, help="the teacher's checkpoint; only the method label needs none")
    add("--method", choices=tuple(METHODS), default="fcfd", help="(default fcfd)")
    add("--teacher-mode", choices=("train", "eval"), default="train", help="as published: train (default)")
    add("--precision", choices=tuple(PRECISIONS), default="fp32", help="(default fp32)")
    add("--epochs", type=_positive, default=schedule.epochs, help="the schedule keeps its proportions")
    add("--batch", type=_positive, default=schedule.batch, help="of all processes together")
    add("--seed", type=int, default=0, help="(default 0)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default %(default)s)")
    add("--out", type=Path, help="the run's folder; the same command goes on from it (default under runs/)")
    add("--save-steps", type=_positive, default=1000, help="a checkpoint so often, and after each epoch")
    return made


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def main(
    command: argparse.ArgumentParser,
    options: argparse.Namespace,
    pairs: Mapping[str, Pair],
    published: Schedule,
    read: Callable[[], Data],
) -> None:
    """Run what the options say, and print what came out beside what was published."""
    schedule = published.of_length(options.epochs)._replace(batch=options.batch)
    if options.out is None:
        name = f"{options.method}-{options.teacher_mode}-{options.precision}-seed{options.seed}"
        options.out = ROOT / "runs" / command.prog.rpartition(".")[2] / options.pair / name
    try:
        with placed(options.device) as place:
            data = read()
            if not data.whole and place.rank == 0:
                print(f"Not the whole data set: {data.images} and {data.test_images} images.")
            found = train(pairs[options.pair], schedule, data, options, place)
    except ValueError as error:
        command.error(str(error))
    except KeyboardInterrupt:
        command.exit(130, f"\nThe same command goes on from the last checkpoint in {options.out}.\n")
    if place.rank == 0:
        best, last = found["best"], found["last"]
        print(
            f"Top-1: teacher {_percent(found['teacher_top1'])}; student {_percent(last['top1'])} at last, "
            f"{_percent(best['top1'])} at best (epoch {best['epoch']}, chosen by test images).\n"
            f"Published, unverified here, in %: {found['published, unverified here, %']}.\n"
            f"Written: {options.out}"
        )


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{share:.2%}"


@contextmanager
def placed(device: str) -> Iterator[Place]:
    """This process among those that torchrun started; alone where it started none."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Place(torch.device(device))
        return
    own = torch.device(device, int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield Place(own, int(os.environ["RANK"]), world)
    finally:
        distributed.destroy_process_group()
