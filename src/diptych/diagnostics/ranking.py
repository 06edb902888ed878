"""Runs and checkpoints ranked without labels, and with labels how far that ranking can be trusted.

Every encoder is measured on the same images: by the effective rank of its features (RankMe,
2210.02885), by its pretext accuracy in batches of one size, and by the share of an image's nearest
neighbours that stay the same from one view to another. None of these is accuracy.

A run is measured by the encoder that it keeps, which need not be that of its last step; a
checkpoint by its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.checkpoints.save_and_load import list_checkpoints, load_checkpoint, own_checkpoints
from diptych.checkpoints.stores import CheckpointLocation, checkpoint_location
from diptych.config.data import ImagesConfig
from diptych.config.files import load_run_config
from diptych.config.run import RunConfig
from diptych.diagnostics.candidates import LAST, read_choice
from diptych.diagnostics.label_free import (
    Agreement,
    combined_rank,
    neighbour_agreement,
    rank_agreement,
)
from diptych.diagnostics.leak import build_to_encode, method_of
from diptych.diagnostics.neighbourhoods import batches_of_views, stability
from diptych.errors import ConfigError, DamagedCheckpoint, ImagesError
from diptych.evaluation.feature_store import FeatureStore
from diptych.evaluation.geometry import effective_rank
from diptych.evaluation.knn import accuracy, knn_predict
from diptych.evaluation.labelled import Labelled, labelled_parts
from diptych.evaluation.split import Split, unseen_split
from diptych.images.collection import Collection, ImageSet, spread_indices
from diptych.images.open import open_images
from diptych.images.sources.handed_over import path_of
from diptych.methods.build import has_keys
from diptych.methods.contrastive import Contrastive
from diptych.methods.logits import row_ranks_first
from diptych.models.momentum_encoder import MomentumEncoder
from diptych.models.weights import (
    TrainedOn,
    head_files,
    load_encoder,
    load_trained_on,
    load_with_head,
    untrained_encoder,
)
from diptych.runs.folder import RunFolder, load_record
from diptych.runtime.console import ProgressReporter
from diptych.runtime.devices import BATCH_SIZE, Runtime
from diptych.views.batches import ViewBatches


@dataclass(frozen=True)
class Candidate:
    """An encoder that may be chosen.

    Attributes:
        run: its folder.
        step: of the checkpoint; None for the end of a run whose checkpoints are gone.
        config: of the run.
        encoder: in evaluation mode, on its device.
        method: of the last step, or of the checkpoint, with head, predictor and momentum encoder;
            None where that is not known, or where the run has no keys, as a student.
        kept: what ``encoder`` is, where the run keeps another than that of its last step, as
            ``start, whitened``; None for that of the last step, or of the checkpoint.
    """

    run: Path
    step: int | None
    config: RunConfig
    encoder: nn.Module
    method: Contrastive | None
    kept: str | None = None


def candidates_of(
    folder: RunFolder, config: RunConfig, device: torch.device, *, every: bool
) -> Iterator[Candidate]:
    """The candidates of a run, oldest first, one at a time in memory.

    Args:
        folder: of the run.
        config: of the run.
        device: where encoders run.
        every: every good checkpoint that was kept, not the encoder that the run keeps.

    Raises:
        RunFolderError: there is neither a good checkpoint nor an encoder, or it is damaged.
    """
    good = _good(checkpoint_location(config.checkpoint, folder), folder)
    newest = next(good, None)
    if every:
        for path in reversed(list(good)):
            yield _from_checkpoint(folder, config, device, path)
    last = (
        _from_files(folder, config, device)
        if newest is None
        else _from_checkpoint(folder, config, device, newest)
    )
    yield last if every else _with_kept_encoder(last, folder, device)


def _good(place: CheckpointLocation, folder: RunFolder) -> Iterator[CheckpointLocation]:
    """Checkpoints of a run whose bytes are right, newest first."""
    if not list_checkpoints(place):  # an encoder alone needs no record of the run
        return
    for path in own_checkpoints(place, load_record(folder).identity):
        try:
            load_checkpoint(path)
        except DamagedCheckpoint:
            continue
        yield path


def _from_checkpoint(
    folder: RunFolder, config: RunConfig, device: torch.device, path: CheckpointLocation
) -> Candidate:
    tensors, scalars = load_checkpoint(path)
    if has_keys(config):
        method = method_of(tensors, config).to(device).eval()
        return Candidate(folder.path, int(scalars["step"]), config, method.encoder, method)
    encoder = untrained_encoder(config)
    prefix = "method/network.encoder."
    try:
        encoder.load_state_dict(
            {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        )
    except RuntimeError as error:
        raise DamagedCheckpoint(f"{path} is of another network: {error}") from error
    return Candidate(folder.path, int(scalars["step"]), config, encoder.to(device).eval(), None)


def _with_kept_encoder(last: Candidate, folder: RunFolder, device: torch.device) -> Candidate:
    """The last step, with the encoder that the run keeps in the place of its own."""
    if not folder.encoder.exists():  # training has not ended
        return last
    choice = read_choice(folder)
    kept = None if choice is None or choice.chosen == LAST else choice.chosen
    return replace(last, encoder=load_encoder(folder).to(device), kept=kept)


def _from_files(folder: RunFolder, config: RunConfig, device: torch.device) -> Candidate:
    """Encoder and head alone: the momentum encoder is taken to be where the network is."""
    # The predictor is in no file, and without it queries are not what they were in training.
    if not has_keys(config) or config.head.predictor_layers:
        encoder = load_encoder(head_files(folder)[0]).network.to(device)
        return Candidate(folder.path, None, config, encoder, None)
    trained, head = load_with_head(folder)
    method = build_to_encode(config)
    method.encoder.load_state_dict(trained.network.state_dict())
    method.network.get_submodule("head").load_state_dict(head.state_dict())
    if method.momentum_encoder is not None:
        method.momentum_encoder = MomentumEncoder(method.network)
    method = method.to(memory_format=torch.channels_last).to(device).eval()
    return Candidate(folder.path, None, config, method.encoder, method)


MEASURES: Final = ("effective_rank", "pretext", "stability")
"""More is better in each; they have equal weights in the combined rank."""

_PRETEXT_BATCH: Final = 256  # keys among which a query has its positive; the same for every run
_KNN_IMAGES: Final = 10_000  # to look for neighbours in, at most
_GIVE_IMAGES: Final = "Give --images PATH, to measure all on the same."


@dataclass(frozen=True)
class RankedCandidate:
    """The figures of a candidate.

    Attributes:
        run: its folder.
        step: of the checkpoint, or None.
        effective_rank: of h.
        pretext: pretext accuracy in batches of one size, with the run's own views, encoder of the
            last step or of the checkpoint, key encoder and predictor; None where the run has no
            keys.
        stability: share of an image's neighbours, by h, that two views agree on.
        steadiness: share of neighbours that this checkpoint and the one before it agree on; None
            for the first.
        knn: accuracy of kNN; None without labels.
        combined: mean over ``MEASURES`` of the share of other candidates that it is better than.
        kept: which encoder was measured, where it is not the last step's; see ``Candidate``.
    """

    run: str
    step: int | None
    effective_rank: float
    pretext: float | None
    stability: float
    steadiness: float | None = None
    knn: float | None = None
    combined: float | None = None
    kept: str | None = None


@dataclass(frozen=True)
class Ranking:
    """Candidates, the best by the combined rank first.

    Attributes:
        rows: one for each candidate.
        splits: of each run, on which images it was measured: the same, but one run may have seen
            what another did not.
        labelled: the same for kNN; empty without labels.
        agreement: of each measure with kNN, by name; None without labels.
    """

    rows: tuple[RankedCandidate, ...]
    splits: Mapping[str, Split]
    labelled: Mapping[str, Split]
    agreement: Mapping[str, Agreement | None] | None

    @property
    def images(self) -> int:
        """How many were measured."""
        return max(len(split.test) for split in self.splits.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        agreement = None
        if self.agreement is not None:
            agreement = {n: one and one.as_dict() for n, one in self.agreement.items()}
        return {
            "rows": [vars(row) for row in self.rows],
            "images": self.images,
            "splits": {run: split.as_dict() for run, split in self.splits.items()},
            "knn_splits": {run: split.as_dict() for run, split in self.labelled.items()},
            "agreement": agreement,
        }


def rank_runs(
    runs: Sequence[str | Path],
    *,
    images: str | Path | Any | None = None,
    labels: bool = False,
    checkpoints: bool | None = None,
    image_count: int = 2048,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = BATCH_SIZE,
    progress: ProgressReporter | None = None,
) -> Ranking:
    """Ranks runs, and the checkpoints that they kept, without labels.

    Args:
        runs: run folders.
        images: to measure on, anything that ``pretrain`` takes; by default the runs' own, and of
            these the held-out ones. All runs have to have the same.
        labels: measure kNN too, and how each measure agrees with it. The ranking stays as it is.
        checkpoints: every checkpoint that was kept, not the encoder that a run keeps; by default
            for one run.
        image_count: images to measure on, at most.
        device: where encoders run, as in ``Runtime``.
        threads: CPU threads; all cores when not given.
        batch_size: images that an encoder sees at once; changes features by rounding only.
        progress: told how far it is.

    Raises:
        ConfigError: there are no runs, or they would be measured on different images.
        ImagesError: too few images, or ``labels`` and there are none.
        RunFolderError: a folder holds no run.
    """
    folders = [RunFolder(Path(run)) for run in runs]
    configs = [load_run_config(folder.config) for folder in folders]
    _require_comparable(folders, configs, images)
    several = len(folders) == 1 if checkpoints is None else checkpoints
    with Runtime(device, threads, batch_size, progress or ProgressReporter()) as runtime:
        measurer = _Measurer(images, image_count, labels, runtime)
        measurer.require_same_images(folders, configs)
        rows = list[RankedCandidate]()
        for folder, config in zip(folders, configs, strict=True):
            seen = load_trained_on(folder.trained_on)
            candidates = candidates_of(folder, config, runtime.torch_device, every=several)
            rows += measurer.measure(folder, candidates, seen)
    combined = combined_rank(_columns(rows))
    rows = [replace(row, combined=share) for row, share in zip(rows, combined, strict=True)]
    agreement = rank_agreement(_columns(rows), [row.knn for row in rows]) if labels else None
    best_first = sorted(rows, key=lambda row: 1.0 if row.combined is None else -row.combined)
    return Ranking(tuple(best_first), measurer.splits, measurer.labelled, agreement)


def pretext_accuracy(method: Contrastive, batches: ViewBatches) -> float:
    """Share of queries whose positive logit is the highest among the keys of their batch.

    Queries and keys are made as in training, but for batch norms, which use their running
    statistics; the dictionary holds the batch's keys only, so that runs of every mechanism choose
    among as many.
    """
    found, device = list[Tensor](), next(method.parameters()).device
    method.eval()
    for step in range(batches.order.steps_per_epoch):
        _, indices = batches.order.batch(step)
        first, second = (view.to(device) for view in batches.of(indices, epoch=0)[:2])
        with torch.no_grad():
            query, key = method.encode_queries((first,))[0], method.encode_keys((second,))[0]
        if method.config.loss.similarity == "cosine":
            query, key = (functional.normalize(one, dim=1) for one in (query, key))
        found.append(row_ranks_first(query, key))
    return float(torch.cat(found).double().mean())


@dataclass
class _Measurer:
    """Measures every candidate on the same images in the same way."""

    path: str | Path | Any | None
    image_count: int
    labels: bool
    runtime: Runtime

    def __post_init__(self) -> None:
        self._opened: dict[ImagesConfig, Collection] = {}
        self.splits: dict[str, Split] = {}
        self.labelled: dict[str, Split] = {}

    def require_same_images(
        self, folders: Sequence[RunFolder], configs: Sequence[RunConfig]
    ) -> None:
        """Refuses runs of which one would be measured on other images of the set than another.

        Raises:
            ConfigError: names two of them.
        """
        first: tuple[RunFolder, ImageSet] | None = None
        for folder, config in zip(folders, configs, strict=True):
            collection = self._collection(config.images)
            images = unseen_split(collection, None, most=self.image_count).test
            first = first or (folder, images)
            if images.fingerprint() != first[1].fingerprint():
                mend = _GIVE_IMAGES if self.path is None else "Rank each by itself."
                raise ConfigError(
                    f"{first[0].path} would be measured on {len(first[1])} images and "
                    f"{folder.path} on {len(images)} others, and measures of different images "
                    "cannot be compared: images.limit, or what else says which images of a path "
                    f"are used, is not the same. {mend}"
                )

    def measure(
        self, folder: RunFolder, candidates: Iterator[Candidate], seen: TrainedOn | None
    ) -> Iterator[RankedCandidate]:
        """One row for each candidate of a run, in the order of their steps."""
        store, before = FeatureStore(folder.features, self.runtime), None
        for one in candidates:
            collection = self._collection(one.config.images)
            split = unseen_split(collection, seen, most=self.image_count)
            self.splits[str(one.run)], images = split, split.test
            name = f"the encoder of {one.run}"
            opened, views = self._opened_as(one.config.images), one.config.views
            features = store.features(one.encoder, images, opened, views, of=name)
            yield RankedCandidate(
                run=str(one.run),
                step=one.step,
                effective_rank=effective_rank(features),
                pretext=self._pretext(one, images),
                stability=stability(
                    one.encoder,
                    images,
                    one.config.views,
                    self.runtime.executor,
                    batch_size=self.runtime.batch_size,
                    told=self.runtime.counting("Features of two views of each image"),
                ),
                steadiness=None if before is None else neighbour_agreement(before, features),
                knn=self._knn(one, collection, seen, store) if self.labels else None,
                kept=one.kept,
            )
            before = features

    def _collection(self, config: ImagesConfig) -> Collection:
        """Opened once for all runs that see images alike."""
        config = self._opened_as(config)
        if config not in self._opened:
            told = self.runtime.counting("Reading the images")
            found = open_images(config, self.runtime.executor, told)
            if len(unseen_split(found, None, most=2).test) < 2:
                raise ImagesError(f"{config.path} has one image; wanted two or more to compare.")
            self._opened[config] = found
        return self._opened[config]

    def _opened_as(self, config: ImagesConfig) -> ImagesConfig:
        """How the images of a run are opened: its own, or those asked for."""
        if self.path is None:
            return config
        return config.at(path_of(self.path))

    def _pretext(self, one: Candidate, images: ImageSet) -> float | None:
        if one.method is None:
            return None
        batches = batches_of_views(
            images, one.config.views, self.runtime.executor, batch_size=_PRETEXT_BATCH
        )
        return pretext_accuracy(one.method, batches)

    def _knn(
        self,
        one: Candidate,
        collection: Collection,
        seen: TrainedOn | None,
        store: FeatureStore,
    ) -> float:
        group_by = one.config.images.group_by
        found = labelled_parts(collection, group_by=group_by, seen=seen)
        labelled = _spread(found, self.image_count)
        self.labelled[str(one.run)] = labelled
        train, test = (
            store.features(one.encoder, part, self._opened_as(one.config.images), one.config.views)
            for part in (labelled.train, labelled.test)
        )
        return accuracy(knn_predict(train, labelled.train_labels, test), labelled.test_labels)


def _require_comparable(
    folders: Sequence[RunFolder], configs: Sequence[RunConfig], images: object
) -> None:
    if not folders:
        raise ConfigError("there are no runs to rank; give their folders.")
    paths = {
        config.images.path: folder.path for folder, config in zip(folders, configs, strict=True)
    }
    if images is None and len(paths) > 1:
        (one, first), (other, second) = list(paths.items())[:2]
        raise ConfigError(
            f"{first} learned from {one} and {second} from {other}: measures of different images "
            f"cannot be compared. {_GIVE_IMAGES}"
        )


def _columns(rows: Sequence[RankedCandidate]) -> dict[str, list[float | None]]:
    return {name: [getattr(row, name) for row in rows] for name in MEASURES}


def _spread(labelled: Labelled | None, test_images: int) -> Labelled:
    """Fewer of the images, so that many runs are measured in reasonable time."""
    if labelled is None:
        raise ImagesError(
            "--labels needs labelled images: put those of each class into a folder of its own."
        )
    train = spread_indices(len(labelled.train), _KNN_IMAGES)
    test = spread_indices(len(labelled.test), test_images)
    return labelled.select(train, test)
