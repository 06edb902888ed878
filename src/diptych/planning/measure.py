"""What a run takes on this machine: opening images, and a few real steps at the run's own shapes.

Networks, optimizer and momentum encoder are measured in real steps without the logits; the logits
by themselves, as they grow otherwise with the batch; and messages between stretches of work.
Messages of idle processes would be too quick: in a run one process finishes its work a little later
than the other, and the receiver has to be woken while all cores are busy.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from diptych.errors import ConfigError
from diptych.images.collection import ImageSet, spread_indices
from diptych.images.listing import open_listing
from diptych.images.open import from_array, locate_images, open_images
from diptych.images.sources.known_sets import whole_photographs
from diptych.methods.build import build_with_keys
from diptych.methods.contrastive import Contrastive
from diptych.methods.dictionaries import ImageBank, KeyQueue
from diptych.methods.logits import tile_of
from diptych.models.activations import offload, recompute_stages
from diptych.models.norms import GlobalBatchNorm
from diptych.optimization.optimizers import build_optimizer
from diptych.planning.compute import (
    count_networks,
    freeze_for_ever,
    logits_cost,
    memory_format,
    places_of,
    random_batch,
    vector_dim,
    without_logits,
)
from diptych.planning.machine import Machine
from diptych.planning.planned_run import PlannedRun
from diptych.planning.storage import ImageOpening, opening_by_rates
from diptych.planning.traffic import messages
from diptych.runtime.devices import keep_freed_memory, use_threads, views_device
from diptych.runtime.stopwatch import Stopwatch, watch
from diptych.training.step import train_step
from diptych.views.batches import Order, ViewBatches

_LEAST_REPEATS: Final = 3
_REPEAT_SECONDS: Final = 0.25
_OPENED: Final = 256  # images that are opened with an empty index
_MOST_VIEWED: Final = 1024  # images of which views are made
_MADE_UP: Final = 64  # images
_STEP_SECONDS: Final = 4.0  # a step that would take longer is made with a part of its images
_MOST_BANK: Final = 200_000  # images of a bank; a larger one takes as long
# That a run comes to hold besides, whatever its network: code made for its shapes, threads, lines
# of metrics; found by `benchmarks/cost_model.py --calibrate`.
_HELD_LATER: Final = 47_000_000

_SMALL: Final = 4  # numbers: a message that is all latency
_LARGE: Final = 4 * 2**20  # numbers, 16 MB
_MESSAGES: Final = 9
_WORK_SECONDS: Final = 1.0  # of all stretches between messages, and once more without messages
_LEAST_STRETCHES: Final = 20
_SHORTEST, _LONGEST = 2e-4, 2e-2  # seconds of a stretch
_PATIENCE_SECONDS: Final = 60


def measure_step(
    run: PlannedRun, machine: Machine, images: ImageSet | None = None, *, local: int = 1
) -> tuple[Machine, dict[str, float]]:
    """Measures a process's own work, and messages if there are several processes.

    Args:
        run: that is planned.
        machine: what is known; its network's figures are replaced by those measured.
        images: some of the run's; made up when not given.
        local: processes that share this machine.

    Returns:
        The machine, and seconds of the parts of a step, by the names of ``make_plan``.

    Raises:
        ConfigError: the machine has an accelerator, and this one has none.
    """
    if not machine.is_one_memory and not torch.cuda.is_available():
        raise ConfigError(
            f"--measure measures this machine, which has no CUDA device as {machine.name!r} has. "
            "Leave it out to plan by rates, or plan --on cpu."
        )
    # As a run does, whose steps would otherwise look slower than they are.
    keep_freed_memory()
    threads = use_threads(run.config.training.threads, processes=local)
    with ThreadPoolExecutor(threads) as executor:
        measure_views(run, images, executor, most=2)  # loads the compiled kernels
    # After the kernels and before the networks: what the libraries alone hold.
    idle = _idle_bytes()
    if idle is not None:
        machine = replace(machine, base_bytes=idle + _HELD_LATER)
    with (
        _other_processes(run, machine, local, threads) as exchange,
        ThreadPoolExecutor(threads) as executor,
    ):
        method = _build(run)
        seconds = {
            "reads and views": measure_views(run, images, executor),
            **measure_networks(run, method, machine),
            "logits": measure_logits(run, method),
        }
        if run.processes == 1:
            return machine, seconds
        sent = sum(one.count for one in messages(run, method, vector_dim(run.config, method)))
        latency, rate = exchange(sum(seconds.values()) / sent)
    better = replace(machine, network_seconds=latency, network_bytes_per_second=rate)
    return better, seconds


def measure_networks(run: PlannedRun, method: Contrastive, machine: Machine) -> dict[str, float]:
    """Seconds of networks, optimizer and momentum encoder, in real steps without the logits."""
    images, step = _affordable_step(run, method, machine)
    found = _median_parts(step, run)
    after = ("optimizer", "momentum_encoder", "dictionary")
    return {
        "networks": (found["forward"] + found["backward"]) * run.images / images,
        "optimizer and momentum encoder": sum(found[part] for part in after),
    }


def measure_logits(run: PlannedRun, method: Contrastive) -> float:
    """Seconds of logits and loss, forward and backward, of ready vectors.

    Those of the process's own images are measured, and multiplied for the keys of other processes
    and for the places of maps.
    """
    alone, device = run.of_one_process(), _device(run)
    batch = random_batch(run.config, run.images).to(device)
    dim = vector_dim(run.config, method)
    _fill(method, dim)
    queries = torch.randn(run.query_views, run.images, dim, device=device)
    keys = torch.randn(run.key_views, run.images, dim, device=device) if run.key_views else None

    def compare() -> None:
        learned = queries.clone().requires_grad_()
        others = None if keys is None else keys.clone().requires_grad_(run.keys_learn)
        with watch("forward"):
            loss = method.contrast(learned, others, batch).loss
            torch.autograd.backward(loss)

    tile = tile_of(device.type)
    wanted = logits_cost(run, dim, tile=tile, places=places_of(method))
    more = wanted.flops / logits_cost(alone, dim, tile=tile).flops
    return _median_parts(compare, run)["forward"] * more


def _affordable_step(
    run: PlannedRun, method: Contrastive, machine: Machine
) -> tuple[int, Callable[[], None]]:
    """How many images a step is made with, all if it does not take too long, and the step."""
    config, device = run.config, _device(run)
    # Two images, as batch norms refuse to train on a single row.
    cost = count_networks(replace(config, training=replace(config.training, chunk_size=None)), 2)
    seconds = cost.flops / 2 / machine.sustained(config.training.precision)
    most = min(_STEP_SECONDS / seconds, machine.memory_bytes / 2 / (cost.peak_bytes / 2))
    if run.chunks == 1:
        images, chunk = max(2, min(run.images, int(most))), None
    else:
        chunk = max(2, min(config.training.chunk_size or run.images, int(most) // 2))
        images = 2 * chunk
    method.chunk_size = chunk
    batch = random_batch(config, images).to(device)
    optimizer = build_optimizer(config.optimizer, method)

    def step() -> None:
        with without_logits(method):
            train_step(method, optimizer, batch, rate=1e-6, momentum=0.99, config=config)

    return images, step


def _median_parts(work: Callable[[], None], run: PlannedRun) -> dict[str, float]:
    """Medians of the parts of some repeats, the first of which does not count."""
    found, begun = list[dict[str, float]](), 0.0
    with Stopwatch(_device(run)).running() as stopwatch:
        while len(found) <= _LEAST_REPEATS or time.perf_counter() - begun < _REPEAT_SECONDS:
            stopwatch.read()
            work()
            found.append(stopwatch.read())
            # The clock runs from the end of the first one, which does not count.
            begun = begun or time.perf_counter()
    return {part: statistics.median(one[part] for one in found[1:]) for part in found[0]}


def _build(run: PlannedRun) -> Contrastive:
    """The run's method with random weights, its norms as they are among several processes."""
    config, device = run.config, _device(run)
    method = build_with_keys(config, image_count=min(run.learned_images, _MOST_BANK)).train()
    method = method.to(device).to(memory_format=memory_format(config))
    if run.processes > 1:  # the arithmetic of norms over processes, here without the others
        for norm in method.modules():
            if isinstance(norm, GlobalBatchNorm):
                norm.normalise_batch = norm.normalise_over_processes  # type: ignore[method-assign]
    if config.training.recompute == "stages":
        recompute_stages(method.encoder)
    if config.training.offload_activations:
        offload(method.encoder, device)
    freeze_for_ever(method, config)
    return method


def _device(run: PlannedRun) -> torch.device:
    return torch.device(run.config.training.device)


def _fill(method: Contrastive, dim: int) -> None:
    """Fills a queue or a bank, which start empty."""
    dictionary = method.dictionary
    if isinstance(dictionary, KeyQueue | ImageBank):
        keys = functional.normalize(torch.randn_like(dictionary.keys[:, :dim], dtype=torch.float32))
        indices = torch.arange(len(keys), device=keys.device)
        dictionary.update(keys, indices)


def _idle_bytes() -> int | None:
    """Memory of this process with all libraries loaded and no network; None if not known."""
    import diptych.pretraining  # noqa: F401  with all that a run imports
    from diptych.logging import metrics  # noqa: F401

    torch.autograd.backward(torch.nn.Conv2d(3, 4, 3)(torch.randn(2, 3, 8, 8)).sum())
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # another system than Linux
        return None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@contextmanager
def _other_processes(
    run: PlannedRun, machine: Machine, local: int, threads: int
) -> Iterator[Callable[[float], tuple[float, float]]]:
    """Starts the other processes of this machine: they make steps, as memory and caches are shared.

    Yields:
        A function that ends their steps and measures messages with one of them: from seconds of
        work between two messages to seconds of a turn without bytes, and bytes per second.
    """
    # Threads of torch and OpenMP do not survive a fork.
    context = multiprocessing.get_context("spawn")
    count = max(local - 1, min(1, run.processes - 1))
    ready, stop = [context.Event() for _ in range(count)], context.Event()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{Path(folder) / 'meeting_point'}"
        workers = [
            context.Process(
                target=_step_and_exchange,
                args=(run, machine, threads, event, stop, local > 1, None if number else meeting),
                daemon=True,
            )
            for number, event in enumerate(ready)
        ]
        for worker in workers:
            worker.start()

        def exchange(work_seconds: float) -> tuple[float, float]:
            stop.set()
            return _exchange(0, meeting, work_seconds)

        try:
            for event in ready:
                event.wait(timeout=_PATIENCE_SECONDS)
            yield exchange
        finally:
            for worker in workers:
                worker.kill()
                worker.join()


def _step_and_exchange(
    run: PlannedRun,
    machine: Machine,
    threads: int,
    ready: Any,
    stop: Any,
    steps: bool,
    meeting: str | None,
) -> None:
    """The work of another process: makes steps until it is stopped, then sends messages."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    if steps:
        _, step = _affordable_step(run, _build(run), machine)
        while not stop.is_set():
            step()
            ready.set()
    ready.set()
    stop.wait()
    if meeting is not None:
        _exchange(1, meeting, 0.0)


def _exchange(rank: int, meeting: str, work_seconds: float) -> tuple[float, float]:
    """Measures messages of two processes by gloo; ``work_seconds`` of the first is used."""
    # Both processes are here. By the host's name gloo may choose an interface that leads nowhere.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    patience = timedelta(seconds=_PATIENCE_SECONDS)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=patience)
    idle, large = (_message_seconds(torch.zeros(size)) for size in (_SMALL, _LARGE))
    small = max(idle, _added_to_work(work_seconds))
    dist.barrier()
    dist.destroy_process_group()
    # A sum over two processes is two turns, and each sends as many bytes as there are.
    return small / 2, _LARGE * 4 / max(large - small, 1e-9)


def _message_seconds(numbers: torch.Tensor) -> float:
    times = []
    for _ in range(_MESSAGES):
        begun = time.perf_counter()
        dist.all_reduce(numbers)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])  # the first opens the connection


def _added_to_work(seconds: float) -> float:
    """Seconds that a small message adds to a stretch of work of both processes."""
    values, numbers = torch.randn(256, 256), torch.zeros(_SMALL)
    begun = time.perf_counter()
    for _ in range(_MESSAGES):
        torch.mm(values, values)
    one = (time.perf_counter() - begun) / _MESSAGES
    stretch = min(max(seconds, _SHORTEST), _LONGEST)
    # Both take the same number of products, as the processes of a run have the same work.
    agreed = torch.tensor([max(1.0, stretch / one), max(_LEAST_STRETCHES, _WORK_SECONDS / stretch)])
    dist.broadcast(agreed, src=0)
    products, stretches = map(int, agreed)

    def work(*, send: bool) -> float:
        dist.barrier()
        begun = time.perf_counter()
        for _ in range(stretches):
            for _ in range(products):
                torch.mm(values, values)
            if send:
                dist.all_reduce(numbers)
        dist.barrier()
        return time.perf_counter() - begun

    alone = work(send=False)
    return max(0.0, work(send=True) - alone) / stretches


def measure_opening(run: PlannedRun, machine: Machine) -> ImageOpening:
    """Opens some of the images at the run's path with an empty index, and multiplies.

    Arrays have no index: every opening takes as long as the first.

    Args:
        run: its images have a path.
        machine: for what is not measured.
    """
    config, rated = run.config.images, opening_by_rates(run, machine)
    begun = time.perf_counter()
    found = locate_images(config).train
    walked = time.perf_counter() - begun
    if isinstance(found, ImageSet):
        whole = walked * run.image_count / len(found)
        return replace(
            rated, first_seconds=whole, again_seconds=whole, index_bytes=0.0, measured=True
        )
    walked /= len(found.names)
    some = found.select(spread_indices(len(found.names), _OPENED))
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(use_threads(run.config.training.threads)) as executor,
    ):
        # A few bad images are for the run to judge, and not to stop a plan.
        alone = replace(
            config, limit=None, cache="none", cache_folder=folder, max_unreadable_share=1.0
        )
        begun = time.perf_counter()
        open_listing(some, alone, executor)
        looked = walked + (time.perf_counter() - begun) / len(some.names)
    sizes = [len(some.read(place)) for place in range(len(some.names))]
    return replace(
        rated,
        first_seconds=run.image_count * looked,
        again_seconds=max(rated.again_seconds, run.image_count * walked),
        read_bytes=run.image_count * statistics.fmean(sizes),
        measured=True,
    )


def measure_views(
    run: PlannedRun,
    images: ImageSet | None,
    executor: Executor,
    *,
    most: int = _MOST_VIEWED,
) -> float:
    """Seconds of all views of a process's images, decoding included where every step does it."""
    config, count = run.config, min(run.images, most)
    with _sample_images(run, images, executor) as found:
        taken = np.arange(count, dtype=np.int64) % len(found)
        batches = ViewBatches(
            found,
            Order(config.seed, len(found), 1),
            config.views,
            executor,
            view_count=config.method.views,
            device=views_device(config.views.applier, torch.device(config.training.device)),
        )
        # Once untimed: what is kept or compiled comes to be here.
        batches.of(taken, epoch=0)
        times, ends = list[float](), time.perf_counter() + _REPEAT_SECONDS
        while len(times) < _LEAST_REPEATS or time.perf_counter() < ends:
            begun = time.perf_counter()
            batches.of(taken, epoch=0)
            times.append(time.perf_counter() - begun)
    return statistics.median(times) * run.images / count


@contextmanager
def _sample_images(
    run: PlannedRun, given: ImageSet | None, executor: Executor
) -> Iterator[ImageSet]:
    """The given images, or made up ones of the size that is planned for: photographs.

    They are arrays where decoded images are kept, and JPEG files otherwise.
    """
    if given is not None:
        yield given.decoded_for(run.config.images)
        return
    config = replace(run.config.images, limit=None, cache="none")
    lie_decoded = run.kept_bytes > 0 or config.channels not in (1, 3)
    pixels = run.image_pixels * (run.decoded_share if lie_decoded else 1.0)
    pictures = _pictures(round(pixels**0.5), config.channels)
    if lie_decoded:
        yield from_array(pictures, None, config)
        return
    with tempfile.TemporaryDirectory() as folder:
        for number, picture in enumerate(pictures):
            Image.fromarray(picture.squeeze()).save(Path(folder) / f"{number}.jpg", quality=90)
        # Their index is removed with them.
        here = replace(config, path=folder, cache_folder=folder)
        yield open_images(here, executor).train.decoded_for(config)


def _pictures(side: int, channels: int) -> NDArray[np.uint8]:
    """(images, side, side, channels) of the built-in photographs, resized."""
    found = list[NDArray[np.uint8]]()
    for picture in whole_photographs():
        resized = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        found.append(np.asarray(resized)[..., np.arange(channels) % 3])
    return np.stack([found[number % len(found)] for number in range(_MADE_UP)])
