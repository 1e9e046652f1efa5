"""What the divergences are to each other, and to the formulas written out."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from fcfd import schedules
from fcfd.families import divergences as d, logits, temperatures

from .test_excluded import assert_same_without, excluding, value_and_gradients
from .test_spoiled import SPOILS

quick = settings(max_examples=25, deadline=None, derandomize=True)
batches = st.tuples(st.integers(1, 5), st.integers(2, 8), st.integers(0, 10_000))
parameters = st.floats(-1.5, 1.5)


def draw(batch: tuple[int, int, int] = (4, 7, 0), scale: float = 2.0) -> tuple[Tensor, Tensor]:
    examples, classes, seed = batch
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, examples, classes, dtype=torch.float64, generator=generator)
    return student, teacher


def same(a: Tensor, b: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(a, b, **tolerance)


# Variances


def pairs_of_classes(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """As published, over all pairs of classes."""
    gap = (teacher.unsqueeze(-1) - teacher.unsqueeze(-2)) - (student.unsqueeze(-1) - student.unsqueeze(-2))
    return 0.25 * (weight.unsqueeze(-1) * weight.unsqueeze(-2) * gap.square()).sum((-1, -2))


@given(batches)
@quick
def test_half_a_variance_is_the_sum_over_pairs(batch) -> None:
    student, teacher = draw(batch)
    found = d.ikl(student, teacher, alpha=0.0, beta=3.0, weight_temperature=2.0)
    same(found, 3 * pairs_of_classes(student, teacher, (teacher / 2).softmax(-1)))
    prior = (student - teacher).softmax(-1)
    same(d.ikl(student, teacher, prior=prior, alpha=0.0), pairs_of_classes(student, teacher, prior))


@given(batches, st.floats(0.05, 2.0))
@quick
def test_examples_with_flatter_weights_count_more(batch, gamma: float) -> None:
    student, teacher = draw(batch)
    weight = (teacher / 3).softmax(-1) ** gamma
    wanted = pairs_of_classes(student, teacher, weight).sum() / weight.sum(-1).square().sum()
    found = d.gkl(student, teacher, alpha=0.0, gamma=gamma, weight_temperature=3.0)
    same(found, wanted)


@given(batches)
@quick
def test_without_an_exponent_or_a_batch_both_are_one(batch) -> None:
    student, teacher = draw(batch)
    hyper = {"temperature": 2.0, "weight_temperature": 3.0, "alpha": 0.7, "beta": 1.3}
    same(d.gkl(student, teacher, **hyper), d.ikl(student, teacher, **hyper).mean())
    powered = temperatures_of(teacher[:1], 3.0, 0.3)
    alone = d.ikl(student[:1], teacher[:1], prior=powered, temperature=2.0)
    found = d.gkl(student[:1], teacher[:1], temperature=2.0, weight_temperature=3.0, gamma=0.3)
    same(found, alone.mean())


def temperatures_of(logit: Tensor, temperature: float, gamma: float) -> Tensor:
    return (gamma * (logit / temperature).log_softmax(-1)).softmax(-1)


def test_the_target_of_the_cross_entropy_is_constant() -> None:
    student, teacher = draw()
    teacher.requires_grad_()
    assert torch.equal(
        torch.autograd.grad(d.ikl(student, teacher, beta=0.0).sum(), teacher)[0], torch.zeros(4, 7)
    )
    assert torch.autograd.grad(d.ikl(student, teacher, alpha=0.0).sum(), teacher)[0].abs().max() > 0


@pytest.mark.parametrize("loss", [d.ikl, d.gkl], ids=lambda loss: loss.__name__)
def test_a_prior_is_probabilities_of_each_example(loss) -> None:
    student, teacher = draw()
    priors = torch.eye(7, dtype=torch.float64)
    assert loss(student, teacher, prior=priors[torch.tensor([0, 1, 1, 6])]).isfinite().all()
    assert loss(student, teacher, prior=student.exp()).isnan().any()
    for spoil in SPOILS:
        if spoil not in ("floats", "None"):
            with pytest.raises((TypeError, ValueError), match=f"^{loss.__name__}: .*prior"):
                loss(student, teacher, prior=SPOILS[spoil](student.softmax(-1)))


# The α-β divergence


def power(x: Tensor, exponent: float) -> Tensor:
    return (exponent * x).exp()


def general(u: Tensor, v: Tensor, a: float, b: float) -> Tensor:
    s = a + b
    both = (a * u + b * v).exp()
    return -(both - a / s * power(u, s) - b / s * power(v, s)).sum(-1) / (a * b)


@given(batches, parameters, parameters)
@quick
def test_the_formula_of_any_two_parameters(batch, a: float, b: float) -> None:
    if min(abs(a), abs(b), abs(a + b)) < 0.05:
        return
    student, teacher = draw(batch, 1.0)
    wanted = general(teacher.log_softmax(-1), student.log_softmax(-1), a, b)
    same(d.ab_divergence(student, teacher, alpha=a, beta=b), wanted, rtol=1e-7, atol=1e-9)


LIMITS = [(0.5, 0.0), (0.0, 0.7), (0.5, -0.5), (-0.6, 0.6), (-0.5, 0.0), (0.0, -0.4), (0.0, 0.0)]


@pytest.mark.parametrize("a, b", LIMITS)
def test_every_limit_is_one(a: float, b: float) -> None:
    """The general formula a hair away, whose own digits are lost by then, and the formula of the limit."""
    student, teacher = draw(scale=1.0)
    u, v = teacher.log_softmax(-1), student.log_softmax(-1)
    found = d.ab_divergence(student, teacher, alpha=a, beta=b)
    same(found, d.ab_divergence(student, teacher, alpha=a + 1e-7, beta=b + 3e-7), rtol=1e-5, atol=1e-6)
    if (a, b) == (0, 0):
        wanted = 0.5 * (v - u).square()
    elif b == 0:
        wanted = (a * power(u, a) * (u - v) - power(u, a) + power(v, a)) / a**2
    elif a == 0:
        wanted = (b * power(v, b) * (v - u) - power(v, b) + power(u, b)) / b**2
    else:
        wanted = (a * (v - u) + power(u - v, a) - 1) / a**2
    same(found, wanted.sum(-1))
    assert (found > 0).all()


@pytest.mark.parametrize("a, b", [*LIMITS, (0.2, 0.7), (0.8, 0.3), (1e-9, 1.0), (1.0, 1e-12)])
def test_it_is_zero_with_no_gradient_at_equality(a: float, b: float) -> None:
    student, _ = draw()
    leaf = student.clone().requires_grad_()
    value = d.ab_divergence(leaf, student, alpha=a, beta=b)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    same(value, torch.zeros_like(value), rtol=0, atol=1e-9)
    same(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
    away = (student + 0.1 * torch.linspace(-1, 1, 7)).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: d.ab_divergence(s, student, alpha=a, beta=b), away)


@given(batches, parameters, parameters)
@quick
def test_exchanging_networks_exchanges_the_parameters(batch, a: float, b: float) -> None:
    student, teacher = draw(batch, 1.0)
    same(
        d.ab_divergence(student, teacher, alpha=a, beta=b),
        d.ab_divergence(teacher, student, alpha=b, beta=a),
        rtol=1e-6,
        atol=1e-6,
    )


@given(batches)
@quick
def test_two_corners_are_the_divergences(batch) -> None:
    student, teacher = draw(batch)
    same(
        d.ab_divergence(student, teacher, alpha=1.0, beta=0.0, temperature=3.0),
        logits.kl(student, teacher, temperature=3.0) / 9,
    )
    same(d.ab_divergence(student, teacher, alpha=0.0, beta=1.0), logits.reverse_kl(student, teacher))


def test_a_class_of_no_probability_keeps_what_it_contributes() -> None:
    student, teacher = draw()
    for who, own in ((teacher, 0.2), (student, 0.7)):
        out = excluding_last(who)
        pair = (student, out) if who is teacher else (out, teacher)
        near = torch.where(out == -math.inf, who - 600, out)
        closed = (student, near) if who is teacher else (near, teacher)
        found = d.ab_divergence(*pair)
        same(found, d.ab_divergence(*closed), rtol=1e-6, atol=1e-6)
        other = (student if who is teacher else teacher).softmax(-1)[:, -1]
        assert (found > other**0.9 / (own * 0.9) * 0.5).all()


def excluding_last(x: Tensor) -> Tensor:
    return torch.cat((x[:, :-1], torch.full_like(x[:, -1:], -math.inf)), -1)


@pytest.mark.parametrize("a, b", [(0.2, 0.7), (1.0, 0.0), (0.0, 1.0), (0.5, -0.5), (0.0, 0.0), (1.2, -0.3)])
def test_an_excluded_class_counts_nothing_for_any_parameters(a: float, b: float) -> None:
    assert_same_without(lambda s, t: d.ab_divergence(s, t, alpha=a, beta=b), *draw((4, 6, 0)))


# Adaptive


def by_loops(student: Tensor, teacher: Tensor, mu: float) -> Tensor:
    values = []
    for s, t in zip(student, teacher, strict=True):
        p, q = t.softmax(-1), s.softmax(-1)
        order = p.argsort(descending=True).tolist()
        head, rest, total = 0.0, 0.0, 0.0
        for place, at in enumerate(order):
            total += p[at].item()
            gap = (p[at] - q[at]).abs().item()
            if place == 0 or total <= mu:
                head += gap
            else:
                rest += gap
        forward, backward = (p * (p / q).log()).sum(), (q * (q / p).log()).sum()
        values.append((head * forward + rest * backward) / (head + rest))
    return torch.stack(values)


@given(batches, st.floats(0.0, 1.0))
@quick
def test_the_head_is_what_is_likely_together(batch, mu: float) -> None:
    student, teacher = draw(batch)
    same(d.akl(student, teacher, mu=mu), by_loops(student, teacher, mu))


def test_at_equality_nothing_is_divided_by_nothing() -> None:
    student, _ = draw()
    leaf = student.clone().requires_grad_()
    value = d.akl(leaf, student)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    same(value, torch.zeros_like(value))
    same(gradient, torch.zeros_like(gradient))


# Between the networks


@given(batches, st.floats(0.01, 0.99), st.floats(-3.0, 3.0))
@quick
def test_the_assistant_is_a_generalised_mean(batch, share: float, alpha: float) -> None:
    student, teacher = draw(batch, 1.0)
    p, q, e = teacher.softmax(-1), student.softmax(-1), (1 - alpha) / 2
    found = d.alpha_mixture(student, teacher, alpha=alpha, share=share).exp()
    same(found.sum(-1), torch.ones(len(p), dtype=torch.float64))
    if abs(e) > 0.01:
        wanted = (share * p**e + (1 - share) * q**e) ** (1 / e)
        same(found, wanted / wanted.sum(-1, keepdim=True))
    geometric = d.alpha_mixture(student, teacher, alpha=1.0, share=share)
    same(geometric, (share * teacher + (1 - share) * student).log_softmax(-1))
    same(d.alpha_mixture(student, teacher, alpha=1 - 1e-7, share=share), geometric, rtol=1e-5, atol=1e-5)


@given(batches, st.floats(0.01, 0.99))
@quick
def test_an_arithmetic_assistant_gives_the_skewed_divergences(batch, share: float) -> None:
    student, teacher = draw(batch)
    r = d.alpha_mixture(student, teacher, alpha=-1.0, share=share)
    doubt = temperatures.entropy(teacher, temperature=1.0)
    forward = logits.skew_forward_kl_ce(student, teacher, skew=share)
    same(logits.kl(r, teacher, temperature=1.0) + doubt, forward)
    same(logits.kl(r, student, temperature=1.0), logits.skew_reverse_kl(student, teacher, skew=1 - share))


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 1.0, 2.0])
def test_at_its_ends_the_assistant_is_a_network(alpha: float) -> None:
    student, teacher = draw()
    for share, whole in ((0.0, student), (1.0, teacher)):
        for shares in (share, torch.full((4,), share, dtype=torch.float64)):
            same(d.alpha_mixture(student, teacher, alpha=alpha, share=shares), whole.log_softmax(-1))
    plain = logits.kl(student, teacher, temperature=1.0)
    of_first = d.alpha_mixture(student, teacher, alpha=alpha, share=0.0)
    of_last = d.alpha_mixture(student, teacher, alpha=alpha, share=1.0)
    same(logits.kl(of_first, teacher, temperature=1.0), plain)
    same(logits.kl(student, of_last, temperature=1.0), plain)


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 1.0, 2.0])
def test_a_share_may_be_learned_even_at_its_ends(alpha: float) -> None:
    student, teacher = draw()
    share = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64, requires_grad=True)
    mixed = d.alpha_mixture(student, teacher, alpha=alpha, share=share)
    (gradient,) = torch.autograd.grad(logits.kl(mixed, teacher, temperature=1.0).sum(), share)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 1.0, 2.0])
def test_what_both_exclude_the_assistant_excludes(alpha: float) -> None:
    assert_same_without(lambda s, t: d.alpha_mixture(s, t, alpha=alpha), *draw((4, 6, 0)))
    student, teacher = draw((4, 6, 0))
    mixed = d.alpha_mixture(excluding(student), teacher, alpha=alpha)
    assert ((mixed[:, -1] == -math.inf) == (alpha >= 1)).all()


def test_the_assistant_of_taid_is_the_geometric_one() -> None:
    student, teacher = draw()
    leaves = [student.clone().requires_grad_() for _ in range(2)]
    r = d.alpha_mixture(student, teacher, alpha=1.0, share=0.3)
    values = d.taid(leaves[0], teacher, share=0.3), logits.kl(leaves[1], r, temperature=1.0)
    found = [torch.autograd.grad(v.sum(), leaf)[0] for v, leaf in zip(values, leaves, strict=True)]
    same(*found)
    same(values[0] - temperatures.entropy(r, temperature=1.0), values[1])
    same(d.taid(student, teacher, share=1.0), logits.kd_ce(student, teacher, temperature=1.0))
    (at_first,) = value_and_gradients(lambda s: d.taid(s, teacher, share=0.0), student)[1:]
    same(at_first, torch.zeros_like(at_first))


# TAID's schedule


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=30), st.floats(0.0, 0.5))
@quick
def test_the_target_never_moves_back(losses: list[float], rate: float) -> None:
    state = schedules.Taid(share=0.2)
    shares = []
    for step, loss in enumerate(losses):
        state = schedules.taid(state, loss, step, steps=40, start=0.2, end=0.9, rate=rate)
        shares.append(state.share)
        assert state.share >= (schedules.linear(step, steps=40, start=0.2, end=0.9) - 1e-12) * (step > 0)
    assert shares == sorted(shares)
    assert shares[0] == 0.2
    assert shares[-1] <= 0.9
    if rate == 0:
        assert shares[-1] == pytest.approx(
            schedules.linear(len(losses) - 1, steps=40, start=0.2, end=0.9) if len(losses) > 1 else 0.2
        )


@pytest.mark.parametrize("loss", [d.akl, d.taid], ids=lambda loss: loss.__name__)
def test_what_both_networks_exclude_counts_nothing(loss) -> None:
    assert_same_without(loss, *draw((4, 6, 0)))


def test_a_variance_leaves_out_what_both_exclude() -> None:
    assert_same_without(lambda s, t: d.ikl(s, t, weight_temperature=2.0), *draw((4, 6, 0)))
    assert_same_without(lambda s, t: d.gkl(s, t, weight_temperature=2.0, gamma=0.3), *draw((4, 6, 0)))
