"""What the logit losses are to each other, and to the naive formulas that their bodies replace."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from fcfd.families import detection, logits, temperatures

quick = settings(max_examples=25, deadline=None, derandomize=True)
batches = st.tuples(st.integers(1, 5), st.integers(2, 8), st.integers(0, 10_000))


def draw(batch: tuple[int, int, int], scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    examples, classes, seed = batch
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, examples, classes, dtype=torch.float64, generator=generator)
    return student, teacher, torch.randint(classes, (examples,), generator=generator)


def without(labels: Tensor, matrix: Tensor) -> Tensor:
    """The logits of all classes but each example's label."""
    keep = torch.arange(matrix.shape[1]) != labels.unsqueeze(1)
    return matrix[keep].reshape(len(matrix), -1)


# Identities


@given(st.tuples(st.integers(1, 5), st.integers(3, 8), st.integers(0, 10_000)))
@quick
def test_decoupling_adds_up(batch):
    student, teacher, labels = draw(batch)
    doubt = 1 - (teacher / 2).softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
    label, others = (
        logits.dkd(student, teacher, labels, temperature=2.0, alpha=alpha, beta=1 - alpha) for alpha in (1, 0)
    )
    torch.testing.assert_close(label + doubt * others, logits.kl(student, teacher, temperature=2.0))
    rest = logits.kl(without(labels, student), without(labels, teacher), temperature=2.0)
    torch.testing.assert_close(others, rest)


@given(batches)
@quick
def test_the_ends_of_each_family_meet(batch):
    student, teacher, labels = draw(batch)
    forward = logits.kl(student, teacher, temperature=1.0)
    backward = logits.reverse_kl(student, teacher)
    doubt = temperatures.entropy(teacher, temperature=1.0)
    same = torch.testing.assert_close
    same(backward, logits.kl(teacher, student, temperature=1.0))
    same(logits.jsd(student, teacher, beta=0), forward)
    same(logits.jsd(student, teacher, beta=1), backward)
    same(logits.jsd(student, teacher), logits.jsd(teacher, student))
    same(logits.skew_reverse_kl(student, teacher, skew=0), backward)
    same(logits.skew_forward_kl_ce(student, teacher, skew=0), forward + doubt)
    same(logits.kd_ce(student, teacher, temperature=1.0), forward + doubt)
    same(logits.ofa(student, teacher, labels, gamma=1.0), forward + doubt)


@given(batches)
@quick
def test_soft_labels_of_one_class_are_hard_labels(batch):
    student, _, labels = draw(batch)
    soft = F.one_hot(labels, student.shape[1]).double()
    for loss in (logits.cross_entropy, logits.tf_nkd):
        torch.testing.assert_close(loss(student, soft), loss(student, labels))


def test_mixed_labels_count_by_their_two_heaviest_classes():
    student, mixed = torch.zeros(2, 4), torch.tensor([[0.7, 0.3, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    weights = (0.7 + 1.0) / 2 + (0.3 + 0.0) / 2
    torch.testing.assert_close(logits.tf_nkd(student, mixed), torch.tensor(weights * math.log(4)))


@given(batches)
@quick
def test_binary_losses_are_those_of_torch_and_of_the_paper(batch):
    student, teacher, _ = draw(batch)
    labels = teacher > 1
    wanted = F.binary_cross_entropy_with_logits(student, labels.double(), reduction="none").mean(1)
    for kind in (torch.bool, torch.int64, torch.uint8, torch.float64):
        torch.testing.assert_close(logits.binary_cross_entropy(student, labels.to(kind)), wanted)
    p, q = (teacher / 2).sigmoid(), (student / 2).sigmoid()
    wanted = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    found = logits.binary_kl(student, teacher, temperature=2.0)
    torch.testing.assert_close(found, 4 * wanted.sum(1), rtol=1e-6, atol=1e-9)


def test_one_sigmoid_is_a_softmax_of_two():
    student, teacher, _ = draw((4, 1, 0))
    two = (torch.cat((z, torch.zeros_like(z)), 1) for z in (student, teacher))
    torch.testing.assert_close(logits.binary_kl(student, teacher), logits.kl(*two, temperature=1.0))
    labels = torch.tensor([[1], [0], [1], [0]])
    two = torch.cat((student, torch.zeros_like(student)), 1)
    wanted = logits.cross_entropy(two, 1 - labels.squeeze(1))
    torch.testing.assert_close(logits.binary_cross_entropy(student, labels), wanted)


# What a body replaces


@given(batches)
@quick
def test_correlations_by_the_shorter_axis_are_the_correlations(batch):
    student, teacher, _ = draw(batch)
    p, q = (student / 4).softmax(1), (teacher / 4).softmax(1)
    examples, classes = p.shape
    by_class = (q.T @ q - p.T @ p).square().sum() / classes
    by_example = (q @ q.T - p @ p.T).square().sum() / examples
    torch.testing.assert_close(logits.mlkd_class_corr(student, teacher), by_class)
    torch.testing.assert_close(logits.mlkd_batch_corr(student, teacher), by_example)


def test_correlations_keep_their_precision_near_equality():
    teacher = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    student = teacher + 1e-3 * torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    exact = logits.mlkd_class_corr(student.double(), teacher.double())
    torch.testing.assert_close(logits.mlkd_class_corr(student, teacher).double(), exact, rtol=1e-4, atol=0)


@given(batches)
@quick
def test_one_transport_kernel_serves_all_labels(batch):
    student, teacher, labels = draw(batch)
    cost = torch.rand(student.shape[1], student.shape[1], dtype=torch.float64)
    together = logits.wkd_logit(student, teacher, labels, cost, gamma=1.0, regularization=0.3)
    for at, y in enumerate(labels.tolist()):
        keep = [c for c in range(student.shape[1]) if c != y]
        a, b = (student[at, keep] / 2).softmax(0), (teacher[at, keep] / 2).softmax(0)
        price = cost[keep][:, keep] + 1e-8
        kernel, u = torch.exp(-price / 0.3), torch.full_like(a, 1 / len(keep))
        for _ in range(10):
            v = b / (kernel.T @ u + 1e-8)
            u = a / (kernel @ v + 1e-8)
        label = -teacher[at].softmax(0)[y] * student[at].log_softmax(0)[y]
        torch.testing.assert_close(together[at], label + u @ (kernel * price) @ v)


# Extremes


LABELLED = (logits.dkd, logits.nkd, logits.wsld, logits.ofa)
PLAIN = (
    logits.kl,
    logits.kd_ce,
    logits.jsd,
    logits.skew_reverse_kl,
    logits.total_variation,
)


@pytest.mark.parametrize("loss", [*PLAIN, *LABELLED], ids=lambda loss: loss.__name__)
def test_the_teacher_may_exclude_a_class(loss):
    student, teacher, labels = draw((4, 6, 0))
    teacher[:, 5] = -math.inf
    leaves = student.requires_grad_(), teacher.requires_grad_()
    value = loss(*leaves, *([labels % 5] if loss in LABELLED else []))
    assert value.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), leaves))


@pytest.mark.parametrize(
    "loss", [*PLAIN, *LABELLED, detection.kd_quality_focal], ids=lambda loss: loss.__name__
)
@pytest.mark.parametrize("scale", [300.0, 1e4])
def test_float32_is_right_where_probabilities_underflow(loss, scale):
    student, teacher, labels = draw((8, 10, 1), scale)
    student, teacher = student.float(), teacher.float()
    more = [labels] if loss in LABELLED else []
    exact = loss(student.double(), teacher.double(), *more)
    torch.testing.assert_close(loss(student, teacher, *more).double(), exact, rtol=1e-4, atol=1e-4)


# Policies


def test_energy_temperature_compares_strictly_and_runs_both_ways():
    energies, thresholds = torch.tensor([-4.1, -4.0, -2.0, -1.9]), torch.tensor([-4.0, -2.0])
    paper = temperatures.energy_temperature(energies, thresholds)
    code = temperatures.energy_temperature(energies, thresholds, below=2.0, above=6.0)
    assert paper.tolist() == [6.0, 4.0, 4.0, 2.0]
    assert code.tolist() == [2.0, 4.0, 4.0, 6.0]


def test_a_reversed_temperature_learns_against_the_student():
    student, teacher, _ = draw((4, 6, 2))
    parameter = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def slope(scale: float) -> Tensor:
        temperature = temperatures.learned_temperature(temperatures.grad_reverse(parameter, scale=scale))
        return torch.autograd.grad(logits.kl(student, teacher, temperature=temperature).mean(), parameter)[0]

    torch.testing.assert_close(slope(-0.5), -0.5 * slope(1.0))
    assert torch.equal(temperatures.grad_reverse(student), student)


def test_what_the_teacher_doubts_weighs_more():
    doubtful, sure = torch.zeros(1, 5), torch.tensor([[9.0, 0.0, 0.0, 0.0, 0.0]])
    assert temperatures.ea_weight(doubtful, doubtful) > temperatures.ea_weight(sure, doubtful)
    assert temperatures.ea_weight(sure, doubtful) > temperatures.ea_weight(doubtful, sure)
    torch.testing.assert_close(temperatures.ea_weight(doubtful, doubtful), torch.tensor([math.log(5)]))
    torch.testing.assert_close(
        temperatures.entropy(sure, eps=1e-10), temperatures.entropy(sure), rtol=1e-6, atol=0
    )


# Labels


@pytest.mark.parametrize("loss", [logits.cross_entropy, logits.tf_nkd], ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_soft_labels_sum_to_one_or_the_value_is_nan(loss, dtype):
    student = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    smooth = 0.9 * F.one_hot(torch.tensor([0, 5, 9]), 1000) + 0.1 / 1000
    assert loss(student, smooth.to(dtype)).isfinite().all()
    several = smooth.to(dtype)
    several[1, :3] = 1
    value = loss(student, several)
    assert value.isnan().any()
    if loss is logits.cross_entropy:
        assert value.isnan().tolist() == [False, True, False]


def test_several_labels_want_the_binary_loss():
    student = torch.zeros(3, 4)
    for labels in (torch.ones(3, 4, dtype=torch.bool), torch.ones(3, 4, dtype=torch.long)):
        message = r"^cross_entropy: labels \[3, 4\] of .* one entry for each class.*`binary_cross_entropy`"
        with pytest.raises(TypeError, match=message):
            logits.cross_entropy(student, labels)
    assert logits.binary_cross_entropy(student, 2 * torch.ones(3, 4)).isnan().all()
    with pytest.raises(ValueError, match=r"^binary_cross_entropy: .*labels \[3\].*`cross_entropy`"):
        logits.binary_cross_entropy(student, torch.zeros(3, dtype=torch.long))


def test_a_temperature_that_moves_does_not_compile_anew():
    student, teacher, labels = draw((4, 6, 0))
    counter = CompileCounter()
    torch.compiler.reset()
    step = torch.compile(
        lambda t: (
            logits.kl(student, teacher, temperature=t).mean()
            + logits.dkd(student, teacher, labels, temperature=t, beta=2 * t).mean()
        ),
        fullgraph=True,
        backend=counter,
    )
    for temperature in (4.0, 3.5, 2.25, 1.5, 0.5):
        step(temperature)
    torch.compiler.reset()
    assert counter.frame_count <= 2


# Errors


@pytest.mark.parametrize(
    "loss", [*LABELLED, logits.cross_entropy, logits.tf_nkd], ids=lambda loss: loss.__name__
)
@pytest.mark.parametrize(
    "labels",
    [torch.zeros(3), torch.zeros(2, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.int64)],
    ids=str,
)
def test_labels_that_are_not_one_class_each_are_refused(loss, labels):
    z = torch.zeros(3, 4)
    inputs = [z, z, labels] if loss in LABELLED else [z, labels]
    error = TypeError if labels.is_floating_point() else ValueError
    message = rf"^{loss.__name__}: labels \[.*must be integer classes of shape \[3\]"
    with pytest.raises(error, match=message):
        loss(*inputs)


def test_one_class_has_no_softmax():
    z = torch.zeros(3, 1)
    with pytest.raises(
        ValueError, match=r"^dkd: prediction \[3, 1\] has one class.*`squared_error`.*`binary_"
    ):
        logits.dkd(z, z, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^standardize_logits: logits \[3, 1\] of one class"):
        temperatures.standardize_logits(z)


def test_a_cost_of_other_classes_is_refused():
    z, labels = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^wkd_logit: cost \[5, 4\] must be \[4, 4\].*the logits \[3, 4\]"):
        logits.wkd_logit(z, z, labels, torch.zeros(5, 4))


def test_thresholds_are_two():
    with pytest.raises(
        ValueError, match=r"^energy_temperature: thresholds \[3\] must be \[2\].*energies \[4\]"
    ):
        temperatures.energy_temperature(torch.zeros(4), torch.zeros(3))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_labels_select_at_any_leading_axes(shape):
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(*shape, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(5, shape, generator=generator)
    wanted = prediction.logsumexp(-1) - prediction.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(logits.cross_entropy(prediction, labels), wanted)
    assert torch.autograd.gradgradcheck(lambda x: logits.cross_entropy(x, labels), prediction)


@pytest.mark.parametrize("label", [-100, -1, 5])
def test_no_label_out_of_range_is_skipped(label):
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        logits.cross_entropy(torch.zeros(2, 5), torch.tensor([1, label]))
