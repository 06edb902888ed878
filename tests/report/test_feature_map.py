"""The map of the features, also of those of which there is no map."""

import numpy as np
import pytest
from PIL import Image

from diptych.report.figures import feature_map


def cards(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (8, 8), (10 * number % 256, 0, 0)) for number in range(count)]


def places(sheet: Image.Image) -> int:
    """Pixels that are not white."""
    return int((np.asarray(sheet) < 200).any(axis=2).sum())


@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("count", [2, 3, 60])
def test_features_that_collapsed_lie_in_one_place(
    value: float, count: int, rng: np.random.Generator
) -> None:
    """Of 60 equal vectors t-SNE ended the process by a segmentation fault."""
    features = np.full((count, 128), value, dtype=np.float32)
    features *= 1 + 1e-7 * rng.random((count, 128), dtype=np.float32)
    assert places(feature_map(features, cards(count), None)) <= 34 * 34


@pytest.mark.parametrize("count", [2, 3, 20])
def test_others_are_spread(count: int, rng: np.random.Generator) -> None:
    features = rng.normal(size=(count, 16)).astype(np.float32)
    assert places(feature_map(features, cards(count), None)) > 34 * 34
