"""Checkpoints on disk: tensors in safetensors, numbers in JSON, checksums in a manifest.

A checkpoint is a folder ``step-000000123``. It is written under another name, synced, and renamed
when complete, so a folder with that name is whole unless the disk damaged it, which the checksums
tell. Nothing is ever unpickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diptych.errors import DamagedCheckpoint
from diptych.run_folder import sync_folder

_TENSORS: Final = "tensors.safetensors"
_SCALARS: Final = "state.json"
_MANIFEST: Final = "manifest.json"
_PREFIX: Final = "step-"
_ASIDE: Final = ".writing-"


def save_checkpoint(
    folder: Path, tensors: dict[str, Tensor], scalars: Mapping[str, Any], *, keep: int
) -> Path:
    """Writes a checkpoint, then deletes all but the ``keep`` newest.

    Args:
        folder: that holds the checkpoints of the run.
        tensors: contiguous, by name.
        scalars: JSON values; ``step`` names the checkpoint.
        keep: how many to keep, 1 or more.

    Returns:
        The new checkpoint's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_ASIDE}*"):  # of a run that was killed while it wrote
        shutil.rmtree(leftover)
    name = f"{_PREFIX}{scalars['step']:09d}"
    aside, final = folder / f"{_ASIDE}{name}", folder / name
    aside.mkdir()
    save_file(tensors, aside / _TENSORS)
    (aside / _SCALARS).write_text(json.dumps(scalars))
    files = {name: _describe(aside / name) for name in (_TENSORS, _SCALARS)}
    (aside / _MANIFEST).write_text(json.dumps({"format": 1, "files": files}, indent=1))
    for file in aside.iterdir():
        _sync_file(file)
    sync_folder(aside)
    if final.exists():  # a damaged one of the same step
        shutil.rmtree(final)
    os.rename(aside, final)
    sync_folder(folder)
    for old in list_checkpoints(folder)[keep:]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted(folder.glob(f"{_PREFIX}*"), reverse=True)


def load_newest(
    folder: Path, on_damage: Callable[[str], None]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Loads the newest good checkpoint.

    Args:
        folder: that holds the checkpoints of the run.
        on_damage: told of each newer one that is damaged and passed over.

    Returns:
        Tensors and scalars as they were saved, or None where there is no checkpoint.

    Raises:
        DamagedCheckpoint: there are checkpoints, but none is good.
    """
    checkpoints = list_checkpoints(folder)
    for checkpoint in checkpoints:
        try:
            return load_checkpoint(checkpoint)
        except DamagedCheckpoint as error:
            on_damage(str(error))
    if checkpoints:
        raise DamagedCheckpoint(
            f"none of the {len(checkpoints)} checkpoints in {folder} is good. Begin the run anew "
            "in another folder."
        )
    return None


def load_checkpoint(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Loads one checkpoint after comparing its bytes with the manifest.

    Raises:
        DamagedCheckpoint: a file is missing, or its bytes are not those that were written.
    """
    try:
        manifest = json.loads((checkpoint / _MANIFEST).read_bytes())
        for name in (_TENSORS, _SCALARS):
            if _describe(checkpoint / name) != manifest["files"][name]:
                raise DamagedCheckpoint(f"{checkpoint / name} is damaged: its checksum differs.")
        scalars = json.loads((checkpoint / _SCALARS).read_bytes())
        return load_file(checkpoint / _TENSORS), scalars
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{checkpoint} is damaged: {error}") from error


def _describe(path: Path) -> dict[str, str | int]:
    with open(path, "rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
