"""Contrastive losses that no reference value covers, against their formulas written out."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fcfd.families.contrastive import Banks, crd_nce, info_nce, prototype_info_nce


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("paired", [False, True], ids=["shared", "paired"])
def test_info_nce_against_given_negatives(paired: bool) -> None:
    query, positive, shared = rows(4, 5), rows(4, 5, seed=1), rows(6, 5, seed=2)
    negatives = torch.stack([shared + b for b in range(4)]) if paired else shared
    wanted = []
    for b in range(4):
        others = negatives[b] if paired else negatives
        found = F.cosine_similarity(query[b], positive[b], dim=0) / 0.1
        wrong = F.cosine_similarity(query[b].expand_as(others), others) / 0.1
        wanted.append(torch.cat((found.reshape(1), wrong)).logsumexp(0) - found)
    torch.testing.assert_close(info_nce(query, positive, negatives=negatives), torch.stack(wanted).mean())


def test_a_temperature_may_be_learned_or_differ_by_query() -> None:
    query, positive = rows(4, 5), rows(4, 5, seed=1)
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: info_nce(query, positive, temperature=t), temperature)
    same = info_nce(query, positive, temperature=torch.full([4], 0.5, dtype=torch.float64))
    torch.testing.assert_close(same, info_nce(query, positive, temperature=0.5))


def test_mcld_is_three_calls_of_info_nce() -> None:
    student, teacher = rows(4, 6), rows(4, 6, seed=1)
    instances = info_nce(student, teacher)
    samples = info_nce(student, teacher, negatives=torch.cat((student, teacher)).flip(0))
    categories = info_nce(student.mT, teacher.mT)
    cosines = F.normalize(student, dim=0).mT @ F.normalize(teacher, dim=0)
    torch.testing.assert_close(categories, F.cross_entropy(cosines / 0.1, torch.arange(6)))
    assert (instances + samples + categories).isfinite()


def test_prototype_info_nce_is_a_cross_entropy_of_cosines() -> None:
    embedding, prototypes, labels = rows(4, 5), rows(3, 5, seed=1), torch.tensor([0, 2, 1, 2])
    cosines = F.cosine_similarity(embedding.unsqueeze(1), prototypes.unsqueeze(0), dim=2)
    wanted = F.cross_entropy(cosines / 0.2, labels, reduction="none")
    torch.testing.assert_close(prototype_info_nce(embedding, prototypes, labels, temperature=0.2), wanted)


def unit_banks(examples: int) -> Banks:
    return Banks(F.normalize(rows(examples, 4, seed=2)), F.normalize(rows(examples, 4, seed=3)))


def test_crd_scores_all_rows_or_the_drawn_ones_alike() -> None:
    # 40 rows are more than 3 places of 4 dimensions, so only the places are scored; 10 rows are scored whole.
    student, teacher = F.normalize(rows(2, 4)), F.normalize(rows(2, 4, seed=1))
    index, negatives = torch.tensor([1, 5]), torch.tensor([[0, 7], [3, 2]])
    large = unit_banks(40)._replace(student_log_z=torch.tensor(1.0), teacher_log_z=torch.tensor(2.0))
    small = large._replace(student=large.student[:10], teacher=large.teacher[:10])
    values = [crd_nce(student, teacher, index, negatives, banks)[0] for banks in (large, small)]
    for value, examples in zip(values, (40, 10), strict=True):
        noise = 2 / examples
        wanted = torch.zeros(2, dtype=torch.float64)
        for v, bank, log_z in ((student, large.teacher, 1.0), (teacher, large.student, 2.0)):
            x = (
                (bank[torch.cat((index[:, None], negatives), 1)] @ v[:, :, None])[..., 0] / 0.07 - log_z
            ).exp()
            total = x + noise + 1e-7
            wanted -= (x[:, 0] / total[:, 0]).log() + (noise / total[:, 1:]).log().sum(1)
        torch.testing.assert_close(value, wanted)


def test_crd_returns_new_banks_and_keeps_the_scale_it_found() -> None:
    student, teacher = F.normalize(rows(2, 4)), F.normalize(rows(2, 4, seed=1))
    index, negatives, banks = torch.tensor([1, 5]), torch.tensor([[0, 7], [3, 2]]), unit_banks(8)
    before = [bank.clone() for bank in banks[:2]]
    _, first = crd_nce(student, teacher, index, negatives, banks)
    _, second = crd_nce(student, teacher, index, negatives, first, momentum=0.9)
    assert all(torch.equal(a, b) for a, b in zip(banks[:2], before, strict=True))
    torch.testing.assert_close(first.student[index], F.normalize(0.5 * before[0][index] + 0.5 * student))
    assert torch.equal(first.student[[0, 2, 3, 4, 6, 7]], before[0][[0, 2, 3, 4, 6, 7]])
    assert torch.equal(second.student_log_z, first.student_log_z)
    scores = before[1][torch.cat((index[:, None], negatives), 1)] @ student[:, :, None] / 0.07
    torch.testing.assert_close(first.student_log_z.exp(), 8 * scores.exp().mean())


def test_what_does_not_fit_is_refused() -> None:
    query = torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"^info_nce: negatives \[6, 2\] must be \[negatives, 3\], or \[4, "):
        info_nce(query, query, negatives=torch.ones(6, 2))
    with pytest.raises(ValueError, match=r"^info_nce: temperature \[3\] must be a number or have one value"):
        info_nce(query, query, temperature=torch.ones(3))
    with pytest.raises(ValueError, match=r"^prototype_info_nce: embedding \[4, 3\] and prototypes \[5, 2\]"):
        prototype_info_nce(query, torch.ones(5, 2), torch.zeros(4, dtype=torch.long))
    places = torch.zeros(4, dtype=torch.long), torch.zeros(4, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"^crd_nce: the banks \[9, 5\] must be \[examples, 3\]"):
        crd_nce(query, query, *places, Banks(torch.ones(9, 5), torch.ones(9, 5)))
