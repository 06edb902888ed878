"""Checkpoints: tensors in safetensors, numbers in JSON, checksums in a manifest.

A checkpoint is a folder ``step-000000123`` on a disk or behind a URL. A store makes it appear when
it is complete, so one with that name is whole unless something damaged it, which the checksums
tell. The newest is the one of the most steps; no clock is asked. Nothing is ever unpickled.
"""

import errno
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diptych.errors import DamagedCheckpoint, UnreachableFolder
from diptych.escaping import openable
from diptych.training.checkpoint_names import MANIFEST, SCALARS, TENSORS, name_of, step_of
from diptych.training.stores import Place, Store, open_store
from diptych.training.tensor_file import Piece, tensor_pieces

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_MOST_MANIFEST_BYTES: Final = 2**16
PlaceT = TypeVar("PlaceT", bound=Place)
Description = dict[str, str | int]
"""The size and the checksum of a file."""


def save_checkpoint(
    place: PlaceT,
    tensors: Mapping[str, Tensor],
    scalars: Mapping[str, Any],
    *,
    keep: int,
    passed_over: Collection[int] = (),
) -> PlaceT:
    """Writes a checkpoint, then deletes all but the ``keep`` newest.

    Where the disk is too full for one more, the oldest are deleted first, as long as one stays that
    is good: a new checkpoint is worth more than a spare.

    Args:
        place: a folder, or a URL of one, that holds the checkpoints of the run.
        tensors: contiguous, on the CPU, by name.
        scalars: JSON values; ``step`` names the checkpoint.
        keep: how many to keep, 1 or more.
        passed_over: steps of checkpoints that are damaged; those do not count as kept.

    Returns:
        The new checkpoint's place.

    Raises:
        OSError: it could not be written. Nothing of it is left, and a good older one stays.
    """
    store, name = open_store(place), name_of(scalars["step"])
    files: dict[str, Sequence[Piece]] = {
        TENSORS: tensor_pieces(tensors),
        SCALARS: [json.dumps(scalars).encode()],
    }
    described = {file: _describe(pieces) for file, pieces in files.items()}
    files[MANIFEST] = [json.dumps({"format": 1, "files": described}, indent=1).encode()]
    store.sweep()
    _write_making_room(store, name, files)
    with suppress(OSError):  # they go next time
        _remove_old(store, name, keep, passed_over)
    return _within(place, name)


def list_checkpoints(place: PlaceT) -> list[PlaceT]:
    """The checkpoints in a folder or behind its URL, newest first.

    Raises:
        UnreachableFolder: a server does not answer.
    """
    return [_within(place, name) for name in _newest_first(open_store(place))]


def steps_in(checkpoints: Sequence[Place]) -> str:
    """The steps of checkpoints, newest first as ``list_checkpoints`` has them, for a sentence."""
    return ", ".join(str(step_of_place(one)) for one in reversed(checkpoints))


def step_of_place(checkpoint: Place) -> int:
    """The steps that were done when a checkpoint was written."""
    step = step_of(_store_of(checkpoint)[1])
    assert step is not None
    return step


def load_newest(
    place: Place, on_damage: Callable[[str], None]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Loads the newest good checkpoint.

    Args:
        place: a folder, or a URL of one, that holds the checkpoints of the run.
        on_damage: told of each newer one that is damaged and passed over.

    Returns:
        Tensors and scalars as they were saved, or None where there is no checkpoint.

    Raises:
        DamagedCheckpoint: there are checkpoints, but none is good.
        UnreachableFolder: a server does not answer.
    """
    checkpoints = list_checkpoints(place)
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


def load_checkpoint(checkpoint: Place) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Loads one checkpoint after comparing its bytes with the manifest.

    Raises:
        DamagedCheckpoint: a file is missing, or its bytes are not those that were written.
        UnreachableFolder: a server does not answer.
    """
    store, name = _store_of(checkpoint)
    with _damage_in_words(checkpoint):
        described = _read_manifest(store, name)
        with _good_copy(store, name, TENSORS, described) as path, openable(path) as there:
            tensors = load_file(there)
        with _good_copy(store, name, SCALARS, described) as path:
            return tensors, json.loads(path.read_bytes())


def _is_good(store: Store, name: str) -> bool:
    """Whether a checkpoint's bytes are those that were written."""
    try:
        with _damage_in_words(name):
            described = _read_manifest(store, name)
            for file in (TENSORS, SCALARS):
                with _good_copy(store, name, file, described):
                    pass
    except DamagedCheckpoint:
        return False
    return True


def _read_manifest(store: Store, name: str) -> dict[str, Description]:
    with store.local_copy(name, MANIFEST, _MOST_MANIFEST_BYTES) as path:
        described: dict[str, Description] = json.loads(path.read_bytes())["files"]
        return described


@contextmanager
def _good_copy(
    store: Store, name: str, file: str, described: Mapping[str, Description]
) -> Iterator[Path]:
    """A path of a file whose bytes are those that the manifest describes."""
    wanted = described[file]
    with store.local_copy(name, file, int(wanted["bytes"])) as path:
        if _describe_file(path) != wanted:
            raise DamagedCheckpoint(f"{file} of {name} is damaged: its checksum differs.")
        yield path


@contextmanager
def _damage_in_words(checkpoint: Place) -> Iterator[None]:
    try:
        yield
    except UnreachableFolder:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{checkpoint} is damaged: {error}") from error


def _write_making_room(store: Store, name: str, files: Mapping[str, Sequence[Piece]]) -> None:
    while True:
        try:
            return store.write(name, files)
        except OSError as error:
            if error.errno not in _FULL or not _free_oldest(store):
                raise


def _free_oldest(store: Store) -> bool:
    """Removes the oldest checkpoint besides the newest good one; False if there is no such."""
    names = _newest_first(store)
    good = next((name for name in names if _is_good(store, name)), None)
    spare = [name for name in names if name != good]
    if good is None or not spare:
        return False
    store.remove(spare[-1])
    return True


def _remove_old(store: Store, written: str, keep: int, passed_over: Collection[int]) -> None:
    """Removes what is older than the oldest to be kept, counted from the one just written.

    Those of later steps are damaged ones that the run passed over when it resumed; they are
    replaced when it comes there again.
    """
    names = _newest_first(store)
    here = names[names.index(written) :]
    good = [name for name in here if name == written or step_of(name) not in passed_over]
    for old in here[here.index(good[:keep][-1]) + 1 :]:
        store.remove(old)


def _newest_first(store: Store) -> list[str]:
    steps = {step: name for name in store.names() if (step := step_of(name)) is not None}
    return [steps[step] for step in sorted(steps, reverse=True)]


def _within(place: PlaceT, name: str) -> PlaceT:
    inside = place / name if isinstance(place, Path) else f"{place.rstrip('/')}/{name}"
    return cast(PlaceT, inside)


def _store_of(checkpoint: Place) -> tuple[Store, str]:
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


def _describe_file(path: Path) -> Description:
    with open(path, "rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}
