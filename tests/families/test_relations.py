"""Relations that no reference value covers, against their formulas written out."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fcfd.families.relations import hard_dark_rank, linear_cka, rkd_angle, rkd_distance, vrm


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def all_angles(embedding: Tensor) -> Tensor:
    """The cosine at every example between all pairs, from the differences themselves."""
    directions = F.normalize(embedding.unsqueeze(0) - embedding.unsqueeze(1), dim=2)
    return directions @ directions.mT


def test_angles_in_several_blocks_equal_all_angles_at_once() -> None:
    # 200 examples need five blocks, of which the last is smaller; two examples are equal.
    student, teacher = rows(200, 6).requires_grad_(), rows(200, 4, seed=1).requires_grad_()
    with torch.no_grad():
        student[7], teacher[7] = student[3], teacher[3]
    wanted = F.smooth_l1_loss(all_angles(student), all_angles(teacher))
    found = rkd_angle(student, teacher)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    for a, b in zip(*(torch.autograd.grad(x, (student, teacher)) for x in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_angles_work_under_transforms() -> None:
    student, teacher = rows(3, 5, 4), rows(3, 5, 2, seed=1)
    wanted = torch.stack([torch.func.grad(rkd_angle)(s, t) for s, t in zip(student, teacher, strict=True)])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(rkd_angle))(student, teacher), wanted)


def test_autocast_leaves_the_gradient_of_the_angles_alone() -> None:
    student, teacher = rows(5, 4).float().requires_grad_(), rows(5, 2, seed=1).float()
    (wanted,) = torch.autograd.grad(rkd_angle(student, teacher), student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = rkd_angle(student, teacher)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], wanted)


def test_distances_survive_a_large_common_offset() -> None:
    student, teacher = rows(8, 16), rows(8, 16, seed=1)
    wanted = rkd_distance(student, teacher)
    found = rkd_distance((student + 1000).float(), (teacher - 1000).float())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=0)


def test_the_teachers_own_order_is_likelier_than_another() -> None:
    teacher = rows(6, 3)
    assert hard_dark_rank(teacher, teacher) < hard_dark_rank(teacher.flip(0), teacher)
    assert hard_dark_rank(teacher, rows(6, 2), length=1) == 0


def test_both_forms_of_linear_cka_agree() -> None:
    wide, narrow = rows(5, 9), rows(5, 4, seed=1)
    centred = [x - x.mean(0) for x in (wide, narrow)]
    kernels = [x @ x.mT for x in centred]
    wanted = (kernels[0] * kernels[1]).sum() / (kernels[0].norm() * kernels[1].norm())
    torch.testing.assert_close(linear_cka(wide, narrow), wanted)
    tall, small = rows(9, 5), rows(9, 4, seed=1)
    x, y = (z - z.mean(0) for z in (tall, small))
    wanted = (y.mT @ x).square().sum() / ((x.mT @ x).norm() * (y.mT @ y).norm())
    torch.testing.assert_close(linear_cka(tall, small), wanted)


def directions(real: Tensor, virtual: Tensor) -> Tensor:
    return F.normalize(real.unsqueeze(1) - virtual.unsqueeze(0), dim=2)


@pytest.mark.parametrize("keep", [0.3, 1.0])
def test_vrm_equals_its_formula_with_every_direction_in_memory(keep: float) -> None:
    student, teacher, view, teacher_view = (3 * rows(5, 4, seed=seed) for seed in range(4))
    probabilities = [x.softmax(1) for x in (student, view)]
    entropies = [-(p * p.log()).sum(1) for p in probabilities]
    joint = entropies[0].unsqueeze(1) + entropies[1]
    kept = joint <= joint.flatten().sort().values[round(keep * 25) - 1]

    def errors(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        distance = (directions(a, b) - directions(c, d)).norm(dim=2)
        return F.huber_loss(distance, torch.zeros_like(distance), reduction="none")

    samples = errors(student, view, teacher, teacher_view)[kept].mean()
    classes = errors(student.mT, view.mT, teacher.mT, teacher_view.mT).mean()
    found = vrm(student, teacher, view, teacher_view, keep=keep, sample_weight=2.0, class_weight=3.0)
    torch.testing.assert_close(found, 2 * samples + 3 * classes)


def test_vrm_has_a_gradient_where_a_view_is_the_example_itself() -> None:
    student, teacher = rows(5, 4).requires_grad_(), rows(5, 4, seed=1)
    (gradient,) = torch.autograd.grad(vrm(student, teacher, student, teacher), student)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_what_does_not_fit_is_refused() -> None:
    embedding = torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"^hard_dark_rank: prediction \[4, 3\] needs at least 5 examples"):
        hard_dark_rank(embedding, embedding)
    with pytest.raises(ValueError, match=r"^rkd_distance: prediction \[1, 3\] needs at least 2 examples"):
        rkd_distance(embedding[:1], embedding[:1])
    with pytest.raises(ValueError, match=r"^vrm: keep 1\.5 must be above 0 and at most 1"):
        vrm(embedding, embedding, embedding, embedding, keep=1.5)
