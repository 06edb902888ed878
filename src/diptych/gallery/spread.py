"""Labels for images near labelled ones, as proposals with a confidence.

The confidence of a class is the probability that a walk meets an image of that class before any
other labelled one. It goes from an image to one of its nearest, the nearer the more probably,
again and again, and ends with a small probability at each step, so that far from all labels none
is sure. These are the harmonic functions of Zhu, Ghahramani and Lafferty (2003, section 2), with an
end added to each step.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from diptych.embeddings.neighbours import Neighbours
from diptych.evaluation.knn import TEMPERATURE
from diptych.gallery.shown_runs import Rows

_END: Final = 0.02  # probability that a walk ends at a step
_STEPS: Final = 100


class Proposals(NamedTuple):
    """Images without a label and what they might be, the surest first.

    Attributes:
        rows: int64 (proposals,).
        codes: int64 (proposals,), of the classes.
        confidences: float32 (proposals,).
    """

    rows: Rows
    codes: Rows
    confidences: NDArray[np.float32]


def walks(found: Neighbours, codes: NDArray[np.integer], classes: int) -> NDArray[np.float32]:
    """(images, classes): where a walk from each image ends; see above.

    Args:
        found: the nearest others of each image.
        codes: (images,), its class, -1 for none.
        classes: how many there are.
    """
    count, k = found.rows.shape
    near = found.similarities.astype(np.float64)
    weights = np.exp((near - near.max(axis=1, keepdims=True, initial=-1.0)) / TEMPERATURE)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    free = codes < 0
    steps = sparse.csr_matrix(
        (
            ((1 - _END) * weights * free[:, None]).astype(np.float32).ravel(),
            found.rows.ravel(),
            np.arange(count + 1) * k,
        ),
        shape=(count, count),
    )
    labelled = np.flatnonzero(~free)
    own = np.zeros((count, classes), np.float32)
    own[labelled, codes[labelled]] = 1.0
    ends = own.copy()
    for _ in range(_STEPS):
        ends = steps @ ends + own
    return ends


def spread(
    found: Neighbours,
    codes: NDArray[np.integer],
    classes: int,
    *,
    only: int | None = None,
    confidence: float = 0.5,
) -> Proposals:
    """Proposes the most probable class of images without a label.

    Args:
        found: the nearest others of each image.
        codes: (images,), class of each, -1 for none.
        classes: how many there are.
        only: propose this class alone.
        confidence: least that is proposed.
    """
    ends = walks(found, codes, classes)
    best = ends.argmax(axis=1)
    sure = ends.max(axis=1)
    wanted = (codes < 0) & (sure >= confidence) & (sure > 0)
    if only is not None:
        wanted &= best == only
    rows = np.flatnonzero(wanted)
    rows = rows[np.argsort(-sure[rows], kind="stable")]
    return Proposals(rows, best[rows].astype(np.int64), np.minimum(sure[rows], 1.0))
