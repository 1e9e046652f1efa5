"""Losses of hidden states and heads, against the same losses of logits that are there."""

import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fcfd.families.heads import Logits, chunked, fused
from fcfd.families.logits import cross_entropy, dist, dkd, kl, wkd_logit
from fcfd.families.positions import ignoring, masked, next_token
from reference.catalogue import ROWS, Row, Size

FORMS = pytest.mark.parametrize("form", [chunked, fused], ids=["chunked", "fused"])
SMALL = 700
"""Bytes: chunks of two tokens."""


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def head(*tokens: int, width: int = 3, classes: int = 7, seed: int = 0, bias: bool = True) -> Logits:
    tensors = numbers(*tokens, width, seed=seed), numbers(classes, width, seed=seed + 1)
    return Logits(*tensors, numbers(classes, seed=seed + 2) if bias else None)


def product(logits: Logits) -> Tensor:
    return F.linear(*logits)


def learning(logits: Logits) -> Logits:
    return Logits(*(None if x is None else x.detach().clone().requires_grad_() for x in logits))


def detached(logits: Logits) -> Logits:
    return Logits(*(None if x is None else x.detach() for x in logits))


def gradients(value: Tensor, *logits: Logits) -> list[Tensor]:
    leaves = [x for one in logits for x in one if x is not None]
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
    return list(torch.autograd.grad((value * weights).sum(), leaves))


def assert_same(found: Any, wanted: Any, relative: float = 1e-10) -> None:
    torch.testing.assert_close(found, wanted, rtol=relative, atol=relative)


# Every loss of the catalogue


def by_token(row: Row) -> bool:
    inputs = row.inputs(Size(4, 7, 1), torch.Generator().manual_seed(0), torch.float64)
    if row.output != "..." or row.arrange is not tuple or next(iter(inputs.values())).shape != (4, 7):
        return False
    return row.loss(*inputs.values(), **row.hyper).shape == (4,)


TOKENS = [pytest.param(row, id=row.loss.__name__) for row in ROWS if by_token(row)]


def arguments(row: Row, tokens: int) -> tuple[Any, list[Any], list[Logits]]:
    """The loss with what all tokens share bound, its arguments with `Logits` for logits, and those."""
    inputs = row.inputs(Size(tokens, 7, 1), torch.Generator().manual_seed(0), torch.float64)
    shared = {name: x for name, x in inputs.items() if name in row.shared}
    values: list[Any] = []
    for at, (name, x) in enumerate(inputs.items()):
        if name in shared:
            continue
        is_logits = name in (next(iter(inputs)), *row.targets) and x.shape[1:] != (1,) and x.ndim == 2
        if is_logits and x.is_floating_point():
            logits = head(tokens, width=3 + at, classes=x.shape[1], seed=3 * at)
            values.append(learning(logits))
        else:
            values.append(x)
    loss = partial(row.loss, **row.hyper, **shared)
    return loss, values, [x for x in values if isinstance(x, Logits)]


@FORMS
@pytest.mark.parametrize("row", TOKENS)
def test_every_loss_of_tokens_is_the_same_without_its_logits(row: Row, form: Any) -> None:
    loss, values, logits = arguments(row, tokens=5)
    full = loss(*(product(x) if isinstance(x, Logits) else x for x in values))
    wanted = full if form is chunked else full.mean()
    found = form(loss, memory=SMALL)(*values)
    assert_same(found, wanted)
    if wanted.requires_grad:
        assert_same(gradients(found, *logits), gradients(wanted, *logits))


def test_the_catalogue_has_the_losses_of_tokens() -> None:
    names = {param.id for param in TOKENS}
    assert {"cross_entropy", "kl", "kd_ce", "reverse_kl", "jsd", "dkd", "wkd_logit"} <= names


# Shapes


@FORMS
@pytest.mark.parametrize("tokens", [(1,), (5,), (2, 3)], ids=str)
@pytest.mark.parametrize("memory", [1, SMALL, 10**9])
@pytest.mark.parametrize("bias", [False, True])
def test_any_tokens_and_any_chunks(form: Any, tokens: tuple[int, ...], memory: int, bias: bool) -> None:
    student = learning(head(*tokens, bias=bias))
    teacher = head(*tokens, width=5, seed=9, bias=bias)
    full = kl(product(student), product(teacher))
    wanted = full if form is chunked else full.mean()
    found = form(kl, memory=memory)(student, teacher)
    assert found.shape == wanted.shape
    assert_same(found, wanted)
    assert_same(gradients(found, student), gradients(wanted, student))


class Largest(torch.overrides.TorchFunctionMode):
    """The largest product with a head that is made while this is on, in tokens."""

    rows = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear:
            self.rows = max(self.rows, len(args[0]))
        return function(*args, **(kwargs or {}))


@FORMS
def test_no_product_is_larger_than_a_chunk(form: Any) -> None:
    student, teacher = learning(head(20)), head(20, seed=9)
    with Largest() as seen:
        value = form(kl, memory=4 * 4 * 14 * 3)(student, teacher)
    gradients(value, student)
    assert seen.rows == 3


def test_a_temperature_by_token_and_one_for_all_get_gradients() -> None:
    student, teacher = head(2, 3), head(2, 3, seed=9)
    warm = (1 + numbers(2, 3).abs()).requires_grad_()
    one = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    for temperature in (warm, one):
        wanted = kl(product(student), product(teacher), temperature=temperature)
        for loss, more in ((kl, {"temperature": temperature}), (partial(kl, temperature=temperature), {})):
            found = chunked(loss, memory=SMALL)(student, teacher, **more)
            assert_same(found, wanted)
            assert_same(
                torch.autograd.grad(found.sum(), temperature),
                torch.autograd.grad(wanted.sum(), temperature, retain_graph=True),
            )


def test_a_target_is_any_tree_of_tensors_by_token() -> None:
    student, ids = learning(head(2, 3)), torch.tensor([0, 4]).expand(2, 3, 2).contiguous()
    stored = {"ids": ids, "log": numbers(2, 3, 2).log_softmax(-1)}

    def loss(prediction: Tensor, target: dict[str, Tensor], second: Tensor) -> Tensor:
        assert torch.equal(target["ids"], second)
        return -(target["log"].exp() * prediction.log_softmax(-1).gather(-1, target["ids"])).sum(-1)

    wanted = loss(product(student), stored, ids)
    found = chunked(loss, memory=SMALL)(student, stored, ids)
    assert_same(found, wanted)
    assert_same(gradients(found, student), gradients(wanted, student))
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]])
    for form in (chunked, fused):
        found = next_token(masked(form(loss, memory=SMALL)))(student, stored, ids, mask)
        wanted = next_token(masked(loss))(product(student), stored, ids, mask)
        assert_same(found, wanted)


@FORMS
def test_a_head_that_is_tied_gets_both_gradients(form: Any) -> None:
    table, tokens = numbers(7, 3).requires_grad_(), torch.tensor([[0, 4, 4], [1, 2, 6]])
    labels = tokens.roll(1, 1)

    def value(loss: Any, head: Any) -> Tensor:
        hidden = F.embedding(tokens, table).tanh()
        return loss(head(hidden, table), labels).mean()

    found = value(form(cross_entropy, memory=SMALL), Logits)
    wanted = value(cross_entropy, F.linear)
    assert_same(found, wanted)
    assert_same(torch.autograd.grad(found, table), torch.autograd.grad(wanted, table))


# Who learns


@FORMS
def test_what_wants_no_gradient_costs_none(form: Any) -> None:
    student, teacher = detached(head(5)), detached(head(5, seed=9))
    assert not form(kl)(student, teacher).requires_grad
    hidden = student.hidden.clone().requires_grad_()
    found = form(kl, memory=SMALL)(student._replace(hidden=hidden), teacher)
    wanted = kl(product(student._replace(hidden=hidden)), product(teacher))
    wanted = wanted if form is chunked else wanted.mean()
    assert_same(torch.autograd.grad(found.sum(), hidden), torch.autograd.grad(wanted.sum(), hidden))
    with torch.no_grad():
        assert not form(kl)(learning(head(5)), teacher).requires_grad


@FORMS
def test_nothing_is_changed(form: Any) -> None:
    tensors = [*learning(head(5)), *learning(head(5, seed=9))]
    before = [(x.detach().clone(), x._version, x.requires_grad) for x in tensors]
    value = form(kl, memory=SMALL)(Logits(*tensors[:3]), Logits(*tensors[3:]))
    value.sum().backward()
    for x, (copy, version, requires_grad) in zip(tensors, before, strict=True):
        assert torch.equal(x, copy)
        assert (x._version, x.requires_grad) == (version, requires_grad)


# Positions


def sequences() -> tuple[Logits, Logits, Tensor, Tensor]:
    tokens = torch.randint(7, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 6)
    mask[0, 4:] = 0
    return learning(head(2, 6)), head(2, 6, width=5, seed=9), torch.where(mask > 0, tokens, -100), mask


@FORMS
def test_labels_and_masks_leave_tokens_out(form: Any) -> None:
    student, teacher, labels, mask = sequences()
    small = partial(form, memory=SMALL)
    for loss, plain, more in (
        (next_token(ignoring(small(cross_entropy))), next_token(ignoring(cross_entropy)), [labels]),
        (next_token(masked(small(kl))), next_token(masked(kl)), [teacher, mask]),
        (masked(small(kl)), masked(kl), [teacher, mask.bool()]),
        (masked(small(kl)), masked(kl), [teacher, mask * 0.3]),
        (ignoring(small(dkd)), ignoring(dkd), [teacher, labels]),
    ):
        wanted = plain(product(student), *(product(x) if isinstance(x, Logits) else x for x in more))
        found = loss(student, *more)
        assert_same(found, wanted)
        assert_same(gradients(found, student), gradients(wanted, student))


@FORMS
def test_what_is_left_out_is_not_multiplied_and_may_be_nan(form: Any) -> None:
    student, teacher, _, mask = sequences()
    wanted = masked(form(kl))(student, teacher, mask)
    wild = student.hidden.detach().clone()
    wild[0, 4:] = torch.nan
    with Largest() as seen:
        found = masked(form(kl))(student._replace(hidden=wild.requires_grad_()), teacher, mask)
    assert seen.rows == 10
    assert_same(found, wanted)
    (gradient,) = torch.autograd.grad(found, wild)
    assert gradient.isfinite().all()


@FORMS
def test_if_nothing_counts_the_value_is_0(form: Any) -> None:
    student, teacher, labels, mask = sequences()
    for value in (
        masked(form(kl))(student, teacher, mask * 0),
        ignoring(form(cross_entropy))(student, torch.full_like(labels, -100)),
    ):
        assert value == 0
        assert all((gradient == 0).all() for gradient in gradients(value, student))


# Precision


@FORMS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_a_half_head_add_up_in_float32(form: Any, dtype: torch.dtype) -> None:
    """Of 400 chunks of one token, each a 400th: a sum in bfloat16 would stop growing."""
    hidden, weight = torch.ones(400, 1, dtype=dtype), torch.zeros(2, 1, dtype=dtype, requires_grad=True)
    labels = torch.zeros(400, dtype=torch.long)
    value = form(cross_entropy, memory=1)(Logits(hidden, weight), labels)
    assert value.dtype == torch.float32
    (gradient,) = torch.autograd.grad(value.mean(), weight)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient.float(), torch.tensor([[-0.5], [0.5]]), rtol=2e-3, atol=0)


@FORMS
def test_the_backward_pass_casts_as_the_forward_pass_did(form: Any) -> None:
    student, teacher = (Logits(*(x.float() for x in one)) for one in (head(6), head(6, seed=9)))
    student = learning(student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = kl(product(student), product(teacher))
        found = form(kl, memory=SMALL)(student, teacher)
    assert_same(gradients(found.mean(), student), gradients(wanted.mean(), student), 2e-2)
    torch.testing.assert_close(found.mean(), wanted.mean(), rtol=1e-5, atol=1e-6)


# Transforms


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch's own, of the compiler
@FORMS
def test_gradients_by_torch_func_and_compiled_are_the_gradients(form: Any) -> None:
    student, teacher = detached(head(5)), head(5, seed=9)

    def value(loss: Any, *learned: Tensor) -> Tensor:
        return loss(Logits(*learned), teacher).mean()

    def full(student: Logits, teacher: Logits) -> Tensor:
        return kl(product(student), product(teacher))

    wanted = torch.func.grad(partial(value, full), argnums=(0, 1, 2))(*student)
    mine = partial(value, form(kl, memory=SMALL))
    assert_same(torch.func.grad(mine, argnums=(0, 1, 2))(*student), wanted)
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
    leaves = learning(student)
    assert_same(torch.autograd.grad(compiled(*leaves), list(leaves)), wanted)
    torch.compiler.reset()


def test_values_have_second_derivatives_and_means_refuse_them() -> None:
    student, teacher = detached(head(3)), head(3, seed=9)

    def value(form: Any, *learned: Tensor) -> Tensor:
        return form(kl, memory=SMALL)(Logits(*learned), teacher)

    leaves = list(learning(student))
    assert torch.autograd.gradgradcheck(partial(value, chunked), leaves)
    for again in (
        lambda: torch.autograd.gradgradcheck(partial(value, fused), leaves),
        lambda: torch.func.hessian(partial(value, fused))(*student),
    ):
        with pytest.raises((NotImplementedError, RuntimeError), match="second derivative|jvp"):
            again()


def test_a_loss_can_be_pickled() -> None:
    student, teacher = head(5), head(5, seed=9)
    for form in (chunked, fused):
        again = pickle.loads(pickle.dumps(form(kl)))
        assert torch.equal(again(student, teacher), form(kl)(student, teacher))


# Errors


def test_what_is_wrong_is_refused_by_name() -> None:
    student, teacher = head(2, 3), head(2, 3, seed=9)
    there = product(student)
    learned = torch.tensor(2.0, requires_grad=True)
    cost = torch.rand(7, 7)
    labels = torch.zeros(2, 3, dtype=torch.long)
    for form in (chunked, fused):
        name = form.__name__
        for error, text, call in (
            (TypeError, "loss is of type NoneType; give a function", lambda f=form: f(None)),
            (ValueError, "memory 0 must be at least 1", lambda f=form: f(kl, memory=0)),
            (TypeError, "memory 1.5 must be a whole number", lambda f=form: f(kl, memory=1.5)),
            (
                TypeError,
                "prediction is of type Tensor and must be `Logits`",
                lambda f=form: f(kl)(there, teacher),
            ),
            (TypeError, "prediction is of type nothing", lambda f=form: f(kl)()),
            (
                ValueError,
                r"hidden \[2, 3, 4\], weight \[7, 3\] and bias \[7\] of tensor 1 do not fit",
                lambda f=form: f(kl)(student._replace(hidden=torch.zeros(2, 3, 4)), teacher),
            ),
            (
                ValueError,
                r"weight \[7\] of tensor 2 must be \[classes, width\]",
                lambda f=form: f(kl)(student, teacher._replace(weight=torch.zeros(7))),
            ),
            (
                TypeError,
                "weight of tensor 2 is torch.int64",
                lambda f=form: f(kl)(student, teacher._replace(weight=torch.zeros(7, 3).long())),
            ),
            (
                TypeError,
                "bias of tensor 2 is list",
                lambda f=form: f(kl)(student, teacher._replace(bias=[0.0] * 7)),
            ),
            (
                ValueError,
                r"tensor 2 has hidden \[3, 3\], and the prediction the tokens \[2, 3\]",
                lambda f=form: f(kl)(student, teacher._replace(hidden=torch.zeros(3, 3))),
            ),
            (
                ValueError,
                r"tensor 2 \[3\] must begin with the axes of the tokens, \[2, 3\]",
                lambda f=form: f(cross_entropy)(student, labels[0]),
            ),
            (
                ValueError,
                r"tensor 4 \[7, 7\] must begin with the axes of the tokens",
                lambda f=form: f(wkd_logit)(student, teacher, labels, cost),
            ),
            (
                ValueError,
                r"has no token",
                lambda f=form: f(cross_entropy)(head(0), labels.flatten()[:0]),
            ),
            (
                ValueError,
                r"must give one value for each token, and gave \[\] for one",
                lambda f=form: f(dist)(student, teacher),
            ),
            (
                ValueError,
                "closes over a tensor that wants a gradient",
                lambda f=form: f(lambda s, t: kl(s, t, temperature=learned))(student, teacher),
            ),
        ):
            with pytest.raises(error, match=f"^{name}: .*{text}"):
                call()
    with pytest.raises(ValueError, match="^kl: prediction"):
        chunked(kl)(student, head(2, 3, classes=6, seed=9))
    with pytest.raises(ValueError, match=r"^fused: weight \[3\] must have the axes of the tokens, \[2, 3\]"):
        fused(kl)(student, teacher, weight=torch.ones(3))
    with pytest.raises(ValueError, match="^fused: the weights of tokens want a gradient"):
        fused(kl)(student, teacher, weight=torch.ones(2, 3, requires_grad=True))
