"""Features: of the centre, or averaged over five views."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import nn

from diptych.configs import ImagesConfig, ViewsConfig
from diptych.evaluation.features import encode
from diptych.images.sources import from_array

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
