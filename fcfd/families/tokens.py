"""Losses between the tokens of one image or text: how they lie to each other in either network.

Features are ``[batch, tokens, width]``: patches of a transformer, or places of a map. Only relations within
an example are compared, so that the widths of the networks may differ and no bridge is needed. One value for
each example comes out; time and memory grow with tokens².
"""

from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from .._text import check_choice, check_flag, check_integer, check_number
from .._tree import shape
from ._checks import agreeing, alike, check_one_device, check_tensor, floats
from ._numerics import exact, lifted, mean_by_example, safe_normalize
from ._softmaxes import FORWARD, softmax_divergence

NEGATIVES = ("keep", "remove", "remove_teacher")

_LAYOUT = "batch, tokens, width"
_TOKENS = "Give both networks the same tokens: bring their grids to one size first."


def gram(prediction: Tensor, target: Tensor, *, normalize: bool = True, negatives: str = "keep") -> Tensor:
    """Mean squared difference of the similarities between tokens: Gram anchoring.

    ```
    loss[b] = mean over i, j of (⟨s_i, s_j⟩ − ⟨t_i, t_j⟩)²,    tokens of unit length
    ```

    Args:
        prediction: Features `[batch, tokens, width]`.
        target: Features of the same tokens, of any width.
        normalize: Give every token unit length first; published true.
        negatives: `"keep"` all similarities, `"remove"` those below 0 on both sides, or `"remove_teacher"`:
            on the teacher's only. Published "keep".

    Returns:
        `[batch]`: the mean over tokens², whose scale does not grow with them. The published training compares
        all tokens of a batch with each other: ``gram(s.flatten(0, 1)[None], t.flatten(0, 1)[None])``.

    Raises:
        ValueError: The tokens differ, or there is none.

    Example:
        >>> student, teacher = torch.eye(2)[None], torch.tensor([[[1.0], [3.0]]])
        >>> gram(student, teacher)
        tensor([0.5000])

    Reference:
        Siméoni et al.: DINOv3, 2025, arXiv 2508.10104. From the formula, checked against the values of
        facebookresearch/dinov3 `GramLoss`. Its option for the teacher's negatives was meant to clip the
        student's beside them, and does not; nor does it here.
    """
    name = "gram"
    check_flag(name, "normalize", normalize)
    check_choice(name, "negatives", negatives, NEGATIVES)
    pair = _pair(name, prediction, target)
    with exact(prediction):
        student, teacher = (x @ x.mT for x in (map(safe_normalize, pair) if normalize else pair))
    student = F.relu(student) if negatives == "remove" else student
    teacher = teacher if negatives == "keep" else F.relu(teacher)
    return mean_by_example(F.mse_loss(student, teacher, reduction="none"))


def patch_similarity_kl(prediction: Tensor, target: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Divergence of the probabilities with which a patch finds the other patches of its image.

    ```
    loss[b] = mean_i KL(softmax_j(⟨t_i, t_j⟩ / T) ‖ softmax_j(⟨s_i, s_j⟩ / T))
    tokens of unit length
    ```

    Args:
        prediction: Features `[batch, tokens, width]`.
        target: Features of the same tokens, of any width.
        temperature: T; published 0.07, with which a patch mostly finds itself. There is no factor T².

    Returns:
        `[batch]`, in nats.

    Raises:
        ValueError: The tokens differ, or there is none.

    Example:
        >>> tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        >>> patch_similarity_kl(tokens, 3 * tokens)
        tensor([0.])

    Reference:
        From the formula, checked against the values of lightly-ai/lightly-train `DistillationV3Loss`, with
        weight 1 there.
    """
    name = "patch_similarity_kl"
    check_number(name, "temperature", temperature, above=0)
    student, teacher = map(safe_normalize, _pair(name, prediction, target))
    with exact(prediction):
        student, teacher = student @ student.mT, teacher @ teacher.mT
    return mean_by_example(softmax_divergence(student, teacher, FORWARD, temperature))


def relation_kl(
    prediction: Tensor,
    target: Tensor,
    *,
    heads: int = 48,
    prediction_keys: Tensor | None = None,
    target_keys: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Divergence of attention relations: queries, keys or values among themselves, or queries to keys.

    ```
    loss[b] = mean over heads and i of
              KL(softmax_j(t_i · t_j / √d_t) ‖ softmax_j(s_i · s_j / √d_s))
    d = width / heads
    ```

    Args:
        prediction: Queries, keys or values of a student's layer, `[batch, tokens, width]`, before they are
            split into attention heads.
        target: The same of the teacher, of any width.
        heads: Relation heads, common to both: each width is cut into so many parts. They need not be the
            attention heads; published 48.
        prediction_keys: What the student's are related to, of its shape; themselves by default. Attention
            itself is the relation of queries to keys.
        target_keys: The same of the teacher, where `prediction_keys` is given.
        mask: The tokens that are no padding, `[batch, tokens]`, bool or 0 and 1; all by default.

    Returns:
        `[batch]`, in nats: a mean over the tokens that are kept, 0 where none is. The method adds three, of
        queries, keys and values.

    Raises:
        ValueError: The tokens differ, or `heads` divides a width not.

    Example:
        >>> queries = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        >>> relation_kl(queries, queries, heads=2)
        tensor([0.])

    Reference:
        Wang et al.: MiniLMv2: Multi-Head Self-Attention Relation Distillation, ACL Findings 2021, arXiv
        2012.15828. The authors published no training code: checked against bloomberg/minilmv2.bb, which
        detaches the teacher.
    """
    name = "relation_kl"
    check_integer(name, "heads", heads, least=1)
    student, teacher = _pair(name, prediction, target)
    if (prediction_keys is None) != (target_keys is None):
        raise ValueError(f"{name}: give prediction_keys and target_keys, or neither of them.")
    keys = [student, teacher]
    if prediction_keys is not None and target_keys is not None:
        keys = [
            _keys(name, "prediction", prediction, "prediction_keys", prediction_keys),
            _keys(name, "target", target, "target_keys", target_keys),
        ]
    kept = None if mask is None else _kept(name, prediction, mask)
    student, teacher, *keys = lifted(student, teacher, *keys)
    student = _relations(name, "prediction", student, keys[0], heads, kept)
    teacher = _relations(name, "target", teacher, keys[1], heads, kept)
    errors = softmax_divergence(student, teacher, FORWARD)
    if kept is None:
        return mean_by_example(errors)
    errors = torch.where(kept.unsqueeze(1), errors, 0.0)
    return errors.sum((1, 2)) / (heads * kept.sum(1).clamp(min=1))


def tinybert_attention(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of attention scores, what either network masks taken for 0.

    ```
    loss[b] = mean over heads, i, j of (m(s) − m(t))²,    m(a) = 0 where a ≤ −100, else a
    ```

    Args:
        prediction: Attention scores BEFORE their softmax, `[batch, heads, queries, keys]`.
        target: The same of the teacher, of as many heads.

    Returns:
        `[batch]`. The method adds the pairs of layers. What is masked has no gradient.

    Raises:
        ValueError: The shapes differ, or there is no example.

    Example:
        >>> student = torch.tensor([[[[2.0, -10000.0]]]])
        >>> tinybert_attention(student, torch.tensor([[[[1.0, -10000.0]]]]))
        tensor([0.5000])

    Reference:
        Jiao et al.: TinyBERT: Distilling BERT for Natural Language Understanding, EMNLP Findings 2020, arXiv
        1909.10351. Checked against `task_distill.py` of huawei-noah/Pretrained-Language-Model. No deviation.
    """
    hint = "Choose a teacher's layer with as many heads, or compare relations by `relation_kl`."
    layout = "batch, heads, queries, keys"
    pair = alike("tinybert_attention", layout, hint, prediction=prediction, target=target)
    student, teacher = (torch.where(scores <= -100, 0.0, scores) for scores in pair)
    return mean_by_example(F.mse_loss(student, teacher, reduction="none"))


# What they share


def _pair(function: str, prediction: Tensor, target: Tensor) -> list[Tensor]:
    return agreeing(function, _LAYOUT, "batch, tokens", _TOKENS, prediction=prediction, target=target)


def _keys(function: str, name: str, queries: Tensor, key: str, keys: Tensor) -> Tensor:
    """What queries are related to, of their shape."""
    (checked,) = floats(function, _LAYOUT, **{key: keys})
    check_one_device(function, **{name: queries, key: keys})
    if keys.shape != queries.shape:
        raise ValueError(f"{function}: {key} {shape(keys)} must have the shape of {name} {shape(queries)}.")
    return checked


def _kept(function: str, prediction: Tensor, mask: Tensor) -> Tensor:
    """Which tokens are no padding, `[batch, tokens]`."""
    check_tensor(function, "mask", mask)
    if mask.is_complex():
        raise TypeError(f"{function}: mask {shape(mask)} of {mask.dtype} must be bool, or 0 and 1.")
    if mask.shape != prediction.shape[:2]:
        raise ValueError(
            f"{function}: mask {shape(mask)} must have one value for each token of prediction "
            f"{shape(prediction)}: {list(prediction.shape[:2])}."
        )
    check_one_device(function, prediction=prediction, mask=mask)
    return mask != 0


def _relations(
    function: str, name: str, queries: Tensor, keys: Tensor, heads: int, kept: Tensor | None
) -> Tensor:
    """Scores `[batch, heads, tokens, tokens]` by which tokens attend to those that are kept."""
    if queries.shape[-1] % heads:
        raise ValueError(f"{function}: heads {heads} must divide the width of {name} {shape(queries)}.")
    if kept is not None:  # what is padding may be NaN, of which a product with 0 is no 0
        queries, keys = (x.masked_fill(~kept.unsqueeze(-1), 0.0) for x in (queries, keys))
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, keys))
    with exact(queries):
        scores: Tensor = q / q.shape[-1] ** 0.5 @ k.mT
    if kept is not None:
        counted = kept | ~kept.any(1, keepdim=True)
        scores = torch.where(counted[:, None, None], scores, -inf)
    return scores
