"""From a path to a trained encoder: settings resolved, images opened, the run folder kept safe."""

import csv
import io
import json
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

from rich.console import Console

from diptych.checkpoints.identity import (
    MAY_CHANGE_ON_RESUME,
    fingerprint_of,
    recover_run,
    require_same_images,
)
from diptych.checkpoints.save_and_load import list_checkpoints, refuse_foreign_checkpoints
from diptych.checkpoints.state import RunState
from diptych.checkpoints.stores import CheckpointLocation, checkpoint_location
from diptych.config.files import (
    SHORT_NAMES,
    differing_keys,
    flatten,
    load_run_config,
    nest,
    to_toml,
)
from diptych.config.sections import RunConfig, require_divisible, require_equal_parts
from diptych.errors import ConfigError, NotSaved, RunFolderError
from diptych.escaping import HANDLER, escaped
from diptych.images.collection import Collection
from diptych.images.listing import Progress, ignore_progress
from diptych.images.open import open_images, require_there
from diptych.images.order import Order
from diptych.images.sources.handed_over import path_of
from diptych.logging.progress import Display, Silent, Watcher
from diptych.models.weights import save_encoder, save_head
from diptych.resolve import (
    Layers,
    asked_beginning,
    asked_recipe,
    layers_of,
    overlay_all,
    resolve,
)
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import RunFolder, alone_in, require_writable
from diptych.runs.record import (
    Identity,
    RunRecord,
    is_at,
    load_record,
    new_identity,
    write_record,
)
from diptych.runtime.console import outlet
from diptych.runtime.device import choose_device, divided, use_threads
from diptych.runtime.rendezvous import describe_process, process_group, run_on_first, wait_for_all
from diptych.runtime.world import World, advice_on_restarts, restarts_allowed, stop_with_launcher
from diptych.training.begin_from import MAY_DIFFER, config_of_beginning, require_beginning
from diptych.training.loop import train
from diptych.training.seen import keep_trained_on


def pretrain(
    path: str | Path | Any | None = None,
    *,
    recipe: str | None = None,
    scale: str | None = None,
    out: str | Path | None = None,
    config_file: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
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
        **settings: override both; ``epochs``, ``batch_size``, ``threads``, ``seed``, or any other
            by its dotted name, as ``**{"optimizer.learning_rate": 0.1}``.

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
    with Display(Console(file=outlet(sys.stdout), quiet=quiet, markup=False)) as display:
        folder = run_pretraining(
            nest(flat),
            out=None if out is None else Path(out),
            config_file=None if config_file is None else Path(config_file),
            resume=resume,
            watcher=Silent() if quiet else display,
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
) -> RunFolder:
    """What ``pretrain`` and the command line share.

    Under torchrun every process calls it. The first one writes and speaks; all read.

    Args:
        settings: nested tables, as the user gave them; they override everything else.
        out: the run folder.
        config_file: TOML whose settings override the recipe's.
        resume: go on with the run in ``out``.
        watcher: told how it goes.
        on_progress: told how many image files are checked.
    """
    stop_with_launcher()
    layers = layers_of(settings, config_file)
    begun = RunFolder(out).config if resume and out is not None else None
    earlier = load_run_config(begun) if begun is not None and begun.exists() else None
    training = _overlaid(earlier, layers).training
    choose_device(training.device)  # before any work is done
    with process_group(
        device=training.device, timeout_seconds=training.peer_timeout_seconds
    ) as here:
        return _pretrain_together(layers, out, resume, here, watcher, on_progress)


def check_before_start(
    settings: Mapping[str, Any], *, out: Path, config_file: Path | None, processes: int | None
) -> None:
    """Refuses what can be told to fail before processes are started, without opening an image.

    What only the images tell is found by the processes.

    Args:
        settings: of the command, as nested tables.
        out: the run folder, where a run may have begun.
        config_file: of the command.
        processes: that will share a batch; None where that may change.

    Raises:
        DiptychError: as ``pretrain`` would.
    """
    layers = layers_of(settings, config_file)
    located = json.loads(_locate_for_all(out, True, layers))
    earlier = load_run_config(RunFolder(out).config) if located["begun"] else None
    asked = _overlaid(earlier, layers)
    choose_device(asked.training.device)
    require_there(asked.images)
    chosen = any("batch_size" in given.get("training", {}) for given, _ in layers)
    if processes is not None and (earlier is not None or chosen):
        require_equal_parts(asked.training.batch_size, processes)


def _pretrain_together(
    layers: Layers,
    out: Path | None,
    resume: bool,
    here: World,
    watcher: Watcher,
    on_progress: Progress,
) -> RunFolder:
    """What every process does once all have met."""
    presented = watcher
    if not here.is_first:
        watcher, on_progress = Silent(), ignore_progress
    # One looks: the others would see what it writes.
    located = json.loads(run_on_first(lambda: _locate_for_all(out, resume, layers)))
    folder = RunFolder(Path(located["folder"]))
    earlier = load_run_config(folder.config) if located["begun"] else None
    asked = _overlaid(earlier, layers)
    threads = use_threads(asked.training.threads, processes=here.local_count)
    view_threads = divided(asked.views.threads, here.local_count) if asked.views.threads else None
    with ExitStack() as held, ThreadPoolExecutor(view_threads or threads) as executor:
        collection = open_images(asked.images, executor, on_progress)
        watcher.say(collection.description)
        if advice := advice_on_restarts(resume=resume):
            watcher.say(advice)
        run_on_first(
            lambda: _settle(folder, earlier, layers, collection, resume, here, watcher, held)
        )
        config = load_run_config(folder.config)
        collection = collection.decoded_for(config.images)
        if earlier is None:
            run_on_first(lambda: keep_trained_on(folder, config, collection, executor))
        if here.count > 1:
            device = str(choose_device(config.training.device))
            presented.say(describe_process(device, threads, len(collection.train)))
        try:
            state = train(config, collection, folder, executor, watcher)
        except ConfigError:
            if earlier is None and here.is_first:
                _take_back(folder, checkpoint_location(config.checkpoint, folder))
            raise
        run_on_first(lambda: keep_trained_on(folder, config, collection, executor))
    run_on_first(lambda: _save_networks(folder, state, config))
    wait_for_all()
    return folder


def _overlaid(earlier: RunConfig | None, layers: Layers) -> RunConfig:
    """What is asked for, on top of what the run, or the one it begins from, was begun with."""
    beginning = asked_beginning(layers)
    if earlier is None and beginning is not None:
        return config_of_beginning(beginning, layers)
    return overlay_all(earlier or RunConfig(), layers)


def _locate_for_all(out: Path | None, resume: bool, layers: Layers) -> str:
    """Where the run lies and whether it had begun, as JSON."""
    try:
        folder = _locate(out, resume, asked_recipe(layers))
        begun = folder.config.exists()
    except OSError as error:
        raise RunFolderError(
            f"the run folder {out} cannot be looked into: {error.strerror or error}. Mend that, or "
            "choose another --out."
        ) from error
    if begun:
        _refuse_other_config(load_run_config(folder.config), layers, folder)
        load_record(folder)
    try:
        require_writable(folder.path)
    except OSError as error:
        raise RunFolderError(
            f"the run folder {folder.path} cannot be written: {error.strerror or error}. Mend "
            "that, or choose another --out."
        ) from error
    return json.dumps({"folder": str(folder.path), "begun": begun})


def _settle(
    folder: RunFolder,
    earlier: RunConfig | None,
    layers: Layers,
    collection: Collection,
    resume: bool,
    here: World,
    watcher: Watcher,
    held: ExitStack,
) -> str:
    """Writes config and record of a new run, and which images were skipped.

    Nobody else trains in the folder until ``held`` is closed.
    """
    if earlier is None:
        config, record = _new_run(folder, layers, collection, resume, watcher)
    else:
        config, record = _known_run(folder, earlier, layers, collection, watcher)
    if here.count > 1:
        require_divisible(config, here.count)
        watcher.say(_sharing(config, here.count))
    try:
        held.enter_context(alone_in(folder.path))
        if earlier is None and folder.config.exists():
            raise RunFolderError(
                f"another process began a run in {folder.path} meanwhile. Choose another --out."
            )
        if config != earlier:
            _begin(folder, config, record)
        _write_skipped(folder, collection)
    except OSError as error:
        raise NotSaved(
            f"the run folder {folder.path} cannot be written: {error.strerror or error}. Mend "
            "that, then start again."
        ) from error
    return ""


def _new_run(
    folder: RunFolder, layers: Layers, collection: Collection, resume: bool, watcher: Watcher
) -> tuple[RunConfig, RunRecord]:
    """Settings and identity of a run that begins, or of one whose folder was lost."""
    images, beginning = collection.train, asked_beginning(layers)
    if beginning is not None:
        config = config_of_beginning(beginning, layers)
    else:
        config, sentence = resolve(
            layers,
            image_count=len(images),
            median_side_pixels=images.median_side_pixels,
            channels=images.channels,
        )
        watcher.say(sentence)
    fingerprint = fingerprint_of(config, images)
    place = checkpoint_location(config.checkpoint, folder)
    if list_checkpoints(place):
        found = recover_run(config, place, folder, fingerprint, resume=resume, say=watcher.say)
        run = found[1].identity
        _require_alone(folder, run, place)
        watcher.say(f"{place} holds the checkpoints of run {run}, whose folder is lost.")
        return found
    if beginning is not None:
        order = Order(config.seed, len(images), config.training.batch_size)
        total_steps = config.training.epochs * order.steps_per_epoch
        require_beginning(beginning, config, fingerprint=fingerprint, total_steps=total_steps)
    return config, RunRecord(new_identity(folder), fingerprint)


def _known_run(
    folder: RunFolder,
    earlier: RunConfig,
    layers: Layers,
    collection: Collection,
    watcher: Watcher,
) -> tuple[RunConfig, RunRecord]:
    """Settings and identity of a run that goes on, maybe with its images under another path."""
    config, record = overlay_all(earlier, layers), load_record(folder)
    require_same_images(record.images, fingerprint_of(config, collection.train))
    place = checkpoint_location(config.checkpoint, folder)
    refuse_foreign_checkpoints(place, record.identity)
    _require_alone(folder, record.identity, place)
    if not list_checkpoints(place):
        _begin_anew(folder, place, watcher)
    for name in differing_keys(earlier, config):
        sentence = f"{name} is now {flatten(config)[name]!r}, before {flatten(earlier)[name]!r}."
        watcher.say(f"The images are the same; {sentence}")
        record = record.with_moved(sentence)
    return config, record


def _begin_anew(folder: RunFolder, place: CheckpointLocation, watcher: Watcher) -> None:
    """Says that a run begins anew, as it left no checkpoint; refuses that where it has ended."""
    if folder.encoder.exists():
        raise RunFolderError(
            f"the run in {folder.path} has ended, and none of its checkpoints is in {place}: it "
            "would be trained anew, and its encoder replaced. Put the checkpoints back, or begin "
            "a new run in another --out."
        )
    watcher.say(f"No checkpoint of this run is in {place}, so it begins anew.")


def _require_alone(folder: RunFolder, run: Identity, place: CheckpointLocation) -> None:
    """Refuses to go on in two folders with one run whose checkpoints lie in neither."""
    other = RunFolder(Path(run.begun_as))
    if place == folder.checkpoints or other.path == folder.path.absolute():
        return
    if is_at(other, run) and not _same(other.path, folder.path):
        raise RunFolderError(
            f"{place} holds the checkpoints of run {run}, whose folder is still there. Go on with "
            f"it by --resume --out {run.begun_as}, or begin another with a checkpoint.folder of "
            "its own."
        )


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _sharing(config: RunConfig, processes: int) -> str:
    """How processes divide a batch, in a sentence or two."""
    share = config.training.batch_size // processes
    sentence = f"{processes} processes share each batch, {share} images each."
    if config.norm.kind == "batch":
        sentence += (
            f" norm.kind = 'batch' takes the statistics of each {share} by themselves, 'sync' "
            "those of the whole batch, as one process does."
        )
    return sentence


def _save_networks(folder: RunFolder, state: RunState, config: RunConfig) -> str:
    try:
        save_encoder(folder.encoder, state.method.encoder, config)
        save_head(folder.head, state.method.network.get_submodule("head"))
    except OSError as error:
        raise NotSaved(
            f"the run was saved after its last step, but its encoder cannot be written to "
            f"{folder.path}: {error.strerror or error}. Mend that, then give the same command with "
            "--resume."
        ) from error
    return str(folder.encoder)


def _refuse_other_config(earlier: RunConfig, layers: Layers, folder: RunFolder) -> None:
    """A run goes on with its own settings only; those that were not given again are its own."""
    asked = overlay_all(earlier, layers)
    different = [
        name for name in differing_keys(earlier, asked) if name not in MAY_CHANGE_ON_RESUME
    ]
    if not different:
        return
    mend = "begin a new run in another --out"
    if all(name.startswith(MAY_DIFFER) for name in different):
        mend = f"begin a new run that goes on from it: --begin-from {folder.path} --out NEW"
    raise RunFolderError(
        f"{folder.path} holds a run with other settings: {', '.join(different)} differ. Resume it "
        f"without them, or {mend}."
    )


def _locate(out: Path | None, resume: bool, recipe: str) -> RunFolder:
    """The run folder: a new one, or an earlier run's if it may go on."""
    if out is None:
        if resume:
            raise RunFolderError("--resume needs --out RUN, to know which run to go on with.")
        if restarts_allowed():
            raise RunFolderError(
                "torchrun may restart this run, and without --out RUN a restart would begin "
                "another. Give --out and --resume, or start it by `diptych launch`, which adds "
                "--resume."
            )
        out = _unused(Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{recipe}")
    folder = RunFolder(out)
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"{out} is a file; --out needs a folder.")
    if folder.config.exists():
        if not resume:
            raise RunFolderError(
                f"{out} holds a run already, which is never overwritten. Go on with it by "
                "--resume, or choose another --out."
            )
    elif list_checkpoints(folder.checkpoints):
        raise RunFolderError(f"{out} has checkpoints but no config.toml; choose another --out.")
    elif out.is_dir() and any(_is_foreign(path, folder) for path in out.iterdir()):
        raise RunFolderError(f"{out} is not empty and holds no run; choose another --out.")
    return folder


def _unused(path: Path) -> Path:
    """The path, or one like it: a clock that went back gives the same name again."""
    numbers = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(one for one in chain([path], numbers) if not one.exists())


def _is_foreign(path: Path, folder: RunFolder) -> bool:
    """Whether something in a run folder was not left there by a run that was about to begin."""
    return not path.name.startswith(".") and path != folder.record


def _begin(folder: RunFolder, config: RunConfig, record: RunRecord) -> None:
    """Writes what a run is known by, the config last: a folder that has one has begun."""
    write_record(folder, record)
    atomic_write(folder.config, to_toml(config).encode())


def _take_back(folder: RunFolder, checkpoints: CheckpointLocation) -> None:
    """Removes what was written of a run whose settings turned out not to work.

    So the mended command can be given with the same --out.
    """
    if not list_checkpoints(checkpoints):
        folder.config.unlink(missing_ok=True)
        folder.record.unlink(missing_ok=True)
        folder.skipped.unlink(missing_ok=True)
        folder.trained_on.unlink(missing_ok=True)


def _write_skipped(folder: RunFolder, collection: Collection) -> None:
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["part", "name", "reason", "count"])
    rows = collection.inventory.rows()
    writer.writerows([one.part, escaped(one.name), one.reason, one.count] for one in rows)
    atomic_write(folder.skipped, table.getvalue().encode(errors=HANDLER))
