"""What the parts of a step take on this machine, each at the run's own shape."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from diptych.checkpoints.state import trainable
from diptych.config.run import RunConfig
from diptych.images.collection import ImageSet, spread_indices
from diptych.images.order import Order
from diptych.methods.contrastive import Contrastive, build_contrastive
from diptych.methods.dictionaries import ImageBank, KeyQueue
from diptych.models.norms import GlobalBatchNorm
from diptych.optimization.optimizers import build_optimizer
from diptych.planning.blocks import blocks_of, median_seconds, seconds_of
from diptych.planning.busy import companions
from diptych.planning.case import Case
from diptych.planning.exchange import measure_exchange
from diptych.planning.loss import look_up_cost, tile_of
from diptych.planning.machine import Machine
from diptych.planning.samples import sample_images
from diptych.planning.traffic import messages
from diptych.runtime.device import keep_freed_memory, use_threads
from diptych.views.batches import Batch, ViewBatches

_MOST_BANK: Final = 200_000  # images of a bank; a larger one takes as long
# That a run comes to hold besides, whatever its network: code made for its shapes, threads, lines
# of metrics; found by `benchmarks/cost_model.py --calibrate`.
_HELD_LATER: Final = 47_000_000
_MOST_VIEWED: Final = 1024  # images of which views are made


def measure(
    case: Case, machine: Machine, images: ImageSet | None = None, *, local: int = 1
) -> tuple[Machine, dict[str, float]]:
    """Measures a process's own work, and messages if there are several processes.

    Args:
        case: the run.
        machine: what is known; its network's figures are replaced by those measured.
        images: some of the run's; made up when not given.
        local: processes that share this machine.

    Returns:
        The machine, and seconds of the parts of a step, by the names of ``make_plan``.
    """
    keep_freed_memory()
    threads = use_threads(case.config.training.threads, processes=local)
    with ThreadPoolExecutor(threads) as executor:
        view_seconds(case, images, executor, most=2)  # loads the compiled kernels
    idle = idle_bytes()
    if idle is not None:
        machine = replace(machine, base_bytes=idle + _HELD_LATER)
    with companions(case, local - 1, threads), ThreadPoolExecutor(threads) as executor:
        method = build_small(case)
        half = method.autocast_type
        with torch.autocast("cpu", half, enabled=half is not None):
            networks = network_seconds(case, method)
        seconds = {
            "reads and views": view_seconds(case, images, executor),
            "networks": networks,
            "look-up": look_up_seconds(case, method),
            "optimizer and momentum encoder": moving_seconds(case, method),
        }
    if case.processes == 1:
        return machine, seconds
    told = sum(one.count for one in messages(case, method, _dim(method, case)))
    latency, rate = measure_exchange(
        min(2, case.processes), threads=threads, work_seconds=sum(seconds.values()) / told
    )
    better = replace(machine, network_seconds=latency, network_bytes_per_second=rate)
    return better, seconds


def measure_opening(case: Case, images: ImageSet | None = None) -> float:
    """Seconds to read and decode all images once, as a set is opened for the first time.

    Args:
        case: the run.
        images: some of the run's; made up when not given.
    """
    in_full = replace(case.config.images, jpeg_side=None, cache="none")
    threads = use_threads(case.config.training.threads)
    with ThreadPoolExecutor(threads) as executor, sample_images(case, images, executor) as found:
        pixels = found.decoded_for(in_full).pixels
        taken = spread_indices(len(found), _MOST_VIEWED)

        def once() -> float:
            begun = time.perf_counter()
            list(executor.map(pixels.gather, np.split(taken, len(taken))))
            return time.perf_counter() - begun

        return median_seconds(once) * case.image_count / len(taken)


def idle_bytes() -> int | None:
    """What this process holds with all libraries loaded and no network yet; None if untold."""
    import diptych.pretraining  # noqa: F401  with all that a run imports
    from diptych.logging import metrics as run_log  # noqa: F401

    torch.autograd.backward(torch.nn.Conv2d(3, 4, 3)(torch.randn(2, 3, 8, 8)).sum())
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # another system than Linux
        return None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def build_small(case: Case) -> Contrastive:
    """The run's method with random weights, its norms as they are among several processes."""
    method = build_contrastive(case.config, image_count=min(case.image_count, _MOST_BANK)).train()
    if case.config.training.channels_last:
        method = method.to(memory_format=torch.channels_last)
    if case.processes > 1:  # the same arithmetic as with others, whose numbers are missing
        for norm in method.modules():
            if isinstance(norm, GlobalBatchNorm):
                norm.normalise_batch = norm.normalise_over_processes  # type: ignore[method-assign]
    return method


def network_seconds(case: Case, method: Contrastive) -> float:
    """Of all passes of a step, from the times of the network's distinct blocks.

    What is computed again in the backward pass is taken for a forward pass.
    """
    config, chunk = case.config, case.images // case.chunks
    full = case.query_views - config.views.small_views
    sizes = [(full * chunk, config.views.side_pixels)]
    if config.views.small_views:
        sizes.append((config.views.small_views * chunk, config.views.small_side))
    total = 0.0
    for count, side in sizes:
        learning = _pass_seconds(config, method, count, side, learns=True)
        total += learning
        again = (case.chunks > 1) + (config.training.recompute == "stages")
        if again:
            total += again * _pass_seconds(config, method, count, side, learns=False)
    if case.key_views:
        count, side = case.key_views * chunk, config.views.side_pixels
        learns = case.keys_learn
        total += _pass_seconds(config, method, count, side, learns=learns, keys=True)
        again = learns * ((case.chunks > 1) + (config.training.recompute == "stages"))
        if again:
            total += again * _pass_seconds(config, method, count, side, learns=False, keys=True)
    if case.first_key_views:
        side = config.views.side_pixels
        passed = _pass_seconds(config, method, chunk, side, learns=False, keys=True)
        total += case.first_key_views * passed
    return total * case.chunks


def _pass_seconds(
    config: RunConfig,
    method: Contrastive,
    count: int,
    side: int,
    *,
    learns: bool,
    keys: bool = False,
) -> float:
    # Which blocks there are does not depend on how many images come.
    views = torch.empty(2, config.images.channels, side, side)
    found = sum(
        seconds_of(block, learns=learns) for block in blocks_of(method.network, views, count)
    )
    if method.predictor is not None and not keys:
        dim = config.head.output_features
        parts = blocks_of(method.predictor, torch.empty(2, dim), count)
        found += sum(seconds_of(block, learns=learns) for block in parts)
    return found


def look_up_seconds(case: Case, method: Contrastive) -> float:
    """Of comparing, forward and backward, on ready vectors; more keys of others take more."""
    alone = replace(
        case,
        processes=1,
        config=replace(case.config, training=replace(case.config.training, batch_size=case.images)),
    )
    dim = _dim(method, case)
    _fill(method, dim)
    batch = _batch(alone)
    queries = torch.randn(case.query_views, case.images, dim)
    keys = torch.randn(case.key_views, case.images, dim) if case.key_views else None

    def once() -> float:
        learned = queries.clone().requires_grad_()
        others = None if keys is None else keys.clone().requires_grad_(case.keys_learn)
        begun = time.perf_counter()
        output = method.contrast(learned, others, batch)
        torch.autograd.backward(output.loss)
        ended = time.perf_counter()
        return ended - begun

    tile = tile_of("cpu")
    here, whole = look_up_cost(alone, dim, tile=tile), look_up_cost(case, dim, tile=tile)
    return median_seconds(once) * whole.flops / here.flops


def _batch(case: Case) -> Batch:
    views = (torch.empty(0),) * (case.config.method.views + case.config.views.small_views)
    indices = torch.arange(case.images)
    return Batch(views, indices, step=1, labels=indices % 10)


def _dim(method: Contrastive, case: Case) -> int:
    side, channels = case.config.views.side_pixels, case.config.images.channels
    with torch.no_grad():
        return method.network(torch.zeros(2, channels, side, side)).shape[1]


def _fill(method: Contrastive, dim: int) -> None:
    dictionary = method.dictionary
    if isinstance(dictionary, KeyQueue):
        dictionary.enqueue(torch.nn.functional.normalize(torch.randn(len(dictionary.keys), dim)))
    if isinstance(dictionary, ImageBank):
        count = len(dictionary.keys)
        dictionary.update(torch.randn(count, dim), torch.arange(count))


def moving_seconds(case: Case, method: Contrastive) -> float:
    """Of the optimizer's step, and of the momentum encoder's."""
    optimizer = build_optimizer(case.config.optimizer, method)
    for _, parameter in trainable(method):
        parameter.grad = torch.randn_like(parameter)

    def once() -> float:
        begun = time.perf_counter()
        optimizer.step()
        method.update_momentum(0.99)
        return time.perf_counter() - begun

    found = median_seconds(once)
    method.zero_grad(set_to_none=True)
    return found


def view_seconds(
    case: Case,
    images: ImageSet | None,
    executor: ThreadPoolExecutor,
    *,
    most: int = _MOST_VIEWED,
) -> float:
    """Of all views of a process's images, decoding included where it is done in every step."""
    config, count = case.config, min(case.images, most)
    with sample_images(case, images, executor) as found:
        taken = np.arange(count, dtype=np.int64) % len(found)
        batches = ViewBatches(
            found,
            Order(config.seed, len(found), 1),
            config.views,
            executor,
            view_count=config.method.views,
        )

        def once() -> float:
            begun = time.perf_counter()
            batches.of(taken, epoch=0)
            return time.perf_counter() - begun

        return median_seconds(once) * case.images / count
