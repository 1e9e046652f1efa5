"""Contrastive losses: an embedding should find its own positive among negatives."""

from math import log
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .._text import check_number
from .._tree import shape
from ._checks import alike, check_one_device, check_same_axes, class_labels, floats, indices, per_example
from ._numerics import exact, label_errors, lifted, safe_normalize
from ._softmaxes import FORWARD, softmax_divergence

_SPACE = "Project the embeddings into one space first."


def info_nce(
    query: Tensor, positive: Tensor, *, negatives: Tensor | None = None, temperature: float | Tensor = 0.1
) -> Tensor:
    """InfoNCE: cross-entropy of finding each query's positive by cosine.

    ```
    loss = −mean_i log( exp(c_ii / T) / Σ_j exp(c_ij / T) )
    c_ij = cos(query_i, positive_j)
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
    name = "info_nce"
    pair = alike(name, "batch, dimensions", _SPACE, query=query, positive=positive)
    scale = per_example(name, temperature, query=query)
    if negatives is None:
        queries, positives = (safe_normalize(embedding) for embedding in pair)
        with exact(query):
            cosines = queries @ positives.mT
        y = torch.arange(len(queries), device=query.device)
    else:
        pair = lifted(*pair, _negatives(name, query, negatives))
        cosines = _against(*(safe_normalize(embedding) for embedding in pair))
        y = torch.zeros(len(query), dtype=torch.long, device=query.device)
    return F.cross_entropy(cosines / scale, y)


def similarity_kl(
    prediction: Tensor, target: Tensor, bank: Tensor, *, temperature: float | Tensor = 0.07
) -> Tensor:
    """Divergence of the probabilities with which an embedding finds those of a bank.

    ```
    loss[b] = KL(softmax_j(cos(t_b, q_j) / T) ‖ softmax_j(cos(s_b, q_j) / T))
    ```

    Args:
        prediction: Student embeddings `[batch, dimensions]`, in the teacher's space.
        target: Teacher embeddings of the same shape.
        bank: Teacher embeddings that are remembered, `[entries, dimensions]`, for both networks; published: a
            queue into which the batch goes first. What is in it, and in which order, is the caller's.
        temperature: T, a number or one for each example `[batch]`; published 0.07. There is no factor T².

    Returns:
        `[batch]`, in nats.

    Raises:
        ValueError: The dimensions differ, or there is no example.

    Example:
        >>> student, teacher, bank = torch.ones(1, 2), torch.eye(2)[:1], torch.eye(2)
        >>> similarity_kl(student, teacher, bank, temperature=1.0).round(decimals=4)
        tensor([0.1109])

    Reference:
        From the formula, checked against the values of lightly-ai/lightly-train `DistillationV3Loss`. It
        takes rows of unit length; here they are given that.
    """
    name = "similarity_kl"
    student, teacher = alike(name, "batch, dimensions", _SPACE, prediction=prediction, target=target)
    (entries,) = floats(name, "entries, dimensions", bank=bank)
    check_one_device(name, prediction=prediction, bank=bank)
    if prediction.shape[1] != bank.shape[1]:
        raise ValueError(
            f"{name}: prediction {shape(prediction)} and bank {shape(bank)} must have the same dimensions. "
            f"{_SPACE}"
        )
    scale = per_example(name, temperature, prediction=prediction)
    student, teacher, entries = (safe_normalize(rows) for rows in lifted(student, teacher, entries))
    with exact(prediction):
        student, teacher = student @ entries.mT, teacher @ entries.mT
    return softmax_divergence(student, teacher, FORWARD, scale)


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
        >>> embedding, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
        >>> prototype_info_nce(embedding, 3 * torch.eye(2), labels)
        tensor([4.5418e-05])

    Reference:
        The plain form that category-contrastive distillation builds on; no published code was compared.
    """
    name = "prototype_info_nce"
    (student,) = floats(name, "batch, dimensions", embedding=embedding)
    (centres,) = floats(name, "classes, dimensions", prototypes=prototypes)
    check_one_device(name, embedding=embedding, prototypes=prototypes)
    if embedding.shape[1] != prototypes.shape[1]:
        raise ValueError(
            f"{name}: embedding {shape(embedding)} and prototypes {shape(prototypes)} must have the same "
            f"dimensions. {_SPACE}"
        )
    y = class_labels(name, labels, embedding=embedding)
    scale = per_example(name, temperature, embedding=embedding)
    student, centres = (safe_normalize(rows) for rows in lifted(student, centres))
    with exact(embedding):
        cosines = student @ centres.mT
    return label_errors(cosines / scale, y)


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
    L(v; M, Z) = −log(x_0 / (x_0 + c)) − Σ_{k=1..K} log((K/n) / (x_k + c))
    x_k = exp(⟨M[j_k], v⟩ / T) / Z,    c = K/n + 1e-7
    j = index, then the K negatives,    n = examples in a bank
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
        >>> banks, embeddings = Banks(torch.eye(4), torch.eye(4)), torch.eye(4)[:2]
        >>> index, negatives = torch.tensor([0, 1]), torch.tensor([[2, 3], [2, 3]])
        >>> loss, banks = crd_nce(embeddings, embeddings, index, negatives, banks)
        >>> loss.shape, banks.student_log_z.shape
        (torch.Size([2]), torch.Size([]))

    Reference:
        Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, arXiv 1910.10699. Checked
        against HobbitLong/RepDistiller `ContrastMemory` and `ContrastLoss`. Scores stay in log space here,
        and T is not rounded to float32.
    """
    name = "crd_nce"
    check_number(name, "temperature", temperature, above=0)
    check_number(name, "momentum", momentum, least=0, most=1)
    pair = alike(name, "batch, dimensions", _SPACE, prediction=prediction, target=target)
    own, drawn = indices(name, "batch", index=index), indices(name, "batch, negatives", negatives=negatives)
    hint = "Give one place and one row of negatives for each example."
    check_same_axes(name, "batch", hint, prediction=prediction, index=index, negatives=negatives)
    check_one_device(name, prediction=prediction, index=index, negatives=negatives)
    pair += _bank_pair(name, banks, prediction)
    student, teacher, student_bank, teacher_bank = lifted(*pair)
    places = torch.cat((own.unsqueeze(1), drawn), dim=1)
    student_loss, student_log_z = _bank_loss(student, teacher_bank, places, banks.student_log_z, temperature)
    teacher_loss, teacher_log_z = _bank_loss(teacher, student_bank, places, banks.teacher_log_z, temperature)
    updated = Banks(
        _moved(banks.student, own, student, momentum),
        _moved(banks.teacher, own, teacher, momentum),
        student_log_z,
        teacher_log_z,
    )
    return student_loss + teacher_loss, updated


# What the losses share


def _negatives(function: str, query: Tensor, negatives: Tensor) -> Tensor:
    """The negatives, checked against the queries."""
    (checked,) = floats(function, "negatives, ...", negatives=negatives)
    check_one_device(function, query=query, negatives=negatives)
    batch, dimensions = query.shape
    shared = negatives.ndim == 2 and negatives.shape[1] == dimensions
    paired = negatives.ndim == 3 and negatives.shape[0] == batch and negatives.shape[2] == dimensions
    if not (shared or paired):
        raise ValueError(
            f"{function}: negatives {shape(negatives)} must be [negatives, {dimensions}], or "
            f"[{batch}, negatives, {dimensions}], for the query {shape(query)}."
        )
    return checked


def _against(queries: Tensor, positives: Tensor, others: Tensor) -> Tensor:
    """Cosines of every query with its positive, which comes first, and with the negatives."""
    own = (queries * positives).sum(1, keepdim=True)
    with exact(queries):
        paired = others.ndim == 3
        found = (others @ queries.unsqueeze(-1)).squeeze(-1) if paired else queries @ others.mT
    return torch.cat((own, found), dim=1)


def _bank_pair(function: str, banks: Banks, prediction: Tensor) -> list[Tensor]:
    """Both banks, checked against the embeddings."""
    if not isinstance(banks, Banks):
        raise TypeError(f"{function}: banks is of type {type(banks).__name__} and must be `Banks`.")
    hint = "Banks hold the same examples."
    rows = {"banks.student": banks.student, "banks.teacher": banks.teacher}
    pair = alike(function, "examples, dimensions", hint, **rows)
    for name, scale in {"student_log_z": banks.student_log_z, "teacher_log_z": banks.teacher_log_z}.items():
        if scale is not None:
            check_number(function, f"banks.{name}", scale)
    if banks.student.shape[1:] != prediction.shape[1:]:
        raise ValueError(
            f"{function}: the banks {shape(banks.student)} must be [examples, {prediction.shape[1]}] for the "
            f"prediction {shape(prediction)}."
        )
    check_one_device(function, prediction=prediction, banks=banks.student)
    return pair


def _bank_loss(
    embedding: Tensor, bank: Tensor, places: Tensor, log_z: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """L of one network's embeddings against the other's bank, and the logarithm of the scale it used."""
    examples, drawn = len(bank), places.shape[1] - 1
    scores = _scores(embedding, bank, places) / temperature
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
