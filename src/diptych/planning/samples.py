"""Images to measure views on, where the run's own are not at hand."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diptych.images.collection import ImageSet
from diptych.images.open import from_array, open_images
from diptych.images.sources.photographs import whole_photographs
from diptych.planning.case import Case
from diptych.planning.memory import kept_bytes

_COUNT: Final = 64


@contextmanager
def sample_images(case: Case, given: ImageSet | None, executor: Executor) -> Iterator[ImageSet]:
    """The given images, or made up ones of the size that is planned for: photographs.

    They are arrays where decoded images are kept, and JPEG files otherwise.
    """
    if given is not None:
        yield given.decoded_for(case.config.images)
        return
    config = replace(case.config.images, limit=None, cache="none")
    pictures = _pictures(round(case.image_pixels**0.5), config.channels)
    if kept_bytes(case) or config.channels not in (1, 3):
        yield from_array(pictures, None, config)
        return
    with tempfile.TemporaryDirectory() as folder:
        for number, picture in enumerate(pictures):
            Image.fromarray(picture.squeeze()).save(Path(folder) / f"{number}.jpg", quality=90)
        # What is known of them goes with them.
        here = replace(config, path=folder, cache_folder=folder)
        yield open_images(here, executor).train.decoded_for(config)


def _pictures(side: int, channels: int) -> NDArray[np.uint8]:
    """(images, side, side, channels) of the built-in photographs, resized."""
    found = list[NDArray[np.uint8]]()
    for picture in whole_photographs():
        resized = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        found.append(np.asarray(resized)[..., np.arange(channels) % 3])
    return np.stack([found[number % len(found)] for number in range(_COUNT)])
