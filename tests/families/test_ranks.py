"""Parts of the classes by the teacher's ranking, beside `dkd` and the formulas written out."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from fcfd.families import logits, ranks

from .test_excluded import assert_same_without, value_and_gradients
from .test_logits import draw

quick = settings(max_examples=25, deadline=None, derandomize=True)
batches = st.tuples(st.integers(1, 5), st.integers(4, 8), st.integers(0, 10_000))
same = torch.testing.assert_close


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def shape_of(logit: Tensor, at: list[int]) -> Tensor:
    return logit[at].softmax(-1)


def by_loops(student: Tensor, teacher: Tensor, groups: list[list[int]], weights: list[float], reverse=0.0):
    """T = 1, one example; a group without classes has no mass and no shape."""
    p, q = teacher.softmax(-1), student.softmax(-1)
    groups = [group for group in groups if group]
    value = weights[0] * kl(*(torch.stack([x[group].sum() for group in groups]) for x in (p, q)))
    for group, weight in zip(groups, weights[1:], strict=True):
        shapes = shape_of(teacher, group), shape_of(student, group)
        value = value + weight * ((1 - reverse) * kl(*shapes) + reverse * kl(*shapes[::-1]))
    return value


@given(batches, st.integers(1, 3), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]))
@quick
def test_groups_by_loops(batch, k: int, best: bool, reverse: float) -> None:
    student, teacher, _ = draw(batch)
    wanted = []
    for s, t in zip(student / 2, teacher / 2, strict=True):
        order = t.argsort(descending=best).tolist()
        wanted.append(4 * by_loops(s, t, [order[:k], order[k:]], [0.5, 2.0, 3.0], reverse))
    strategy = "best" if best else "worst"
    hyper = {"w0": 0.5, "w1": 2.0, "w2": 3.0, "temperature": 2.0}
    same(ranks.gdkd(student, teacher, k=k, strategy=strategy, reverse=reverse, **hyper), torch.stack(wanted))
    wanted = []
    for s, t in zip(student / 2, teacher / 2, strict=True):
        order = t.argsort(descending=True).tolist()
        weights = [0.5, 0.0, *([2.0] if k > 1 else []), 3.0]
        wanted.append(4 * by_loops(s, t, [order[:1], order[1:k], order[k:]], weights))
    same(ranks.gdkd3(student, teacher, k=k, **hyper), torch.stack(wanted))


@given(batches)
@quick
def test_one_class_before_the_rest_is_decoupling(batch) -> None:
    student, teacher, _ = draw(batch)
    wanted = logits.dkd(student, teacher, teacher.argmax(-1), alpha=0.5, beta=3.0)
    same(ranks.gdkd(student, teacher, k=1, w0=0.5, w1=9.0, w2=3.0), wanted)
    same(ranks.gdkd3(student, teacher, k=1, w0=0.5, w1=9.0, w2=3.0), wanted)


@given(batches)
@quick
def test_all_classes_are_plain_decoupling(batch) -> None:
    student, teacher, labels = draw(batch)
    wanted = logits.dkd(student, teacher, labels)
    for k in (0, batch[1], batch[1] + 3):
        same(ranks.topk_nckd(student, teacher, labels, k=k), wanted)


@given(batches, st.integers(1, 4))
@quick
def test_the_label_is_counted_in_the_ranking(batch, k: int) -> None:
    student, teacher, labels = draw(batch)
    for b, (s, t, y) in enumerate(zip(student / 4, teacher / 4, labels.tolist(), strict=True)):
        among = [at for at in t.argsort(descending=True).tolist()[:k] if at != y]
        wanted = 16 * kl(shape_of(t, among), shape_of(s, among)) if among else torch.tensor(0.0).double()
        same(ranks.topk_nckd(student, teacher, labels, k=k, alpha=0.0, beta=1.0)[b], wanted)


@given(batches)
@quick
def test_what_ranks_at_or_above_the_label_is_left_out(batch) -> None:
    student, teacher, labels = draw(batch)
    teacher = teacher.round()
    for b, (s, t, y) in enumerate(zip(student, teacher, labels.tolist(), strict=True)):
        below = [at for at in range(len(t)) if t[at] < t[y]]
        among = 4 * kl(shape_of(t / 2, below), shape_of(s / 2, below)) if below else 0.0
        p, q = (t / 3).softmax(-1).max(), (s / 3).softmax(-1)[y]
        of_label = 9 * kl(torch.stack((p, 1 - p)), torch.stack((q, 1 - q)))
        found = ranks.rld(student, teacher, labels, temperature=2.0, label_temperature=3.0, beta=5.0)[b]
        same(found, of_label + 5 * among)


def test_a_part_without_a_class_has_a_gradient_of_zero() -> None:
    teacher = torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64)
    student = torch.zeros(1, 3, dtype=torch.float64)
    last, first = torch.tensor([2]), torch.tensor([0])
    for value in (
        value_and_gradients(lambda s: ranks.rld(s, teacher, last, alpha=0.0), student),
        value_and_gradients(lambda s: ranks.topk_nckd(s, teacher, first, k=1, alpha=0.0), student),
    ):
        assert all(torch.equal(x, torch.zeros_like(x)) for x in value)


LOSSES = {
    "gdkd": lambda s, t, y: ranks.gdkd(s, t, k=2),
    "gdkd worst": lambda s, t, y: ranks.gdkd(s, t, k=2, strategy="worst"),
    "gdkd3": lambda s, t, y: ranks.gdkd3(s, t, k=2),
    "topk_nckd": lambda s, t, y: ranks.topk_nckd(s, t, y, k=3),
    "rld": ranks.rld,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_what_both_exclude_counts_nothing(loss: str) -> None:
    student, teacher, labels = draw((4, 6, 0))
    assert_same_without(LOSSES[loss], student, teacher, labels % 5)


@pytest.mark.parametrize("loss", LOSSES)
def test_what_one_excludes_is_never_nan(loss: str) -> None:
    student, teacher, labels = draw((4, 6, 0))
    for network in (0, 1):
        pair = [student.clone(), teacher.clone()]
        pair[network][:, 5] = -math.inf
        value = LOSSES[loss](pair[0].requires_grad_(), pair[1], labels % 5)
        assert not value.isnan().any()
        assert torch.autograd.grad(value.sum(), pair[0])[0].isfinite().all()


@pytest.mark.parametrize("loss", [ranks.gdkd, ranks.gdkd3], ids=lambda loss: loss.__name__)
def test_a_group_of_all_classes_is_refused(loss) -> None:
    with pytest.raises(ValueError, match=rf"^{loss.__name__}: k 3 must be below the number of classes, 3"):
        loss(torch.zeros(1, 3), torch.zeros(1, 3), k=3)
