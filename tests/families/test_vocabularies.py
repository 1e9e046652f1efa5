"""Networks of different vocabularies, beside the formulas written out."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.nn import functional as F

from fcfd.families import vocabularies as v

quick = settings(max_examples=25, deadline=None, derandomize=True)
sizes = st.tuples(st.integers(1, 4), st.integers(2, 8), st.integers(2, 8), st.integers(0, 10_000))
same = torch.testing.assert_close


def draw(size: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    tokens, student, teacher, seed = size
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        2 * torch.randn(tokens, n, dtype=torch.float64, generator=generator) for n in (student, teacher)
    )
    return first, second


def by_rank(p: Tensor, q: Tensor) -> Tensor:
    width = max(p.shape[-1], q.shape[-1])
    p, q = (F.pad(x.sort(descending=True).values, (0, width - x.shape[-1])) for x in (p, q))
    return (p - q).abs().sum(-1)


@given(sizes)
@quick
def test_ranks_by_padding(size) -> None:
    student, teacher = draw(size)
    found = v.uld(student, teacher, temperature=2.0, target_temperature=0.5)
    same(found, by_rank((student / 2).softmax(-1), (teacher * 2).softmax(-1)))
    same(v.uld(student, student.flip(-1)), torch.zeros(len(student), dtype=torch.float64))


@given(sizes, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([None, 0.0, 0.4, 1.0]))
@quick
def test_partners_one_by_one_and_the_rest_by_rank(size, beta: float, weight: float | None) -> None:
    student, teacher = draw(size)
    count = min(student.shape[-1], teacher.shape[-1]) // 2
    generator = torch.Generator().manual_seed(size[-1])
    ids = [torch.randperm(x.shape[-1], generator=generator)[:count] for x in (student, teacher)]
    q, p = student.softmax(-1), teacher.softmax(-1)
    matched_q, matched_p = q[:, ids[0]].clamp(min=1e-8), p[:, ids[1]].clamp(min=1e-8)
    m = beta * matched_p + (1 - beta) * matched_q
    forward, backward = (matched_p * (matched_p / m).log()), (matched_q * (matched_q / m).log())
    matched = (beta * forward + (1 - beta) * backward).sum(-1)
    if beta in (0, 1):
        pair = (matched_q, matched_p) if beta else (matched_p, matched_q)
        matched = (pair[0] * (pair[0] / pair[1]).log()).sum(-1)
    rest = [
        x[:, [at for at in range(x.shape[-1]) if at not in chosen.tolist()]]
        for x, chosen in ((q, ids[0]), (p, ids[1]))
    ]
    share = count / teacher.shape[-1] if weight is None else weight
    wanted = share * matched + (1 - share) * by_rank(*rest)
    same(v.uld_hybrid(student, teacher, *ids, beta=beta, weight=weight), wanted)


def test_without_an_unmatched_id_on_one_side_the_rest_counts_nothing() -> None:
    student, teacher = draw((3, 3, 6, 0))
    ids = torch.arange(3)
    found = v.uld_hybrid(student, teacher, ids, ids, weight=0.25)
    same(found, 0.25 * v.uld_hybrid(student, teacher, ids, ids, weight=1.0))


def test_what_is_below_the_floor_has_no_gradient() -> None:
    student = torch.tensor([[0.0, -40.0, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64)
    ids = torch.tensor([1])
    value = v.uld_hybrid(student, teacher, ids, ids, weight=1.0)
    assert torch.equal(torch.autograd.grad(value.sum(), student)[0], torch.zeros(1, 3))


def test_errors_name_both_lists() -> None:
    student, teacher = draw((3, 4, 6, 0))
    with pytest.raises(ValueError, match=r"matched \[2\] and target_matched \[3\] must have the same shape"):
        v.uld_hybrid(student, teacher, torch.arange(2), torch.arange(3))
    with pytest.raises(ValueError, match=r"matched \[5\] are more ids than the 4 classes of prediction"):
        v.uld_hybrid(student, teacher, torch.arange(5), torch.arange(5))
    with pytest.raises(
        ValueError, match=r"prediction \[3, 4\] and target \[2, 6\] must have the same tokens"
    ):
        v.uld(student, teacher[:2])


def test_without_partners_all_is_compared_by_rank() -> None:
    student, teacher = draw((3, 4, 6, 0))
    none = torch.empty(0, dtype=torch.long)
    same(v.uld_hybrid(student, teacher, none, none), v.uld(student, teacher))
