"""Labels given in the gallery, in an SQLite file beside the vectors; what is confirmed is on disk.

Labels are kept by the image's name, so they outlive new vectors of the same images. Every change is
one transaction, which keeps what it replaced so that it can be undone.
"""

import json
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.errors import DiptychError
from diptych.escaping import escaped

NONE: Final = -1
"""Code of an image without a label."""

MOST_CLASSES: Final = 10_000
MOST_LETTERS: Final = 200  # of a class's name

_SCHEMA: Final = """
create table if not exists images (id integer primary key, name text not null unique);
create table if not exists classes (id integer primary key, name text not null unique);
create table if not exists labels (image integer primary key, class integer not null);
create table if not exists changes (
    version integer primary key, words text not null, seconds real not null,
    before blob, undone integer not null default 0
);
"""
_WAIT_SECONDS: Final = 30.0  # for another process that writes


class LabelsError(DiptychError):
    """Labels cannot be changed as asked, or their file is none of a gallery."""


class OutdatedLabels(LabelsError):
    """Another window changed labels since; look at them before you change more."""


@dataclass(frozen=True)
class Change:
    """What a change did.

    Attributes:
        version: of the labels from then on.
        changed: images whose label is another now.
        words: what was done, for people.
    """

    version: int
    changed: int
    words: str


class LabelStore:
    """Labels of the images of a gallery.

    Args:
        file: of SQLite; made where it is not there.
        names: of the images, each once; rows below are positions in it.

    Raises:
        LabelsError: the file is no store of labels.
    """

    def __init__(self, file: Path, names: Sequence[str]) -> None:
        self.file = file
        # One connection, used by one thread at a time: requests come in many.
        self._lock = threading.RLock()
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(
                file, timeout=_WAIT_SECONDS, check_same_thread=False, isolation_level=None
            )
            self._database.execute("pragma journal_mode = wal")
            # In WAL mode the default may lose the last transactions with the power.
            self._database.execute("pragma synchronous = full")
            self._database.executescript(_SCHEMA)
            self._ids = self._ids_of(names)
        except sqlite3.DatabaseError as error:
            raise LabelsError(
                f"{file} cannot be read as labels of a gallery: {error}. Move it away to begin "
                "anew."
            ) from error
        self._rows = {int(image): row for row, image in enumerate(self._ids)}
        self._kept: tuple[int, NDArray[np.int16]] | None = None

    def close(self) -> None:
        """Ends the use of the file."""
        with self._lock:
            self._database.close()

    @property
    def version(self) -> int:
        """Number of the last change, of this process or another; 0 for none."""
        with self._lock:
            [(found,)] = self._database.execute("select coalesce(max(version), 0) from changes")
        return int(found)

    def classes(self) -> list[str]:
        """Names of all classes that were ever given; an image's code is a position here."""
        with self._lock:
            found = self._database.execute("select name from classes order by id").fetchall()
        return [str(name) for (name,) in found]

    def codes(self) -> tuple[int, NDArray[np.int16]]:
        """The version, and (images,) codes, -1 for none; not to be changed."""
        with self._lock:
            version = self.version
            if self._kept is None or self._kept[0] != version:
                codes = np.full(len(self._ids), NONE, np.int16)
                pairs = self._database.execute("select image, class from labels").fetchall()
                for image, number in pairs:
                    row = self._rows.get(image)
                    if row is not None:
                        codes[row] = number - 1
                codes.setflags(write=False)
                self._kept = (version, codes)
            return self._kept

    def give(
        self, rows: NDArray[np.int64], name: str | None, *, expected: int | None = None
    ) -> Change:
        """Gives images a class, or takes theirs away.

        Args:
            rows: of the images.
            name: of the class; None to take labels away.
            expected: the version that the user saw.

        Raises:
            OutdatedLabels: labels are of another version than expected.
            LabelsError: the class has no usable name, or there are too many.
        """
        return self.give_each(rows, [name] * len(rows), expected=expected)

    def give_each(
        self,
        rows: NDArray[np.int64],
        names: Sequence[str | None],
        *,
        expected: int | None = None,
    ) -> Change:
        """Gives each image a class of its own, in one change; see ``give``."""
        with self._change(expected) as version:
            return self._record(version, rows, names, _words(len(rows), names))

    def accept(self, rows: NDArray[np.int64], names: Sequence[str | None]) -> Change:
        """Gives images their proposed classes, where they have none by now; see ``give``."""
        with self._change(None) as version:
            # Proposals are of images without a label: one that was given since is somebody's word.
            free = self.codes()[1][rows] == NONE
            chosen = [name for name, is_free in zip(names, free, strict=True) if is_free]
            words = f"{len(chosen):,} proposed labels accepted"
            return self._record(version, rows[free], chosen, words)

    def undo(self) -> Change:
        """Takes back the last change that was not taken back before.

        Raises:
            LabelsError: there is none.
        """
        with self._change(None) as version:
            found = self._database.execute(
                "select version, words, before from changes where not undone and before not null "
                "order by version desc limit 1"
            ).fetchone()
            if found is None:
                raise LabelsError("There is no change of labels to take back.")
            undone, words, before = found
            images, codes = _unpack(before)
            self._set(images, codes)
            self._database.execute("update changes set undone = 1 where version = ?", [undone])
            self._insert(version, f"Taken back: {words}", None)
            return Change(version, len(images), f"Taken back: {words}")

    def since(self, version: int) -> list[Change]:
        """Changes after a version, the newest hundred."""
        with self._lock:
            found = self._database.execute(
                "select version, words from changes where version > ? "
                "order by version desc limit 100",
                [version],
            ).fetchall()
        return [Change(int(number), 0, str(words)) for number, words in reversed(found)]

    def _ids_of(self, names: Sequence[str]) -> NDArray[np.int64]:
        written = [escaped(name) for name in names]  # SQLite takes UTF-8 only
        with self._transaction():
            self._database.executemany(
                "insert or ignore into images (name) values (?)", ((one,) for one in written)
            )
        found = dict(self._database.execute("select name, id from images"))
        return np.array([found[one] for one in written], np.int64)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            # Takes the write lock at once: another process waits instead of failing half-way.
            self._database.execute("begin immediate")
            try:
                yield
            except BaseException:
                self._database.execute("rollback")
                raise
            self._database.execute("commit")

    @contextmanager
    def _change(self, expected: int | None) -> Iterator[int]:
        """Within a transaction, the version that a change makes."""
        with self._transaction():
            now = self.version
            if expected is not None and expected != now:
                raise OutdatedLabels(
                    f"Labels were changed meanwhile: they are at version {now}, and you saw "
                    f"{expected}. Look again, then repeat the change."
                )
            yield now + 1

    def _code(self, name: str | None) -> int:
        """The code of a class, which is added where it is new."""
        checked = check_class(name)
        self._database.execute("insert or ignore into classes (name) values (?)", [checked])
        [(number,)] = self._database.execute("select id from classes where name = ?", [checked])
        if number > MOST_CLASSES:
            raise LabelsError(f"There are {MOST_CLASSES:,} classes already, the most there can be.")
        return int(number) - 1

    def _record(
        self, version: int, rows: NDArray[np.int64], names: Sequence[str | None], words: str
    ) -> Change:
        codes = {name: self._code(name) for name in sorted(set(names) - {None}, key=str)}
        wanted = np.array([codes.get(name, NONE) for name in names], np.int64)
        _, now = self.codes()
        others = now[rows] != wanted
        images, before = self._ids[rows[others]], now[rows[others]]
        self._set(images, wanted[others])
        self._insert(version, words, _pack(images, before))
        return Change(version, len(images), words)

    def _set(self, images: NDArray[np.int64], codes: NDArray[np.integer]) -> None:
        pairs = list(zip(images.tolist(), (codes.astype(np.int64) + 1).tolist(), strict=True))
        self._database.executemany(
            "insert or replace into labels (image, class) values (?, ?)",
            [pair for pair in pairs if pair[1]],
        )
        self._database.executemany(
            "delete from labels where image = ?", [[image] for image, number in pairs if not number]
        )

    def _insert(self, version: int, words: str, before: bytes | None) -> None:
        self._database.execute(
            "insert into changes (version, words, seconds, before) values (?, ?, ?, ?)",
            [version, words, time.time(), before],
        )


def check_class(name: object) -> str:
    """The name of a class as it is kept.

    Raises:
        LabelsError: it is empty, too long, or has characters that cannot be seen.
    """
    text = name.strip() if isinstance(name, str) else ""
    if not text or len(text) > MOST_LETTERS or not text.isprintable():
        raise LabelsError(
            f"The name of a class has 1 to {MOST_LETTERS} letters that can be seen, on one line."
        )
    return text


def _words(count: int, names: Sequence[str | None]) -> str:
    images = f"{count:,} image" + ("" if count == 1 else "s")
    given = set(names)
    if given <= {None}:
        return f"Label taken from {images}"
    if len(given) == 1:
        return f"{images} labelled {names[0]}"
    return f"{images} labelled, {len(given)} classes"


def _pack(images: NDArray[np.int64], codes: NDArray[np.int16]) -> bytes:
    head = json.dumps({"images": len(images)}).encode()
    body = images.astype("<i8").tobytes() + codes.astype("<i2").tobytes()
    return zlib.compress(head + b"\n" + body, 1)


def _unpack(data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
    head, _, body = zlib.decompress(data).partition(b"\n")
    count = int(json.loads(head)["images"])
    images = np.frombuffer(body, "<i8", count)
    return images, np.frombuffer(body, "<i2", count, offset=8 * count)
