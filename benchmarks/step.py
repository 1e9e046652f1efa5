"""The time, memory and operations of one training step, beside the usual implementation and the floor.

`python -m benchmarks.step` runs labels only, KD, hints, and FCFD in eager mode, compiled by stages and as a
whole, and as it is usually written (`benchmarks/standin.py`), in turns on the same networks and images. The
floor is the time of the step's convolutions and matrix products alone. Rules: `benchmarks/README.md`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import torch
import torch._functorch.config
from torch import Tensor, nn

import fcfd
from fcfd import losses, recipes
from fcfd.transforms import compiled
from reference.zoo import NETWORKS

from . import batched, standin
from .common import (
    READ_BACK,
    Call,
    environment,
    interleaved,
    mebibytes,
    microseconds,
    operations,
    parser,
    peak_memory,
    publish,
    pyplot,
    ratio,
    recorded,
    show,
    summary,
)
from .profiler import timeline, totals

Module = TypeVar("Module", bound=nn.Module)


class Setting(NamedTuple):
    """What the variants of one comparison share."""

    teacher: str = "resnet32x4"
    student: str = "resnet8x4"
    pixels: int = 32
    classes: int = 100
    batch: int = 64
    teacher_mode: str = "eval"
    dtype: str = "float32"
    device: str = "cpu"
    paths: int = 2
    """How many crossed paths, the longest first."""
    first: int = 2
    """The earliest depth that is bridged; the first stage of these networks is a stem."""
    keep: float = 0.7
    """How much of what it could keep for the backward pass a compiled graph keeps; the rest it computes anew,
    what is cheapest first. 1 is PyTorch's default."""
    backend: str = "inductor"
    """What compiles. Others only trace, for tests and dry runs."""


HALF = ("bfloat16", "float16")
"""Weights stay in single precision and autocast does the rest; maps are stored with channels last."""

CIFAR = Setting()
IMAGENET = Setting("resnet34IN", "resnet18IN", pixels=224, classes=1000)
PAIRS = {"cifar": CIFAR, "imagenet": IMAGENET}
HYPER: dict[str, Any] = {"temperature": 4.0, "feature_weight": 5.0, "path_weight": 1.0}


class Pair(NamedTuple):
    """Networks in memory, linked, and a batch."""

    setting: Setting
    teacher: nn.Sequential
    student: nn.Sequential
    nets: fcfd.Linked
    images: Tensor
    labels: Tensor
    paths: tuple[str, ...]


def pair(setting: Setting) -> Pair:
    """Build the networks, link them, draw a batch; channels last where the batch is in half precision."""
    torch.manual_seed(0)
    device = torch.device(setting.device)
    layout = torch.channels_last if setting.dtype in HALF else torch.contiguous_format
    dtype = torch.float32 if setting.dtype in HALF else getattr(torch, setting.dtype)
    shape = (setting.batch, 3, setting.pixels, setting.pixels)
    images = torch.randn(shape, device=device, dtype=dtype).to(memory_format=layout)
    labels = torch.randint(setting.classes, (setting.batch,), device=device)
    models, cut = {}, {}
    for letter, name in (("t", setting.teacher), ("s", setting.student)):
        build, at = NETWORKS[name]
        model = _laid_out(build(num_classes=setting.classes).to(device, dtype), layout)
        models[letter] = model.train(letter == "s" or setting.teacher_mode == "train")
        cut[letter] = fcfd.split(model, at=list(at), example=images[:2])
    nets = fcfd.link(cut, example=images[:2], first=setting.first)
    _laid_out(nets.bridges, layout)
    longest = sorted(nets.crossings, key=lambda path: path.count(path[0]))
    return Pair(setting, models["t"], models["s"], nets, images, labels, tuple(longest[: setting.paths]))


def _laid_out(module: Module, layout: torch.memory_format) -> Module:
    return module.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


# Steps: each returns the loss, writes gradients and statistics, and moves no weight (the rate is zero)

Columns = Mapping[str, Mapping[str, Tensor]]
Objective = Callable[[Columns, Columns, Tensor, Tensor], tuple[Tensor, Columns]]


def step(on: Pair, objective: Objective) -> Call:
    """A step of the loop that the library's documentation shows."""
    optimizer = _optimizer(on)
    nets, modules = on.nets, {"s": on.student, "t": on.teacher, **on.nets.bridges}
    if not on.teacher.training:
        del modules["t"]

    def run() -> Tensor:
        optimizer.zero_grad()
        with _autocast(on):
            loss, buffers = objective(nets.params, nets.buffers, on.images, on.labels)
        loss.backward()
        optimizer.step()
        for column, module in modules.items():
            fcfd.write_buffers_(module, buffers[column])
        return loss.detach()

    return run


def _optimizer(on: Pair) -> torch.optim.Optimizer:
    learns = [*on.student.parameters(), *on.nets.bridges.parameters()]
    return torch.optim.SGD(learns, lr=0.0, momentum=0.9, nesterov=True, weight_decay=5e-4)


def _autocast(on: Pair) -> torch.autocast:
    dtype = getattr(torch, on.setting.dtype)
    return torch.autocast(on.setting.device, dtype, enabled=on.setting.dtype in HALF)


def of_terms(on: Pair, terms: fcfd.terms.Terms) -> Objective:
    """The objective of a recipe."""

    def objective(
        params: Columns, buffers: Columns, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Columns]:
        loss, aux = fcfd.objective(terms, on.nets.stages, params, buffers, {"": images, "Labels": labels})
        return loss, aux.buffers

    return objective


def of_fcfd(
    on: Pair, transform: Callable[..., Any] | None = None, columns: Sequence[str] | None = None
) -> Objective:
    """The objective of FCFD, its columns transformed, or some of them."""
    stages = dict(on.nets.stages)
    if transform is not None:
        stages |= {column: transform(stages[column]) for column in columns or stages}

    def objective(
        params: Columns, buffers: Columns, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Columns]:
        loss, aux = losses.fcfd(stages, params, buffers, images, labels, paths=on.paths, **HYPER)
        return loss, aux.buffers

    return objective


def of_batched(on: Pair) -> Objective:
    """The objective of FCFD, in which the paths that enter a stage of the teacher there run as one batch."""
    if on.teacher.training:
        raise ValueError("the teacher is in train mode: paths in one batch would share its statistics")
    stages, count, first = on.nets.stages, len(on.nets.stages["s"]), on.setting.first
    terms = recipes.fcfd(count, on.paths, fcfd.bridged(count, first=first), temperature=HYPER["temperature"])
    features = [name for name in terms if name != "label" and not name.startswith("kl/")]
    terms = fcfd.scaled(terms, dict.fromkeys(features, HYPER["feature_weight"]))
    plan = fcfd.plan(fcfd.reads(terms.values()))

    def objective(
        params: Columns, buffers: Columns, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Columns]:
        known = {"": images, "Labels": labels}
        values, written = batched.walk(plan, stages, params, buffers, known, network="t")
        loss = fcfd.weighted_sum(terms, fcfd.evaluate(terms, values))
        return loss, fcfd.merge_buffers(buffers, written)

    return objective


def of_standin(on: Pair) -> Call:
    """A step of the usual implementation."""
    student_at, teacher_at = (NETWORKS[name].at for name in (on.setting.student, on.setting.teacher))
    usual = standin.FCFD(on.student, on.teacher, student_at, teacher_at, on.nets.bridges)
    optimizer = _optimizer(on)

    def run() -> Tensor:
        meters = usual.train_step(optimizer, on.images, on.labels, on.paths, HYPER, _autocast(on))
        return torch.tensor(meters["total"], dtype=torch.float64)

    return run


COMPILED = ("fcfd whole", "fcfd graphs", "fcfd lean whole", "fcfd batched whole", "fcfd stages")
"""FCFD compiled in one graph, in one that CUDA replays, and in one graph a stage."""


def variants(on: Pair, names: Sequence[str] | None = None) -> dict[str, Call]:
    """Steps by name; what compiles stands last."""
    count = len(on.nets.stages["s"])
    label, hint = {"label": recipes.kd(count)["label"]}, f"{'s' * (count - 2)}>t"
    makers: dict[str, Callable[[], Call]] = {
        "labels only": lambda: step(on, of_terms(on, label)),
        "KD": lambda: step(on, of_terms(on, recipes.kd(count))),
        "hints": lambda: step(on, of_terms(on, label | recipes.hints([hint]))),
        "stand-in": lambda: of_standin(on),
        "fcfd": lambda: step(on, of_fcfd(on)),
        "fcfd lean": lambda: step(on, of_fcfd(on, fcfd.lean, "t")),
        "fcfd batched": lambda: step(on, of_batched(on)),
        "fcfd whole": lambda: step(on, _whole(on, of_fcfd(on))),
        "fcfd graphs": lambda: _replayed(on),
        "fcfd lean whole": lambda: step(on, _whole(on, of_fcfd(on, fcfd.lean, "t"))),
        "fcfd batched whole": lambda: step(on, _whole(on, of_batched(on))),
        "fcfd stages": lambda: step(on, of_fcfd(on, partial(compiled, **_options(on)))),
    }
    if on.setting.device == "cpu":
        del makers["fcfd graphs"]
    if not runs_together(on):
        del makers["fcfd batched"], makers["fcfd batched whole"]
    return {name: make() for name, make in makers.items() if names is None or name in names}


def runs_together(on: Pair) -> bool:
    """Whether two paths enter a stage of the teacher at the same depth, and may do so as one batch."""
    return not on.teacher.training and sum(path[0] == "s" for path in on.paths) > 1


def _options(on: Pair) -> dict[str, Any]:
    return {"fullgraph": True, "dynamic": False, "backend": on.setting.backend}


def _whole(on: Pair, objective: Objective) -> Objective:
    found: Objective = torch.compile(objective, **_options(on))
    return found


def _replayed(on: Pair) -> Call:
    """A step whose objective CUDA replays; weights and statistics stay where they are, so none is copied."""
    for column in (*on.nets.params.values(), *on.nets.buffers.values()):
        for tensor in column.values():
            torch._dynamo.mark_static_address(tensor)
    whole = torch.compile(of_fcfd(on), fullgraph=True, dynamic=False, mode="reduce-overhead")
    call = step(on, whole)

    def run() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        loss: Tensor = call()
        return loss.clone()  # the next run overwrites what the graph returned

    return run


# The floor

PRODUCTS = ("convolution", "convolution_backward", "mm", "addmm", "bmm")


def floor(call: Call) -> Call:
    """Run only the convolutions and matrix products of a step, with the gradients that it asks for.

    They read other tensors of the same shapes, strides and types.
    """
    twins: dict[tuple[Any, ...], Tensor] = {}
    replay: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def twin(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        key = (value.shape, value.stride(), value.dtype)
        if key not in twins:
            twins[key] = torch.empty_strided(*key[:2], dtype=value.dtype, device=value.device).normal_()
        return twins[key]

    def note(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        if operator.overloadpacket.__name__ in PRODUCTS:
            replay.append((operator, tuple(map(twin, args)), {name: twin(x) for name, x in kwargs.items()}))

    recorded(call, note)

    def run() -> None:
        with torch.no_grad():
            for operator, args, kwargs in replay:
                operator(*args, **kwargs)

    return run


# The comparison


def gradients(on: Pair, call: Call) -> list[Tensor]:
    """The loss of a step and the gradients that it leaves."""
    loss = call()
    learns = [*on.student.parameters(), *on.nets.bridges.parameters()]
    return [loss, *(parameter.grad.clone() for parameter in learns if parameter.grad is not None)]


def difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest relative difference, in norm, of a tensor to the one that was wanted."""
    scale = max(tensor.norm() for tensor in wanted[1:]) * 1e-3
    return max(
        float((a.cpu() - b.cpu()).norm() / max(b.norm().cpu(), scale.cpu()))
        for a, b in zip(found, wanted, strict=True)
    )


def _without_gradients(on: Pair, call: Call) -> Call:
    """A step that leaves no gradients behind, so that its own count as its memory."""

    def run() -> None:
        call()
        on.student.zero_grad()
        on.nets.bridges.zero_grad()

    return run


TOLERANCE = {"float64": 1e-9, "float32": 0.02, "bfloat16": 0.5, "float16": 0.5}
"""How far gradients may differ. Rounding flips a ReLU here and there, and TF32 rounds more than it has to. In
bfloat16 an eager step is itself 0.4 from float32, and fused kernels round less often. In float64, where
`benchmarks.device_check` and the tests look, equal is equal."""


def compare(
    setting: Setting,
    names: Sequence[str] | None = None,
    *,
    seconds: float = 20.0,
    least: int = 3,
    deadline: float = math.inf,
) -> Iterator[dict[str, Any]]:
    """Time the variants in turns: one record for each, as soon as it is known.

    What runs in eager mode is timed first, all together. Then each form that compiles is timed beside the
    stand-in and the floor, before the next one is compiled. Every form of FCFD is held to the value and the
    gradients of the eager one. What does not run, or differs, is a record that says so; what would begin
    after the deadline is left out.
    """
    torch.compiler.reset()
    on = pair(setting)
    calls, eager = variants(on, names), variants(on, ["fcfd"])["fcfd"]
    wanted, beside = gradients(on, eager), dict[str, Call]()
    for group in _groups(calls):
        ready: dict[str, dict[str, Any]] = {}
        for name in group:
            if perf_counter() > deadline:
                print(f"left out: {name} of {_key(setting._asdict())}")
                continue
            try:
                begun = perf_counter()
                with torch._functorch.config.patch(activation_memory_budget=setting.keep):
                    found = gradients(on, calls[name])
                ready[name] = {"first call": perf_counter() - begun}
                if name == "stand-in" or name.startswith("fcfd"):
                    ready[name]["difference"] = difference(found, wanted)
                    if not ready[name]["difference"] <= TOLERANCE[setting.dtype]:
                        raise ValueError(f"value or gradients differ by {ready[name]['difference']:.1e}")
            except Exception as error:
                ready.pop(name, None)
                yield {**setting._asdict(), "variant": name, "failed": f"{type(error).__name__}: {error}"}
        if not ready:
            continue
        if not beside:
            beside = {name: calls[name] for name in ready if name == "stand-in"}
            beside["floor"] = floor(eager)
            ready["floor"] = {}
        turns = {name: {**calls, **beside}[name] for name in dict.fromkeys((*ready, *beside))}
        samples = interleaved(turns, device=setting.device, seconds=seconds, least=least, warm_up=1)
        for name, about in ready.items():
            yield {**setting._asdict(), "variant": name, **_measured(on, name, turns[name], samples), **about}


def _groups(names: Iterable[str]) -> list[list[str]]:
    """What runs in eager mode together, and each that compiles by itself."""
    eager = [name for name in names if name not in COMPILED]
    return [eager, *([name] for name in names if name in COMPILED)]


def _measured(on: Pair, name: str, call: Call, samples: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The times of a variant, in units of the floor and of the stand-in, its memory, and what it runs."""
    times, device = summary(samples[name]), on.setting.device
    counts = {} if name in COMPILED else operations(call)
    record = {
        **times._asdict(),
        "images per second": on.setting.batch / times.median,
        "time to floor": ratio(samples[name], samples["floor"]),
        "time to stand-in": ratio(samples[name], samples.get("stand-in", samples["floor"])),
        "peak": peak_memory(_without_gradients(on, call), device=device),
        "operations": sum(counts.values()) or None,
        "read back": None if name in COMPILED else counts.get(READ_BACK, 0),
    }
    if device == "cuda":
        found = totals(timeline(call, device=device))
        record |= {each: found[each] for each in ("kernels", "launches", "waits", "busy", "span")}
    return record


# What is printed and kept


COLUMNS = (
    *("variant", "step", "images/s", "÷ floor", "÷ stand-in"),
    *("peak MiB", "÷ stand-in", "operations", "read back", ""),
)


def lines(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A line for each variant of a comparison; FCFD slower or hungrier than the stand-in is marked."""
    usual = next((record for record in records if record["variant"] == "stand-in"), None)
    for record in records:
        time = "" if usual is None else f"{record['time to stand-in']:.2f}×"
        memory = "" if usual is None else f"{record['peak'] / usual['peak']:.2f}×"
        loses = [word for word, value in (("slower", time), ("hungrier", memory)) if value > "1.00×"]
        yield (
            record["variant"],
            microseconds(record["median"]),
            f"{record['images per second']:.3g}",
            f"{record['time to floor']:.2f}×",
            time,
            mebibytes(record["peak"]),
            memory,
            str(record.get("kernels") or record["operations"] or ""),
            "" if record["read back"] is None else str(record["read back"]),
            f"◀ {' and '.join(loses)}" if loses and record["variant"].startswith("fcfd") else "",
        )


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Time in units of the floor and peak memory, a group of bars for each comparison."""
    figures = pyplot()
    if figures is None or not records:
        return
    keys = list(dict.fromkeys(_key(record) for record in records))
    figure, axes = figures.subplots(
        2, len(keys), figsize=(3 * len(keys), 5), layout="constrained", squeeze=False
    )
    for column, key in enumerate(keys):
        rows = [record for record in records if _key(record) == key and record["variant"] != "floor"][::-1]
        names = [record["variant"] for record in rows]
        axes[0, column].barh(names, [record["time to floor"] for record in rows])
        axes[0, column].axvline(1, color="black", linewidth=0.8)
        axes[0, column].set(title=key, xlabel="time ÷ floor")
        axes[1, column].barh(names, [record["peak"] / 2**20 for record in rows])
        axes[1, column].set(xlabel="peak MiB of a step")
        for row in range(2):
            axes[row, column].set_yticks(range(len(names)), names if column == 0 else [""] * len(names))
    figure.savefig(path, metadata={"Date": None})
    figures.close(figure)


def _key(record: Mapping[str, Any]) -> str:
    return (
        f"{record['teacher']} → {record['student']}, {record['batch']} × {record['pixels']} px\n"
        f"{record['dtype']}, teacher in {record['teacher_mode']} mode"
        + (f", keep {record['keep']:g}" if record["keep"] != CIFAR.keep else "")
        + (f", {record['paths']} paths" if record["paths"] != CIFAR.paths else "")
    )


def _line(record: Mapping[str, Any]) -> str:
    """A record in a line, for those who read along."""
    if "failed" in record:
        return f"  {record['variant']}: FAILED, {record['failed'].splitlines()[0]}"
    return (
        f"  {record['variant']}: {microseconds(record['median'])}, {record['time to floor']:.2f}× the floor, "
        f"{mebibytes(record['peak'])} MiB"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser(__doc__, "step")
    command.add_argument("--quick", action="store_true", help="tiny networks, few samples")
    command.add_argument("--batch", type=int, nargs="+", default=[64])
    command.add_argument("--teacher", nargs="+", choices=("eval", "train"), default=["eval", "train"])
    command.add_argument("--dtype", nargs="+", choices=tuple(TOLERANCE), default=["float32", "bfloat16"])
    command.add_argument("--keep", type=float, nargs="+", default=[CIFAR.keep], help="of a compiled graph")
    command.add_argument(
        "--paths", type=int, nargs="+", default=[CIFAR.paths], help="how many, longest first"
    )
    command.add_argument("--backend", default=CIFAR.backend, help="what compiles; eager and aot_eager trace")
    command.add_argument("--pair", nargs="+", choices=tuple(PAIRS), default=["cifar"], help="of networks")
    command.add_argument("--variants", nargs="+", metavar="NAME", help="a few of them only")
    command.add_argument("--seconds", type=float, default=20.0, help="of timing for each comparison")
    command.add_argument("--minutes", type=float, default=7.0, help="start no variant after these")
    options = command.parse_args(arguments)

    deadline = perf_counter() + 60 * options.minutes
    bases = [PAIRS[name]._replace(device=options.device, backend=options.backend) for name in options.pair]
    effort = {"seconds": options.seconds, "deadline": deadline}
    if options.quick:
        bases, options.batch = [_tiny(base) for base in bases], [4]
        effort |= {"seconds": 0.1, "least": 2}
    name = options.name or options.device
    records: list[dict[str, Any]] = []
    ways = product(bases, options.batch, options.dtype, options.teacher, options.keep, options.paths)
    for base, batch, dtype, mode, keep, paths in ways:
        setting = base._replace(batch=batch, dtype=dtype, teacher_mode=mode, keep=keep, paths=paths)
        if perf_counter() > deadline:
            print(f"left out: {_key(setting._asdict())}")
            continue
        found: list[dict[str, Any]] = []
        for record in compare(setting, options.variants, **effort):
            found.append(record)
            publish(options.out, name, [*records, *found], environment=environment(options.device))
            print(_line(record), flush=True)
        records += found
        show(_key(setting._asdict()), COLUMNS, lines([record for record in found if "failed" not in record]))
    plot([record for record in records if "failed" not in record], options.out / f"{name}.svg")
    failed = [record for record in records if "failed" in record]
    for record in failed:
        print(f"FAILED: {record['variant']} of {_key(record)}: {record['failed']}")
    if failed:
        raise SystemExit(1)


def _tiny(setting: Setting) -> Setting:
    """What runs in seconds, for tests and dry runs."""
    if setting.pixels > 32:
        return setting._replace(pixels=64)
    return setting._replace(teacher="resnet8", student="resnet8")


if __name__ == "__main__":
    main()
