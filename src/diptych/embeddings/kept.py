"""Vectors that an earlier call made, found again by the checksum of their image."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pyarrow import parquet

from diptych.embeddings.encode_views import Vectors
from diptych.embeddings.shard_files import differences, read_note
from diptych.errors import EmbeddingsError

CHANGES: Final = ("images", "names")
"""Settings that differ when images came or went, and all else is as it was."""

MOST_SHARDS: Final = 512
"""Shards of which vectors are kept: each is an open file until all are made."""

_GROUPS_HELD: Final = 4  # row groups in memory, of 16 megabytes each


class KeptVectors:
    """Vectors by the checksums of their images.

    Args:
        checksums: uint64 (images, 2).
        read: the vectors of some rows, (rows, dim).
    """

    def __init__(
        self, checksums: NDArray[np.uint64], read: Callable[[NDArray[np.int64]], Vectors]
    ) -> None:
        self._checksums, self.read = checksums, read
        self._order = np.argsort(checksums[:, 0], kind="stable")
        self._first = checksums[self._order, 0]
        self.used = np.zeros(len(checksums), dtype=np.bool_)
        """Which rows were found so far."""

    def __len__(self) -> int:
        return len(self._checksums)

    def find(self, checksums: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The row of each image, -1 where there is none.

        Args:
            checksums: (images, 2).
        """
        if not len(self):
            return np.full(len(checksums), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self._first, checksums[:, 0]), len(self) - 1)
        rows = self._order[places]
        found = np.where((self._checksums[rows] == checksums).all(axis=1), rows, -1)
        self.used[found[found >= 0]] = True
        return found

    @property
    def gone(self) -> int:
        """Images among them that were not found by now; copies of one count once."""
        if not len(self):
            return 0
        _, image = np.unique(self._checksums, axis=0, return_inverse=True)
        return len(np.unique(image)) - len(np.unique(image[self.used]))


def as_words(checksums: Sequence[bytes]) -> NDArray[np.uint64]:
    """(images, 2) of 16 bytes each."""
    return np.frombuffer(b"".join(checksums), "<u8").reshape(-1, 2)


def kept_in_memory(checksums: Sequence[bytes], vectors: Vectors) -> KeptVectors:
    """Vectors that lie in memory."""
    return KeptVectors(as_words(checksums), lambda rows: vectors[rows])


class KeptShards:
    """The vectors of shards that are to be made anew, which stay readable meanwhile.

    Args:
        files: shards that may be among them; those of other settings are left out.
        settings: of what is made now.
        stack: closes the files.
    """

    def __init__(
        self, files: Sequence[Path], settings: Mapping[str, Any], stack: ExitStack
    ) -> None:
        self._files = list[parquet.ParquetFile]()
        # Row groups: (file, group), and the first row of each.
        self._groups, self._starts = list[tuple[int, int]](), [0]
        checksums = list[NDArray[np.uint64]]()
        for path in files:
            if not can_be_kept(path, settings):
                continue
            # Held open: it is read after another has taken its name.
            opened = stack.enter_context(path.open("rb"))
            file = parquet.ParquetFile(opened, page_checksum_verification=True)
            checksums += self._add(stack.enter_context(file))
        whole = np.concatenate(checksums) if checksums else np.empty((0, 2), np.uint64)
        self._dim = int(settings["dim"])
        self._precision = settings["precision"]
        self._group = lru_cache(_GROUPS_HELD)(self._read_group)
        self.vectors = KeptVectors(whole, self._rows)

    def _add(self, file: parquet.ParquetFile) -> list[NDArray[np.uint64]]:
        found = []
        for group in range(file.num_row_groups):
            column = _column(file, group, "checksum").to_pylist()
            found.append(as_words(column))
            self._groups.append((len(self._files), group))
            self._starts.append(self._starts[-1] + len(column))
        self._files.append(file)
        return found

    def _rows(self, rows: NDArray[np.int64]) -> Vectors:
        out = np.empty((len(rows), self._dim), self._precision)
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        for group in np.unique(groups).tolist():
            some = groups == group
            out[some] = self._group(group)[rows[some] - self._starts[group]]
        return out

    def _read_group(self, number: int) -> Vectors:
        file, group = self._groups[number]
        try:
            column = _column(self._files[file], group, "feature").combine_chunks().flatten()
            return column.to_numpy(zero_copy_only=False).reshape(-1, self._dim)
        except (OSError, ValueError) as error:
            raise EmbeddingsError(
                f"the vectors that an earlier call wrote are damaged: {error}. Remove the shards; "
                "`diptych embed` makes them anew."
            ) from error


def _column(file: parquet.ParquetFile, group: int, name: str) -> Any:
    # By one thread, as in shard_files.
    return file.read_row_group(group, columns=[name], use_threads=False)[name]


def can_be_kept(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a shard is whole and of the same settings, of these images or others."""
    try:
        there, _ = read_note(path)
    except (OSError, ValueError):
        return False
    found = differences(there.settings, settings)
    return all(one.partition(":")[0] in CHANGES for one in found)
