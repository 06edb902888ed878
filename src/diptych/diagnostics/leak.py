"""How far batch statistics alone give the positive key away (MoCo, section 3.3).

Where images of a group share batch-norm statistics, a query and its positive key are normalised by
the same images, and can be matched by that. So the same views are encoded
twice: keys in the groups that they have in training, and keys in groups drawn at random. Images,
views and weights are the same. The leak accuracy is the pretext accuracy in the first case less
that in the second: the share of queries that are matched by batch statistics alone.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from diptych.checkpoints.save_and_load import load_newest
from diptych.checkpoints.stores import checkpoint_location
from diptych.config.files import load_run_config
from diptych.config.run import OWN, RunConfig
from diptych.errors import DamagedCheckpoint, ImagesError, RunFolderError
from diptych.images.listing import Progress, ignore_progress
from diptych.images.open import open_images
from diptych.logging.metrics import read_metrics
from diptych.logging.times import SLOWEST_PROCESS
from diptych.methods.build import build_with_keys, has_keys
from diptych.methods.contrastive import Contrastive
from diptych.methods.logits import logit_rounding, ranks_first
from diptych.models.norms import SplitBatchNorm, frozen_statistics
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import RunFolder, load_record, require_writable
from diptych.runtime.console import ProgressReporter
from diptych.runtime.devices import Runtime
from diptych.views.batches import Batch, Order, ViewBatches, learned_images

CERTAIN_ERRORS = 3.0  # standard errors beyond which a leak is called one
LEAST_GROUPS = 8  # with fewer the standard error is not reliable


class Leak(NamedTuple):
    """What batch statistics give away.

    Attributes:
        accuracy: share of queries whose positive logit is the highest, with keys encoded in the
            groups of training.
        regrouped_accuracy: the same with keys encoded in groups drawn at random.
        error: standard error of the leak accuracy, over groups.
        groups: of images that share statistics.
        images_per_group: in each.
    """

    accuracy: float
    regrouped_accuracy: float
    error: float
    groups: int
    images_per_group: int

    @property
    def leak_accuracy(self) -> float:
        """Share of queries matched by batch statistics alone; 0 where nothing leaks."""
        return self.accuracy - self.regrouped_accuracy

    @property
    def is_certain(self) -> bool:
        """Whether it is more than chance explains; of few groups nothing is."""
        return self.groups >= LEAST_GROUPS and self.leak_accuracy > CERTAIN_ERRORS * self.error

    def sentence(self) -> str:
        """What the figures mean."""
        figures = (
            f"pretext accuracy is {self.accuracy:.1%} with keys encoded in {self.groups:,} groups "
            f"of {self.images_per_group} images as in training, {self.regrouped_accuracy:.1%} with "
            f"keys in random groups (leak accuracy {100 * self.leak_accuracy:+.1f} points"
        )
        if self.groups < LEAST_GROUPS:
            return (
                f"Too few images to tell whether batch statistics leak, which takes {LEAST_GROUPS} "
                f"groups: {figures})."
            )
        figures += f", give or take {200 * self.error:.1f})"
        if self.is_certain:
            return (
                f"Batch statistics leak: {figures}. Use norm.kind = 'shuffle', 'layer' or 'group'."
            )
        return f"No leak can be told from chance: {figures}."


def check_leak(
    run: str | Path,
    *,
    image_count: int = 2048,
    device: str = "auto",
    threads: int | None = None,
    progress: ProgressReporter | None = None,
) -> Leak | None:
    """Measures the leak of a run on its own images and writes ``leak.json``.

    Args:
        run: a run folder with a checkpoint.
        image_count: images to encode, in whole batches; at least enough for eight groups.
        device: where the networks run, as in ``Runtime``.
        threads: CPU threads; all cores when not given.
        progress: told how far it is.

    Returns:
        What was measured, or None where nothing can leak, see ``cannot_leak``.

    Raises:
        RunFolderError: there is no run, or no good checkpoint, or it is not known how many images
            shared statistics.
        ImagesError: its images are not there any more, or too few for two groups.
        OSError: the run folder cannot be written.
    """
    folder = RunFolder(Path(run))
    config = load_run_config(folder.config)
    _require_whole_batches(folder, config)
    if cannot_leak(config) is not None:
        return None
    require_writable(folder.path)
    runtime = Runtime(device, threads, progress=progress or ProgressReporter())
    method = load_trained_method(folder, config).to(runtime.torch_device)
    with runtime:
        told = runtime.counting("Reading the images")
        opened = open_images(config.images, runtime.executor, told).train
        images, of_groups = learned_images(opened, config)
        order = Order(config.seed, len(images), config.training.batch_size)
        chunk = min(config.training.chunk_size or order.batch_size, order.batch_size)
        group = _images_per_group(method, chunk)
        wanted = max(image_count, LEAST_GROUPS * group)
        batch_count = min(max(1, wanted // order.batch_size), order.steps_per_epoch)
        if batch_count * order.batch_size < 2 * group:
            raise ImagesError(
                f"{config.images.path} has {len(images)} images; wanted two groups of {group} at "
                "least, to compare one with the other."
            )
        batches = ViewBatches(
            images,
            order,
            config.views,
            runtime.executor,
            view_count=config.method.views,
            groups=of_groups,
        )
        told = runtime.counting("Encoding queries and keys")
        found = measure_leak(
            method, batches, batch_count=batch_count, chunk_size=chunk, on_images=told
        )
    figures = found._asdict() | {"leak_accuracy": found.leak_accuracy}
    atomic_write(folder.leak, (json.dumps(figures, indent=1) + "\n").encode())
    return found


def cannot_leak(config: RunConfig) -> str | None:
    """Why batch statistics cannot leak in a run, whatever it learned; None where they can."""
    batch, chunk = config.training.batch_size, config.training.chunk_size
    if config.norm.is_per_image:
        return f"norm.kind = {config.norm.kind!r} has no batch statistics"
    if config.method.dictionary.kind == "bank":
        return "a key from the bank was encoded in an earlier epoch, among other images"
    whole = not config.norm.is_grouped and (chunk is None or chunk >= batch)
    if config.method.dictionary.kind == "batch" and whole:
        return "all keys that a query meets share the statistics of one batch"
    return None


def _require_whole_batches(folder: RunFolder, config: RunConfig) -> None:
    """Refuses a run whose processes normalised a part of the batch each: how large is not recorded.

    Raises:
        RunFolderError: says what to do.
    """
    by_parts = config.norm.kind == "batch" and config.method.dictionary.kind != "bank"
    # Of several processes alone it is logged which one is the slowest.
    if by_parts and any(SLOWEST_PROCESS in line for line in read_metrics(folder.metrics)):
        raise RunFolderError(
            f"{folder.path} was trained by several processes, each of which normalised its own "
            "part of the batch (norm.kind = 'batch'); how large that was is not recorded, so a "
            "leak cannot be measured. norm.kind = 'sync' or 'shuffle' leaves hardly any."
        )


def load_trained_method(folder: RunFolder, config: RunConfig) -> Contrastive:
    """The method of a run's newest checkpoint: head, momentum encoder and dictionary too.

    Raises:
        RunFolderError: there is no checkpoint, or the method has no keys, as a student's.
        DamagedCheckpoint: there are some, but none is good.
    """
    place = checkpoint_location(config.checkpoint, folder)
    found = load_newest(place, load_record(folder).identity, lambda why: None)
    if found is None:
        raise RunFolderError(f"{folder.path} has no checkpoint. Wanted the folder of a run.")
    if not has_keys(config):
        raise RunFolderError(
            f"{folder.path} was trained by the method {config.method_name!r}, which compares no "
            "queries with keys: there is nothing to leak."
        )
    return method_of(found[0], config)


def method_of(tensors: Mapping[str, Tensor], config: RunConfig) -> Contrastive:
    """The whole method of a run from the tensors of one of its checkpoints.

    Raises:
        DamagedCheckpoint: they are of another network.
    """
    state = {n.removeprefix("method/"): v for n, v in tensors.items() if n.startswith("method/")}
    keys = state.get("dictionary.keys")
    # A bank has a row for each image, and must be as long as the one that is loaded.
    method = build_to_encode(config, image_count=1 if keys is None else len(keys))
    try:
        method.load_state_dict(state)
    except RuntimeError as error:
        raise DamagedCheckpoint(f"the checkpoint is of another network: {error}") from error
    return method.to(memory_format=torch.channels_last)


def build_to_encode(config: RunConfig, *, image_count: int = 1) -> Contrastive:
    """A run's method, whose weights are yet to come, and whose loss is not computed.

    So a loss that was given in Python need not be at hand.
    """
    if config.method.loss.kind == OWN:
        loss = replace(config.method.loss, kind="info_nce", semi_hard=False)
        config = replace(config, method=replace(config.method, loss=loss))
    return build_with_keys(config, image_count=image_count)


def measure_leak(
    method: Contrastive,
    batches: ViewBatches,
    *,
    batch_count: int,
    chunk_size: int | None = None,
    on_images: Progress = ignore_progress,
) -> Leak:
    """Compares keys encoded as in training with the same keys encoded in random groups.

    Args:
        method: trained; its running statistics and its dictionary stay as they are.
        batches: of the run's images.
        batch_count: whole batches to take, from the first epoch's.
        chunk_size: images encoded at once in training; the whole batch when not given.
        on_images: told how many images are encoded, once for each case.

    Raises:
        ValueError: fewer than two groups.
    """
    chunk = chunk_size or batches.order.batch_size
    norm_images = _images_per_group(method, chunk)
    taken = [batches.order.batch(step) for step in range(batch_count)]
    indices = np.concatenate([chosen for _, chosen in taken])
    groups = torch.arange(len(indices)) // norm_images
    if int(groups[-1]) < 1:
        raise ValueError("wanted two groups or more to compare")
    # Always the same draw, so that a run has one figure.
    shuffled = np.random.Generator(np.random.Philox(0)).permutation(len(indices))
    epoch = taken[0][0]
    queries, keys = _encode(method, batches, indices, epoch, chunk, on_images)
    # Views follow from seed, epoch and image and not from the batch: the groups alone differ.
    _, moved = _encode(method, batches, indices[shuffled], epoch, chunk, on_images)
    # Back in the order of the images: argsort of a permutation is its inverse.
    regrouped = moved[torch.from_numpy(np.argsort(shuffled))]
    apart = logit_rounding(queries, keys, regrouped, temperature=1.0)
    return compare_groupings(queries @ keys.T, queries @ regrouped.T, groups, apart)


def compare_groupings(
    scores: Float[Tensor, "images images"],
    regrouped: Float[Tensor, "images images"],
    groups: Int[Tensor, " images"],
    apart: Float[Tensor, " images"] | float = 0.0,
) -> Leak:
    """Pretext accuracy with keys encoded in the groups of training, and in random groups.

    Args:
        scores: of each query with each key, encoded as in training; positives on the diagonal.
        regrouped: the same with keys encoded in random groups.
        groups: of each image, as many in each but for the last.
        apart: what a score must be higher by to be higher; see ``logits.logit_rounding``.
    """
    found, elsewhere = _found(scores, apart), _found(regrouped, apart)
    count = int(groups.max()) + 1
    differences = torch.stack(
        [(found - elsewhere)[groups == group].sum() for group in range(count)]
    )
    # Queries of a group share their statistics: groups are what is independent.
    error = float(differences.std() * math.sqrt(count) / len(groups))
    images_per_group = int((groups == 0).sum())
    return Leak(float(found.mean()), float(elsewhere.mean()), error, count, images_per_group)


def _images_per_group(method: Contrastive, encoded_at_once: int) -> int:
    """Images that share statistics: the smallest group of a split norm, or all encoded at once."""
    sizes = [norm.images_per_group for norm in method.modules() if isinstance(norm, SplitBatchNorm)]
    return min([*sizes, encoded_at_once])


@torch.no_grad()
def _encode(
    method: Contrastive,
    batches: ViewBatches,
    indices: NDArray[np.int64],
    epoch: int,
    chunk: int,
    on_images: Progress,
) -> tuple[Tensor, Tensor]:
    """Queries and keys of images, (images, dim) each, as many at once as in training."""
    # Shuffling is over a whole batch; without it a chunk by itself is encoded as in its batch.
    size = chunk if method.shuffle_seed is None else batches.order.batch_size
    found, device = list[tuple[Tensor, Tensor]](), next(method.parameters()).device
    # In training mode, as it is the batch's statistics that may leak; the running ones stay.
    method.train()
    with frozen_statistics(method):
        for step, start in enumerate(range(0, len(indices), size)):
            chosen = indices[start : start + size]
            views = batches.of(chosen, epoch)[: method.config.views]
            batch = Batch(views, torch.from_numpy(chosen), step).to(device)
            found.append(method.encode_pairs(batch))
            on_images(start + len(chosen), len(indices))
    method.eval()
    queries, keys = zip(*found, strict=True)
    return torch.cat(queries).float().cpu(), torch.cat(keys).float().cpu()


def _found(scores: Float[Tensor, "images images"], apart: Tensor | float) -> Tensor:
    """1 for each query whose positive logit is the highest; (images,)."""
    others = scores.clone().fill_diagonal_(-math.inf).amax(dim=1)
    return ranks_first(scores.diagonal(), others, apart).double()
