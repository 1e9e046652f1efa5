"""Is it right on this device? `python -m benchmarks.device_check --device cuda`.

* Training steps in float64 have the authors' values and gradients (`reference/data/steps`).
* Every loss of the catalogue has on the device the value and gradients that it has on the CPU, finite ones
  in half precision too.
* A training step of FCFD has the same gradients in eager mode, with a lean teacher, with paths in one batch,
  compiled, and as it is usually written; it never makes the host wait for the device.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from reference.catalogue import ROWS, Row, Size
from reference.parity import assert_fingerprint
from reference.steps import KEPT, taken

from .common import READ_BACK, environment, operations, parser, publish, show
from .step import CIFAR, TOLERANCE, difference, gradients, pair, variants

TINY = CIFAR._replace(teacher="resnet8", student="resnet8", batch=4)


Checks: TypeAlias = Iterator[tuple[str, Callable[[], None]]]


def steps(device: str, quick: bool) -> Checks:
    """The kept training steps, against the authors' values."""
    if not KEPT:
        raise FileNotFoundError("there is no training step in reference/data/steps")
    for path in KEPT:
        yield f"step {path.stem}", partial(_step, path, device)


def _step(path: Path, device: str) -> None:
    case, _, nets, loss, _ = taken(path, device)
    loss.backward()
    wanted = case["expected"]["total"]
    assert abs(loss.item() - wanted) <= 1e-8 * wanted, f"the loss is {loss.item()!r}, not {wanted!r}"
    for name, parameter in nets.params["s"].items():
        assert parameter.grad is not None, name
        expected = case["expected"]["grads"][f"student/{name}"]
        assert_fingerprint(parameter.grad.cpu(), f"student/{name}", expected, rtol=1e-7)


def rows(device: str, quick: bool) -> Checks:
    """Every loss of the catalogue, against itself on the CPU and in half precision."""
    for row in ROWS:
        yield f"loss {row.loss.__name__}", partial(_loss, row, device)


def _loss(row: Row, device: str) -> None:
    size = Size(*map(max, Size(6, 9, 4), row.least))
    inputs = row.inputs(size, torch.Generator().manual_seed(0), torch.float64)
    here, there = _evaluated(row, inputs, "cpu"), _evaluated(row, inputs, device)
    torch.testing.assert_close(there, here, rtol=1e-9, atol=1e-12)
    for dtype in (torch.bfloat16, torch.float16):
        half = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
        assert all(value.isfinite().all() for value in _evaluated(row, half, device)), (
            f"not finite in {dtype}"
        )


def _evaluated(row: Row, inputs: dict[str, Tensor], device: str) -> list[Tensor]:
    """The value, and the gradients of its sum."""
    leaves = {name: x.to(device, copy=True).requires_grad_(name in row.learns) for name, x in inputs.items()}
    value = row.read(row.loss(*row.arrange(list(leaves.values())), **row.hyper))
    learned = [leaves[name] for name in row.learns]
    found = torch.autograd.grad(value.sum(), learned) if learned else ()
    return [x.detach().cpu() for x in (value, *found)]


def forms(device: str, quick: bool) -> Checks:
    """A step of FCFD in its forms, in float64, and what a step asks of the host."""
    others = ["fcfd lean", "fcfd batched", "stand-in"]
    for name in others if quick else [*others, "fcfd whole"]:
        yield f"step {name}", partial(_same, name, device)
    yield "step without host waits", partial(_no_wait, device)


def _same(name: str, device: str) -> None:
    on = pair(TINY._replace(device=device, dtype="float64", paths=4))
    calls = variants(on, ["fcfd", name])
    wanted, found = (gradients(on, calls[each]) for each in ("fcfd", name))
    differs = difference(found, wanted)
    assert differs <= TOLERANCE["float64"], f"{name} differs by {differs:.1e}"


def _no_wait(device: str) -> None:
    step = variants(pair(TINY._replace(device=device)), ["fcfd"])["fcfd"]
    step()
    assert operations(step)[READ_BACK] == 0
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser(__doc__, "check")
    command.add_argument("--quick", action="store_true", help="compile nothing")
    options = command.parse_args(arguments)

    file, about = options.name or options.device, environment(options.device)
    records: list[dict[str, Any]] = []
    for checks in (steps, rows, forms):
        for name, check in checks(options.device, options.quick):
            try:
                check()
                records.append({"check": name, "passed": True, "why": ""})
            except Exception as error:  # one fault must not hide the next
                records.append({"check": name, "passed": False, "why": f"{type(error).__name__}: {error}"})
            publish(options.out, file, records, environment=about)
    failed = [record for record in records if not record["passed"]]
    show("Faults", ("check", "why"), [(record["check"], record["why"]) for record in failed])
    print(f"{len(records) - len(failed)} of {len(records)} checks passed on {options.device}.")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
