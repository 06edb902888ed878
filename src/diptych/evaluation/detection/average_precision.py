"""Average precision of detections, as COCO defines it, and intervals over images.

pycocotools matches detections to boxes; the average precision is computed from these matches here,
fast enough for a thousand resamples: a match counts as often as its image is drawn.
"""

import contextlib
import io
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diptych.errors import ConfigError
from diptych.evaluation.detection.detector import Detections
from diptych.images.sources.boxes import Boxes

THRESHOLDS: Final = np.linspace(0.5, 0.95, 10)
"""Overlaps (intersection over union) from which on a box counts as found."""

RECALLS: Final = np.linspace(0.0, 1.0, 101)
"""At which precision is read."""

MOST_DETECTIONS: Final = 100
"""Of one class in one image, those with the highest scores."""


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class, by falling score, and which of them found a box.

    Attributes:
        image: int64 (detections,), the image of each.
        right: bool (thresholds, detections), found a box that counts.
        wrong: bool (thresholds, detections), found none. Neither of both: found one that does not
            count.
        wanted: int64 (images,), boxes that count in each image.
    """

    image: NDArray[np.int64]
    right: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    wanted: NDArray[np.int64]


def match(detections: Detections, truth: tuple[Boxes, ...], class_count: int) -> list[ClassMatches]:
    """Matches detections to boxes by pycocotools, class by class.

    Difficult boxes are left out of the count with whatever finds them; so are crowds, which any
    number of detections may find.

    Raises:
        ConfigError: pycocotools is not installed.
    """
    images = len(truth)
    evaluation = _evaluated(detections, truth, class_count)
    return [
        _of_class(evaluation.evalImgs[start : start + images])
        for start in range(0, class_count * images, images)
    ]


def average_precisions(
    matches: list[ClassMatches], draws: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Average precision of every class at every threshold.

    Args:
        matches: one for each class.
        draws: (images,), how many times an image counts; once where not given.

    Returns:
        (classes, thresholds), fractions; NaN for a class of which there is no box.
    """
    return np.stack([_average_precision(one, draws) for one in matches])


def summary(precisions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of (classes, thresholds): mAP over all thresholds, at 0.5, at 0.75, then AP of each class."""
    per_class = precisions.mean(axis=1)
    known = ~np.isnan(per_class)
    if not known.any():
        return np.full(3 + len(per_class), np.nan)
    means = precisions[known].mean(axis=0)
    # Of the thresholds 0.5 is the first, 0.75 the sixth.
    return np.concatenate([[means.mean(), means[0], means[5]], per_class])


def resampled(
    matches: list[ClassMatches], samples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Summaries of sets of as many images drawn with replacement: (samples, figures)."""
    images = len(matches[0].wanted)
    draws = generator.multinomial(images, np.full(images, 1 / images), size=samples)
    return np.stack([summary(average_precisions(matches, one)) for one in draws])


def _average_precision(one: ClassMatches, draws: NDArray[np.int64] | None) -> NDArray[np.float64]:
    times = np.ones_like(one.wanted) if draws is None else draws
    wanted = int((one.wanted * times).sum())
    if not wanted:
        return np.full(len(THRESHOLDS), np.nan)
    weight = times[one.image]
    right = np.cumsum(one.right * weight, axis=1, dtype=np.float64)
    wrong = np.cumsum(one.wrong * weight, axis=1, dtype=np.float64)
    # As in pycocotools, so that nothing is divided by 0.
    precision = right / np.maximum(right + wrong, np.spacing(1))
    # The best precision at this recall or a higher one.
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    found = np.zeros(len(THRESHOLDS))
    for index, (recall, height) in enumerate(zip(right / wanted, best, strict=True)):
        # Precision is 0 at a recall that is not reached, but the mean is still over all 101.
        places = np.searchsorted(recall, RECALLS, side="left")
        found[index] = height[places[places < len(height)]].sum() / len(RECALLS)
    return found


def _of_class(per_image: list[dict[str, Any] | None]) -> ClassMatches:
    wanted = np.array([0 if e is None else (e["gtIgnore"] == 0).sum() for e in per_image])
    seen = [(i, e) for i, e in enumerate(per_image) if e is not None]
    nothing = [np.zeros((len(THRESHOLDS), 0))]
    scores = np.concatenate([np.zeros(0), *(e["dtScores"] for _, e in seen)])
    image = np.concatenate([np.zeros(0), *(np.full(len(e["dtScores"]), i) for i, e in seen)])
    matched = np.concatenate([*nothing, *(e["dtMatches"] for _, e in seen)], axis=1) > 0
    ignored = np.concatenate([*nothing, *(e["dtIgnore"] for _, e in seen)], axis=1) > 0
    order = np.argsort(-scores, kind="stable")  # ties by image, as COCO has it
    matched, ignored = matched[:, order], ignored[:, order]
    return ClassMatches(
        image=image[order].astype(np.int64),
        right=matched & ~ignored,
        wrong=~matched & ~ignored,
        wanted=wanted.astype(np.int64),
    )


def _evaluated(detections: Detections, truth: tuple[Boxes, ...], class_count: int) -> Any:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ConfigError(
            "detection needs pycocotools. Install it with `pip install 'diptych[detection]'`."
        ) from error
    listed = {
        "images": [{"id": index} for index in range(len(truth))],
        "categories": [{"id": label} for label in range(class_count)],
    }
    wanted, found = COCO(), COCO()
    wanted.dataset = listed | {"annotations": _wanted(truth)}
    found.dataset = listed | {"annotations": _found(detections)}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints how long it takes
        wanted.createIndex()
        found.createIndex()
        evaluation = COCOeval(wanted, found, "bbox")
        # One range only: then evalImgs is all images of a class, class after class, and `match`
        # cuts it so.
        evaluation.params.areaRng = [[0, _LARGEST]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.params.maxDets = [MOST_DETECTIONS]
        evaluation.params.iouThrs = THRESHOLDS
        evaluation.evaluate()
    return evaluation


_LARGEST: Final = 1e10  # square pixels, COCO's


def _wanted(truth: tuple[Boxes, ...]) -> list[dict[str, Any]]:
    flat = [(image, boxes, k) for image, boxes in enumerate(truth) for k in range(len(boxes))]
    return [
        _entry(number, image, int(boxes.labels[k]), boxes.corners[k])
        | {"iscrowd": int(boxes.crowd[k])}
        # A box too large to count is COCO's only one that does not and is found like any other.
        | ({"area": 2 * _LARGEST} if boxes.difficult[k] else {})
        for number, (image, boxes, k) in enumerate(flat, start=1)  # 0 means "no match"
    ]


def _found(detections: Detections) -> list[dict[str, Any]]:
    image = np.repeat(np.arange(len(detections.counts)), detections.counts)
    return [
        _entry(number + 1, int(image[number]), int(detections.labels[number]), corners)
        | {"score": float(detections.scores[number])}
        for number, corners in enumerate(detections.corners)
    ]


def _entry(number: int, image: int, label: int, corners: NDArray[np.float32]) -> dict[str, Any]:
    left, top, right, bottom = (float(value) for value in corners)
    box = [left, top, right - left, bottom - top]
    return {
        "id": number,
        "image_id": image,
        "category_id": label,
        "bbox": box,
        "area": box[2] * box[3],
    }
