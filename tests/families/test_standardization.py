"""PHI-S: what it makes of a sample, and of which matrices."""

import pytest
import torch
from torch import Tensor

from fcfd.families import standardization

same = torch.testing.assert_close
HADAMARD = [1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 44, 48, 64, 80, 96, 384]


def sample(n: int, dimensions: int) -> Tensor:
    generator = torch.Generator().manual_seed(dimensions)
    rows = torch.randn(n, dimensions, dtype=torch.float64, generator=generator)
    return rows * torch.linspace(0.1, 3, dimensions, dtype=torch.float64) + 2


@pytest.mark.parametrize("size", HADAMARD)
def test_all_entries_are_as_large(size: int) -> None:
    spread = standardization._spreading(torch.zeros(size, dtype=torch.float64))
    same(spread @ spread.mT, torch.eye(size, dtype=torch.float64))
    same(spread.abs(), torch.full_like(spread, size**-0.5))


@pytest.mark.parametrize("size", [3, 5, 6, 9, 10, 36])
def test_other_sizes_have_an_orthogonal_matrix(size: int) -> None:
    spread = standardization._spreading(torch.zeros(size, dtype=torch.float64))
    same(spread @ spread.mT, torch.eye(size, dtype=torch.float64))


def test_signs_of_sylvester_and_paley() -> None:
    places = torch.arange(8)
    bits = places.unsqueeze(1) & places
    parity = sum((bits >> k) & 1 for k in range(3)) % 2
    like = torch.zeros(8, dtype=torch.float64)
    same(standardization._hadamard(8, like), (1 - 2 * parity).double())
    signs = standardization._hadamard(12, torch.zeros(12, dtype=torch.float64))
    assert signs[0].eq(1).all()
    assert signs[1:, 0].eq(-1).all()
    assert signs.diagonal().eq(1).all()
    residues = {x * x % 11 for x in range(1, 11)}
    assert all(
        signs[i + 1, j + 1] == (1 if (i - j) % 11 in residues else -1)
        for i in range(11)
        for j in range(11)
        if i != j
    )


@pytest.mark.parametrize("size", [2, 8, 12, 20])
def test_every_dimension_becomes_as_wide(size: int) -> None:
    targets = sample(200, size)
    found = standardization.phi_s(targets)
    y = (targets - found.mean) @ found.matrix.mT
    same(y.var(0), torch.ones(size, dtype=torch.float64))
    same(y.mean(0), torch.zeros(size, dtype=torch.float64), atol=1e-9, rtol=0)
    same(torch.cdist(y, y), found.scale * torch.cdist(targets, targets), rtol=1e-6, atol=1e-6)
    same(y @ found.matrix / found.scale**2 + found.mean, targets)


def test_of_any_size_the_mean_variance_is_one() -> None:
    targets = sample(200, 10)
    found = standardization.phi_s(targets)
    same(((targets - found.mean) @ found.matrix.mT).var(0).mean(), torch.tensor(1.0).double())


def test_a_sample_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"phi_s: targets \[1, 4\] of one example have no covariance"):
        standardization.phi_s(torch.ones(1, 4))


def test_it_takes_no_gradient() -> None:
    targets = sample(20, 4).requires_grad_()
    assert not any(part.requires_grad for part in standardization.phi_s(targets))
