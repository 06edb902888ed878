"""What was drawn for some views: the table that both appliers read."""

from dataclasses import dataclass, replace
from itertools import permutations
from typing import Final

import numpy as np
from numpy.typing import NDArray

CROP = np.dtype(
    [
        ("top", "<f8"),  # pixels, of the crop in the image
        ("left", "<f8"),
        ("height", "<f8"),
        ("width", "<f8"),
        ("cubic", "<i8"),  # 1 for a bicubic resize, 0 for a bilinear one
    ],
    align=True,
)
"""Where a view is cut from its image, and how it is resized."""

# Compiled loops hold these as constants, and numba's cache does not notice a change in another
# file: after a change, touch the files with loops that use them. Zero must stay NOTHING.
NOTHING: Final = 0
FLIP: Final = 1
VERTICAL_FLIP: Final = 2
TURN: Final = 3  # quarter turns, counter-clockwise
AFFINE: Final = 4  # a, b, c, d, e, f: (x, y) comes from (a x + b y + c, d x + e y + f), about the
# centre, in pixels of the view, y downwards
COLOR: Final = 5  # order, a row of JITTER_ORDERS; factors of brightness, contrast, saturation; hue
GRAY: Final = 6
BLUR: Final = 7  # sigma and radius in pixels
SOLARIZE: Final = 8  # threshold
POSTERIZE: Final = 9  # shades
EQUALIZE: Final = 10
AUTO_CONTRAST: Final = 11
SHARPEN: Final = 12  # factor
# Two halves, as a table of doubles holds whole numbers up to 2^53 only.
NOISE: Final = 13  # sigma; two halves of a key, whole numbers below 2^32
CUTOUT: Final = 14  # top, left, height, width in pixels of the view
SOBEL: Final = 15

STEP_WIDTH: Final = 7
"""A step is one of the kinds above and up to six numbers, as listed there."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
# A draw names a row of it: in another order every seed would give other views.
JITTER_ORDERS = np.array(list(permutations(range(4))), dtype=np.int64)
"""(24, 4): the orders in which the four changes of a colour jitter can come."""


@dataclass(frozen=True)
class ViewParameters:
    """Drawn parameters of views.

    Attributes:
        crops: (views, images) of dtype ``CROP``.
        steps: float64 (views, images, steps, STEP_WIDTH): what is done to the resized crop, in
            order. The first number is the kind; NOTHING is passed over.
    """

    crops: NDArray[np.void]
    steps: NDArray[np.float64]

    def views(self, which: slice) -> "ViewParameters":
        """Some of the views."""
        return ViewParameters(self.crops[which], self.steps[which])

    def images(self, which: slice) -> "ViewParameters":
        """The views of some of the images."""
        return ViewParameters(self.crops[:, which], self.steps[:, which])

    def scaled(self, heights: NDArray[np.float64], widths: NDArray[np.float64]) -> "ViewParameters":
        """The same crops of images that were decoded smaller.

        Args:
            heights: (images,), decoded height over full height.
            widths: (images,), the same of the widths.
        """
        crops = self.crops.copy()
        crops["top"] *= heights
        crops["height"] *= heights
        crops["left"] *= widths
        crops["width"] *= widths
        return replace(self, crops=crops)
