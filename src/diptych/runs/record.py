"""Who a run is: an identity that is made once, when it begins, and that its checkpoints repeat.

It stands in ``run.json`` beside the config, not in it: the same settings begin as many runs as one
likes, and each is another.
"""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from diptych.errors import RunFolderError
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import RunFolder

_FORMAT: Final = 1
_MOST_BYTES: Final = 2**20


@dataclass(frozen=True)
class Identity:
    """What tells a run from all others.

    Attributes:
        id: 32 hexadecimal digits, drawn at random when the run begins.
        begun_as: the path of its folder then, by which people know it.
    """

    id: str
    begun_as: str

    def __str__(self) -> str:
        return f"{self.id[:8]} (begun as {self.begun_as})"

    def as_json(self) -> dict[str, str]:
        """As a JSON object."""
        return {"id": self.id, "begun_as": self.begun_as}


@dataclass(frozen=True)
class RunRecord:
    """What ``run.json`` holds.

    Attributes:
        identity: of the run.
        images: the fingerprint of the images that it began with.
        moved: where it went on with the same images under another path, one sentence each.
    """

    identity: Identity
    images: str
    moved: tuple[str, ...] = ()

    def with_moved(self, sentence: str) -> "RunRecord":
        """The same with one more sentence."""
        return replace(self, moved=(*self.moved, sentence))


def new_identity(folder: RunFolder) -> Identity:
    """The identity of a run that begins in a folder."""
    return Identity(secrets.token_hex(16), str(folder.path.absolute()))


def identity_in(value: Any) -> Identity | None:
    """The identity that a JSON value holds; None where it holds none."""
    if not isinstance(value, Mapping):
        return None
    found, begun_as = value.get("id"), value.get("begun_as")
    if not isinstance(found, str) or not re.fullmatch("[0-9a-f]{32}", found):
        return None
    return Identity(found, begun_as) if isinstance(begun_as, str) else None


def write_record(folder: RunFolder, record: RunRecord) -> None:
    """Writes ``run.json``.

    Raises:
        OSError: it could not be written.
    """
    content = {
        "format": _FORMAT,
        **record.identity.as_json(),
        "images": record.images,
        "moved": record.moved,
    }
    atomic_write(folder.record, (json.dumps(content, indent=1) + "\n").encode())


def load_record(folder: RunFolder) -> RunRecord:
    """What ``run.json`` of a run holds.

    Raises:
        RunFolderError: it is missing, as from older versions, or is not what was written.
    """
    content = _read(folder.record)
    identity, images, moved = identity_in(content), content.get("images"), content.get("moved")
    wanted = identity is not None and isinstance(images, str) and isinstance(moved, list)
    if not wanted or content.get("format") != _FORMAT:
        raise RunFolderError(
            f"{folder.record} is not the record of a run as this version of diptych writes it "
            f"(format {_FORMAT}, with id, begun_as, images and moved). Restore it, or go on with "
            "the version that began the run."
        )
    assert identity is not None
    assert isinstance(images, str)
    assert isinstance(moved, list)
    return RunRecord(identity, images, tuple(map(str, moved)))


def is_at(folder: RunFolder, identity: Identity) -> bool:
    """Whether a folder is that of a run."""
    try:
        return load_record(folder).identity.id == identity.id
    except RunFolderError:
        return False


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(_MOST_BYTES))
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{path} is missing, which says who the run is; its checkpoints cannot be told from "
            "those of others. Runs of older versions of diptych have none: go on with the version "
            "that began it, or begin a new run."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}. Restore it.") from error
    return content if isinstance(content, Mapping) else {}
