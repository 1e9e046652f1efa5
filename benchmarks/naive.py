"""Losses as their formulas are first written down: probabilities in memory, loops over examples, all triples.

Each takes the inputs of its catalogue row and returns a scalar. None is numerically safe.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def kl(prediction: Tensor, target: Tensor) -> Tensor:
    p, q = (target / 4).softmax(-1), (prediction / 4).softmax(-1)
    return 16 * (p * (p.log() - q.log())).sum(-1).mean()


def reverse_kl(prediction: Tensor, target: Tensor) -> Tensor:
    p, q = target.softmax(-1), prediction.softmax(-1)
    return (q * (q.log() - p.log())).sum(-1).mean()


def jsd(prediction: Tensor, target: Tensor) -> Tensor:
    p, q = target.softmax(-1), prediction.softmax(-1)
    middle = (p + q) / 2
    both = p * (p.log() - middle.log()) + q * (q.log() - middle.log())
    return 0.5 * both.sum(-1).mean()


def cross_entropy(prediction: Tensor, labels: Tensor) -> Tensor:
    return -prediction.softmax(-1).gather(-1, labels.unsqueeze(-1)).log().mean()


def dkd(prediction: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    hot = F.one_hot(labels, prediction.shape[-1])

    def both(p: Tensor) -> Tensor:
        return torch.stack([(p * hot).sum(-1), (p * (1 - hot)).sum(-1)], -1)

    def others(logits: Tensor) -> Tensor:
        return (logits / 4 - 1000 * hot).log_softmax(-1)

    q, p = (both((logits / 4).softmax(-1)) for logits in (prediction, target))
    label = (p * (p / q).log()).sum(-1)
    rest = F.kl_div(others(prediction), others(target), reduction="none", log_target=True).sum(-1)
    return 16 * (label + 8 * rest).mean()


def mlkd_class_corr(prediction: Tensor, target: Tensor) -> Tensor:
    p, q = (target / 4).softmax(-1), (prediction / 4).softmax(-1)
    return (p.T @ p - q.T @ q).square().sum() / p.shape[1]


def wkd_logit(prediction: Tensor, target: Tensor, labels: Tensor, cost: Tensor) -> Tensor:
    """One example after another, each with its own transport plan."""
    losses = []
    price = cost.relu() + 1e-8
    for student, teacher, label in zip(prediction, target, labels.tolist(), strict=True):
        keep = [at for at in range(len(student)) if at != label]
        a, b = (student[keep] / 2).softmax(-1), (teacher[keep] / 2).softmax(-1)
        between = price[keep][:, keep]
        kernel = (-between / 0.05).exp()
        u = torch.full_like(a, 1 / len(a))
        for _ in range(10):
            v = b / (u @ kernel + 1e-8)
            u = a / (kernel @ v + 1e-8)
        transport = (u.unsqueeze(1) * kernel * v * between).sum()
        confidence = teacher.softmax(-1)[label]
        losses.append(30 * transport - confidence * student.log_softmax(-1)[label])
    return torch.stack(losses).mean()


def rkd_distance(prediction: Tensor, target: Tensor) -> Tensor:
    def relative(rows: Tensor) -> Tensor:
        squares = (rows - rows.unsqueeze(1)).square().sum(-1)
        distances = (squares + torch.eye(len(rows)).to(rows)).sqrt() * (1 - torch.eye(len(rows)).to(rows))
        return distances / distances[distances > 0].mean()

    return F.smooth_l1_loss(relative(prediction), relative(target))


def rkd_angle(prediction: Tensor, target: Tensor) -> Tensor:
    """All batch³ angles at once."""

    def angles(rows: Tensor) -> Tensor:
        directions = F.normalize(rows - rows.unsqueeze(1), dim=-1)
        return directions @ directions.mT

    return F.smooth_l1_loss(angles(prediction), angles(target))


def hard_dark_rank(prediction: Tensor, target: Tensor) -> Tensor:
    """One example after another, for the row's two neighbours."""
    losses: list[Any] = []
    for at in range(len(target)):
        others = torch.arange(len(target), device=target.device) != at
        near = (target[others] - target[at]).square().sum(-1).topk(2, largest=False).indices
        scores = -0.01 * (prediction[others][near] - prediction[at]).square().sum(-1).pow(1.5)
        losses.append(-sum(scores[k] - scores[k:].logsumexp(0) for k in range(2)))
    return torch.stack(losses).mean()


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """By centred kernel matrices."""
    centre = torch.eye(len(x)).to(x) - 1 / len(x)
    k, m = (centre @ (z @ z.T) @ centre for z in (x, y))
    similarity: Tensor = (k * m).sum() / (k.norm() * m.norm())
    return similarity


def cc_taylor_rbf(prediction: Tensor, target: Tensor) -> Tensor:
    """One row of the kernels after another."""

    def kernel(rows: Tensor) -> Tensor:
        rows = F.normalize(rows)
        products = (rows @ row for row in rows)
        return torch.stack([(1 + 0.8 * x + 0.32 * x.square()) * torch.tensor(-0.8).exp() for x in products])

    return (kernel(prediction) - kernel(target)).square().mean()


def cc_adjacent(prediction: Tensor, target: Tensor) -> Tensor:
    """One pair of neighbours after another."""
    errors = (prediction - target).abs()
    total: Any = sum((a * b).sum() for a, b in pairwise(errors))
    return torch.as_tensor(total / (len(errors) - 1))


def nst_poly(prediction: Tensor, target: Tensor) -> Tensor:
    """One example after another, by the kernels of its channels."""
    losses = []
    for student, teacher in zip(prediction, target, strict=True):
        s, t = F.normalize(student.flatten(1)), F.normalize(teacher.flatten(1))
        kernels = [(a @ b.T).square().mean() for a, b in ((s, s), (t, t), (s, t))]
        losses.append(kernels[0] + kernels[1] - 2 * kernels[2])
    return torch.stack(losses).mean()


def inter_channel_correlation(prediction: Tensor, target: Tensor) -> Tensor:
    """One example after another."""
    losses = []
    for student, teacher in zip(prediction.flatten(2), target.flatten(2), strict=True):
        difference = F.normalize(student @ student.T) - F.normalize(teacher @ teacher.T)
        losses.append(difference.square().sum() / len(difference))
    return torch.stack(losses).mean()


NAIVE = {
    function.__name__: function
    for function in (
        kl,
        reverse_kl,
        jsd,
        cross_entropy,
        dkd,
        mlkd_class_corr,
        wkd_logit,
        rkd_distance,
        rkd_angle,
        hard_dark_rank,
        linear_cka,
        cc_taylor_rbf,
        cc_adjacent,
        nst_poly,
        inter_channel_correlation,
    )
}
