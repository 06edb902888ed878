"""What each operation of views costs of that which labels say, measured before training.

A classifier is fitted on labelled images as they are and another on views of them under one
operation; both are measured on other images under that operation. What the first loses, the
operation touches: an encoder that learns to ignore it answers otherwise than the pixels do. What
the second loses as well, the operation destroys: it is not in a view, so no encoder that matches
views can keep it (Tian et al. 2020, 2005.10243, "What makes for good views").

As views are chosen by what is found here, all of it is measured within the images that an
evaluation fits on: a figure on images by which the views were chosen would be too high.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.config.data import ViewsConfig
from diptych.config.policies import Blur, Center, Crop, Operation
from diptych.errors import ImagesError
from diptych.evaluation.confidence import (
    BootstrapEstimate,
    Interval,
    estimate,
    mean_share_per_class,
)
from diptych.evaluation.features import PIXEL_SIDE
from diptych.evaluation.labelled import Labelled
from diptych.evaluation.operations.readers import (
    ENCODER_READER,
    PATCHES_READER,
    PIXELS_READER,
    EncoderReader,
    Patches,
    Reader,
    Ridge,
    fit_ridge,
    read_pixels,
)
from diptych.evaluation.operations.trials import Trial
from diptych.images.collection import ImageSet, spread_indices
from diptych.images.groups import stratified_group_split
from diptych.images.listing import Progress, ignore_progress
from diptych.views.batches import as_images
from diptych.views.cpu import SizedViews, load_views
from diptych.views.draw import draw_views

TRAIN_IMAGES: Final = 1500
TEST_IMAGES: Final = 1000
ENCODED_SHARE: Final = 0.3
"""Of these where an encoder is among the readers, which takes most of the time."""

LEAST_LOSS: Final = 0.03
"""Of accuracy; less is not worth weakening a view for, however sure it is."""

_FEWEST_VIEWS: Final = 1000  # of images measured on together, as far as four of each give them
_MOST_OF_EACH: Final = 4
_AT_ONCE: Final = 256  # images

KEEPS: Final = "keeps"
TOUCHES: Final = "touches"
DESTROYS: Final = "destroys"


@dataclass(frozen=True)
class Cost:
    """What one operation at one strength costs. Accuracies are means over classes.

    Attributes:
        trial: the operation.
        clean: by the best reader, images as they are.
        fixed: by the same classifier, under the operation.
        fitted: by the reader that is best under the operation, fitted under it.
        touched: clean less fixed, in pairs.
        destroyed: clean less fitted, in pairs.
        left_out: the same on the images fitted on, each told by a fit to all others that it does
            not belong together with.
        readers: for each reader the accuracy of its classifier of images as they are, and of one
            fitted under the operation.
    """

    trial: Trial
    clean: float
    fixed: float
    fitted: float
    touched: Interval
    destroyed: Interval
    left_out: float
    readers: Mapping[str, tuple[float, float]]

    @property
    def word(self) -> str:
        """Whether the operation keeps, touches or destroys what the labels say."""
        # The interval is of the images measured on: that another fit of as many images could have
        # lost nothing, those fitted on tell.
        lost = min(self.destroyed.value, self.left_out) >= LEAST_LOSS
        if self.destroyed.low > 0.0 and lost:
            return DESTROYS
        touched = self.touched.low > 0.0 and self.touched.value >= LEAST_LOSS
        return TOUCHES if touched else KEEPS


@dataclass(frozen=True)
class Costs:
    """What was measured of all operations.

    Attributes:
        costs: in the order of the trials.
        clean: by reader, accuracy on images as they are.
        best: the reader that reads images as they are best, by the images fitted on.
        chance: one over the classes.
        train_images, test_images: how many were fitted and measured on.
    """

    costs: tuple[Cost, ...]
    clean: Mapping[str, Interval]
    best: str
    chance: float
    train_images: int
    test_images: int
    apart: bool

    @property
    def on_images(self) -> str:
        """On which images, in a sentence."""
        fitted, measured = f"{self.train_images:,}", f"{self.test_images:,}"
        if self.apart:
            return (
                "Operations are tried within the images that an evaluation fits on: fitted on "
                f"{fitted}, measured on {measured} others. None of those that it measures on is "
                "looked at. Where several photographs of one thing are among them, name it "
                "(images.group_by): else one of them gives away another."
            )
        return (
            f"Operations are tried on the set's own parts: fitted on {fitted} images, measured on "
            f"{measured} that it holds out. An evaluation measures on these too, and flatters a "
            "run with views that were chosen by them: for figures that count, give it other "
            "labelled images (--test)."
        )

    @property
    def readable(self) -> bool:
        """Whether labels can be read at all, so that something can be lost."""
        return self.clean[self.best].low > self.chance + LEAST_LOSS


def measure_costs(
    labelled: Labelled,
    trials: Sequence[Trial],
    views: ViewsConfig,
    executor: Executor,
    *,
    encoder: EncoderReader | None = None,
    seed: int = 0,
    on_trials: Progress = ignore_progress,
) -> Costs:
    """Tries each operation alone.

    Args:
        labelled: images of a set with two parts of its own, whose second is measured on: nobody
            knows better what makes images independent than who made the parts. Of others a fifth
            of those to fit on, and those to measure on are not looked at. Of many a spread part.
        trials: what to try.
        views: of the run to be, whose side the sigma of a blur is for.
        executor: its threads make views.
        encoder: reads labels too.
        seed: of the views and the patches.
        on_trials: told how many trials are done.

    Raises:
        ImagesError: there are fewer than two classes to tell apart.
    """
    share = 1.0 if encoder is None else ENCODED_SHARE
    fitted, measured = _parts(labelled, int(TRAIN_IMAGES * share), int(TEST_IMAGES * share))
    readers = _Readers.of(fitted.images, views, executor, encoder, seed)
    repeats = _repeats(len(measured.images))
    clean = _fitted(readers(fitted.images, Center(), 1), fitted)
    best = max(clean, key=lambda name: clean[name].score)
    seen = readers(measured.images, Center(), 1)
    reached = {name: _reached(fit, seen[name], measured) for name, fit in clean.items()}
    found = []
    for number, trial in enumerate(trials):
        train = readers(fitted.images, trial.operation, 1)
        test = readers(measured.images, trial.operation, repeats)
        found.append(
            _cost(trial, best, reached[best], clean, _fitted(train, fitted), test, measured)
        )
        on_trials(number + 1, len(trials))
    return Costs(
        costs=tuple(found),
        clean={name: one.interval() for name, one in reached.items()},
        best=best,
        chance=1.0 / len(torch.unique(measured.labels)),
        train_images=len(fitted.images),
        test_images=len(measured.images),
        apart=labelled.whole is not None,
    )


def _cost(
    trial: Trial,
    best: str,
    reached: BootstrapEstimate,
    clean: Mapping[str, Ridge],
    own: Mapping[str, Ridge],
    test: Mapping[str, Tensor],
    measured: "_Part",
) -> Cost:
    fixed = {name: _reached(clean[name], test[name], measured) for name in own}
    fitted = {name: _reached(own[name], test[name], measured) for name in own}
    # By the images fitted on, so that the better of several by luck is not taken.
    then = max(own, key=lambda name: own[name].score)
    return Cost(
        trial=trial,
        clean=reached.value,
        fixed=fixed[best].value,
        fitted=fitted[then].value,
        touched=reached.minus(fixed[best]).interval(),
        destroyed=reached.minus(fitted[then]).interval(),
        left_out=clean[best].score - own[then].score,
        readers={name: (fixed[name].value, fitted[name].value) for name in own},
    )


def _fitted(features: Mapping[str, Tensor], part: "_Part") -> dict[str, Ridge]:
    return {name: fit_ridge(one, part.labels, part.units) for name, one in features.items()}


def _reached(ridge: Ridge, features: Tensor, part: "_Part") -> BootstrapEstimate:
    """Accuracy over all views of each image; resamples draw images that belong together whole."""
    truth = part.labels
    predicted = ridge.predict(features).reshape(-1, len(truth))
    right = (predicted == truth).double().mean(dim=0).numpy()
    figure = mean_share_per_class(right, truth.numpy())
    return estimate(figure, len(truth), units=part.units)


def _repeats(images: int) -> int:
    """Views of each image measured on: a few where there are few, as draws add noise."""
    return min(_MOST_OF_EACH, -(-_FEWEST_VIEWS // images))


class _Part(NamedTuple):
    """Images to fit on, or to measure on.

    Attributes:
        images: of classes that both parts have.
        labels: (images,), numbered from 0.
        units: (images,), the same number for images that belong together; None where none do.
    """

    images: ImageSet
    labels: Tensor
    units: NDArray[np.int64] | None


def _parts(labelled: Labelled, fitted: int, measured: int) -> tuple[_Part, _Part]:
    """Two parts of so many images at most: the set's own, or a cut of those to fit on by units."""
    images, labels, units = labelled.train, labelled.train_labels.numpy(), labelled.units
    if labelled.whole is None:
        known = np.unique(labelled.test_labels.numpy())
        others = (labelled.test, labelled.test_labels.numpy(), labelled.test_units)
        sides = ((images, labels, units), others)
    else:
        identities = None if images.checksums is None else images.checksums[:, 0]
        cut = stratified_group_split(labels, units, identities=identities)[:2]
        known = np.unique(labels[cut[1]])  # what is held out of a class is never all of it
        kept, held_out = (
            (images.select(rows), labels[rows], None if units is None else units[rows])
            for rows in cut
        )
        sides = (kept, held_out)
    if len(known) < 2:
        raise ImagesError(
            "to see what operations cost, labelled images are fitted on and others measured on. "
            "Wanted two classes or more with two images that differ, of two groups where there are "
            f"such (images.group_by), among the {len(images):,} to fit on; got {len(known)}. Add "
            "labelled images."
        )
    first, second = sides
    return _part_of(known, *first, fitted), _part_of(known, *second, measured)


def _part_of(
    known: NDArray[np.int64],
    images: ImageSet,
    labels: NDArray[np.int64],
    units: NDArray[np.int64] | None,
    most: int,
) -> _Part:
    some = _spread(labels, known, most)
    numbers = torch.from_numpy(np.searchsorted(known, labels[some]))
    return _Part(images.select(some), numbers, None if units is None else units[some])


def _spread(labels: NDArray[np.int64], known: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Rows of known classes, evenly spread over each class; at least one of each."""
    members = [np.flatnonzero(labels == one) for one in known]
    share = min(1.0, most / sum(map(len, members)))
    chosen = [one[spread_indices(len(one), max(1, round(share * len(one))))] for one in members]
    return np.sort(np.concatenate(chosen))


@dataclass(frozen=True)
class _Readers:
    """Makes views of images and reads them in every way."""

    small: Mapping[str, Reader]
    encoder: EncoderReader | None
    views: ViewsConfig
    executor: Executor
    seed: int

    @classmethod
    def of(
        cls,
        images: ImageSet,
        views: ViewsConfig,
        executor: Executor,
        encoder: EncoderReader | None,
        seed: int,
    ) -> "_Readers":
        bare = cls({}, None, views, executor, seed)
        seen = bare.make(images, Center(), 1, bare.small_views)
        return cls(
            {PIXELS_READER: read_pixels, PATCHES_READER: Patches.of(seen, seed).read},
            encoder,
            views,
            executor,
            seed,
        )

    @property
    def small_views(self) -> ViewsConfig:
        return replace(self.views, side_pixels=min(self.views.side_pixels, PIXEL_SIDE))

    def __call__(self, images: ImageSet, operation: Operation, count: int) -> dict[str, Tensor]:
        """By reader, features of so many views of each image: (views x images, dim)."""
        made = self.make(images, operation, count, self.small_views)
        found = {name: read(made) for name, read in self.small.items()}
        if self.encoder is not None:
            views = self.encoder.encoder.config.views
            found[ENCODER_READER] = self.encoder(self.make(images, operation, count, views))
        return found

    def make(
        self, images: ImageSet, operation: Operation, count: int, config: ViewsConfig
    ) -> Tensor:
        """Views of all images, view after view: (views x images, channels, side, side)."""
        policy = (
            (operation,)
            if isinstance(operation, Crop | Center)
            else (Center(), _sized(operation, config.side_pixels / self.views.side_pixels))
        )
        parts = []
        for begin in range(0, len(images), _AT_ONCE):
            indices = np.arange(begin, min(begin + _AT_ONCE, len(images)))
            drawn = draw_views(
                [policy] * count,
                side_pixels=config.side_pixels,
                seed=self.seed,
                epoch=0,
                indices=indices,
                heights=images.heights[indices],
                widths=images.widths[indices],
            )
            sized = [SizedViews(drawn, config.side_pixels)]
            (made,) = load_views(images, indices, sized, config, self.executor)
            parts.append(made)
        joined = np.concatenate(parts, axis=1)
        return as_images(joined.reshape(-1, *joined.shape[2:]))


def _sized(operation: Operation, ratio: float) -> Operation:
    """The operation for smaller views: the sigma of a blur is in pixels."""
    if not isinstance(operation, Blur):
        return operation
    low, high = operation.sigma
    return replace(operation, sigma=(max(1e-3, low * ratio), max(1e-3, high * ratio)))
