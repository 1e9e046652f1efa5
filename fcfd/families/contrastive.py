"""Contrastive losses: an embedding should find its own positive among negatives."""

from math import log
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .._tree import shape as _shape
from ._checks import check_class_indices, check_rank, check_same_axes, check_same_shape
from ._numerics import exact, safe_normalize, upcast

_SPACE = "Project the embeddings into one space first."


def info_nce(
    query: Tensor, positive: Tensor, *, negatives: Tensor | None = None, temperature: float | Tensor = 0.1
) -> Tensor:
    """InfoNCE: cross-entropy of finding each query's positive by cosine.

    ```
    loss = −mean_i log( exp(c_ii / T) / Σ_j exp(c_ij / T) ),    c_ij = cos(query_i, positive_j)
    ```

    With negatives, the sum is over exp(c_ii / T) and the negatives alone.

    Args:
        query: Embeddings `[batch, dimensions]`.
        positive: Embeddings of the same shape; without negatives, the others of the batch are negatives.
        negatives: `[negatives, dimensions]`, shared by all queries, or `[batch, negatives, dimensions]`.
        temperature: T, a number, a learned scalar, or one for each query `[batch]`; published 0.1, and
            0.07 where CLIP begins to learn it.

    Returns:
        A scalar, in nats: without negatives the batch is coupled. Not zero at equality.

    Raises:
        ValueError: The embeddings do not fit, or there is none.

    Example:
        CLIP's symmetric form, and instances with categories of logits as in MCLD:

        >>> student, teacher = torch.eye(3), 2 * torch.eye(3)
        >>> 0.5 * (info_nce(student, teacher) + info_nce(teacher, student))
        tensor(9.0833e-05)
        >>> info_nce(student, teacher) + info_nce(student.mT, teacher.mT)
        tensor(0.0002)

    Reference:
        van den Oord, Li, Vinyals: Representation Learning with Contrastive Predictive Coding, 2018, arXiv
        1807.03748. Checked against RElbers/info-nce-pytorch and mlfoundations/open_clip `ClipLoss`. MoCo v3
        multiplies by 2T.
    """
    check_rank("info_nce", "batch, dimensions", query=query, positive=positive)
    check_same_shape("info_nce", _SPACE, query=query, positive=positive)
    queries, positives = safe_normalize(upcast(query)), safe_normalize(upcast(positive))
    with exact(query):
        if negatives is None:
            cosines = queries @ positives.mT
            labels = torch.arange(len(queries), device=query.device)
        else:
            others = safe_normalize(upcast(_negatives(query, negatives)))
            found = (others @ queries.unsqueeze(-1)).squeeze(-1) if others.ndim == 3 else queries @ others.mT
            cosines = torch.cat(((queries * positives).sum(1, keepdim=True), found), dim=1)
            labels = torch.zeros(len(queries), dtype=torch.long, device=query.device)
    return F.cross_entropy(cosines / _column("info_nce", temperature, query), labels)


def _column(function: str, temperature: float | Tensor, embedding: Tensor) -> float | Tensor:
    """A temperature that may differ by example, shaped to divide a row of cosines for each."""
    if not isinstance(temperature, Tensor) or temperature.ndim == 0:
        return temperature
    if temperature.shape != embedding.shape[:1]:
        raise ValueError(
            f"{function}: temperature {_shape(temperature)} must be a number or have one value for each "
            f"example, {list(embedding.shape[:1])}, of the embedding {_shape(embedding)}."
        )
    return temperature.unsqueeze(1)


def _negatives(query: Tensor, negatives: Tensor) -> Tensor:
    """The negatives, checked against the queries."""
    batch, dimensions = query.shape
    shared = negatives.ndim == 2 and negatives.shape[1] == dimensions
    paired = negatives.ndim == 3 and negatives.shape[0] == batch and negatives.shape[2] == dimensions
    if not (shared or paired) or negatives.numel() == 0:
        raise ValueError(
            f"info_nce: negatives {_shape(negatives)} must be [negatives, {dimensions}], or "
            f"[{batch}, negatives, {dimensions}], for the query {_shape(query)}."
        )
    return negatives


def prototype_info_nce(
    embedding: Tensor, prototypes: Tensor, labels: Tensor, *, temperature: float | Tensor = 0.1
) -> Tensor:
    """InfoNCE towards one prototype a class: an embedding should find its class by cosine.

    ```
    loss[b] = −log softmax_c(cos(embedding_b, prototypes_c) / T)[labels[b]]
    ```

    Args:
        embedding: Student embeddings `[batch, dimensions]`.
        prototypes: One embedding a class, `[classes, dimensions]`: means of the teacher's features by
            class, or the weight of its classifier.
        labels: Integer classes `[batch]`.
        temperature: T, a number, a learned scalar, or one for each example `[batch]`.

    Returns:
        `[batch]`, in nats.

    Raises:
        ValueError: The shapes do not fit, or there is no example.

    Example:
        >>> prototype_info_nce(torch.tensor([[1.0, 0.0]]), 3 * torch.eye(2), torch.tensor([0]))
        tensor([4.5418e-05])

    Reference:
        The plain form that category-contrastive distillation builds on; no published code was compared.
    """
    name = "prototype_info_nce"
    check_rank(name, "batch, dimensions", embedding=embedding, prototypes=prototypes)
    if embedding.shape[1] != prototypes.shape[1]:
        raise ValueError(
            f"{name}: embedding {_shape(embedding)} and prototypes {_shape(prototypes)} must have the same "
            f"dimensions. {_SPACE}"
        )
    check_class_indices(name, labels, embedding)
    with exact(embedding):
        cosines = safe_normalize(upcast(embedding)) @ safe_normalize(upcast(prototypes)).mT
    scaled = cosines / _column(name, temperature, embedding)
    return F.cross_entropy(scaled, labels.long(), reduction="none")


class Banks(NamedTuple):
    """What `crd_nce` remembers of a data set: an embedding of every example from either network.

    Start with random rows of length one and no scales; the first call finds them.
    """

    student: Tensor
    """`[examples, dimensions]`, rows of length one."""
    teacher: Tensor
    """`[examples, dimensions]`, rows of length one."""
    student_log_z: Tensor | None = None
    """Logarithm of the constant that scales the student's scores, a scalar; None before the first call."""
    teacher_log_z: Tensor | None = None
    """The same for the teacher's."""


def crd_nce(
    prediction: Tensor,
    target: Tensor,
    index: Tensor,
    negatives: Tensor,
    banks: Banks,
    *,
    temperature: float = 0.07,
    momentum: float = 0.5,
) -> tuple[Tensor, Banks]:
    """Contrastive representation distillation: noise-contrastive estimation against banks of embeddings.

    ```
    loss[b] = L(prediction; banks.teacher, Z_s) + L(target; banks.student, Z_t)
    L(v; M, Z) = −log(x_0 / (x_0 + c)) − Σ_{k=1..K} log((K/n) / (x_k + c)),    c = K/n + 1e-7
    x_k = exp(⟨M[j_k], v⟩ / T) / Z,    j = index, then the K negatives,    n = examples in a bank
    ```

    Args:
        prediction: Student embeddings `[batch, dimensions]` (published: a linear layer to 128 dimensions,
            then divided by their length); taken as given.
        target: Teacher embeddings of the same shape, from a learned layer of their own, so not detached.
        index: Where each example stands in the banks, `[batch]`, each once.
        negatives: Where its K negatives stand, `[batch, K]`, drawn by the caller (published: 16384, uniform
            over the examples of other classes).
        banks: What the last call returned.
        temperature: T; published 0.07.
        momentum: Share of the old embedding in the new row of a bank; published 0.5.

    Returns:
        The loss `[batch]`, and new banks: rows at `index` moved towards the embeddings and made of length
        one, and the scales Z, which the first call sets to n · mean of exp(⟨M, v⟩ / T) (then its examples
        depend on each other) and later calls keep. Nothing that was given is changed. Memory is the smaller
        of batch · n and batch · K · dimensions, and a copy of the banks.

    Raises:
        ValueError: The shapes do not fit, or there is no example.

    Example:
        >>> banks = Banks(torch.eye(4), torch.eye(4))
        >>> index, negatives = torch.tensor([0, 1]), torch.tensor([[2, 3], [2, 3]])
        >>> loss, banks = crd_nce(torch.eye(4)[:2], torch.eye(4)[:2], index, negatives, banks)
        >>> loss.shape, banks.student_log_z.shape
        (torch.Size([2]), torch.Size([]))

    Reference:
        Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, arXiv 1910.10699. Checked
        against HobbitLong/RepDistiller `ContrastMemory` and `ContrastLoss`. Scores stay in log space here,
        and T is not rounded to float32.
    """
    check_rank("crd_nce", "batch, dimensions", prediction=prediction, target=target)
    check_same_shape("crd_nce", _SPACE, prediction=prediction, target=target)
    check_rank("crd_nce", "batch", index=index)
    check_rank("crd_nce", "batch, negatives", negatives=negatives)
    hint = "Give one place and one row of negatives for each example."
    check_same_axes("crd_nce", "batch", hint, prediction=prediction, index=index, negatives=negatives)
    check_same_shape("crd_nce", "Banks hold the same examples.", student=banks.student, teacher=banks.teacher)
    if banks.student.shape[1:] != prediction.shape[1:]:
        raise ValueError(
            f"crd_nce: the banks {_shape(banks.student)} must be [examples, {prediction.shape[1]}] for the "
            f"prediction {_shape(prediction)}."
        )
    places = torch.cat((index.unsqueeze(1), negatives), dim=1)
    student, teacher = upcast(prediction), upcast(target)
    student_loss, student_log_z = _bank_loss(student, banks.teacher, places, banks.student_log_z, temperature)
    teacher_loss, teacher_log_z = _bank_loss(teacher, banks.student, places, banks.teacher_log_z, temperature)
    updated = Banks(
        _moved(banks.student, index, student, momentum),
        _moved(banks.teacher, index, teacher, momentum),
        student_log_z,
        teacher_log_z,
    )
    return student_loss + teacher_loss, updated


def _bank_loss(
    embedding: Tensor, bank: Tensor, places: Tensor, log_z: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """L of one network's embeddings against the other's bank, and the logarithm of the scale it used."""
    examples, drawn = len(bank), places.shape[1] - 1
    scores = _scores(embedding, bank.to(embedding.dtype), places) / temperature
    if log_z is None:
        log_z = scores.detach().flatten().logsumexp(0) + log(examples / scores.numel())
    log_x, noise = scores - log_z, drawn / examples
    log_total = torch.logaddexp(log_x, torch.full_like(log_x, log(noise + 1e-7)))
    found = log_x[:, 0] - log_total[:, 0]
    rejected = log(noise) - log_total[:, 1:]
    return -found - rejected.sum(1), log_z


def _scores(embedding: Tensor, bank: Tensor, places: Tensor) -> Tensor:
    """⟨bank[place], embedding⟩ for every place: of all rows and then selected, or the other way round."""
    with exact(embedding):
        if len(bank) <= places.shape[1] * bank.shape[1]:
            return (embedding @ bank.mT).gather(1, places)
        return (bank[places] @ embedding.unsqueeze(-1)).squeeze(-1)


def _moved(bank: Tensor, index: Tensor, embedding: Tensor, momentum: float) -> Tensor:
    """A copy of the bank in which the rows of this batch have moved towards their new embeddings."""
    rows = momentum * bank[index] + (1 - momentum) * embedding.detach()
    return bank.detach().index_copy(0, index, safe_normalize(rows).to(bank.dtype))
