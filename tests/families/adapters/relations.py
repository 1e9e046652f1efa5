"""From the names and hyper-parameters of the published losses to calls of `fcfd.families.relations`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fcfd.families import relations as r

from ._types import Adapters

Inputs = Mapping[str, Tensor]
Hyper = Mapping[str, Any]


def hard_dark_rank(x: Inputs, h: Hyper) -> Tensor:
    sharp = {"alpha": h["alpha"], "beta": h["beta"], "length": h["permute_len"]}
    return r.hard_dark_rank(x["student"], x["teacher"], **sharp)


def cc_taylor_rbf_frobenius(x: Inputs, h: Hyper) -> Tensor:
    student, teacher = (r.taylor_rbf(x[name], **h) for name in ("student", "teacher"))
    return torch.linalg.matrix_norm(student - teacher) / len(student) ** 2


def cc_bilinear_frobenius(x: Inputs, h: Hyper) -> Tensor:
    student, teacher = (x[name].flatten(1) for name in ("student", "teacher"))
    return torch.linalg.matrix_norm(student @ student.mT - teacher @ teacher.mT) / len(student) ** 2


ADAPTERS: Adapters = {
    "rkd_distance": lambda x, h: r.rkd_distance(x["student"], x["teacher"]),
    "rkd_angle": lambda x, h: r.rkd_angle(x["student"], x["teacher"]),
    "hard_dark_rank": hard_dark_rank,
    "pkt": lambda x, h: r.pkt(x["student"], x["teacher"], eps=h["eps"]),
    "similarity_preserving": lambda x, h: r.similarity_preserving(x["student"], x["teacher"]),
    "cc_adjacent": lambda x, h: r.cc_adjacent(x["student"], x["teacher"]),
    "cc_taylor_rbf": lambda x, h: r.cc_taylor_rbf(x["student"], x["teacher"], **h),
    "cc_taylor_rbf_frobenius": cc_taylor_rbf_frobenius,
    "cc_bilinear_frobenius": cc_bilinear_frobenius,
    "linear_cka": lambda x, h: r.linear_cka(x["x"], x["y"]),
    "cka_class_cost": lambda x, h: r.cka_class_cost(x["features"], kappa=h["kappa"]),
}

PAPER: Adapters = {}
