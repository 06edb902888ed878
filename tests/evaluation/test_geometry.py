"""Geometry against closed forms: an even sphere, a line, dimensions that stand still."""

import math

import numpy as np
import pytest
import torch
from scipy.special import hyp0f1

from diptych.evaluation.geometry import COLLAPSED_SPREAD, geometry


def sphere(count: int, dim: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dim", [2, 8, 64])
def test_uniformity_of_an_even_sphere(dim: int) -> None:
    # E exp(2 t x.y - 2 t) with t = 2 over unit vectors: 0F1(; d/2; (2t)^2 / 4) exp(-2t).
    wanted = math.log(float(hyp0f1(dim / 2, 4.0))) - 4.0
    assert geometry(sphere(3000, dim)).uniformity == pytest.approx(wanted, abs=0.02)


def test_an_even_sphere_is_spread_in_all_directions() -> None:
    found = geometry(sphere(6000, 16))
    assert found.dimensions == 16
    assert found.effective_rank == pytest.approx(16, rel=0.01)
    assert found.spread == pytest.approx(1, abs=0.02)
    assert found.worst_spread > 0.95
    assert found.collapsed_share == 0
    # The edge of Marchenko and Pastur's law: a finite sample's largest variance.
    assert found.first_direction_share == pytest.approx(
        (1 + (16 / 6000) ** 0.5) ** 2 / 16, rel=0.02
    )
    np.testing.assert_allclose(found.spectrum, [1 / 16] * 16, rtol=0.06)


def test_features_on_a_line_have_rank_one() -> None:
    line = torch.linspace(-1, 1, 50)[:, None] * torch.tensor([[3.0, 0.0, 4.0]])
    found = geometry(line)
    assert found.effective_rank == pytest.approx(1, abs=1e-5)
    assert found.first_direction_share == pytest.approx(1)
    # Unit vectors are +-(0.6, 0, 0.8): deviations of 0.6, 0 and 0.8, times sqrt(3).
    assert found.spread == pytest.approx(1.4 / 3 * math.sqrt(3))
    assert found.worst_spread == 0
    assert found.collapsed_share == pytest.approx(1 / 3)
    assert found.spectrum[0] == pytest.approx(1)


def test_one_point_is_collapse() -> None:
    found = geometry(torch.full((20, 5), 2.0))
    assert (found.effective_rank, found.uniformity) == (1, 0)
    assert (found.collapsed_share, found.first_direction_share) == (1, 1)
    assert found.spectrum == (0,) * 5


def test_the_share_of_variance_is_of_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.linalg.qr(sphere(400, 3) - sphere(400, 3).mean(dim=0))[0]
    features = features * torch.tensor([3.0, 2.0, 1.0])
    found = geometry(features[torch.randperm(400, generator=generator)])
    assert found.first_direction_share == pytest.approx(9 / 14, rel=1e-5)
    assert found.spectrum == pytest.approx([3 / 6, 2 / 6, 1 / 6], rel=1e-5)


def test_a_dimension_below_the_bound_counts_as_collapsed() -> None:
    features = torch.randn(500, 4, generator=torch.Generator().manual_seed(1))
    features[:, 0] *= COLLAPSED_SPREAD / 20
    assert geometry(features).collapsed_share == 0.25


def test_alignment_is_of_unit_vectors() -> None:
    first = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    second = torch.tensor([[7.0, 0.0], [3.0, 0.0]])  # the same direction, and a right angle
    assert geometry(first, (first, second)).alignment == pytest.approx(1)
    assert geometry(first).alignment is None


def test_a_long_spectrum_is_cut() -> None:
    found = geometry(sphere(300, 200))
    assert len(found.as_dict()["spectrum"]) == 64
    assert list(found.spectrum) == sorted(found.spectrum, reverse=True)
