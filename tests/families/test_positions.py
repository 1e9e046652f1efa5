"""Losses at positions, against the same losses of the positions that count, and against torch's own."""

import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fcfd.families.features import cosine_distance, squared_error
from fcfd.families.logits import binary_kl, cross_entropy, dist, dkd, kl, wkd_logit
from fcfd.families.positions import dense, ignoring, masked, next_token
from fcfd.families.relations import rkd_distance


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, of: int = 5) -> Tensor:
    return torch.randint(of, shape, generator=torch.Generator().manual_seed(1))


# Dense


@pytest.mark.parametrize("places", [(7,), (3, 4), (2, 3, 2)], ids=str)
def test_dense_reads_the_classes_on_axis_1(places: tuple[int, ...]) -> None:
    student, teacher, labels = numbers(2, 5, *places), numbers(2, 5, *places, seed=1), classes(2, *places)
    last = student.movedim(1, -1).reshape(2, -1, 5), teacher.movedim(1, -1).reshape(2, -1, 5)
    torch.testing.assert_close(dense(kl)(student, teacher, temperature=2.0), kl(*last, temperature=2.0))
    wanted = F.cross_entropy(student, labels, reduction="none").flatten(1)
    torch.testing.assert_close(dense(cross_entropy)(student, labels), wanted)
    soft = teacher.softmax(1)
    wanted = F.cross_entropy(student, soft, reduction="none").flatten(1)
    torch.testing.assert_close(dense(cross_entropy)(student, soft), wanted)
    found = dense(dkd)(student, teacher, labels, alpha=2.0)
    torch.testing.assert_close(found, dkd(*last, labels.flatten(1), alpha=2.0))


def test_dense_hands_on_what_has_no_places() -> None:
    student, teacher, labels = numbers(2, 5, 3, 4), numbers(2, 5, 3, 4, seed=1), classes(2, 3, 4)
    cost = numbers(5, 5).abs()
    last = [x.flatten(2).mT for x in (student, teacher)]
    found = dense(wkd_logit)(student, teacher, labels, cost)
    torch.testing.assert_close(found, wkd_logit(*last, labels.flatten(1), cost))
    warm = 1 + numbers(2, 3, 4).abs()
    found = dense(kl)(student, teacher, temperature=warm)
    torch.testing.assert_close(found, kl(*last, temperature=warm.flatten(1)))


def test_a_map_is_never_read_by_its_width() -> None:
    maps, labels = torch.zeros(2, 5, 3, 4), torch.zeros(2, 3, 4, dtype=torch.long)
    for call in (
        lambda: kl(maps, maps),
        lambda: cross_entropy(maps, labels),
        lambda: cross_entropy(maps, maps.softmax(1)),
        lambda: binary_kl(maps, maps),
        lambda: cosine_distance(maps, maps),
    ):
        with pytest.raises(ValueError, match=r"prediction \[2, 5, 3, 4\] must be \[batch, .*`dense\(loss\)`"):
            call()
    with pytest.raises(ValueError, match=r"labels \[2, 4\] .* For classes on axis 1, use `dense\(loss\)`"):
        cross_entropy(torch.zeros(2, 5, 4), torch.zeros(2, 4, dtype=torch.long))


# Masked


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32], ids=str)
@pytest.mark.parametrize("loss", [kl, squared_error, cosine_distance], ids=lambda loss: loss.__name__)
def test_a_mask_keeps_the_mean_of_what_counts(loss, kind: torch.dtype) -> None:
    student, teacher, mask = numbers(3, 4, 5), numbers(3, 4, 5, seed=1), classes(3, 4, of=2)
    kept = mask.bool()
    wanted = loss(student[kept], teacher[kept]).mean()
    torch.testing.assert_close(masked(loss)(student, teacher, mask.to(kind)), wanted)


def test_a_mask_of_examples_and_of_maps() -> None:
    student, teacher = numbers(4, 5, 3, 2), numbers(4, 5, 3, 2, seed=1)
    examples = torch.tensor([True, False, True, True])
    wanted = squared_error(student[examples], teacher[examples]).mean()
    torch.testing.assert_close(masked(squared_error)(student, teacher, examples), wanted)
    pixels = classes(4, 3, 2, of=2).bool()
    wanted = kl(student.movedim(1, -1)[pixels], teacher.movedim(1, -1)[pixels]).mean()
    torch.testing.assert_close(dense(masked(kl))(student, teacher, pixels), wanted)


def test_what_is_masked_leaks_nowhere() -> None:
    student, teacher, mask = numbers(2, 3, 5), numbers(2, 3, 5, seed=1), torch.tensor([[1, 1, 0], [1, 0, 0]])
    labels = classes(2, 3)
    clean = [student.clone().requires_grad_(), teacher.clone().requires_grad_()]
    for bad in (torch.nan, torch.inf):
        spoiled = [torch.where(mask.bool().unsqueeze(2), x.detach(), bad).requires_grad_() for x in clean]
        wild = torch.where(mask.bool(), labels, -100)
        for loss, more, wilder in ((kl, (), ()), (squared_error, (), ()), (dkd, (labels,), (wild,))):
            wanted, found = masked(loss)(*clean, *more, mask), masked(loss)(*spoiled, *wilder, mask)
            torch.testing.assert_close(found, wanted)
            expected, gradients = torch.autograd.grad(wanted, clean), torch.autograd.grad(found, spoiled)
            torch.testing.assert_close(gradients, expected)


def test_nothing_that_counts_is_zero_with_a_graph() -> None:
    student = numbers(2, 3, 5).requires_grad_()
    value = masked(kl)(student, numbers(2, 3, 5), torch.zeros(2, 3))
    assert torch.equal(value, torch.zeros((), dtype=torch.float64))
    (gradient,) = torch.autograd.grad(value, student)
    assert torch.equal(gradient, torch.zeros_like(student))
    assert ignoring(cross_entropy)(student, torch.full((2, 3), -100)) == 0


def test_weights_weigh_and_nan_in_a_mask_comes_out() -> None:
    student, teacher, weight = numbers(2, 3, 5), numbers(2, 3, 5, seed=1), numbers(2, 3).abs() / 9
    wanted = (kl(student, teacher) * weight).sum() / weight.sum()
    torch.testing.assert_close(masked(kl)(student, teacher, weight), wanted)
    weight[0, 0] = torch.nan
    assert masked(kl)(student, teacher, weight).isnan()


# Ignoring


@pytest.mark.parametrize("index", [-100, 255, 0])
def test_ignoring_is_torchs_ignore_index(index: int) -> None:
    student, labels = numbers(3, 4, 5).requires_grad_(), classes(3, 4)
    labels[0, 1] = labels[2, 2] = index
    wanted = F.cross_entropy(student.flatten(0, 1), labels.flatten(), ignore_index=index)
    found = ignoring(cross_entropy, index=index)(student, labels)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (found, wanted)))


def test_segmentation_ignores_its_border() -> None:
    student, labels = numbers(2, 5, 3, 4), classes(2, 3, 4)
    labels[:, 0] = 255
    wanted = F.cross_entropy(student, labels, ignore_index=255)
    torch.testing.assert_close(dense(ignoring(cross_entropy, index=255))(student, labels), wanted)
    kept = labels != 255
    teacher = numbers(2, 5, 3, 4, seed=1)
    rows = student.movedim(1, -1)[kept], teacher.movedim(1, -1)[kept], labels[kept]
    found = dense(ignoring(dkd, index=255))(student, teacher, labels, beta=2.0)
    torch.testing.assert_close(found, dkd(*rows, beta=2.0).mean())


# Next token


def test_the_loss_of_causal_models() -> None:
    """`ForCausalLMLoss` of transformers: labels padded by one ignored, then shifted."""
    student, tokens = numbers(2, 6, 5), classes(2, 6)
    tokens[0, 4:] = -100
    shifted = F.pad(tokens, (0, 1), value=-100)[..., 1:]
    wanted = F.cross_entropy(student.flatten(0, 1), shifted.flatten(), ignore_index=-100)
    torch.testing.assert_close(next_token(ignoring(cross_entropy))(student, tokens), wanted)


def test_next_token_shifts_what_belongs_to_tokens() -> None:
    student, teacher, tokens = numbers(2, 6, 5), numbers(2, 6, 5, seed=1), classes(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    torch.testing.assert_close(next_token(kl)(student, teacher), kl(student, teacher)[:, :-1])
    kept = mask[:, 1:].bool()
    wanted = kl(student[:, :-1][kept], teacher[:, :-1][kept]).mean()
    torch.testing.assert_close(next_token(masked(kl))(student, teacher, mask), wanted)
    found = next_token(dkd)(student, teacher, tokens)
    torch.testing.assert_close(found, dkd(student[:, :-1], teacher[:, :-1], tokens[:, 1:]))


# Of all


EVERY = {
    "dense": (dense(kl), (numbers(2, 5, 3, 2), numbers(2, 5, 3, 2, seed=1))),
    "masked": (masked(kl), (numbers(2, 3, 5), numbers(2, 3, 5, seed=1), classes(2, 3, of=2))),
    "ignoring": (ignoring(cross_entropy), (numbers(2, 3, 5), torch.tensor([[1, -100, 2], [0, 4, -100]]))),
    "next_token": (next_token(ignoring(cross_entropy)), (numbers(2, 3, 5), classes(2, 3))),
    "dense masked": (
        dense(masked(squared_error)),
        (numbers(2, 5, 3, 2), numbers(2, 5, 3, 2, seed=1), classes(2, 3, 2, of=2)),
    ),
}


@pytest.mark.parametrize("name", EVERY)
def test_it_traces_as_one_graph_with_its_gradient(name: str) -> None:
    loss, (student, *others) = EVERY[name]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for run in (loss, compiled):
        leaf = student.clone().requires_grad_()
        value = run(leaf, *others)
        results.append((value, *torch.autograd.grad(value.sum(), leaf)))
    torch.compiler.reset()
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", EVERY)
def test_it_can_be_pickled_and_lets_nan_through(name: str) -> None:
    loss, (student, *others) = EVERY[name]
    again = pickle.loads(pickle.dumps(loss))
    assert torch.equal(again(student, *others), loss(student, *others))
    assert loss(torch.full_like(student, torch.nan), *others).isnan().any()


@pytest.mark.parametrize("name", EVERY)
def test_it_takes_half_precision_and_meta_tensors(name: str) -> None:
    loss, tensors = EVERY[name]
    half = [x.half() if x.is_floating_point() else x for x in tensors]
    assert loss(*half).dtype == torch.float32
    torch.testing.assert_close(loss(*half).double(), loss(*tensors), rtol=1e-2, atol=1e-2)
    assert loss(*(x.to("meta") for x in tensors)).shape == loss(*tensors).shape


LOGITS, LABELS = torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dense("kl"), TypeError, "dense: loss is of type str"),
        (lambda: masked(None), TypeError, "masked: loss is of type NoneType"),
        (lambda: ignoring(kl, index=1.5), TypeError, "ignoring: index 1.5 must be a whole number"),
        (
            lambda: dense(kl)(LOGITS[0], LOGITS[0]),
            ValueError,
            r"dense: prediction \[3, 5\] must be \[batch, c",
        ),
        (lambda: dense(kl)([1.0], LOGITS), TypeError, "dense: prediction is of type list"),
        (lambda: masked(kl)(LOGITS, LOGITS, None), TypeError, "masked: mask is of type NoneType"),
        (
            lambda: masked(kl)(LOGITS, LOGITS, torch.ones(2, 4)),
            ValueError,
            r"masked: tensor 1 \[2, 3, 5\] must begin with the axes of the mask or labels, \[2, 4\]",
        ),
        (
            lambda: masked(kl)(LOGITS, LOGITS[:1], torch.ones(2, 3)),
            ValueError,
            r"masked: tensor 2 \[1, 3, 5\] must begin with",
        ),
        (
            lambda: masked(kl)(LOGITS.mT, LOGITS.mT, torch.ones(2, 3)),
            ValueError,
            r"masked: tensor 1 \[2, 5, 3\] must begin with .*`dense\(masked\(loss\)\)`",
        ),
        (
            lambda: masked(rkd_distance)(LOGITS, LOGITS, torch.ones(2, 3)),
            ValueError,
            r"masked: the loss must give one value for each of 6 positions, and gave \[\]",
        ),
        (
            lambda: masked(dist)(LOGITS, LOGITS, torch.ones(2, 3)),
            ValueError,
            r"masked: the loss must give one value for each of 6 positions",
        ),
        (
            lambda: masked(ignoring(cross_entropy))(LOGITS, LABELS, torch.ones(2, 3)),
            ValueError,
            r"masked: the loss must give one value",
        ),
        (
            lambda: ignoring(cross_entropy)(LOGITS, LOGITS.softmax(-1)),
            TypeError,
            r"ignoring: labels \[2, 3, 5\] of torch.float32 must be integer classes",
        ),
        (lambda: next_token(kl)(LOGITS[:, :1], LOGITS[:, :1]), ValueError, r"next_token: .*at least two"),
        (lambda: next_token(kl)(LOGITS, LOGITS[:, :2]), ValueError, r"next_token: tensor 2 \[2, 2, 5\] must"),
        (lambda: next_token(kl)(LOGITS, None), TypeError, "next_token: tensor 2 is of type NoneType"),
    ],
)
def test_what_does_not_fit_is_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + message):
        call()
