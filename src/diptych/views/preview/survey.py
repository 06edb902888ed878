"""A look at some of the images of a set: how light and even they are, which ones are the same."""

import hashlib
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.images.collection import ImageSet, spread_indices
from diptych.images.pixels import PixelBatch

MOST_IMAGES: Final = 2000
_FEWEST_IMAGES: Final = 200
_MOST_PIXELS: Final = 1_000_000_000  # decoded in full: some ten seconds of a few threads
_TASK_IMAGES: Final = 16


@dataclass(frozen=True)
class Survey:
    """What was measured on a sample, pixels in 0 .. 1.

    Attributes:
        indices: (images,), which of the set.
        means: (images, channels).
        squares: (images, channels), means of the squared pixels.
        gray: (images,), whether there are three channels and they are equal everywhere.
        digests: a hash of each image's size and pixels.
    """

    indices: NDArray[np.int64]
    means: NDArray[np.float64]
    squares: NDArray[np.float64]
    gray: NDArray[np.bool_]
    digests: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def deviations(self) -> NDArray[np.float64]:
        """(images,), each image's standard deviation, of the channel that varies most."""
        return np.sqrt(np.maximum(self.squares - self.means**2, 0.0)).max(axis=1)

    @property
    def pixel_mean(self) -> NDArray[np.float64]:
        """(channels,), over all images alike."""
        return self.means.mean(axis=0)

    @property
    def pixel_std(self) -> NDArray[np.float64]:
        """(channels,), over all images alike."""
        return np.sqrt(np.maximum(self.squares.mean(axis=0) - self.pixel_mean**2, 0.0))


def survey(images: ImageSet, executor: Executor) -> Survey:
    """Decodes a spread sample, small where the format allows, and measures it.

    Args:
        images: the set; at most 2,000 of it are decoded, fewer where they are large.
        executor: its threads share the work.
    """
    mean_pixels = float((images.heights * images.widths).mean())
    most = int(np.clip(_MOST_PIXELS / mean_pixels, _FEWEST_IMAGES, MOST_IMAGES))
    indices = spread_indices(len(images), most)
    parts = [indices[i : i + _TASK_IMAGES] for i in range(0, len(indices), _TASK_IMAGES)]
    looks = [
        look for part in executor.map(lambda some: _look(images, some), parts) for look in part
    ]
    means, squares, gray, digests = zip(*looks, strict=True)
    return Survey(indices, np.array(means), np.array(squares), np.array(gray), digests)


_Look = tuple[NDArray[np.float64], NDArray[np.float64], bool, bytes]


def _look(images: ImageSet, indices: NDArray[np.int64]) -> list[_Look]:
    """Means, squares, whether it is gray, and a digest, of each image."""
    heights, widths = images.heights[indices], images.widths[indices]
    pixels = images.pixels.gather(indices)
    sizes = np.stack([heights, widths], axis=1)
    return [_look_at(pixels, row, size.tobytes()) for row, size in enumerate(sizes)]


def _look_at(pixels: PixelBatch, row: int, size: bytes) -> _Look:
    image = pixels.image(row)
    flat = image.reshape(-1, image.shape[2]) / float(np.iinfo(image.dtype).max)
    gray = image.shape[2] == 3 and bool(
        (image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all()
    )
    # Large images were decoded small: two of the same full size that agree there are taken for
    # copies of each other.
    digest = hashlib.blake2b(size + np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
    return flat.mean(axis=0), np.square(flat).mean(axis=0), gray, digest
