"""Which images to label next, and how the neighbours of an image changed between two runs."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from diptych.curation.subset import Way, choose_subset
from diptych.gallery.contents import Gallery
from diptych.gallery.server.requests import Refused, one_of, whole_number

MOST_BUDGET: Final = 10_000
_MOST_QUADRATIC: Final = 20_000  # images for a way whose time grows with their square


def ways_of(gallery: Gallery) -> list[Way]:
    """Ways to choose that are quick enough for so many images and need no classifier."""
    ways: list[Way] = ["typical", "k-centre"]
    return [*ways, "facility-location"] if len(gallery) <= _MOST_QUADRATIC else ways


def choose(gallery: Gallery, given: Mapping[str, Any]) -> dict[str, Any]:
    """Rows to label, without those that are labelled here.

    Args:
        gallery: of the images.
        given: ``budget`` and ``way``.
    """
    ways = ways_of(gallery)
    way = one_of(given, "way", ways, ways[0])
    labelled = np.flatnonzero(gallery.labels.codes()[1] >= 0)
    budget = whole_number(given, "budget", 1, min(MOST_BUDGET, len(gallery)))
    found = choose_subset(gallery.runs.first.vectors.features, budget, way, labelled=labelled)
    return {"rows": found.rows.tolist()}


def moved(gallery: Gallery, row: int, k: int) -> dict[str, Any]:
    """The nearest images in both runs, and how many of them are the same."""
    if gallery.runs.second is None:
        raise Refused(400, "There is one run only; open the gallery with --against to compare.")
    found = [(run, run.nearest_to_row(row, k)) for run in gallery.runs]
    same = set(found[0][1].rows.tolist()) & set(found[1][1].rows.tolist())
    return {
        "runs": [
            {
                "name": run.name,
                "rows": near.rows.tolist(),
                "similarities": near.similarities.tolist(),
            }
            for run, near in found
        ],
        "shared": len(same),
    }
