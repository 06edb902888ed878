"""Features: of the centre, or averaged over five views."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.run import RunConfig
from diptych.errors import FeaturesError, ImagesError
from diptych.evaluation.features import (
    encode,
    extract_features,
    extract_named_features,
    require_finite,
)
from diptych.images.open import from_array
from diptych.models.weights import PretrainedEncoder
from diptych.views.cpu import EvaluationCrops

VIEWS = ViewsConfig(side_pixels=28, pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0))


class Flat(nn.Module):
    """The pixels, so that features can be compared with slices of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) * self.weight


def test_five_crops_are_averaged(rng: np.random.Generator, executor: ThreadPoolExecutor) -> None:
    # Seven eighths of 32 are the 28 pixels of a view: nothing is resized.
    pixels = rng.integers(0, 256, (3, 32, 40, 3), dtype=np.uint8)
    images = from_array(pixels, None, ImagesConfig())
    found = encode(Flat(), images, VIEWS, executor, crops="five").numpy()
    corners = [(0, 0), (0, 12), (4, 0), (4, 12), (2, 6)]
    cut = [pixels[:, y : y + 28, x : x + 28].transpose(0, 3, 1, 2) / 255 for y, x in corners]
    np.testing.assert_allclose(found, np.mean(cut, axis=0).reshape(3, -1), atol=1e-6)


def test_the_centre_alone_is_the_default(
    rng: np.random.Generator, executor: ThreadPoolExecutor
) -> None:
    pixels = rng.integers(0, 256, (3, 28, 40, 3), dtype=np.uint8)
    images = from_array(pixels, None, ImagesConfig())
    found = encode(Flat(), images, VIEWS, executor).numpy()
    centre = pixels[:, :, 6:34].transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(found, centre.reshape(3, -1), atol=1e-6)


class Sick(Flat):
    """Features that are no numbers for white images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = super().forward(images)
        return torch.where(flat.mean(dim=1, keepdim=True) > 0.999, torch.nan, flat)


@pytest.mark.parametrize("crops", ["center", "five"])
def test_features_that_are_no_numbers_are_refused_in_one_sentence(
    crops: EvaluationCrops, executor: ThreadPoolExecutor
) -> None:
    pixels = np.zeros((300, 28, 28, 3), np.uint8)
    pixels[[7, 280]] = 255
    images = from_array(pixels, None, ImagesConfig())
    words = r"the trained encoder gives for 2 of 300 images \(such as 7\) are not finite numbers"
    with pytest.raises(FeaturesError, match=words):
        encode(Sick(), images, VIEWS, executor, crops=crops, of="the trained encoder")


def test_large_numbers_are_numbers() -> None:
    features = torch.full((3, 4), 3e38)
    assert require_finite(features) is features  # though their sum is not one
    for wrong in (torch.nan, torch.inf, -torch.inf):
        features[1, 2] = wrong
        with pytest.raises(FeaturesError, match="1 of 3 images"):
            require_finite(features)


def test_rows_have_names_or_there_are_no_rows(tmp_path: Path) -> None:
    """One of twelve files is junk: rows of the others must not pass for rows of all."""
    rng = np.random.default_rng(0)
    for name in "abcdefghijkl":
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    (tmp_path / "b.png").write_bytes(b"junk")
    config = RunConfig(views=VIEWS)
    encoder = PretrainedEncoder(Flat(), config)
    with pytest.raises(ImagesError, match=r"1 of 12 images .*b\.png.*extract_named_features"):
        extract_features(encoder, tmp_path, threads=1)
    found = extract_named_features(encoder, tmp_path, threads=1)
    assert [Path(name).name for name in found.names] == [f"{n}.png" for n in "acdefghijkl"]
    assert [Path(one.name).name for one in found.skipped] == ["b.png"]
    for name, row in zip(found.names, found.features, strict=True):
        alone = tmp_path / "alone" / Path(name).name
        alone.parent.mkdir(exist_ok=True)
        alone.write_bytes((tmp_path / Path(name).name).read_bytes())
        torch.testing.assert_close(extract_features(encoder, alone.parent, threads=1)[0], row)
        alone.unlink()
