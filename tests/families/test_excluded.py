"""A class with the logit −∞ is excluded: it counts nothing, in the value and in every gradient."""

import math

import pytest
import torch
from torch import Tensor

from fcfd.families import detection, logits, maps, temperatures

PLAIN = (
    logits.kl,
    logits.kd_ce,
    logits.kd_bce,
    logits.binary_kl,
    logits.reverse_kl,
    logits.jsd,
    logits.skew_forward_kl_ce,
    logits.skew_reverse_kl,
    logits.total_variation,
    logits.dist,
    logits.mlkd_class_corr,
    logits.mlkd_batch_corr,
    temperatures.ea_weight,
)
LABELLED = (logits.dkd, logits.nkd, logits.wsld, logits.ofa)
ONE = (
    temperatures.standardize_logits,
    temperatures.batch_standardize_logits,
    temperatures.energy,
    temperatures.entropy,
)
COUNTED, ALL = 5, 6


def named(loss) -> str:
    return loss.__name__


def draw(*more: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, 4, *more, ALL, dtype=torch.float64, generator=generator)
    return student, teacher, torch.randint(COUNTED, (4, *more), generator=generator)


def excluding(matrix: Tensor) -> Tensor:
    """The last class excluded."""
    return torch.cat((matrix[..., :COUNTED], torch.full_like(matrix[..., COUNTED:], -math.inf)), -1)


def value_and_gradients(loss, *tensors: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in tensors]
    value = loss(*leaves)
    finite = torch.where(value.isfinite(), value, 0.0)
    return [value.detach(), *torch.autograd.grad(finite.sum(), [x for x in leaves if x.requires_grad])]


def assert_same_without(loss, *tensors: Tensor) -> None:
    """An excluded class is worth what no class is worth."""
    excluded = [excluding(x) if x.is_floating_point() else x for x in tensors]
    shorter = [x[..., :COUNTED] if x.is_floating_point() else x for x in tensors]
    for found, wanted in zip(
        value_and_gradients(loss, *excluded), value_and_gradients(loss, *shorter), strict=True
    ):
        found = found[..., :COUNTED] if found.shape != wanted.shape else found
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-12)
    for gradient in value_and_gradients(loss, *excluded)[1:]:
        assert not gradient.isnan().any()


def test_the_value_of_the_report() -> None:
    student, teacher = (
        torch.tensor([[1.0, 0.0, -1.0, -math.inf]]),
        torch.tensor([[0.0, 1.0, -1.0, -math.inf]]),
    )
    torch.testing.assert_close(logits.kl(student, teacher).item(), 0.3709, atol=5e-5, rtol=0)


@pytest.mark.parametrize("loss", PLAIN, ids=named)
def test_what_both_exclude_counts_nothing(loss) -> None:
    assert_same_without(loss, *draw()[:2])


@pytest.mark.parametrize("loss", LABELLED, ids=named)
def test_what_both_exclude_counts_nothing_beside_labels(loss) -> None:
    assert_same_without(loss, *draw())


@pytest.mark.parametrize("loss", ONE, ids=named)
def test_what_a_network_excludes_counts_nothing(loss) -> None:
    assert_same_without(loss, draw()[0])


@pytest.mark.parametrize("loss", [logits.cross_entropy, logits.tf_nkd], ids=named)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_an_excluded_class_needs_no_label(loss, soft: bool) -> None:
    student, _, labels = draw()
    if not soft:
        assert_same_without(loss, student, labels)
        return
    mixed = (
        torch.nn.functional.one_hot(labels, ALL) * 0.8 + torch.nn.functional.one_hot(labels * 0, ALL) * 0.2
    )
    found = value_and_gradients(lambda x: loss(x, mixed), excluding(student))
    wanted = value_and_gradients(lambda x: loss(x, mixed[:, :COUNTED]), student[:, :COUNTED])
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1][:, :COUNTED], wanted[1])


def test_transport_skips_what_both_exclude() -> None:
    student, teacher, labels = draw()
    cost = torch.rand(ALL, ALL, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = logits.wkd_logit(excluding(student), excluding(teacher), labels, cost)
    shorter = cost[:COUNTED, :COUNTED]
    wanted = logits.wkd_logit(student[:, :COUNTED], teacher[:, :COUNTED], labels, shorter)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("temperature", [2.0, torch.tensor(2.0), torch.tensor([1.0, 2.0, 3.0, 4.0])], ids=str)
@pytest.mark.parametrize("loss", [logits.kl, logits.dkd], ids=named)
def test_a_temperature_gets_a_gradient_beside_an_excluded_class(loss, temperature) -> None:
    if isinstance(temperature, Tensor):
        temperature = temperature.double().requires_grad_()
    student, teacher, labels = draw()
    more = [labels] if loss is logits.dkd else []
    found = loss(excluding(student), excluding(teacher), *more, temperature=temperature)
    wanted = loss(student[:, :COUNTED], teacher[:, :COUNTED], *more, temperature=temperature)
    torch.testing.assert_close(found, wanted)
    if isinstance(temperature, Tensor):
        gradients = [torch.autograd.grad(value.sum(), temperature)[0] for value in (found, wanted)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("loss", [*PLAIN, *LABELLED], ids=named)
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_what_one_excludes_is_infinite_or_finite_but_never_nan(loss, who: str) -> None:
    student, teacher, labels = draw()
    student, teacher = (excluding(student), teacher) if who == "student" else (student, excluding(teacher))
    more = [labels] if loss in LABELLED else []
    student.requires_grad_()
    value = loss(student, teacher, *more)
    infinite = {
        "student": {logits.kl, logits.kd_ce, logits.kd_bce, logits.binary_kl, *LABELLED},
        "teacher": {logits.reverse_kl},
    }
    assert (value == math.inf).all() if loss in infinite[who] else value.isfinite().all()
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", LABELLED, ids=named)
def test_the_label_itself_may_be_excluded_by_both(loss) -> None:
    student, teacher, labels = draw()
    value, *gradients = value_and_gradients(
        loss, excluding(student), excluding(teacher), torch.full_like(labels, COUNTED)
    )
    assert value.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("probable", [0.0, 1.0])
def test_a_sigmoid_reads_an_excluded_class_as_no(probable: float) -> None:
    student, labels = torch.tensor([[1.0, -math.inf]], requires_grad=True), torch.tensor([[1.0, probable]])
    value = logits.binary_cross_entropy(student, labels)
    (gradient,) = torch.autograd.grad(value, student)
    wanted = logits.binary_cross_entropy(student[:, :1], labels[:, :1]) if not probable else math.inf
    torch.testing.assert_close(value, torch.as_tensor(wanted).expand(1))
    assert gradient.isfinite().all()
    assert torch.equal(gradient[:, 1], torch.zeros(1))


def test_a_detector_may_exclude_a_class() -> None:
    student, teacher, _ = draw()
    assert_same_without(detection.kd_quality_focal, student, teacher)


def test_positions_may_be_excluded_of_a_map() -> None:
    student, teacher, _ = draw(3)
    assert_same_without(maps.channel_wise_divergence, student, teacher)


def test_half_precision_too() -> None:
    student, teacher, _ = draw()
    half = excluding(student).half(), excluding(teacher).half()
    wanted = logits.kl(student[:, :COUNTED], teacher[:, :COUNTED])
    torch.testing.assert_close(logits.kl(*half).double(), wanted, rtol=5e-3, atol=1e-3)


# By which derivative


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # torch's own, of its first tangent
@pytest.mark.parametrize("loss", [*PLAIN, *LABELLED], ids=named)
def test_functional_gradients_and_tangents_of_both_networks_are_the_gradients(loss) -> None:
    student, teacher, labels = draw()
    student, teacher = excluding(student), excluding(teacher)
    more = [labels] if loss in LABELLED else []
    value, *wanted = value_and_gradients(loss, student, teacher, *more)

    def total(student: Tensor, teacher: Tensor) -> Tensor:
        return loss(student, teacher, *more).sum()

    found, sum_of_values = torch.func.grad_and_value(total, argnums=(0, 1))(student, teacher)
    torch.testing.assert_close(sum_of_values, value.sum())
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(4, ALL, dtype=torch.float64, generator=generator)
    for at, gradient in enumerate(wanted):
        torch.testing.assert_close(found[at], gradient)
        moves = [direction if at == which else torch.zeros_like(direction) for which in (0, 1)]
        out, slope = torch.func.jvp(total, (student, teacher), tuple(moves))
        torch.testing.assert_close(out, value.sum())
        torch.testing.assert_close(slope, (gradient * direction).sum())


@pytest.mark.parametrize("loss", [logits.kl, logits.kd_ce, logits.cross_entropy], ids=named)
@pytest.mark.parametrize("teacher_learns", [False, True])
def test_second_derivatives_beside_an_excluded_class(loss, teacher_learns: bool) -> None:
    student, teacher, _ = draw()
    if loss is logits.cross_entropy:
        teacher = excluding(teacher).softmax(-1)[:, :COUNTED]

    def shorter(student: Tensor, teacher: Tensor) -> Tensor:
        pad = torch.full_like(student[:, :1], -math.inf)
        end = torch.zeros_like(pad) if loss is logits.cross_entropy else pad
        return loss(torch.cat((student, pad), -1), torch.cat((teacher, end), -1))

    leaves = [x[:, :COUNTED].clone().requires_grad_() for x in (student, teacher)]
    leaves[1].requires_grad_(teacher_learns and loss is not logits.cross_entropy)
    assert torch.autograd.gradcheck(shorter, leaves)
    assert torch.autograd.gradgradcheck(shorter, leaves)


@pytest.mark.parametrize("loss", [logits.kl, logits.kd_ce], ids=named)
@pytest.mark.parametrize("who", [0, 1], ids=["student", "teacher"])
@pytest.mark.parametrize("at", range(ALL))
def test_nan_beside_an_excluded_class_comes_out(loss, who: int, at: int) -> None:
    pair = [excluding(x) for x in draw()[:2]]
    pair[who][2, at] = math.nan
    value = loss(*pair)
    assert value.isnan().tolist() == [False, False, True, False]


def test_what_the_teacher_finds_all_but_impossible_is_never_nan() -> None:
    student, teacher = torch.tensor([[0.0, 1.0, -math.inf]]), torch.tensor([[500.0, 0.0, -500.0]])
    for loss in (logits.kl, logits.kd_ce):
        assert loss(student, teacher, temperature=1.0).isfinite().all()


@pytest.mark.parametrize("learns", [False, True], ids=["student", "both"])
def test_a_label_with_no_class_beside_it_has_no_shape(learns: bool) -> None:
    alone = torch.tensor([[2.0] + [-math.inf] * (ALL - 1)], dtype=torch.float64)
    value, *gradients = value_and_gradients(
        lambda s: logits.dkd(s, (3 * alone).requires_grad_(learns), torch.tensor([0])), alone
    )
    assert value.tolist() == [0.0]
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)
