"""From the names and hyper-parameters of the published losses to calls of `fcfd.families.contrastive`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fcfd.families import contrastive as c

from ._types import Adapters

Inputs = Mapping[str, Tensor]
Hyper = Mapping[str, Any]


def info_nce(x: Inputs, h: Hyper) -> Tensor:
    return c.info_nce(x["query"], x["positive"], negatives=x.get("negatives"), temperature=h["T"])


def info_nce_symmetric(x: Inputs, h: Hyper) -> Tensor:
    student, teacher = x["student"], x["teacher"]
    forth = c.info_nce(student, teacher, temperature=h["T"])
    return 0.5 * (forth + c.info_nce(teacher, student, temperature=h["T"]))


def crd_nce(x: Inputs, h: Hyper) -> dict[str, Tensor]:
    given = [h["Z_student"], h["Z_teacher"]]
    scales = [None if z is None else torch.tensor(z, dtype=torch.float64).log() for z in given]
    banks = c.Banks(x["bank_student"], x["bank_teacher"], *scales)
    loss, banks = c.crd_nce(
        x["student"],
        x["teacher"],
        x["index"],
        x["negatives"],
        banks,
        temperature=h["T"],
        momentum=h["momentum"],
    )
    return {
        "value": loss.mean(),
        "new_bank_student": banks.student,
        "new_bank_teacher": banks.teacher,
        "Z": torch.stack((banks.student_log_z, banks.teacher_log_z)).exp(),
    }


ADAPTERS: Adapters = {"info_nce": info_nce, "info_nce_symmetric": info_nce_symmetric, "crd_nce": crd_nce}

PAPER: Adapters = {}
