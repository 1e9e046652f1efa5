"""What a teacher of few classes is worth beside the whole teacher, and beside the formulas written out."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from fcfd.families import logits, sparse

from .test_excluded import value_and_gradients
from .test_spoiled import SPOILS

CLASSES = 9
TOPK = {
    sparse.topk_kl: lambda s, t, **hyper: logits.kl(s, t, temperature=1.0),
    sparse.topk_reverse_kl: lambda s, t, **hyper: logits.reverse_kl(s, t),
    sparse.topk_jsd: lambda s, t, **hyper: logits.jsd(s, t, **hyper),
}
every = pytest.mark.parametrize("loss", TOPK, ids=lambda loss: loss.__name__)


def draw(*shape: int, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, *shape, CLASSES, dtype=torch.float64, generator=generator)
    return student, teacher


def first(k: int, teacher: Tensor, ranked: Tensor | None = None) -> tuple[Tensor, Tensor]:
    of_all = teacher.log_softmax(-1)
    ids = (of_all if ranked is None else ranked).topk(k, dim=-1).indices
    return ids, of_all.gather(-1, ids)


def written_out(kind: str, tail: str, beta: float, k: int, student: Tensor, teacher: Tensor) -> Tensor:
    """The formulas, by probabilities."""
    ids = teacher.topk(k, dim=-1).indices
    p, q = (z.softmax(-1).gather(-1, ids) for z in (teacher, student))
    if tail == "bucket":
        p, q = (torch.cat((x, 1 - x.sum(-1, keepdim=True)), -1) for x in (p, q))
    if tail in ("renormalize", "zero"):
        p = p / p.sum(-1, keepdim=True)
    if tail == "renormalize":
        q = q / q.sum(-1, keepdim=True)
    forward, backward = (p * (p / q).log()).sum(-1), (q * (q / p).log()).sum(-1)
    if kind == "topk_jsd":
        m = beta * p + (1 - beta) * q
        return beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)
    return forward if kind == "topk_kl" else backward


@every
@pytest.mark.parametrize("tail", sparse.TAILS)
@pytest.mark.parametrize("k", [1, 4, CLASSES - 1])
def test_the_formula_of_every_tail(loss, tail: str, k: int) -> None:
    student, teacher = draw(2, 3)
    student.requires_grad_()
    hyper = {"beta": 0.3} if loss is sparse.topk_jsd else {}
    found = loss(student, *first(k, teacher), tail=tail, floor=0.0, **hyper)
    wanted = written_out(loss.__name__, tail, 0.3, k, student, teacher)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), student)[0] for x in (found, wanted)))


@every
@pytest.mark.parametrize("tail", sparse.TAILS)
@pytest.mark.parametrize("floor", [0.0, 1e-7])
def test_all_classes_are_the_whole_divergence(loss, tail: str, floor: float) -> None:
    student, teacher = draw(4)
    leaves = [student.clone().requires_grad_() for _ in range(2)]
    found = loss(leaves[0], *first(CLASSES, teacher), tail=tail, floor=floor)
    wanted = TOPK[loss](leaves[1], teacher)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        *(torch.autograd.grad(x.sum(), leaf)[0] for x, leaf in zip((found, wanted), leaves, strict=True))
    )


@every
@pytest.mark.parametrize("seed", range(20))
def test_a_bucket_never_exceeds_the_whole(loss, seed: int) -> None:
    student, teacher = draw(5, seed=seed)
    whole = TOPK[loss](student, teacher)
    for k, ranked in itertools.product((1, 3, 8), (None, student)):
        found = loss(student, *first(k, teacher, ranked), floor=0.0)
        assert (found <= whole + 1e-6).all()
        assert (found >= -1e-12).all()
        assert (loss(student, *first(k, teacher, ranked)) <= whole + 1e-6).all()
        whole_at_equality = loss(teacher, *first(k, teacher, ranked))
        torch.testing.assert_close(whole_at_equality, torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_ends_of_the_mixture(beta: float) -> None:
    student, teacher = draw(4)
    end = sparse.topk_reverse_kl if beta else sparse.topk_kl
    given = first(3, teacher)
    torch.testing.assert_close(sparse.topk_jsd(student, *given, beta=beta), end(student, *given))


def test_what_is_dropped_may_be_negative() -> None:
    student, teacher = torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert sparse.topk_kl(student, *first(1, teacher), tail="drop") < 0


@every
@pytest.mark.parametrize("tail", sparse.TAILS)
def test_a_listed_class_without_probability_is_no_bin(loss, tail: str) -> None:
    """Its share of the student is in the bucket: listing it or not is the same."""
    student, teacher = draw(4)
    teacher[:, 2] = -math.inf
    ids, log_p = first(3, teacher)
    longer = (
        torch.cat((ids, torch.full((4, 1), 2)), -1),
        torch.cat((log_p, log_p.new_full((4, 1), -math.inf)), -1),
    )
    found, wanted = (
        value_and_gradients(lambda s, given=given: loss(s, *given, tail=tail), student)
        for given in (longer, (ids, log_p))
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@every
def test_a_student_may_exclude_what_the_teacher_lists(loss) -> None:
    student, teacher = draw(4)
    student[:, 1] = -math.inf
    value, gradient = value_and_gradients(lambda s: loss(s, *first(CLASSES - 1, teacher)), student)
    assert (value == math.inf).all() if loss is sparse.topk_kl else value.isfinite().all()
    assert gradient.isfinite().all()


@every
def test_a_student_may_exclude_all_that_is_not_listed(loss) -> None:
    student, teacher = draw(4)
    ids, log_p = first(3, teacher)
    alone = torch.full_like(student, -math.inf).scatter(-1, ids, student.gather(-1, ids))
    value, gradient = value_and_gradients(lambda s: loss(s, ids, log_p, floor=0.0), alone)
    assert (value == math.inf).all() if loss is sparse.topk_kl else value.isfinite().all()
    assert gradient.isfinite().all()


@every
def test_a_bucket_that_rounds_to_nothing_is_finite(loss) -> None:
    """Of a teacher so sure float32 has no rest, beside a student who leaves one: the floor is there."""
    teacher = torch.tensor([[40.0, 0.0, 0.0]])
    student = torch.zeros(1, 3, requires_grad=True)
    value = loss(student, *first(1, teacher))
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    exact = sparse.topk_reverse_kl(student, *first(1, teacher), floor=0.0)
    assert (exact == math.inf).all()


@pytest.mark.parametrize("scale", [1.0, 10.0, 30.0, 60.0])
def test_a_small_rest_of_the_student_has_all_its_digits(scale: float) -> None:
    """By one minus the listed probabilities, float32 has none below 1e-7."""
    logits_of = torch.tensor([[scale, 0.0, -1.0, 0.5]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    given = first(1, teacher)
    exact = sparse.topk_kl(logits_of, *given, floor=0.0)
    rounded = sparse.topk_kl(logits_of.float(), given[0], given[1].float(), floor=0.0)
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-5, atol=1e-6)


@every
def test_probabilities_that_sum_to_more_than_one_are_none(loss) -> None:
    student, teacher = draw(4)
    ids, log_p = first(3, teacher)
    assert loss(student, ids, log_p.clamp(min=-0.5)).isnan().all()
    assert loss(student, ids, log_p.softmax(-1).log()).isfinite().all()


# By a sample


def test_a_sample_is_unbiased() -> None:
    """The mean over all possible draws of two classes, weighted by their probability, is the divergence."""
    student, teacher = draw(1)
    log_p = teacher.log_softmax(-1)
    for log_pi in (log_p, torch.full_like(log_p, -math.log(CLASSES)), student.log_softmax(-1)):
        mean = torch.zeros(1, dtype=torch.float64)
        for pair in itertools.product(range(CLASSES), repeat=2):
            ids = torch.tensor([pair])
            proposal = log_pi.gather(-1, ids)
            value = sparse.sampled_kl(student, ids, log_p.gather(-1, ids), log_proposal=proposal)
            mean = mean + proposal.sum(-1).exp() * value
        torch.testing.assert_close(mean, logits.kl(student, teacher, temperature=1.0))


def test_a_repeated_class_counts_repeatedly() -> None:
    student, teacher = draw(2)
    log_p = teacher.log_softmax(-1)
    leaf = student.clone().requires_grad_()
    ids = torch.tensor([[3, 3, 3, 1]]).expand(2, 4)
    value = sparse.sampled_kl(leaf, ids, log_p.gather(-1, ids))
    gap = log_p - leaf.log_softmax(-1)
    wanted = 0.75 * gap[:, 3] + 0.25 * gap[:, 1]
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), leaf)[0] for x in (value, wanted)))


def test_of_the_teachers_own_draws_all_weights_are_equal() -> None:
    student, teacher = draw(2)
    ids = torch.tensor([[0, 4, 2], [8, 8, 1]])
    log_p = teacher.log_softmax(-1).gather(-1, ids)
    values = [
        sparse.sampled_kl(student, ids, log_p, log_proposal=proposal, self_normalized=normalized)
        for proposal, normalized in itertools.product((None, log_p), (False, True))
    ]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0])


# Errors


@pytest.mark.parametrize("spoil", [name for name in SPOILS if name not in ("floats", "None")])
def test_a_spoiled_proposal_is_refused(spoil: str) -> None:
    student, teacher = draw(4)
    ids, log_p = first(3, teacher)
    with pytest.raises((TypeError, ValueError), match="^sampled_kl: .*log_proposal"):
        sparse.sampled_kl(student, ids, log_p, log_proposal=SPOILS[spoil](log_p))


@every
def test_more_classes_than_there_are_cannot_be_listed(loss) -> None:
    student, teacher = draw(4)
    ids, log_p = first(CLASSES, teacher)
    with pytest.raises(ValueError, match=rf"{loss.__name__}: ids \[4, 10\] list 10 classes, and prediction"):
        loss(student, torch.cat((ids, ids[:, :1]), -1), torch.cat((log_p, log_p[:, :1]), -1))
    with pytest.raises(ValueError, match=r"ids \[4, 2\] and log_probabilities \[4, 3\] must have the same"):
        loss(student, ids[:, :2], log_p[:, :3])
    with pytest.raises(ValueError, match=r"ids \[4, 9\] must list classes for each token of the logits"):
        loss(student[:3], ids, log_p)


@every
@pytest.mark.parametrize("excluded", [False, True], ids=["all possible", "one listed excluded"])
def test_every_derivative_with_a_bucket(loss, excluded: bool) -> None:
    student, teacher = draw(2)
    ids, log_p = first(3, teacher)
    if excluded:
        log_p = log_p.index_fill(-1, torch.tensor([1]), -math.inf)

    def total(student: Tensor, log_p: Tensor = log_p) -> Tensor:
        return loss(student, ids, log_p)

    leaves = [x.clone().requires_grad_() for x in ((student,) if excluded else (student, log_p))]
    assert torch.autograd.gradcheck(total, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(total, leaves)
    for axes in itertools.product((0, 1, 2), (0, None), (0, None)):
        given = (student.repeat(3, 1, 1), ids.repeat(3, 1, 1), log_p.repeat(3, 1, 1))
        own = [
            x[0] if at is None else x.movedim(0, at).contiguous() for x, at in zip(given, axes, strict=True)
        ]
        rows = torch.func.vmap(torch.func.grad(lambda *row: loss(*row).sum()), in_dims=axes)(*own)
        torch.testing.assert_close(rows, torch.func.grad(lambda s: total(s).sum())(student).expand_as(rows))
    by_reverse = torch.func.hessian(lambda s: total(s).sum())(student)
    torch.testing.assert_close(
        by_reverse, torch.autograd.functional.hessian(lambda s: total(s).sum(), student)
    )
    torch.testing.assert_close(
        torch.func.jacfwd(total)(student), torch.autograd.functional.jacobian(total, student)
    )


@every
@pytest.mark.parametrize("scale", [1.0, 10.0, 13.0])
def test_the_gradient_of_a_small_rest_has_all_its_digits(loss, scale: float) -> None:
    student = torch.tensor([[scale, 0.0, -1.0, 0.5]], dtype=torch.float64)
    ids, log_p = first(1, torch.tensor([[3.0, 0.0, 0.0, 0.0]], dtype=torch.float64))
    exact = value_and_gradients(lambda s: loss(s, ids, log_p), student)
    rounded = value_and_gradients(lambda s: loss(s, ids, log_p.float()), student.float())
    for a, b in zip(rounded, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-7)


@every
def test_eager_and_compiled_share_values_and_gradients(loss) -> None:
    student, teacher = draw(5)
    ids, log_p = first(3, teacher)
    log_p[0, 1] = -math.inf

    def both(student: Tensor) -> tuple[Tensor, ...]:
        return torch.func.grad_and_value(lambda s: loss(s, ids, log_p).sum())(student)

    wanted = both(student)
    torch.compiler.reset()
    found = torch.compile(both, backend="aot_eager", fullgraph=True)(student)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@every
def test_one_student_beside_many_teachers(loss) -> None:
    student, teacher = draw(2)
    given = [torch.stack(pair) for pair in zip(*(first(3, z) for z in (teacher, -teacher)), strict=True)]
    rows = torch.func.vmap(loss, in_dims=(None, 0, 0))(student, *given)
    wanted = [loss(student, ids, log_p) for ids, log_p in zip(*given, strict=True)]
    torch.testing.assert_close(rows, torch.stack(wanted))


@every
def test_strides_do_not_matter(loss) -> None:
    student, teacher = draw(2, 4)
    ids, log_p = first(3, teacher)
    turned = student.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    found = value_and_gradients(lambda s: loss(s, ids, log_p), turned)
    for a, b in zip(found, value_and_gradients(lambda s: loss(s, ids, log_p), student), strict=True):
        torch.testing.assert_close(a, b)
    one = loss(student[0, 0], ids[0, 0], log_p[0, 0])
    torch.testing.assert_close(one, found[0][0, 0])
