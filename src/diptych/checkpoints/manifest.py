"""The manifest of a checkpoint: whose it is, and the sizes and sums of its files.

It ends with a sum of its own, so that a damaged one is never taken for another run's. Who wrote a
checkpoint stands in its numbers too, and is read there where the manifest is damaged.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

from diptych.checkpoints.stores import MANIFEST, SCALARS, TENSORS, Store
from diptych.errors import DamagedCheckpoint, ForeignCheckpoint, UnreachableFolder
from diptych.runs.record import Identity, identity_in

FORMAT: Final = 3
MOST_MANIFEST_BYTES: Final = 2**16
MOST_SCALARS_BYTES: Final = 2**24
Description = Mapping[str, str | int]
"""The size and the checksum of a file."""


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from, as far as that can be read.

    Attributes:
        format: of its manifest; None where that is damaged.
        run: that wrote it; None where it does not say.
    """

    format: int | None
    run: Identity | None

    def is_of(self, run: Identity) -> bool:
        """Whether that run wrote it, and this version of diptych can read it."""
        return self.run is not None and self.run.id == run.id and self.format in (FORMAT, None)

    @property
    def is_unknown(self) -> bool:
        """Whether nothing says whose it is: what is left of a checkpoint, or none at all."""
        return self.format is None and self.run is None

    def __str__(self) -> str:
        if self.format is not None and self.format != FORMAT:
            age = "an older" if self.format < FORMAT else "a newer"
            return f"{age} version of diptych (format {self.format}; this one reads {FORMAT})"
        return "an unknown run" if self.run is None else f"run {self.run}"


@dataclass(frozen=True)
class Manifest:
    """A manifest whose sum is right.

    Attributes:
        run: that wrote the checkpoint.
        files: sizes and sums, by name.
    """

    run: Identity
    files: Mapping[str, Description]


def make_manifest(run: Identity, files: Mapping[str, Description]) -> bytes:
    """The bytes of a manifest."""
    content = {"format": FORMAT, "run": run.as_json(), "files": files}
    return json.dumps({**content, "sha256": _sum(content)}, indent=1).encode()


def read_manifest(store: Store, name: str) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        ForeignCheckpoint: it is of another format than this version writes.
        DamagedCheckpoint: it is not as it was written.
        OSError: it is not there, or cannot be read.
    """
    content = _read_json(store, name, MANIFEST, MOST_MANIFEST_BYTES)
    number = _format_in(content)
    if number is not None and number != FORMAT:
        raise ForeignCheckpoint(
            f"{name} was written by {Origin(number, None)}. Use that version to go on from it."
        )
    run, files = identity_in(content.get("run")), content.get("files")
    stated = content.pop("sha256", None)
    if run is None or not _describes(files) or stated != _sum(content):
        raise DamagedCheckpoint(f"{MANIFEST} of {name} is not as it was written")
    return Manifest(run, files)


def origin_of(store: Store, name: str) -> Origin:
    """Where a checkpoint comes from, whether it is whole or not.

    Raises:
        UnreachableFolder: a server does not answer.
    """
    try:
        return Origin(FORMAT, read_manifest(store, name).run)
    except ForeignCheckpoint:
        content = _read_json(store, name, MANIFEST, MOST_MANIFEST_BYTES)
        return Origin(_format_in(content), identity_in(content.get("run")))
    except UnreachableFolder:
        raise
    except (DamagedCheckpoint, OSError):
        pass
    try:
        scalars = _read_json(store, name, SCALARS, MOST_SCALARS_BYTES)
    except UnreachableFolder:
        raise
    except (DamagedCheckpoint, OSError):
        return Origin(None, None)
    return Origin(None, identity_in(scalars.get("run")))


def describe_file(path: Path) -> Description:
    """The size and the sum of a file."""
    with open(path, "rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}


def json_object(text: bytes, what: str, most_bytes: int) -> dict[str, Any]:
    """A JSON object from bytes that may be anything.

    Raises:
        DamagedCheckpoint: they are no such object, or too many.
    """
    if len(text) > most_bytes:
        raise DamagedCheckpoint(f"{what} is larger than {most_bytes:,} bytes")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{what} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise DamagedCheckpoint(f"{what} is no JSON object")
    return content


def _read_json(store: Store, name: str, file: str, most_bytes: int) -> dict[str, Any]:
    with store.local_copy(name, file, most_bytes) as path, open(path, "rb") as opened:
        return json_object(opened.read(most_bytes + 1), f"{file} of {name}", most_bytes)


def _format_in(content: Mapping[str, Any]) -> int | None:
    number = content.get("format")
    return number if type(number) is int else None


def _describes(files: Any) -> TypeGuard[Mapping[str, Description]]:
    """Whether sizes and sums are there of both files that a checkpoint has."""
    return isinstance(files, Mapping) and all(
        isinstance(one := files.get(name), Mapping)
        and isinstance(one.get("sha256"), str)
        and type(one.get("bytes")) is int
        for name in (TENSORS, SCALARS)
    )


def _sum(content: Mapping[str, Any]) -> str:
    """Of what a manifest says, in whatever order and spacing."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
