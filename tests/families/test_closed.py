"""Where the written gradient is used, and that it is the gradient there and of every higher order."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fcfd.families import _softmaxes, divergences, logits, ranks, sparse
from fcfd.families._closed import Closed

from .test_logits import draw


def plain(z: Tensor, c: Tensor, power: float | Tensor = 2.0) -> Tensor:
    return (z**power * c).sum(-1)


def known(z: Tensor, c: Tensor, power: float = 2.0) -> tuple[Tensor, Tensor]:
    return plain(z, c, power), power * z ** (power - 1) * c


class Used:
    """Counts how often the written gradient is asked for."""

    def __init__(self, least: int = 0) -> None:
        self.times = 0
        self.loss = Closed(plain, self.known, least)

    def known(self, *tensors: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
        self.times += 1
        return known(*tensors, **settings)


def pair(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z, c = torch.rand(2, 3, 4, generator=generator, dtype=dtype) + 0.5
    return z.requires_grad_(), c


def test_a_first_derivative_in_eager_mode_is_the_written_one() -> None:
    used, (z, c) = Used(), pair()
    (found,) = torch.autograd.grad(used.loss(z, c, power=3.0).sum(), z)
    torch.testing.assert_close(found, 3 * z.detach() ** 2 * c)
    assert used.times == 1


@pytest.mark.parametrize(
    "run",
    [
        lambda loss, z, c: loss(z.detach(), c),
        lambda loss, z, c: torch.no_grad()(loss)(z, c),
        lambda loss, z, c: loss(z, c.requires_grad_()),
        lambda loss, z, c: loss(z, c, power=torch.tensor(2.0)),
        lambda loss, z, c: loss(torch.nn.Parameter(z.detach()), c),
        lambda loss, z, c: torch.func.grad(lambda z: loss(z, c).sum())(z),
        lambda loss, z, c: torch.func.vmap(loss)(z, c),
        lambda loss, z, c: torch.func.jvp(lambda z: loss(z, c), (z,), (c,)),
        lambda loss, z, c: torch.compile(loss, backend="eager", fullgraph=True)(z, c),
        lambda loss, z, c: in_forward_mode(loss, z, c),
    ],
    ids=[
        "nothing learns",
        "without a tape",
        "a constant learns",
        "a setting is a tensor",
        "a subclass",
        "grad",
        "vmap",
        "jvp",
        "compiled",
        "forward mode",
    ],
)
def test_everywhere_else_the_plain_loss_runs(run: Callable[..., Any]) -> None:
    used, (z, c) = Used(), pair()
    torch.compiler.reset()
    run(used.loss, z, c)
    assert used.times == 0


def in_forward_mode(loss: Callable[..., Tensor], z: Tensor, c: Tensor) -> None:
    with torch.autograd.forward_ad.dual_level():
        value = loss(torch.autograd.forward_ad.make_dual(z, c), c)
        tangent = torch.autograd.forward_ad.unpack_dual(value).tangent
    assert tangent is not None
    torch.testing.assert_close(tangent, (2 * z * c * c).sum(-1))


def test_few_numbers_are_left_to_the_tape() -> None:
    for least, times in ((12, 1), (13, 0)):
        used, (z, c) = Used(least), pair()
        used.loss(z, c)
        assert used.times == times


def test_a_second_derivative_is_that_of_the_plain_loss() -> None:
    used, (z, c) = Used(), pair()
    upstream = z.detach().clone().requires_grad_()
    (first,) = torch.autograd.grad(used.loss(upstream * 2, c, power=3.0).sum(), upstream, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), upstream)
    torch.testing.assert_close(second, 8 * 6 * upstream.detach() * c)
    assert used.times == 1


def test_several_gradients_at_once_and_again() -> None:
    used, (z, c) = Used(), pair()
    values = used.loss(z, c)
    rows = torch.eye(3, dtype=z.dtype)
    (batched,) = torch.autograd.grad(values, z, rows, is_grads_batched=True, retain_graph=True)
    for row, found in zip(rows, batched, strict=True):
        (wanted,) = torch.autograd.grad(values, z, row, retain_graph=True)
        torch.testing.assert_close(found, wanted)


def test_a_changed_input_is_refused_and_no_wrong_derivative() -> None:
    used, (z, c) = Used(), pair()
    logits_of = z * 1
    value = used.loss(logits_of, c).sum()
    logits_of.detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


# Every loss that has one

LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "kl": lambda s, t, y: logits.kl(s, t),
    "kd_ce": lambda s, t, y: logits.kd_ce(s, t),
    "reverse_kl": lambda s, t, y: logits.reverse_kl(s, t),
    "jsd": lambda s, t, y: logits.jsd(s, t, beta=0.3, temperature=2.0),
    "akl": lambda s, t, y: divergences.akl(s, t),
    "taid": lambda s, t, y: divergences.taid(s, t),
    "dkd": lambda s, t, y: logits.dkd(s, t, y),
    "rld": lambda s, t, y: ranks.rld(s, t, y, temperature=2.0, label_temperature=3.0),
    "gdkd": lambda s, t, y: ranks.gdkd(s, t, k=2),
    "gdkd3": lambda s, t, y: ranks.gdkd3(s, t, k=2),
    "topk_nckd": lambda s, t, y: ranks.topk_nckd(s, t, y, k=3),
    "topk_kl": lambda s, t, y: sparse.topk_kl(s, *listed(t)),
    "topk_reverse_kl": lambda s, t, y: sparse.topk_reverse_kl(s, *listed(t)),
    "topk_jsd": lambda s, t, y: sparse.topk_jsd(s, *listed(t), beta=0.3),
    "sampled_kl": lambda s, t, y: sparse.sampled_kl(s, *listed(t)),
}
every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def listed(teacher: Tensor) -> tuple[Tensor, Tensor]:
    values, ids = teacher.log_softmax(-1).topk(3)
    return ids, values


def both_ways(loss: Callable[..., Tensor], s: Tensor, t: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Values and gradient, written and by the tape."""
    found = []
    for constant in (t, t.clone().requires_grad_()):
        leaf = s.clone().requires_grad_()
        value = loss(leaf, constant, y)
        weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
        finite = torch.where(value.isfinite(), value, 0.0)
        found.append((value.detach(), torch.autograd.grad((finite * weights).sum(), leaf)[0]))
    return found


CASES = {
    "ordinary": lambda s, t: (s, t),
    "equal": lambda s, t: (t.clone(), t),
    "far apart": lambda s, t: (300 * s, 300 * t),
    "offset": lambda s, t: (s + 3e4, t - 5e3),
    "both exclude": lambda s, t: (without(s, 4), without(t, 4)),
    "the student excludes": lambda s, t: (without(s, 4), t),
    "the teacher excludes": lambda s, t: (s, without(t, 4)),
    "the teacher excludes most": lambda s, t: (s, without(t, 0, 2, 3, 4, 5)),
    "the student excludes most": lambda s, t: (without(s, 0, 2, 3, 4, 5), t),
    "one class is left": lambda s, t: (without(s, 0, 2, 3, 4, 5), without(t, 0, 2, 3, 4, 5)),
    "ties": lambda s, t: (s.round(), t.round()),
}


def without(z: Tensor, *classes: int) -> Tensor:
    return z.index_fill(-1, torch.tensor(classes), -math.inf)


@every
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_written_gradient_is_the_tapes(
    loss: Callable[..., Tensor], case: Any, dtype: torch.dtype
) -> None:
    student, teacher, _ = draw((5, 6, 0))
    given = case(student, teacher)
    written, taped = both_ways(loss, *(x.to(dtype) for x in given), torch.tensor([1, 1, 1, 1, 1]))
    close = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(written[0], taped[0], equal_nan=True, **close)
    rows = taped[0].isfinite()
    torch.testing.assert_close(written[1][rows], taped[1][rows], **close)
    assert written[1].isfinite().all()


@every
def test_nan_comes_out_of_the_written_gradient(loss: Callable[..., Tensor]) -> None:
    student, teacher, labels = draw((4, 6, 0))
    student[2, 3] = math.nan
    (value, gradient), _ = both_ways(loss, student, teacher, labels)
    assert value.isnan().tolist() == [False, False, True, False]
    assert gradient[[0, 1, 3]].isfinite().all()


@every
def test_second_derivatives(loss: Callable[..., Tensor]) -> None:
    student, teacher, labels = draw((2, 5, 0))
    found = []
    for constant in (teacher, teacher.clone().requires_grad_()):
        leaf = student.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(leaf, constant, labels).sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    torch.testing.assert_close(*found)
    assert found[0].abs().max() > 0


@pytest.mark.parametrize("name", ["_BETWEEN", "_ERRORS"])
def test_what_a_softmax_keeps_is_one_tensor(name: str) -> None:
    """Beside what it is given: a tape keeps two and more."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 8, generator=generator)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    settings = {"measure": _softmaxes.FORWARD} if name == "_BETWEEN" else {}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        getattr(_softmaxes, name)(student.requires_grad_(), teacher, scale=1.0, factor=1.0, **settings)
    new = [x for x in kept if x.data_ptr() not in (student.data_ptr(), teacher.data_ptr())]
    assert [x.shape for x in new] == [student.shape]
