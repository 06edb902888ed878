"""The map: a point of the plane for each image, near those of similar images."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.gallery.pieces import Progress

SEED: Final = 0


def make_map(features: NDArray[np.float32], progress: Progress) -> NDArray[np.float32]:
    """(images, 2) in [-1, 1]: the two directions in which vectors vary most."""
    centred = features - features.mean(axis=0)
    _, _, directions = np.linalg.svd(centred[:: max(1, len(centred) // 5000)], full_matrices=False)
    points = centred @ directions[:2].T
    if points.shape[1] < 2:
        points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    return fit_square(points)


def fit_square(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """Moves and scales points so that they fill [-1, 1] in their longer direction."""
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    half = float((points.max(axis=0) - points.min(axis=0)).max()) / 2
    return ((points - middle) / (half or 1.0)).astype(np.float32)
