"""What a file says of the boxes in one image, before it is held against the image itself."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diptych.images.collection import Skipped


@dataclass(frozen=True)
class Annotation:
    """The boxes that a file gives for one image; nothing of it is checked but that it is numbers.

    Attributes:
        name: of the image file, relative to the data's folder.
        height: of the image in pixels, as the file says.
        width: of the image in pixels, as the file says.
        boxes: float64 (boxes, 4), left, top, right, bottom in pixels, from 0, the right and the
            bottom one past the last pixel.
        classes: the name of each box's class.
        difficult: bool (boxes,).
        crowd: bool (boxes,).
    """

    name: str
    height: int
    width: int
    boxes: NDArray[np.float64]
    classes: tuple[str, ...]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True)
class Annotations:
    """The annotations of one part of a data set.

    Attributes:
        origin: the file or folder that they come from, named in errors.
        found: one for each image.
        skipped: the images whose annotation cannot be used.
    """

    origin: str
    found: tuple[Annotation, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def total(self) -> int:
        """Images that there are, good and skipped."""
        return len(self.found) + len(self.skipped)
