"""A run before it trains: its folder, settings and identity, for a new run or one that goes on.

Of several processes the first alone reads and writes the folder, and sends the others the result.
"""

import csv
import io
import json
from concurrent.futures import Executor
from contextlib import ExitStack
from datetime import datetime
from itertools import chain, count
from pathlib import Path

import numpy as np

from diptych.checkpoints.save_and_load import list_checkpoints, refuse_foreign_checkpoints
from diptych.checkpoints.state import (
    MAY_CHANGE_ON_RESUME,
    fingerprint_of,
    recover_run,
    require_same_images,
)
from diptych.checkpoints.stores import CheckpointLocation, checkpoint_location
from diptych.config.consistency import require_divisible
from diptych.config.files import differing_keys, flatten, load_run_config, to_toml
from diptych.config.run import RunConfig
from diptych.errors import ConfigError, RunFolderError, saving
from diptych.escaping import HANDLER, escaped, quoted
from diptych.images.collection import Collection
from diptych.images.open import open_images
from diptych.logging.progress import Watcher
from diptych.methods.build import NOTHING_OWN, OwnParts, require_own_parts
from diptych.models.start import StartEncoder, StartWeights, fit_start, read_start, start_of_run
from diptych.models.weight_files import is_fetched, read_weights
from diptych.models.weights import TrainedOn, load_trained_on, save_trained_on, trained_on
from diptych.resolve import (
    Overrides,
    advice_on_weights,
    asked_recipe,
    asked_setting,
    asked_start,
    overlay_on_run,
    resolve,
)
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import (
    Identity,
    RunFolder,
    RunRecord,
    alone_in,
    is_at,
    load_record,
    new_identity,
    require_writable,
    write_record,
)
from diptych.runtime.world import World, restarts_allowed
from diptych.training.begin_from import (
    MAY_DIFFER,
    config_begun_from,
    parse_begin_from,
    require_can_begin_from,
)
from diptych.views.batches import Order


def requested_config(
    earlier: RunConfig | None, layers: Overrides, own: OwnParts = NOTHING_OWN
) -> RunConfig:
    """The settings that are asked for, on top of those of the run, or the one it begins from.

    Raises:
        ConfigError: among others, parts given in Python are missing.
    """
    begin_from = asked_setting(layers, "training.begin_from")
    if earlier is None and begin_from is not None:
        asked = config_begun_from(begin_from, layers, own)
    else:
        asked = overlay_on_run(earlier or RunConfig(), layers)
    require_own_parts(asked, own)
    return asked


def find_run_folder(out: Path | None, resume: bool, layers: Overrides) -> str:
    """The folder of the run, if it can be used, and whether the run had begun, as JSON."""
    try:
        folder = _folder_at(out, resume, asked_recipe(layers))
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


def write_run(
    folder: RunFolder,
    earlier: RunConfig | None,
    layers: Overrides,
    collection: Collection,
    resume: bool,
    here: World,
    watcher: Watcher,
    held: ExitStack,
    own: OwnParts,
) -> str:
    """Writes config and record of a new run, and which images were skipped.

    The folder is locked until ``held`` is closed.
    """
    if earlier is None:
        read = asked_start(layers)
        config, record = _new_run(folder, layers, collection, resume, watcher, own, read)
    else:
        read = None
        config, record = _known_run(folder, earlier, layers, collection, watcher)
    start = _start_encoder(folder, config, read, begins=earlier is None, watcher=watcher)
    if here.count > 1:
        require_divisible(config, here.count)
        watcher.say(_sharing(config, here.count))
    with saving(f"the run folder {folder.path} cannot be written", "start again"):
        held.enter_context(alone_in(folder.path))
        # Looked at again under the lock: since the first look another process may have begun here.
        if earlier is None and folder.config.exists():
            raise RunFolderError(
                f"another process began a run in {folder.path} meanwhile. Choose another --out."
            )
        if earlier is None:  # what a start that failed may have left would be taken for this run's
            folder.start.unlink(missing_ok=True)
        if start is not None:
            start.write(folder.start, config)
        if config != earlier:
            # The config last: a folder that has one holds a run.
            write_record(folder, record)
            atomic_write(folder.config, to_toml(config).encode())
        write_skipped(folder, collection)
    return ""


def _new_run(
    folder: RunFolder,
    layers: Overrides,
    collection: Collection,
    resume: bool,
    watcher: Watcher,
    own: OwnParts,
    start: StartWeights | None,
) -> tuple[RunConfig, RunRecord]:
    """Settings and identity of a run that begins, or of one whose folder was lost."""
    images, begin_from = collection.train, asked_setting(layers, "training.begin_from")
    if begin_from is not None:
        config = config_begun_from(begin_from, layers, own)
    else:
        count, side = len(images), images.median_side_pixels
        config, sentence = resolve(
            layers,
            image_count=count,
            median_side_pixels=side,
            channels=images.channels,
            own=own,
            start=start,
        )
        watcher.say(sentence)
        advice = advice_on_weights(config, image_count=count)
        if advice is not None:
            watcher.say(advice)
    fingerprint = fingerprint_of(config, images)
    place = checkpoint_location(config.checkpoint, folder)
    if list_checkpoints(place):
        found = recover_run(config, place, folder, fingerprint, resume=resume, say=watcher.say)
        run = found[1].identity
        _require_alone(folder, run, place)
        watcher.say(f"{place} holds the checkpoints of run {run}, whose folder is lost.")
        return found
    if begin_from is not None:
        count = len(images) * config.images.windows**2
        order = Order(config.seed, count, config.training.batch_size)
        total_steps = config.training.epochs * order.steps_per_epoch
        require_can_begin_from(begin_from, config, fingerprint=fingerprint, total_steps=total_steps)
    return config, RunRecord(new_identity(folder), fingerprint)


def _start_encoder(
    folder: RunFolder,
    config: RunConfig,
    read: StartWeights | None,
    *,
    begins: bool,
    watcher: Watcher,
) -> StartEncoder | None:
    """The encoder with the weights that a run begins from; None where none are to be written.

    A run that goes on does not need the file that they came from; one whose folder was lost has
    read it, and keeps it again.
    """
    text = config.encoder.weights
    goes_on = bool(list_checkpoints(checkpoint_location(config.checkpoint, folder)))
    if text is None or (goes_on and read is None) or (folder.start.exists() and not begins):
        return None
    if config.training.begin_from is not None:  # the weights are the checkpoint's
        earlier = parse_begin_from(config.training.begin_from)[0]
        return start_of_run(earlier.start, config)
    start = fit_start(read or read_start(text, config.encoder.name), config)
    for sentence in start.sentences:
        watcher.say(sentence)
    return start


def _known_run(
    folder: RunFolder,
    earlier: RunConfig,
    layers: Overrides,
    collection: Collection,
    watcher: Watcher,
) -> tuple[RunConfig, RunRecord]:
    """Settings and identity of a run that goes on, maybe with its images under another path."""
    config, record = overlay_on_run(earlier, layers), load_record(folder)
    require_same_images(record.images, fingerprint_of(config, collection.train))
    place = checkpoint_location(config.checkpoint, folder)
    refuse_foreign_checkpoints(place, record.identity)
    _require_alone(folder, record.identity, place)
    if not list_checkpoints(place):
        _begin_anew(folder, place, watcher)
    for name in differing_keys(earlier, config):
        sentence = f"{name} is now {flatten(config)[name]!r}, before {flatten(earlier)[name]!r}."
        watcher.say(f"The run is the same; {sentence}")
        record = record.with_moved(sentence)
    return config, record


def _begin_anew(folder: RunFolder, place: CheckpointLocation, watcher: Watcher) -> None:
    """Reports that a run without checkpoints begins anew; refuses that where it has ended."""
    if folder.encoder.exists():
        raise RunFolderError(
            f"the run in {folder.path} has ended, and none of its checkpoints is in {place}: it "
            "would be trained anew, and its encoder replaced. Put the checkpoints back, or begin "
            "a new run in another --out."
        )
    watcher.say(f"No checkpoint of this run is in {place}, so it begins anew.")


def _require_alone(folder: RunFolder, run: Identity, place: CheckpointLocation) -> None:
    """Refuses to go on in a second folder with a run that keeps its checkpoints elsewhere."""
    other = RunFolder(Path(run.begun_as))
    if place == folder.checkpoints or other.path == folder.path.absolute():
        return
    if is_at(other, run) and not _same(other.path, folder.path):
        raise RunFolderError(
            f"{place} holds the checkpoints of run {run}, whose folder is still there. Go on with "
            f"it by --resume --out {quoted(run.begun_as)}, or begin another with a "
            "checkpoint.folder of its own."
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


def _refuse_other_config(earlier: RunConfig, layers: Overrides, folder: RunFolder) -> None:
    """A run goes on with its own settings only; those that were not given again are its own."""
    asked = overlay_on_run(earlier, layers)
    different = [n for n in differing_keys(earlier, asked) if n not in MAY_CHANGE_ON_RESUME]
    if not different:
        return
    mend = "begin a new run in another --out"
    if all(name.startswith(MAY_DIFFER) for name in different):
        mend = f"begin a new run that goes on from it: --begin-from {quoted(folder.path)} --out NEW"
    raise RunFolderError(
        f"{folder.path} holds a run with other settings: {', '.join(different)} differ. Resume it "
        f"without them, or {mend}."
    )


def _folder_at(out: Path | None, resume: bool, recipe: str) -> RunFolder:
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
    return not path.name.startswith(".") and path not in (folder.record, folder.start)


def remove_failed_start(folder: RunFolder, checkpoints: CheckpointLocation) -> None:
    """Removes the files of a run that failed to start, so that --out can be given again."""
    if not list_checkpoints(checkpoints):
        # The config first: a folder that has one is taken for a run, also if this is interrupted.
        folder.config.unlink(missing_ok=True)
        folder.record.unlink(missing_ok=True)
        folder.skipped.unlink(missing_ok=True)
        folder.trained_on.unlink(missing_ok=True)
        folder.untrained.unlink(missing_ok=True)
        folder.start.unlink(missing_ok=True)


def write_skipped(folder: RunFolder, collection: Collection) -> None:
    """Writes which images are not used, and why."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["part", "name", "reason", "count"])
    rows = collection.inventory.rows()
    writer.writerows([one.part, escaped(one.name), one.reason, one.count] for one in rows)
    atomic_write(folder.skipped, table.getvalue().encode(errors=HANDLER))


def _learned_from(
    config: RunConfig, collection: Collection, executor: Executor, labels_used: bool
) -> TrainedOn | None:
    """All images that a run learns from, with those that the runs it builds on learned from."""
    given, sets = config.distillation, [collection.train]
    if given.teacher is not None and given.labelled is not None:
        images = config.images.at(given.labelled)
        sets.append(open_images(images, executor).train)
    found = trained_on(sets, labels_used=labels_used)
    try:
        builds_on = _builds_on(config)
    except ConfigError:  # weights that are gone by now: whether a run made them is not known
        return None
    for run in builds_on:
        earlier = load_trained_on(run.trained_on)
        # Not the half that is known: evaluation would call the other half held out.
        if found is None or earlier is None:
            return None
        found = TrainedOn(
            np.unique(np.concatenate([found.checksums, earlier.checksums]), axis=0),
            labels_used=found.labels_used or earlier.labels_used,
        )
    return found


def _builds_on(config: RunConfig) -> list[RunFolder]:
    """The folders of the runs whose weights a run takes over, or learns by."""
    if config.training.begin_from is not None:  # which has taken over what it builds on
        return [parse_begin_from(config.training.begin_from)[0]]
    teacher, weights = config.distillation.teacher, config.encoder.weights
    found = [] if teacher is None else [RunFolder(Path(teacher))]
    if weights is not None and not is_fetched(weights):
        own = read_weights(weights, None).own
        found += [] if own is None else [RunFolder(own.parent)]
    return found


def write_trained_on(
    folder: RunFolder,
    config: RunConfig,
    collection: Collection,
    executor: Executor,
    *,
    labels_used: bool,
) -> str:
    """Writes what a run learns from, unless it is there: evaluation must not call it held out.

    Raises:
        NotSaved: it cannot be written.
    """
    if folder.trained_on.exists():
        return ""
    found = _learned_from(config, collection, executor, labels_used)
    then = "give the same command again, with --resume if training had begun"
    with saving(f"{folder.trained_on} cannot be written", then):
        save_trained_on(folder.trained_on, found)
    return ""
