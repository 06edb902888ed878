"""Which encoder a run keeps: the start, the last one, or an average of their weights.

A run that learns on from good weights can make them worse. So at its end these are compared, by
kNN and a linear classifier on labelled images that it learned from, never on those that the figures
of the run are measured on; without labels by how many nearest neighbours stay what they were. Each
is compared as it is, with whitened features, and with those of an intermediate layer beside them. A
run from random weights compares the last one with itself whitened: nobody would keep its start.
Checkpoints are not compared: which ones there are depends on the speed of the machine.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diptych.config.model import NormConfig
from diptych.config.run import OWN, RunConfig
from diptych.diagnostics.candidates import (
    ENDS,
    FEWEST_IMAGES,
    INTERMEDIATE,
    LAST,
    SHARES,
    Candidate,
    Choice,
    choose_with_labels,
    choose_without_labels,
    read_choice,
    weights_of,
    why_chosen,
    write_choice,
)
from diptych.diagnostics.label_free import neighbour_agreement
from diptych.errors import ImagesError, RunFolderError
from diptych.evaluation.confidence import count_units, number_units
from diptych.evaluation.features import encode, in_batches
from diptych.evaluation.knn import knn_predict
from diptych.evaluation.labelled import Labelled, labelled_parts
from diptych.evaluation.linear import fit_linear
from diptych.images.collection import Collection, ImageSet, spread_indices
from diptych.images.groups import stratified_group_split
from diptych.models.averaging import average_weights, estimate_statistics, moved_norms
from diptych.models.encoders import count_features
from diptych.models.final_features import (
    MOST_WHITENED,
    Whitening,
    WithIntermediate,
    fit_blocks,
    intermediate_layer,
)
from diptych.models.norms import use_norm
from diptych.models.weights import difference, load_encoder, save_encoder
from diptych.runs.folder import RunFolder
from diptych.runs.tensor_files import UnreadableTensors, read_tensors, tensor_bytes
from diptych.views.batches import Order, ViewBatches, evaluation_views

_JUDGED: Final = 500  # images, over all cuts, each of which judges a fifth
_MOST_CUTS: Final = 5
_STRENGTH: Final = 0.1
"""Of the linear classifier: one for all, as to choose it for each would take too long."""
_BATCH: Final = 64  # images at once, for statistics
WHITENED_BY: Final = 256  # images, of which whitening sees views
VIEWS: Final = 4  # of each


def keep_encoder(
    folder: RunFolder,
    encoder: nn.Module,
    config: RunConfig,
    collection: Collection,
    executor: Executor,
    *,
    own_encoder: nn.Module | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Writes the encoder of a run, chosen among several where ``training.keep`` asks for that.

    Called again, as after it was interrupted, it goes by the choice that was made.

    Args:
        folder: of the run.
        encoder: as it is after the last step.
        config: of the run.
        collection: its images.
        executor: its threads make views.
        own_encoder: of a run whose encoder was given in Python, that module.
        say: prints a sentence on the choice.

    Raises:
        RunFolderError: the weights that the run began with are damaged.
        OSError: a file cannot be written.
    """
    start = _start_file(folder, config)
    if config.keeps_best and start is not None and not start.exists():
        say(
            f"{start} is gone, so that the encoder cannot be compared with what the run began "
            "from: kept is that of the last step."
        )
        folder.candidates.unlink(missing_ok=True)  # of an earlier choice
    elif config.keeps_best:
        _keep_best(folder, encoder, config, collection, executor, own_encoder, say)
        return
    save_encoder(folder.encoder, encoder, config)


def _keep_best(
    folder: RunFolder,
    encoder: nn.Module,
    config: RunConfig,
    collection: Collection,
    executor: Executor,
    own_encoder: nn.Module | None,
    say: Callable[[str], None],
) -> None:
    save_encoder(folder.last, encoder, config)
    device = next(encoder.parameters()).device
    network = load_encoder(folder.last, encoder=own_encoder).network.to(device)
    judged, images, why_not = _images_to_compare_on(collection, config)
    shown = images if judged is None else judged.images
    made = _Candidates(network, _start_weights(folder, config, network), shown, config, executor)
    choice = read_choice(folder)
    if choice is None or choice.weights != made.checksum:
        choice = _compared(made, judged, why_not)
        write_choice(folder, choice)
        say(choice.why)
    weights = weights_of(choice.chosen)
    made.become(SHARES[weights])
    whitening, layer = None, None
    if choice.chosen != weights:
        whitening = made.whitening()
        if choice.chosen.endswith(INTERMEDIATE):
            layer = made.layer
        else:
            whitening = whitening.of_first(made.own_features)
    save_encoder(folder.encoder, made.network, config, whitening=whitening, layer=layer)


# --- on which images ------------------------------------------------------------------------------


class _Judged(NamedTuple):
    """Labelled images to compare on.

    Attributes:
        images: of which each cut judges a fifth by the rest.
        labels: (images,).
        units: (images,), the same number for images that belong together; None where none do.
        cuts: for each cut the rows to fit on, and those to judge on.
    """

    images: ImageSet
    labels: Tensor
    units: NDArray[np.int64] | None
    cuts: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]

    @property
    def seen(self) -> NDArray[np.int64]:
        """The rows that some cut judges, ascending."""
        return np.unique(np.concatenate([held_out for _, held_out in self.cuts]))

    @property
    def counts_classes_alike(self) -> bool:
        """As the verdict does: where one class has more than half, accuracy says little."""
        return bool(np.bincount(self.labels[self.seen]).max() > 0.5 * len(self.seen))

    @property
    def weights(self) -> NDArray[np.float64]:
        """What each image that is judged counts, 1 in the mean, (judged images,)."""
        labels = self.labels[self.seen].numpy()
        if not self.counts_classes_alike:
            return np.ones(len(labels))
        _, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
        found: NDArray[np.float64] = len(labels) / (len(counts) * counts[numbers])
        return found

    def standard_error(self, gains: NDArray[np.float64]) -> float:
        """Of the mean of weighted gains, (judged images,); of classes counted alike within each.

        Images that belong together are right together, so their gains are one (the standard error
        of clusters: Liang and Zeger 1986).
        """
        around = gains - gains.mean()
        if self.counts_classes_alike:
            _, numbers = np.unique(self.labels[self.seen].numpy(), return_inverse=True)
            around = gains - (np.bincount(numbers, gains) / np.bincount(numbers))[numbers]
        if self.units is not None:
            around = np.bincount(number_units(self.units[self.seen]), around)
        return float(np.sqrt((around**2).sum()) / len(gains))


def _images_to_compare_on(
    collection: Collection, config: RunConfig
) -> tuple[_Judged | None, ImageSet, str]:
    """Labelled images if there are any, images without labels, and why the former are none."""
    most = config.training.keep.images
    unlabelled = collection.train.spread(most)
    try:
        found = labelled_parts(collection, group_by=config.images.group_by)
    except ImagesError as error:  # a run needs no labels, so these must not end it
        return None, unlabelled, f"Labels were of no use: {error}"
    if found is None:
        return None, unlabelled, "The run has no labels."
    judged = _judged(found, most)
    if judged is None:
        return None, unlabelled, "No class has two labelled images that may be used for this."
    if len(judged.images) < FEWEST_IMAGES:
        return None, unlabelled, f"{len(judged.images)} labelled images are too few to judge by."
    return judged, unlabelled, ""


def _judged(found: Labelled, most: int) -> _Judged | None:
    """Cuts of the images that final figures are fitted on; what these are measured on is not here.

    Groups, and copies of an image, are on one side of each cut.
    """
    chosen = spread_indices(len(found.train), most)
    images, labels = found.train.select(chosen), found.train_labels[torch.from_numpy(chosen)]
    units = None if found.units is None else found.units[chosen]
    identities = None if images.checksums is None else images.checksums[:, 0]
    cuts = list[tuple[NDArray[np.int64], NDArray[np.int64]]]()
    while len(cuts) < _MOST_CUTS and sum(len(held_out) for _, held_out in cuts) < _JUDGED:
        kept, held_out, _ = stratified_group_split(
            labels.numpy(), units, identities=identities, seed=len(cuts) + 1
        )
        if not len(held_out):
            return None
        cuts.append((kept, held_out))
    return _Judged(images, labels, units, tuple(cuts))


# --- the encoders -----------------------------------------------------------------------------


class _Candidates:
    """One network that becomes each of the candidates in turn.

    Attributes:
        network: in evaluation mode; at first the last encoder.
        images: that statistics are taken on, and features are of.
        shares: names of the weights to compare, with the share of the last ones in each.
        can_whiten: whether there are few enough features for that.
        layer: whose features are compared too, of a run that began from weights.
        own_features: of the network, which stand before those of the layer.
        checksum: of the one or two states that all candidates are made of.
    """

    def __init__(
        self,
        network: nn.Module,
        start: dict[str, Tensor] | None,
        images: ImageSet,
        config: RunConfig,
        executor: Executor,
    ) -> None:
        self.images = images
        self._config, self._executor = config, executor
        self._last = {name: value.cpu().clone() for name, value in network.state_dict().items()}
        self._start = start or self._last
        self.shares = SHARES if start else {LAST: SHARES[LAST]}
        self.checksum = _checksum(self._start, self._last)
        # Statistics of the batch as a whole: in groups an image might be alone, and those of all
        # processes would wait for the others, which do not come here.
        if config.norm.is_grouped or config.norm.kind == "sync":
            network = use_norm(network, NormConfig("split", images_per_group=_BATCH**2))
        self.network = network.eval()
        side, channels = config.views.side_pixels, images.channels
        blank = torch.zeros(1, channels, side, side, device=self._device)
        self.own_features = count_features(network, channels=channels, side_pixels=side)
        self.can_whiten = self.own_features <= MOST_WHITENED
        self.layer = intermediate_layer(network, blank) if start and self.can_whiten else None

    def become(self, share: float) -> None:
        """Gives the network the weights with a share of the last ones in them."""
        if share in (0.0, 1.0):
            self.network.load_state_dict(self._last if share else self._start)
            return
        self.network.load_state_dict(average_weights(self._start, self._last, share))
        # Norms that kept the start's statistics in training have them in every average too.
        norms = moved_norms(self.network, self._start, self._last)
        if norms:
            estimate_statistics(self.network, norms, self._batches())

    def features(self) -> Tensor:
        """Of the images, by the network as it is, then of the layer; (images, dim)."""
        return encode(
            self._whole, self.images, self._config.views, self._executor, batch_size=4 * _BATCH
        )

    @torch.no_grad()
    def whitening(self) -> Whitening:
        """Of these features, by views of the images as the run makes them."""
        images = self.images.spread(WHITENED_BY)
        device = self._device
        batches = ViewBatches(
            images,
            Order(self._config.seed, len(images), len(images)),
            self._config.views,
            self._executor,
            view_count=VIEWS,
        )
        whole, parts = self._whole, list[Tensor]()
        for rows in in_batches(len(images), _BATCH):
            views = batches.of(rows, epoch=0)[:VIEWS]
            parts.append(torch.stack([whole(view.to(device)).cpu() for view in views]))
        found = torch.cat(parts, dim=1)
        rest = found.shape[2] - self.own_features
        return fit_blocks(found, [self.own_features, *([rest] if rest else [])])

    @property
    def _whole(self) -> nn.Module:
        return self.network if self.layer is None else WithIntermediate(self.network, self.layer)

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _batches(self) -> Iterator[Tensor]:
        count = max(1, len(self.images) // _BATCH)
        for rows in np.array_split(np.arange(len(self.images)), count):
            views = evaluation_views(
                self.images, rows, "center", self._config.views, self._executor
            )
            yield views[0].to(self._device)


def _start_file(folder: RunFolder, config: RunConfig) -> Path | None:
    """What the run began from; None for random weights."""
    if config.encoder.name == OWN:
        return folder.untrained
    return None if config.encoder.weights is None else folder.start


def _start_weights(
    folder: RunFolder, config: RunConfig, network: nn.Module
) -> dict[str, Tensor] | None:
    """The encoder's state as the run began with it; None for random weights.

    Raises:
        RunFolderError: the file is damaged or of another network.
    """
    file = _start_file(folder, config)
    if file is None:
        return None
    try:
        weights = read_tensors(file)
    except UnreadableTensors as error:
        raise RunFolderError(
            f"{file}, which the encoder is compared with, is damaged: {error}. Restore "
            "it, and go on with --resume."
        ) from error
    if (found := difference(network.state_dict(), weights)) is not None:
        raise RunFolderError(f"{file} is not of the network of this run: {found}. Restore it.")
    return weights


def _checksum(*states: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for state in states:
        for name, value in sorted(state.items()):
            digest.update(name.encode())
            digest.update(tensor_bytes(value))
    return digest.hexdigest()[:32]


# --- the comparison ---------------------------------------------------------------------------


def _compared(made: _Candidates, judged: _Judged | None, why_not: str) -> Choice:
    """Measures all candidates and chooses one."""
    candidates, first, score_of_first = list[Candidate](), None, None
    for name, share in made.shares.items():
        made.become(share)
        whole, own = made.features().cpu(), made.own_features
        plain = whole[:, :own]
        first = plain if first is None else first
        of_ends = [plain]
        if made.can_whiten:
            whitening = made.whitening()
            of_ends.append(whitening.of_first(own)(plain))
            if made.layer is not None:
                of_ends.append(whitening(whole))
        for end, features in zip(ENDS, of_ends, strict=False):
            kept = 1.0 if features is first else neighbour_agreement(first, features)
            one = Candidate(name + end, share, kept)
            if judged is not None:
                right = _judge(features, judged)
                score = right.mean(axis=0)
                score_of_first = score if score_of_first is None else score_of_first
                gains = score - score_of_first
                one = _with_accuracies(one, right, gains, judged.standard_error(gains))
            candidates.append(one)
    if judged is None:
        count = len(made.images)
        chosen = choose_without_labels(candidates, count)
        words = f"Compared on {count:,} images that the run learned from. {why_not}"
        if count < FEWEST_IMAGES and len(made.shares) > 1:
            words += " So few say nothing of what training changed, so that the start is kept."
    else:
        chosen = choose_with_labels(candidates)
        words = _on_images(judged)
    return Choice(chosen, why_chosen(chosen, candidates), words, tuple(candidates), made.checksum)


def _judge(features: Tensor, judged: _Judged) -> NDArray[np.float64]:
    """How often kNN and a linear classifier are right on each judged image, (2, judged images).

    Times what the image counts.
    """
    right, times = np.zeros((2, len(features))), np.zeros(len(features))
    for fit, held_out in judged.cuts:
        rows, tested = torch.from_numpy(fit), torch.from_numpy(held_out)
        train, labels, truth = features[rows], judged.labels[rows], judged.labels[tested]
        units = None if judged.units is None else judged.units[fit]
        linear = fit_linear(train, labels, groups=units, strengths=(_STRENGTH,))
        right[0, held_out] += (knn_predict(train, labels, features[tested]) == truth).numpy()
        right[1, held_out] += (linear.predict(features[tested]) == truth).numpy()
        times[held_out] += 1
    return right[:, judged.seen] / times[judged.seen] * judged.weights


def _with_accuracies(
    one: Candidate, right: NDArray[np.float64], gains: NDArray[np.float64], error: float
) -> Candidate:
    knn, linear = right.mean(axis=1)
    return replace(
        one,
        knn=float(knn),
        linear=float(linear),
        gain=float(gains.mean()),
        standard_error=error,
    )


def _on_images(judged: _Judged) -> str:
    alike = ", each class counted alike" if judged.counts_classes_alike else ""
    seen = len(judged.seen)
    units = count_units(seen, None if judged.units is None else judged.units[judged.seen])
    together = (
        f" Standard errors count copies, and images of one group, as one: {units:,} of these."
        if units < seen
        else ""
    )
    return (
        f"Compared on {len(judged.images):,} labelled images, {seen:,} of them judged "
        f"by the rest in {len(judged.cuts)} cuts{alike}.{together} The figures of the run are "
        "measured on none of these images."
    )
