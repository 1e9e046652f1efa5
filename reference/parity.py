"""The deterministic tensors and fingerprints of the reference values, shared by every parity test.

Reference values are JSON files in a folder of their own (`FCFD_PARITY`, default `../shared/parity` beside the
repository); its README defines what is repeated here in code. Everything is float64 on the CPU.
"""

import os
import zlib
from collections.abc import Mapping, Sequence
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
"""Copies of a few reference cases, so that the repository tests itself when it stands alone."""

NO_PARITY = "no folder of reference values: set FCFD_PARITY, or put one at ../shared/parity"


def parity_folder() -> Path | None:
    """The folder of reference values, or None where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "parity"
    folder = Path(os.environ.get("FCFD_PARITY", default))
    return folder if folder.is_dir() else None


def _generator(key: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(key.encode()))


def t(key: str, shape: Sequence[int]) -> Tensor:
    """Standard normal float64 values that depend on nothing but the key and the shape."""
    return torch.from_numpy(np.array(_generator(key).standard_normal(tuple(shape))))


def ints(key: str, shape: Sequence[int], n: int) -> Tensor:
    """Integers in `[0, n)` that depend on nothing but the key, the shape and n."""
    return torch.from_numpy(np.array(_generator(key).randint(0, n, tuple(shape)), dtype=np.int64))


def fill(state_dict: Mapping[str, Tensor], role: str) -> dict[str, Tensor]:
    """New values for the entries of a state dict (or of its parameters or buffers alone), nothing changed.

    The role is the key's first part: `"student"`, `"zoo/resnet8"`, or `"s>t/1"` for the first bridge.
    """
    return {name: _filled(f"{role}/{name}", list(old.shape)) for name, old in state_dict.items()}


def _filled(key: str, shape: list[int]) -> Tensor:
    last = key.rpartition(".")[2]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    n = t(key, shape)
    if last == "running_mean":
        return 0.1 * n
    if last == "running_var":
        return 1 + 0.5 * n.abs()
    if len(shape) > 1:
        return n * sqrt(2 / prod(shape[1:]))
    return 1 + 0.1 * n if last.endswith("weight") else 0.1 * n


def fingerprint(tensor: Tensor, key: str) -> dict[str, float]:
    """Sum, norm and a random projection: equal for two tensors only if the tensors are."""
    g = tensor.detach().double()
    return {
        "sum": g.sum().item(),
        "l2": g.norm().item(),
        "dot": (g * t("probe/" + key, g.shape)).sum().item(),
    }


def assert_fingerprint(
    tensor: Tensor, key: str, expected: Mapping[str, Any], *, rtol: float = 1e-8, atol: float = 1e-10
) -> None:
    """Fail unless the tensor has the expected fingerprint (and shape, where one is given)."""
    if "shape" in expected:
        assert list(tensor.shape) == list(expected["shape"]), f"{key}: shape {list(tensor.shape)}"
    for part, found in fingerprint(tensor, key).items():
        wanted = expected[part]
        error, allowed = abs(found - wanted), rtol * max(abs(wanted), expected["l2"]) + atol
        assert error <= allowed, f"{key}: {part} is {found!r}, not {wanted!r} (off by {error:.1e})"
