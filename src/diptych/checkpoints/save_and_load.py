"""Checkpoints: tensors in safetensors, numbers in JSON, checksums in a manifest.

A checkpoint is a folder ``step-000000123`` on a disk or behind a URL. A store makes it appear when
it is complete, so one with that name is whole unless something damaged it, which the checksums
tell. The newest is the one of the most steps; no clock is asked. Nothing is ever unpickled.

Each says which run wrote it. Another run's is never read in the place of an own one, and never
counted, replaced or deleted.
"""

import errno
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from torch import Tensor

from diptych.checkpoints.stores import (
    MANIFEST,
    MOST_SCALARS_BYTES,
    SCALARS,
    TENSORS,
    CheckpointLocation,
    Description,
    Manifest,
    Origin,
    Store,
    checkpoint_name,
    describe_file,
    json_object,
    make_manifest,
    open_store,
    origin_of,
    read_manifest,
    step_of,
)
from diptych.errors import DamagedCheckpoint, ForeignCheckpoint, UnreachableFolder
from diptych.runs.folder import Identity, identity_in
from diptych.runs.tensor_files import Piece, UnreadableTensors, read_tensors, tensor_pieces

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_MOST_SECONDS: Final = 1e12  # thirty thousand years
LocationT = TypeVar("LocationT", bound=CheckpointLocation)


def save_checkpoint(
    place: LocationT,
    run: Identity,
    tensors: Mapping[str, Tensor],
    scalars: Mapping[str, Any],
    *,
    keep: int,
    passed_over: Collection[int] = (),
) -> LocationT:
    """Writes a checkpoint, then deletes all of the run but the ``keep`` newest.

    Where the disk is too full for one more, the oldest are deleted first, as long as one stays that
    is good: a new checkpoint is worth more than a spare.

    Args:
        place: a folder, or a URL of one, that holds the checkpoints of the run.
        run: that it is of.
        tensors: contiguous, on the CPU, by name.
        scalars: JSON values; ``step`` names the checkpoint.
        keep: how many to keep, 1 or more.
        passed_over: steps of checkpoints that are damaged; those do not count as kept.

    Returns:
        The new checkpoint's place.

    Raises:
        ForeignCheckpoint: another run's is there, and stays as it is.
        OSError: it could not be written. Nothing of it is left, and a good older one stays.
    """
    store, name = open_store(place), checkpoint_name(scalars["step"])
    files: dict[str, Sequence[Piece]] = {
        TENSORS: tensor_pieces(tensors),
        SCALARS: [json.dumps({**scalars, "run": run.as_json()}).encode()],
    }
    # Sums of what was meant, not of what the disk gives back: that would sign its damage.
    described = {file: _describe(pieces) for file, pieces in files.items()}
    # The manifest comes last: behind a URL its presence makes the checkpoint complete.
    files[MANIFEST] = [make_manifest(run, described)]
    # Before anything is removed: what belongs to another run must stay.
    refuse_foreign_checkpoints(place, run)
    store.sweep()
    # It may be another run's, damaged: it is renamed and not replaced.
    if name in store.names() and origin_of(store, name).is_unknown:
        store.set_aside(name)
    _write_making_room(store, run, name, files)
    with suppress(OSError):  # they go next time
        _remove_old(store, run, name, keep, passed_over)
    return _within(place, name)


def refuse_foreign_checkpoints(place: CheckpointLocation, run: Identity) -> None:
    """Refuses a place that holds checkpoints which are not a run's.

    Raises:
        ForeignCheckpoint: names both runs.
        UnreachableFolder: a server does not answer.
    """
    foreign = {
        str(origin): name
        for name, origin in origins(place).items()
        if not origin.is_of(run) and not origin.is_unknown
    }
    if foreign:
        listed = " and ".join(f"{name} of {origin}" for origin, name in foreign.items())
        raise ForeignCheckpoint(
            f"{place} holds checkpoints that are not of this run, {run}: {listed}. A place of "
            "checkpoints belongs to one run, and nothing there was touched. Move the others away, "
            "or give a run a checkpoint.folder of its own."
        )


def origins(place: CheckpointLocation) -> dict[str, Origin]:
    """Where the checkpoints in a place come from, by their names, newest first.

    Raises:
        UnreachableFolder: a server does not answer.
    """
    store = open_store(place)
    return {name: origin_of(store, name) for name in _newest_first(store)}


def own_checkpoints(place: LocationT, run: Identity) -> list[LocationT]:
    """The checkpoints of a run, newest first, and damaged ones that may be of any run.

    Raises:
        ForeignCheckpoint: there are others, and none of the run.
        UnreachableFolder: a server does not answer.
    """
    found = origins(place)
    own = [name for name, origin in found.items() if origin.is_of(run) or origin.is_unknown]
    if found and not own:
        refuse_foreign_checkpoints(place, run)
    return [_within(place, name) for name in own]


def list_checkpoints(place: LocationT) -> list[LocationT]:
    """The checkpoints in a folder or behind its URL, of whichever run, newest first.

    Raises:
        UnreachableFolder: a server does not answer.
    """
    return [_within(place, name) for name in _newest_first(open_store(place))]


def steps_in(checkpoints: Sequence[CheckpointLocation]) -> str:
    """The steps of checkpoints, newest first as ``list_checkpoints`` has them, for a sentence."""
    return ", ".join(str(step_of_checkpoint(one)) for one in reversed(checkpoints))


def step_of_checkpoint(checkpoint: CheckpointLocation) -> int:
    """The steps that were done when a checkpoint was written."""
    step = step_of(_store_of(checkpoint)[1])
    assert step is not None
    return step


def load_newest(
    place: CheckpointLocation, run: Identity, on_damage: Callable[[str], None]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Loads the newest good checkpoint of a run.

    Args:
        place: a folder, or a URL of one, that holds the checkpoints of the run.
        run: that is loaded; checkpoints of others are not read.
        on_damage: called with a sentence on each newer one that is damaged and passed over.

    Returns:
        Tensors and scalars as they were saved, or None where there is no checkpoint.

    Raises:
        DamagedCheckpoint: there are checkpoints, but none is good.
        ForeignCheckpoint: there are checkpoints, but none of this run.
        UnreachableFolder: a server does not answer.
    """
    checkpoints = own_checkpoints(place, run)
    for checkpoint in checkpoints:
        try:
            return load_checkpoint(checkpoint)
        except DamagedCheckpoint as error:
            on_damage(str(error))
    if checkpoints:
        raise DamagedCheckpoint(
            f"none of the {len(checkpoints)} checkpoints in {place} is good. Begin the run anew "
            "in another folder."
        )
    return None


def load_checkpoint(checkpoint: CheckpointLocation) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Loads one checkpoint after comparing its bytes with the manifest.

    Raises:
        DamagedCheckpoint: a file is missing, its bytes are not those that were written, or what it
            says is not what a checkpoint of that name holds.
        ForeignCheckpoint: another version of diptych wrote it.
        UnreachableFolder: a server does not answer.
    """
    store, name = _store_of(checkpoint)
    with _errors_are_damage(checkpoint):
        manifest = read_manifest(store, name)
        with _good_copy(store, name, TENSORS, manifest) as path:
            tensors = read_tensors(path)
        with _good_copy(store, name, SCALARS, manifest) as path:
            return tensors, _scalars(path.read_bytes(), name, manifest)


def _scalars(text: bytes, name: str, manifest: Manifest) -> dict[str, Any]:
    """The numbers of a checkpoint, those that each has in their right types."""
    scalars = json_object(text, f"{SCALARS} of {name}", MOST_SCALARS_BYTES)
    run, step, seconds = (scalars.get(one) for one in ("run", "step", "seconds"))
    if identity_in(run) != manifest.run:
        raise DamagedCheckpoint(f"{SCALARS} of {name} is of another run than its manifest")
    # Not isinstance: JSON's true is an int to it.
    if type(step) is not int or step != step_of(name):
        raise DamagedCheckpoint(f"{SCALARS} of {name} says step {step!r}")
    # Python's JSON reads NaN and Infinity; both fail this comparison.
    if type(seconds) not in (int, float) or not 0 <= cast(float, seconds) < _MOST_SECONDS:
        raise DamagedCheckpoint(f"{SCALARS} of {name} says seconds {seconds!r}")
    return {key: value for key, value in scalars.items() if key != "run"}


def _is_good(store: Store, name: str) -> bool:
    """Whether a checkpoint's bytes are those that were written."""
    try:
        with _errors_are_damage(name):
            manifest = read_manifest(store, name)
            for file in (TENSORS, SCALARS):
                with _good_copy(store, name, file, manifest):
                    pass
    except (DamagedCheckpoint, ForeignCheckpoint):
        return False
    return True


@contextmanager
def _good_copy(store: Store, name: str, file: str, manifest: Manifest) -> Iterator[Path]:
    """A path of a file whose bytes are those that the manifest describes."""
    wanted = manifest.files[file]
    with store.local_copy(name, file, int(wanted["bytes"])) as path:
        if describe_file(path) != wanted:
            raise DamagedCheckpoint(f"{file} of {name} is damaged: its checksum differs.")
        yield path


@contextmanager
def _errors_are_damage(checkpoint: CheckpointLocation) -> Iterator[None]:
    try:
        yield
    # An OSError too, but no damage: passed over, a server that fails would let a run begin anew.
    except (UnreachableFolder, ForeignCheckpoint):
        raise
    except (OSError, DamagedCheckpoint, UnreadableTensors) as error:
        raise DamagedCheckpoint(f"{checkpoint} is damaged: {error}") from error


def _write_making_room(
    store: Store, run: Identity, name: str, files: Mapping[str, Sequence[Piece]]
) -> None:
    while True:
        try:
            return store.write(name, files)
        except OSError as error:
            if error.errno not in _FULL or not _free_oldest(store, run):
                raise


def _free_oldest(store: Store, run: Identity) -> bool:
    """Removes the run's oldest besides its newest good one; False if there is no such."""
    names = _own_names(store, run)
    # Its bytes are read: after a removal this one must be fit to resume from.
    good = next((name for name in names if _is_good(store, name)), None)
    spare = [name for name in names if name != good]
    if good is None or not spare:
        return False
    store.remove(spare[-1])
    return True


def _remove_old(
    store: Store, run: Identity, written: str, keep: int, passed_over: Collection[int]
) -> None:
    """Removes what is older than the oldest to be kept, counted from the one just written.

    Those of later steps are damaged ones that the run passed over when it resumed; they are
    replaced when it comes there again.
    """
    names = _own_names(store, run)
    here = names[names.index(written) :]
    good = [name for name in here if name == written or step_of(name) not in passed_over]
    for old in here[here.index(good[:keep][-1]) + 1 :]:
        store.remove(old)


def _own_names(store: Store, run: Identity) -> list[str]:
    """The checkpoints that a run wrote, newest first."""
    return [name for name in _newest_first(store) if origin_of(store, name).is_of(run)]


def _newest_first(store: Store) -> list[str]:
    steps = {step: name for name in store.names() if (step := step_of(name)) is not None}
    return [steps[step] for step in sorted(steps, reverse=True)]


def _within(place: LocationT, name: str) -> LocationT:
    inside = place / name if isinstance(place, Path) else f"{place.rstrip('/')}/{name}"
    return cast(LocationT, inside)


def _store_of(checkpoint: CheckpointLocation) -> tuple[Store, str]:
    if isinstance(checkpoint, Path):
        return open_store(checkpoint.parent), checkpoint.name
    place, _, name = checkpoint.rstrip("/").rpartition("/")
    return open_store(place), name


def _describe(pieces: Iterable[Piece]) -> Description:
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
    return {"sha256": digest.hexdigest(), "bytes": size}
