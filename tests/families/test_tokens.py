"""Relations between the tokens of an example, beside the formulas written out."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fcfd.families import contrastive, logits, tokens

from .test_excluded import value_and_gradients
from .test_spoiled import SPOILS

same = torch.testing.assert_close


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def products(x: Tensor, normalize: bool = True) -> Tensor:
    x = F.normalize(x, dim=-1) if normalize else x
    return x @ x.mT


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("negatives", tokens.NEGATIVES)
def test_gram_matrices(normalize: bool, negatives: str) -> None:
    student, teacher = draw(3, 5, 4), draw(3, 5, 7, seed=1)
    s, t = products(student, normalize), products(teacher, normalize)
    s = s.relu() if negatives == "remove" else s
    t = t if negatives == "keep" else t.relu()
    found = tokens.gram(student, teacher, normalize=normalize, negatives=negatives)
    same(found, (s - t).square().mean((1, 2)))


def test_the_matrices_of_both_are_one() -> None:
    """`gram` compares what `patch_similarity_kl` reads as logits."""
    student, teacher = draw(3, 5, 4), draw(3, 5, 7, seed=1)
    s, t = products(student), products(teacher)
    same(tokens.gram(student, teacher), (s - t).square().mean((1, 2)))
    found = tokens.patch_similarity_kl(student, teacher, temperature=0.5)
    same(found, logits.kl(s / 0.5, t / 0.5, temperature=1.0).mean(1))


def test_of_a_bank_that_is_the_batch() -> None:
    """Patch to patch is a bank of the teacher's own tokens, where the student has the teacher's space."""
    teacher = draw(5, 4)
    found = contrastive.similarity_kl(teacher * 3, teacher, teacher, temperature=0.3)
    same(found, torch.zeros(5, dtype=torch.float64))
    student, bank = draw(5, 4, seed=1), draw(9, 4, seed=2)
    s, t, b = (F.normalize(x, dim=-1) for x in (student, teacher, bank))
    wanted = logits.kl(s @ b.mT / 0.1, t @ b.mT / 0.1, temperature=1.0)
    same(contrastive.similarity_kl(student, teacher, bank, temperature=0.1), wanted)


def by_loops(s: Tensor, s2: Tensor, t: Tensor, t2: Tensor, heads: int, lengths: list[int]) -> Tensor:
    values = []
    for b, length in enumerate(lengths):
        total = torch.zeros((), dtype=torch.float64)
        for h in range(heads):
            scores = []
            for q, k in ((s, s2), (t, t2)):
                d = q.shape[-1] // heads
                cut = slice(h * d, (h + 1) * d)
                scores.append(q[b, :length, cut] @ k[b, :length, cut].mT / math.sqrt(d))
            log_q, log_p = (x.log_softmax(-1) for x in scores)
            total = total + (log_p.exp() * (log_p - log_q)).sum()
        values.append(total / (heads * length))
    return torch.stack(values)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("own", [True, False])
def test_relations_by_loops(heads: int, own: bool) -> None:
    student, teacher = draw(3, 6, 8).requires_grad_(), draw(3, 6, 16, seed=1)
    keys = (student, teacher) if own else (draw(3, 6, 8, seed=2), draw(3, 6, 16, seed=3))
    lengths = [6, 3, 1]
    mask = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    more = {} if own else {"prediction_keys": keys[0], "target_keys": keys[1]}
    wanted = by_loops(student, keys[0], teacher, keys[1], heads, lengths)
    for kind in (torch.bool, torch.long, torch.float32):
        found = tokens.relation_kl(student, teacher, heads=heads, mask=mask.to(kind), **more)
        same(found, wanted)
        same(*(torch.autograd.grad(x.sum(), student, retain_graph=True)[0] for x in (found, wanted)))


def test_padding_reaches_nothing() -> None:
    student, teacher = draw(2, 4, 6), draw(2, 4, 6, seed=1)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
    spoiled = [x.masked_fill(mask.unsqueeze(-1) == 0, math.nan) for x in (student, teacher)]
    found = value_and_gradients(lambda s: tokens.relation_kl(s, spoiled[1], heads=2, mask=mask), spoiled[0])
    wanted = value_and_gradients(lambda s: tokens.relation_kl(s, teacher, heads=2, mask=mask), student)
    for a, b in zip(found, wanted, strict=True):
        same(a, b)
    assert found[0][1] == 0
    assert torch.equal(found[1][mask == 0], torch.zeros(6, 6, dtype=torch.float64))


@pytest.mark.parametrize("spoil", [name for name in SPOILS if name not in ("floats", "None")])
@pytest.mark.parametrize("key", ["prediction_keys", "target_keys", "mask"])
def test_a_spoiled_optional_tensor_is_refused(key: str, spoil: str) -> None:
    student, teacher = draw(2, 4, 6), draw(2, 4, 6, seed=1)
    given = {"prediction_keys": student, "target_keys": teacher, "mask": torch.ones(2, 4)}
    if key == "mask" and spoil in ("integers", "bytes", "bool"):
        return
    with pytest.raises((TypeError, ValueError), match=rf"^relation_kl: .*{key}"):
        tokens.relation_kl(student, teacher, heads=2, **{**given, key: SPOILS[spoil](given[key])})


def test_errors_name_what_is_wrong() -> None:
    student, teacher = draw(2, 4, 6), draw(2, 4, 8, seed=1)
    with pytest.raises(ValueError, match=r"heads 4 must divide the width of prediction \[2, 4, 6\]"):
        tokens.relation_kl(student, teacher, heads=4)
    with pytest.raises(ValueError, match=r"heads 3 must divide the width of target \[2, 4, 8\]"):
        tokens.relation_kl(student, teacher, heads=3)
    with pytest.raises(ValueError, match="give prediction_keys and target_keys, or neither"):
        tokens.relation_kl(student, teacher, heads=2, prediction_keys=student)
    with pytest.raises(ValueError, match=r"prediction \[2, 6\] and bank \[3, 8\] .* same dimensions"):
        contrastive.similarity_kl(draw(2, 6), draw(2, 6), draw(3, 8))


def test_what_is_masked_on_one_side_only_is_compared_with_nothing() -> None:
    student = torch.tensor([[[[2.0, -1e4, -math.inf, 3.0]]]])
    teacher = torch.tensor([[[[1.0, 5.0, -1e4, -100.0]]]])
    value, gradient = value_and_gradients(lambda s: tokens.tinybert_attention(s, teacher), student)
    same(value, torch.tensor([(1 + 25 + 0 + 9) / 4]))
    same(gradient, torch.tensor([[[[0.5, 0.0, 0.0, 1.5]]]]))
