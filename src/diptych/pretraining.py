"""From a path to a trained encoder: settings resolved, images opened, the run trained and saved."""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from torch import Tensor, nn

from diptych.checkpoints.state import RunState
from diptych.checkpoints.stores import checkpoint_location
from diptych.config.consistency import require_equal_parts
from diptych.config.files import SHORT_NAMES, load_run_config, nest
from diptych.config.run import OWN, RunConfig, TrainingConfig
from diptych.diagnostics.health import build_health
from diptych.diagnostics.keep_encoder import keep_encoder
from diptych.errors import ConfigError, saving
from diptych.images.collection import Collection
from diptych.images.listing import Progress, ignore_progress
from diptych.images.open import open_images, require_there
from diptych.images.sources.handed_over import path_of
from diptych.logging.progress import Display, Silent, Watcher
from diptych.logging.trackers import require_tracker
from diptych.methods.build import (
    NOTHING_OWN,
    MethodKind,
    OwnParts,
    own_parts,
    own_settings,
    uses_labels,
)
from diptych.methods.method import Method
from diptych.methods.objective import Loss
from diptych.models.weights import save_head
from diptych.resolve import Overrides, is_asked, overrides_of
from diptych.runs.folder import RunFolder
from diptych.runtime.console import safe_stream
from diptych.runtime.devices import choose_device, divided, require_compiler, use_threads
from diptych.runtime.rendezvous import (
    describe_process,
    process_group,
    run_on_all,
    run_on_first,
    wait_for_all,
)
from diptych.runtime.world import World, advice_on_restarts, stop_with_launcher
from diptych.training.budget import (
    Speed,
    choose_for_minutes,
    measure_speed,
    reserve_seconds,
)
from diptych.training.clock import TimeBudget
from diptych.training.loop import train
from diptych.training.open_run import (
    find_run_folder,
    remove_failed_start,
    requested_config,
    write_run,
    write_trained_on,
)


def pretrain(
    path: str | Path | Any | None = None,
    *,
    recipe: str | None = None,
    scale: str | None = None,
    out: str | Path | None = None,
    config_file: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    encoder: nn.Module | None = None,
    loss: Loss | Callable[..., Tensor] | None = None,
    method: MethodKind | Callable[..., Method] | None = None,
    **settings: Any,
) -> Path:
    """Learns a representation of the images at a path and returns the run's folder.

    Args:
        path: a folder of images, a .txt list of their paths, .tar shards, a .npz, .npy or IDX
            file, ``photographs``, a Hugging Face data set, or a ``torch.utils.data.Dataset``.
        recipe: name in ``diptych.RECIPES``; ``simclr`` when not given.
        scale: ``tiny``, ``small`` or ``paper``; chosen from images and device when not given.
        out: the run folder; a new one under ``runs/`` when not given.
        config_file: TOML with settings that override the recipe's.
        resume: go on from the newest good checkpoint in ``out``.
        quiet: show nothing.
        encoder: a module of your own, from (batch, channels, side, side) to (batch, features), in
            the place of ``encoder.name``. A copy of it is trained.
        loss: a ``diptych.Loss`` of your own, in the place of ``method.loss.kind``; or a function of
            (positive_logits, logsumexp, settings), which is the ``one_positive`` of such a loss.
        method: a ``diptych.MethodKind`` of your own, in the place of ``method.kind``; or a function
            from (config, images, executor) to a ``diptych.Method``, which is the ``build`` of such
            a method.
        **settings: override both; ``epochs`` or ``minutes``, ``batch_size``, ``threads``, ``seed``,
            or any other by its dotted name, as ``**{"optimizer.learning_rate": 0.1}``.

    Where parts are your own, ``config.toml`` says ``own`` in their place, and resuming needs the
    same again. They are compared by names and shapes of their tensors only.

    Raises:
        DiptychError: see ``diptych.errors``; the message says what to do.

    Example:
        >>> run = diptych.pretrain("photos/", epochs=20)  # doctest: +SKIP
    """
    flat = {SHORT_NAMES.get(name, name): value for name, value in settings.items()}
    wanted = {
        "images.path": None if path is None else path_of(path),
        "recipe": recipe,
        "scale": scale,
    }
    flat |= {name: value for name, value in wanted.items() if value is not None}
    own = own_parts(encoder, loss, method)
    flat |= own_settings(own, flat)
    with Display(Console(file=safe_stream(sys.stdout), quiet=quiet, markup=False)) as display:
        folder = run_pretraining(
            nest(flat),
            out=None if out is None else Path(out),
            config_file=None if config_file is None else Path(config_file),
            resume=resume,
            watcher=Silent() if quiet else display,
            own=own,
        )
    return folder.path


def run_pretraining(
    settings: Mapping[str, Any],
    *,
    out: Path | None,
    config_file: Path | None,
    resume: bool,
    watcher: Watcher,
    on_progress: Progress = ignore_progress,
    own: OwnParts = NOTHING_OWN,
    evaluates: bool = False,
    begun: float | None = None,
    now: Callable[[], float] = time.monotonic,
) -> RunFolder:
    """What ``pretrain`` and the command line share.

    Under torchrun every process calls it. The first one writes and prints; all read.

    Args:
        settings: nested tables, as the user gave them; they override everything else.
        out: the run folder.
        config_file: TOML whose settings override the recipe's.
        resume: go on with the run in ``out``.
        watcher: shows how it goes.
        on_progress: called with the number of image files that are checked.
        own: parts of the method that are given in the place of those that the settings name.
        evaluates: whether evaluation and report follow, for which ``training.minutes`` leaves time.
        begun: when the command began, by ``now``; with this call when not given.
        now: a clock in seconds that nobody sets.
    """
    clock = _Clock(now() if begun is None else begun, now, evaluates)
    stop_with_launcher()
    layers = overrides_of(settings, config_file)
    known = RunFolder(out).config if resume and out is not None else None
    earlier = load_run_config(known) if known is not None and known.exists() else None
    # Before the processes meet, as device and time-out of their meeting are settings.
    asked = requested_config(earlier, layers, own)
    training = asked.training
    _require_device(training)  # before any work is done
    require_tracker(asked.probe)
    with process_group(
        device=training.device, timeout_seconds=training.process_timeout_seconds
    ) as here:
        return _pretrain_together(layers, out, resume, here, watcher, on_progress, own, clock)


class _Clock(NamedTuple):
    """When the command began, by which clock, and whether evaluation and report follow."""

    begun: float
    now: Callable[[], float]
    evaluates: bool

    def of(self, minutes: float) -> TimeBudget:
        """The time of the command, before anything is measured."""
        return TimeBudget(60 * minutes, 0.0, math.inf, self.begun, now=self.now)

    def budget(self, config: RunConfig, speed: Speed, collection: Collection) -> TimeBudget:
        """The same with what evaluation and report take, and a step."""
        assert config.training.minutes is not None
        return replace(
            self.of(config.training.minutes),
            reserve_seconds=reserve_seconds(config, speed, collection, evaluates=self.evaluates),
            step_seconds=speed.image_seconds * config.training.batch_size,
            early_share=config.views.early_share if speed.early_cost < 1 else 0.0,
            early_cost=speed.early_cost,
        )


def check_before_start(
    settings: Mapping[str, Any], *, out: Path, config_file: Path | None, processes: int | None
) -> None:
    """Refuses settings that are sure to fail before processes are started, without opening images.

    What only the images show, the processes find.

    Args:
        settings: of the command, as nested tables.
        out: the run folder, where a run may have begun.
        config_file: of the command.
        processes: that will share a batch; None where that may change.

    Raises:
        DiptychError: as ``pretrain`` would.
    """
    layers = overrides_of(settings, config_file)
    located = json.loads(find_run_folder(out, True, layers))
    earlier = load_run_config(RunFolder(out).config) if located["begun"] else None
    asked = requested_config(earlier, layers)
    _require_device(asked.training)
    require_there(asked.images)
    require_tracker(asked.probe)
    chosen = any("batch_size" in given.get("training", {}) for given, _ in layers)
    if processes is not None and (earlier is not None or chosen):
        require_equal_parts(asked.training.batch_size, processes)


def _require_device(training: TrainingConfig) -> None:
    device = choose_device(training.device)
    if training.compile:
        require_compiler(device)


def _pretrain_together(
    layers: Overrides,
    out: Path | None,
    resume: bool,
    here: World,
    watcher: Watcher,
    on_progress: Progress,
    own: OwnParts,
    clock: _Clock,
) -> RunFolder:
    """The work of each process of the group."""
    own_watcher = watcher
    if not here.is_first:
        watcher, on_progress = Silent(), ignore_progress
    # The first process alone: the others would find a folder that it has just made.
    located = json.loads(run_on_first(lambda: find_run_folder(out, resume, layers)))
    folder = RunFolder(Path(located["folder"]))
    earlier = load_run_config(folder.config) if located["begun"] else None
    asked = requested_config(earlier, layers, own)
    threads = use_threads(asked.training.threads, processes=here.local_count)
    view_threads = divided(asked.views.threads, here.local_count) if asked.views.threads else None
    with ExitStack() as held, ThreadPoolExecutor(view_threads or threads) as executor:
        collection = run_on_all(lambda: open_images(asked.images, executor, on_progress))
        watcher.say(collection.description)
        if advice := advice_on_restarts(resume=resume):
            watcher.say(advice)
        minutes, speed = asked.training.minutes, None
        if earlier is None and minutes is not None:
            layers, speed = choose_for_minutes(
                layers,
                collection,
                executor,
                own,
                clock.of(minutes),
                evaluates=clock.evaluates,
            )
        run_on_first(
            lambda: write_run(folder, earlier, layers, collection, resume, here, watcher, held, own)
        )
        # Read back on every process: all train with the settings that a resumed run will read.
        config = load_run_config(folder.config)
        collection = collection.decoded_for(config.images)
        labels_used = uses_labels(config, own)

        def record_images() -> str:
            return write_trained_on(folder, config, collection, executor, labels_used=labels_used)

        if earlier is None:
            run_on_first(record_images)
        if here.count > 1:
            device = str(choose_device(config.training.device))
            own_watcher.say(describe_process(device, threads, len(collection.train)))
        health = build_health(
            collection,
            config.views,
            executor,
            image_count=config.probe.images,
            group_by=config.images.group_by,
            labels_used=labels_used,
            start=None if config.encoder.name == OWN else folder.start,
            windows=config.images.windows,
        )
        try:
            budget = None
            if config.training.minutes is not None:
                speed = speed or measure_speed(config, collection, executor, own)
                budget = clock.budget(config, speed, collection)
            state = train(
                *(config, collection, folder, executor, watcher, health, own, budget),
                says_length=budget is None and earlier is None and not _is_length_asked(layers),
            )
        except ConfigError:
            if earlier is None and here.is_first:
                remove_failed_start(folder, checkpoint_location(config.checkpoint, folder))
            raise
        run_on_first(record_images)  # again, where the folder has vanished meanwhile
        run_on_first(
            lambda: _save_networks(folder, state, config, collection, executor, own, watcher)
        )
    wait_for_all()
    return folder


def _is_length_asked(layers: Overrides) -> bool:
    return any(is_asked(layers, f"training.{name}") for name in ("epochs", "begin_from"))


def _save_networks(
    folder: RunFolder,
    state: RunState,
    config: RunConfig,
    collection: Collection,
    executor: Executor,
    own: OwnParts,
    watcher: Watcher,
) -> str:
    failure = "the run was saved after its last step, but its encoder cannot be written to "
    with saving(failure + str(folder.path), "give the same command with --resume"):
        keep_encoder(
            folder,
            state.method.encoder,
            config,
            collection,
            executor,
            own_encoder=own.encoder,
            say=watcher.say,
        )
        save_head(folder.head, state.method.network.get_submodule("head"))
    return str(folder.encoder)
