"""The built-in set: patches of the real photographs that scikit-image and scikit-learn ship.

Sixteen photographs, each a class. A photograph is divided into square cells; one cell in four is
for testing, and a patch lies within one cell, so that training and test patches share no pixel.
Nothing is downloaded.
"""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.codecs.channels import Pixels
from diptych.images.codecs.decode import decode_file
from diptych.images.collection import ImageSet
from diptych.images.sources.arrays import image_set
from diptych.images.splits import LocatedImages

PHOTOGRAPHS_NAME: Final = "photographs"
SIDE_PIXELS: Final = 32
CELL_PIXELS: Final = 48
TRAIN_PATCHES: Final = 320  # of each photograph
TEST_PATCHES: Final = 80
PHOTOGRAPHS: Final = {
    "astronaut": "skimage/data/astronaut.png",
    "brick": "skimage/data/brick.png",
    "camera": "skimage/data/camera.png",
    "chelsea": "skimage/data/chelsea.png",
    "china": "sklearn/datasets/images/china.jpg",
    "coffee": "skimage/data/coffee.png",
    "coins": "skimage/data/coins.png",
    "flower": "sklearn/datasets/images/flower.jpg",
    "grass": "skimage/data/grass.png",
    "gravel": "skimage/data/gravel.png",
    "hubble": "skimage/data/hubble_deep_field.jpg",
    "ihc": "skimage/data/ihc.png",
    "moon": "skimage/data/moon.png",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "retina": "skimage/data/retina.jpg",
    "rocket": "skimage/data/rocket.jpg",
}
"""Name of each class and the file it is cut from: package, then path inside it."""


def is_photographs(path: str) -> bool:
    """Whether it is their name, and no file or folder is called so."""
    return path == PHOTOGRAPHS_NAME and not Path(path).exists()


def find_photographs(path: str, config: ImagesConfig) -> LocatedImages:
    """Cuts the patches, always the same ones, and labels each by its photograph."""
    del path
    train, test = list[Pixels](), list[Pixels]()
    generator = np.random.Generator(np.random.Philox(0))
    # Some are gray: of their own channels they would not agree. None is reduced: a patch is an
    # image of its own, and the same one for every run.
    color: Literal["rgb", "gray"] = "gray" if config.color == "gray" else "rgb"
    alike = replace(config, color=color, raw_channels=None, bits=8, jpeg_side=None)
    for location in PHOTOGRAPHS.values():
        photograph = decode_file(_file(location), alike)
        train_cells, test_cells = _cells(photograph, generator)
        train.append(_patches(photograph, train_cells, TRAIN_PATCHES, generator))
        test.append(_patches(photograph, test_cells, TEST_PATCHES, generator))
    learned, held_out = _labelled(train, config), _labelled(test, replace(config, limit=None))
    return LocatedImages(
        learned,
        [held_out],
        description=f"{len(learned):,} patches of {len(PHOTOGRAPHS)} built-in photographs to learn "
        f"from and {len(held_out):,} held out, {SIDE_PIXELS} x {SIDE_PIXELS} pixels.",
        train_part="train",
        test_part="test",
    )


def whole_photographs() -> list[Pixels]:
    """The photographs that the patches are cut from, each (height, width, 3)."""
    return [decode_file(_file(location), ImagesConfig()) for location in PHOTOGRAPHS.values()]


def _labelled(patches: list[Pixels], config: ImagesConfig) -> ImageSet:
    labels = np.repeat(np.arange(len(patches)), [len(some) for some in patches])
    found = image_set(np.concatenate(patches), labels, config, PHOTOGRAPHS_NAME)
    names = tuple(PHOTOGRAPHS)  # of which a limit may leave some out
    return replace(found, classes=tuple(names[int(number)] for number in found.classes))


def _file(location: str) -> Path:
    package, _, inside = location.partition("/")
    found = find_spec(package)  # where it lies, without the seconds that importing it takes
    if found is None or found.origin is None:
        raise ImagesError(
            f"the built-in photographs lie in the package {package}, which is missing. Install "
            "diptych anew with its dependencies."
        )
    return Path(found.origin).parent / inside


def _cells(
    photograph: Pixels, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Top left corners of the training and the test cells, (cells, 2) each."""
    rows, columns = photograph.shape[0] // CELL_PIXELS, photograph.shape[1] // CELL_PIXELS
    corners = np.argwhere(np.ones((rows, columns))) * CELL_PIXELS
    shuffled = generator.permutation(corners)
    held_out = len(corners) // 4
    return shuffled[held_out:], shuffled[:held_out]


def _patches(
    photograph: Pixels,
    cells: NDArray[np.int64],
    count: int,
    generator: np.random.Generator,
) -> Pixels:
    """Patches at random places in the cells, each cell used about equally often."""
    shifts = generator.integers(0, CELL_PIXELS - SIDE_PIXELS + 1, size=(count, 2))
    corners = cells[np.arange(count) % len(cells)] + shifts
    return np.stack(
        [photograph[y : y + SIDE_PIXELS, x : x + SIDE_PIXELS] for y, x in corners.tolist()]
    )
