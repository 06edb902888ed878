"""Names of very many images, held as bytes end to end: a million paths take some 60 MB."""

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class CompactNames(Sequence[str]):
    """A sequence of names in one buffer of UTF-8; what is chosen from it shares the buffer.

    Names that are no UTF-8 (a file system may hold any bytes) come back as they were, by
    ``surrogateescape``.

    >>> names = CompactNames.of(["a.png", "b.png", "ü.png"])
    >>> names[2], list(names[:2]), list(names.select(np.array([2, 0])))
    ('ü.png', ['a.png', 'b.png'], ['ü.png', 'a.png'])
    """

    __slots__ = ("_buffer", "_ends", "_starts")

    def __init__(self, buffer: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self._buffer, self._starts, self._ends = buffer, starts, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> "CompactNames":
        """Packs names; a sequence that is compact already is returned as it is."""
        if isinstance(names, CompactNames):
            return names
        return cls.of_bytes(name.encode(errors="surrogateescape") for name in names)

    @classmethod
    def of_bytes(cls, names: Iterable[bytes]) -> "CompactNames":
        """Packs names that are encoded already, as they stand in a file."""
        buffer, offsets = bytearray(), array("q", [0])
        for name in names:
            buffer += name
            offsets.append(len(buffer))
        places = np.array(offsets, dtype=np.int64)
        return cls(bytes(buffer), places[:-1], places[1:])

    def select(self, indices: NDArray[np.int64] | slice) -> "CompactNames":
        """Some of the names, in the order of ``indices``; no text is copied."""
        return CompactNames(self._buffer, self._starts[indices], self._ends[indices])

    def packed(self) -> tuple[bytes, NDArray[np.int64]]:
        """The names end to end and nothing else, and where each ends."""
        ends = np.cumsum(self._ends - self._starts)
        if len(self) and np.array_equal(ends, self._ends):
            return self._buffer[: int(ends[-1])], ends
        places = zip(self._starts.tolist(), self._ends.tolist(), strict=True)
        return b"".join(self._buffer[start:end] for start, end in places), ends

    def same_as(self, other: "CompactNames") -> bool:
        """Whether these are the same names in the same order; fast for very many."""
        (text, ends), (its_text, its_ends) = self.packed(), other.packed()
        return text == its_text and np.array_equal(ends, its_ends)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "CompactNames": ...
    def __getitem__(self, index: int | slice) -> "str | CompactNames":
        if isinstance(index, slice):
            return self.select(index)
        name = self._buffer[int(self._starts[index]) : int(self._ends[index])]
        return name.decode(errors="surrogateescape")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) or not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"CompactNames({shown}{', ...' if len(self) > 3 else ''}; {len(self)} names)"
