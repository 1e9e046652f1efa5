"""Losses as their formulas are first written down: probabilities in memory, loops over examples, all triples.

Each takes the inputs of its catalogue row and returns a scalar. None is numerically safe.
"""

from itertools import pairwise
from math import sqrt
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


def ikl(prediction: Tensor, target: Tensor) -> Tensor:
    """As published, over all pairs of classes."""
    weight = (target / 100).softmax(-1)
    gap = prediction - target
    pairs = (gap.unsqueeze(-1) - gap.unsqueeze(-2)).square()
    variance = (weight.unsqueeze(-1) * weight.unsqueeze(-2) * pairs).sum((-1, -2)) / 4
    return (variance - (target.softmax(-1) * prediction.softmax(-1).log()).sum(-1)).mean()


def gkl(prediction: Tensor, target: Tensor) -> Tensor:
    """As published, over all pairs of classes."""
    weight = target.softmax(-1) ** 0.5
    gap = prediction - target
    pairs = (gap.unsqueeze(-1) - gap.unsqueeze(-2)).square()
    variances = (weight.unsqueeze(-1) * weight.unsqueeze(-2) * pairs).sum() / 4
    wanted = -(target.softmax(-1) * prediction.softmax(-1).log()).sum(-1).mean()
    return variances / weight.sum(-1).square().sum() + wanted


def ab_divergence(prediction: Tensor, target: Tensor) -> Tensor:
    p, q = target.softmax(-1), prediction.softmax(-1)
    a, b = 0.2, 0.7
    terms = p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)
    return -terms.sum(-1).mean() / (a * b)


def akl(prediction: Tensor, target: Tensor) -> Tensor:
    p, q = target.softmax(-1), prediction.softmax(-1)
    falling, order = p.sort(-1, descending=True)
    head = falling.cumsum(-1) <= 0.5
    head[..., 0] = True
    gap = (falling - q.detach().gather(-1, order)).abs()
    in_head, in_rest = (gap * head).sum(-1), (gap * ~head).sum(-1)
    forward, backward = (p * (p / q).log()).sum(-1), (q * (q / p).log()).sum(-1)
    return ((in_head * forward + in_rest * backward) / (in_head + in_rest)).mean()


def alpha_mixture(prediction: Tensor, target: Tensor) -> Tensor:
    p, q = target.softmax(-1), prediction.softmax(-1)
    mean = (0.5 * p**0.25 + 0.5 * q**0.25) ** 4
    return (mean / mean.sum(-1, keepdim=True)).log().mean()


def taid(prediction: Tensor, target: Tensor) -> Tensor:
    r = (0.6 * prediction.detach() + 0.4 * target).softmax(-1)
    return -(r * prediction.log_softmax(-1)).sum(-1).mean()


def rld(prediction: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    y = labels.unsqueeze(-1)
    highest, own = target.softmax(-1).amax(-1), prediction.softmax(-1).gather(-1, y).squeeze(-1)
    label = highest * (highest / own).log() + (1 - highest) * ((1 - highest) / (1 - own)).log()
    left_out = target >= target.gather(-1, y)
    s, t = ((z / 4).masked_fill(left_out, -1e9).log_softmax(-1) for z in (prediction, target))
    return (label + 8 * 16 * (t.exp() * (t - s)).sum(-1)).mean()


def gdkd(prediction: Tensor, target: Tensor) -> Tensor:
    first = torch.zeros_like(target).scatter(-1, target.topk(2).indices, 1.0)
    p, q = (target / 4).softmax(-1), (prediction / 4).softmax(-1)
    loss = prediction.new_zeros(len(prediction))
    for group in (first, 1 - first):
        a, b = (p * group).sum(-1), (q * group).sum(-1)
        loss = loss + a * (a / b).log()
    for group, weight in ((first, 1.0), (1 - first, 8.0)):
        s, t = ((z / 4 - 1000 * (1 - group)).log_softmax(-1) for z in (prediction, target))
        loss = loss + weight * (t.exp() * (t - s)).sum(-1)
    return 16 * loss.mean()


def gdkd3(prediction: Tensor, target: Tensor) -> Tensor:
    order = target.topk(2).indices
    first, second = (torch.zeros_like(target).scatter(-1, order[:, k : k + 1], 1.0) for k in range(2))
    rest = 1 - first - second
    p, q = (target / 4).softmax(-1), (prediction / 4).softmax(-1)
    loss = prediction.new_zeros(len(prediction))
    for group in (first, second, rest):
        a, b = (p * group).sum(-1), (q * group).sum(-1)
        loss = loss + a * (a / b).log()
    for group, weight in ((second, 1.0), (rest, 8.0)):
        s, t = ((z / 4 - 1000 * (1 - group)).log_softmax(-1) for z in (prediction, target))
        loss = loss + weight * (t.exp() * (t - s)).sum(-1)
    return 16 * loss.mean()


def topk_nckd(prediction: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    hot = F.one_hot(labels, prediction.shape[-1])
    first = torch.zeros_like(target).scatter(-1, target.topk(3).indices, 1.0)
    q, p = (((z / 4).softmax(-1) * hot).sum(-1) for z in (prediction, target))
    label = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    left_out = 1000 * (1 - first * (1 - hot))
    s, t = ((z / 4 - left_out).log_softmax(-1) for z in (prediction, target))
    return 16 * (label + 8 * (t.exp() * (t - s)).sum(-1)).mean()


def topk_kl(prediction: Tensor, ids: Tensor, log_probabilities: Tensor) -> Tensor:
    p, q = log_probabilities.exp(), prediction.log_softmax(-1).gather(-1, ids).exp()
    p, q = (torch.cat((x, 1 - x.sum(-1, keepdim=True)), -1) for x in (p, q))
    return (p * (p / q).log()).sum(-1).mean()


def topk_reverse_kl(prediction: Tensor, ids: Tensor, log_probabilities: Tensor) -> Tensor:
    p, q = log_probabilities.exp(), prediction.log_softmax(-1).gather(-1, ids).exp()
    p, q = (torch.cat((x, 1 - x.sum(-1, keepdim=True)), -1) for x in (p, q))
    return (q * (q / p).log()).sum(-1).mean()


def topk_jsd(prediction: Tensor, ids: Tensor, log_probabilities: Tensor) -> Tensor:
    p, q = log_probabilities.exp(), prediction.log_softmax(-1).gather(-1, ids).exp()
    p, q = (torch.cat((x, 1 - x.sum(-1, keepdim=True)), -1) for x in (p, q))
    middle = (p + q) / 2
    return 0.5 * (p * (p / middle).log() + q * (q / middle).log()).sum(-1).mean()


def sampled_kl(prediction: Tensor, ids: Tensor, log_probabilities: Tensor) -> Tensor:
    return (log_probabilities - prediction.log_softmax(-1).gather(-1, ids)).mean(-1).mean()


def uld(prediction: Tensor, target: Tensor) -> Tensor:
    p, q = (z.softmax(-1).sort(-1, descending=True).values for z in (target, prediction))
    return (p - q).abs().sum(-1).mean()


def uld_hybrid(prediction: Tensor, target: Tensor, matched: Tensor, target_matched: Tensor) -> Tensor:
    q, p = prediction.softmax(-1), target.softmax(-1)
    b, a = q[:, matched], p[:, target_matched]
    middle = (a + b) / 2
    common = 0.5 * (a * (a / middle).log() + b * (b / middle).log()).sum(-1)
    others = q.index_fill(-1, matched, 0.0), p.index_fill(-1, target_matched, 0.0)
    s, t = (z.sort(-1, descending=True).values for z in others)
    share = len(matched) / prediction.shape[-1]
    return (share * common + (1 - share) * (s - t).abs().sum(-1)).mean()


def gram(prediction: Tensor, target: Tensor) -> Tensor:
    s, t = (F.normalize(x, dim=-1) for x in (prediction, target))
    return (s @ s.mT - t @ t.mT).square().mean()


def patch_similarity_kl(prediction: Tensor, target: Tensor) -> Tensor:
    s, t = (F.normalize(x, dim=-1) for x in (prediction, target))
    q, p = ((x @ x.mT / 0.07).softmax(-1) for x in (s, t))
    return (p * (p / q).log()).sum(-1).mean()


def similarity_kl(prediction: Tensor, target: Tensor, bank: Tensor) -> Tensor:
    s, t, b = (F.normalize(x, dim=-1) for x in (prediction, target, bank))
    q, p = ((x @ b.mT / 0.07).softmax(-1) for x in (s, t))
    return (p * (p / q).log()).sum(-1).mean()


def relation_kl(prediction: Tensor, target: Tensor) -> Tensor:
    q, p = ((x @ x.mT / sqrt(x.shape[-1])).softmax(-1) for x in (prediction, target))
    return (p * (p / q).log()).sum(-1).mean()


def tinybert_attention(prediction: Tensor, target: Tensor) -> Tensor:
    s, t = (torch.where(x <= -100, torch.zeros_like(x), x) for x in (prediction, target))
    return F.mse_loss(s, t)


def vkd(prediction: Tensor, target: Tensor) -> Tensor:
    return F.smooth_l1_loss(prediction, F.layer_norm(target, target.shape[-1:]))


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
        ikl,
        gkl,
        ab_divergence,
        akl,
        alpha_mixture,
        taid,
        rld,
        gdkd,
        gdkd3,
        topk_nckd,
        topk_kl,
        topk_reverse_kl,
        topk_jsd,
        sampled_kl,
        uld,
        uld_hybrid,
        gram,
        patch_similarity_kl,
        similarity_kl,
        relation_kl,
        tinybert_attention,
        vkd,
    )
}
