"""Losses between networks of different vocabularies: what tokens mean is not needed, or only of some.

Logits are ``[..., classes]`` of either network, at the same tokens: aligning the two texts is the caller's.
One value for each token comes out.
"""

from math import log

import torch
from torch import Tensor
from torch.nn import functional as F

from .._text import check_number, check_plain
from .._tree import shape
from ._checks import (
    check_classes,
    check_one_device,
    check_same_shape,
    floats,
    indices,
    is_integer,
    per_example,
)
from ._numerics import jensen_shannon, scaled


def uld(
    prediction: Tensor,
    target: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    target_temperature: float | Tensor = 1.0,
) -> Tensor:
    """Universal logit distillation: the probabilities of both networks, compared by rank.

    ```
    loss[...] = Σ_i |sort(p_s)_i − sort(p_t)_i|
    p = softmax(logits / T), sorted falling, the shorter vocabulary followed by zeros
    ```

    Args:
        prediction: Student logits `[..., classes]`.
        target: Teacher logits `[..., other classes]` of the same tokens.
        temperature: T of the student, a number or one for each token `[...]`; published 1.
        target_temperature: T of the teacher, the same.

    Returns:
        `[...]`, from 0 to 2. It is 0 for any permutation of one distribution, and has kinks where two
        probabilities of one rank agree. It sorts both vocabularies.

    Raises:
        ValueError: The tokens differ, or there is none.

    Example:
        >>> student, teacher = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0, -90.0]])
        >>> uld(student, teacher).round(decimals=3)
        tensor([0.])

    Reference:
        Boizard et al.: Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs,
        2024, arXiv 2402.12030. Checked against the sorted branch of huggingface/trl `ULDLoss`. No deviation.
    """
    student, teacher = _probabilities("uld", prediction, target, temperature, target_temperature)
    return _ranked_distance(student, teacher)


def uld_hybrid(
    prediction: Tensor,
    target: Tensor,
    matched: Tensor,
    target_matched: Tensor,
    *,
    beta: float = 0.5,
    weight: float | Tensor | None = None,
    temperature: float | Tensor = 1.0,
    target_temperature: float | Tensor = 1.0,
    floor: float = 1e-8,
) -> Tensor:
    """Tokens that both vocabularies have are compared one by one, all others by rank.

    ```
    loss[...] = w Σ_matched [β p (log p − log m) + (1 − β) q (log q − log m)]
              + (1 − w) uld(the others)
    m = β p + (1 − β) q;    Σ p (log p − log q) at β = 0, Σ q (log q − log p) at β = 1
    ```

    Args:
        prediction: Student logits `[..., classes]`.
        target: Teacher logits `[..., other classes]` of the same tokens.
        matched: Ids `[m]` of the student that have a partner; no id twice, and perhaps none at all.
        target_matched: Their partners in the teacher, `[m]`.
        beta: β in [0, 1], as in `jsd`; published 0.5.
        weight: w; by default the teacher's share of matched ids, m / its classes, as published.
        temperature: T of the student, a number or one for each token `[...]`; published 1.
        target_temperature: T of the teacher, the same.
        floor: Matched probabilities count at least this; published 1e−8.

    Returns:
        `[...]`, in nats. Matched probabilities are not renormalised, as published: their part is no
        divergence, and may be negative. Where one network has no unmatched id, the second part is 0.

    Raises:
        ValueError: The tokens differ, the ids are not as many, or there is no token.

    Example:
        >>> logits, ids = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0, 1])
        >>> uld_hybrid(logits, logits.flip(-1), ids, torch.tensor([2, 1])).round(decimals=3)
        tensor([0.])

    Reference:
        Checked against `_compute_hybrid_uld_loss` of huggingface/trl (GOLD). No deviation.
    """
    name = "uld_hybrid"
    check_plain(name, "beta", beta, least=0, most=1)
    check_plain(name, "floor", floor, above=0, below=1)
    student, teacher = _probabilities(name, prediction, target, temperature, target_temperature)
    at_s = _ids(name, "matched", matched, prediction)
    at_t = _ids(name, "target_matched", target_matched, prediction)
    hint = "Every matched id of the student has one partner in the teacher."
    check_same_shape(name, hint, matched=matched, target_matched=target_matched)
    for key, ids, logits in (("matched", at_s, student), ("target_matched", at_t, teacher)):
        if len(ids) > logits.shape[-1]:
            raise ValueError(
                f"{name}: {key} {shape(ids)} are more ids than the {logits.shape[-1]} classes of "
                f"{'prediction' if key == 'matched' else 'target'}."
            )
    if weight is None:
        weight = len(at_t) / teacher.shape[-1]
    check_number(name, "weight", weight, least=0, most=1)
    log_p, log_q = (
        torch.where(part <= floor, log(floor), part.clamp(min=floor).log())
        for part in (teacher.index_select(-1, at_t), student.index_select(-1, at_s))
    )
    loss = weight * jensen_shannon(log_p, log_q, beta)
    if len(at_s) < student.shape[-1] and len(at_t) < teacher.shape[-1]:
        others = student.index_fill(-1, at_s, 0.0), teacher.index_fill(-1, at_t, 0.0)
        loss = loss + (1 - weight) * _ranked_distance(*others)
    return loss


# What they share


def _probabilities(
    function: str,
    prediction: Tensor,
    target: Tensor,
    temperature: float | Tensor,
    target_temperature: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Softmaxes of both networks, over vocabularies of any two sizes."""
    student, teacher = floats(function, "..., classes", prediction=prediction, target=target)
    check_classes(function, prediction=prediction, target=target)
    if prediction.shape[:-1] != target.shape[:-1]:
        raise ValueError(
            f"{function}: prediction {shape(prediction)} and target {shape(target)} must have the same "
            "tokens before their last axis. Align the two texts first."
        )
    of_student = per_example(function, temperature, prediction=prediction)
    of_teacher = per_example(function, target_temperature, "target_temperature", target=target)
    return F.softmax(scaled(student, of_student), -1), F.softmax(scaled(teacher, of_teacher), -1)


def _ids(function: str, name: str, ids: Tensor, prediction: Tensor) -> Tensor:
    """Ids `[m]`, of which there may be none."""
    found = indices(function, "matched", **{name: ids}) if _counts(ids) else ids.long()
    check_one_device(function, prediction=prediction, **{name: ids})
    return found


def _counts(ids: Tensor) -> bool:
    return not (isinstance(ids, Tensor) and ids.shape == (0,) and is_integer(ids))


def _ranked_distance(p: Tensor, q: Tensor) -> Tensor:
    """Σ |p_i − q_i| of sorted probabilities. What the shorter vocabulary lacks is compared with 0."""
    p, q = (x.sort(dim=-1, descending=True).values for x in (p, q))
    if p.shape == q.shape:
        return (p - q).abs().sum(-1)
    shorter = min(p.shape[-1], q.shape[-1])
    beyond = p[..., shorter:].sum(-1) + q[..., shorter:].sum(-1)
    return (p[..., :shorter] - q[..., :shorter]).abs().sum(-1) + beyond
