"""A set of images with what is known about them, whatever it came from, and their names.

Names of very many images are held as bytes end to end: a million paths take some 60 MB.
"""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.escaping import readable
from diptych.images.inventory import Inventory, Skipped, listed
from diptych.images.pixels import PixelSource, SelectedPixels


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order: an image's index is its identity in every random draw.

    Attributes:
        pixels: gives the pixels of any images.
        names: one for each image, in the order of the indices.
        heights: int64 (images,), in pixels, in full.
        widths: int64 (images,), in pixels, in full.
        channels: 1 .. 64.
        labels: int64 (images,), positions in ``classes``, -1 for an image without one; for
            evaluation, and for the supervised loss and a distillation's teacher.
        classes: names of the classes; empty where there are no labels.
        skipped: the images left out, as they cannot be used.
        beyond_limit: the images that a limit leaves out, in one row where there are any.
        remarks: sentences on how they were opened that a user should read.
        checksums: uint64 (images, 2), 128 bits of each image's encoded bytes, or of its pixels
            where it lies decoded: an image's identity by content, whatever its name.
        pages: int64 (images,), pictures in each image's file, of which the first is used; None
            where files hold one each.
    """

    pixels: PixelSource
    names: Sequence[str]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    channels: int
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    beyond_limit: tuple[Skipped, ...] = ()
    remarks: tuple[str, ...] = ()
    checksums: NDArray[np.uint64] | None = None
    pages: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, indices: NDArray[np.int64]) -> "ImageSet":
        """Some of the images, in the order of ``indices``, with their labels."""
        return replace(
            self,
            pixels=SelectedPixels(self.pixels, indices),
            names=CompactNames.of(self.names).select(indices),
            heights=self.heights[indices],
            widths=self.widths[indices],
            labels=None if self.labels is None else self.labels[indices],
            checksums=None if self.checksums is None else self.checksums[indices],
            pages=None if self.pages is None else self.pages[indices],
        )

    def decoded_for(self, config: ImagesConfig) -> "ImageSet":
        """The same images, decoded and kept as another config asks."""
        return replace(self, pixels=self.pixels.decoded_for(config))

    def spread(self, most: int) -> "ImageSet":
        """At most ``most`` of the images, evenly spread over the set; always the same ones."""
        return self.select(spread_indices(len(self), most))

    @property
    def stacks(self) -> int:
        """Files that hold several pictures, of which the first is used."""
        return 0 if self.pages is None else int((self.pages > 1).sum())

    @property
    def further_pages(self) -> int:
        """Pictures in those files that are not used."""
        return 0 if self.pages is None else int(np.maximum(self.pages - 1, 0).sum())

    @property
    def median_side_pixels(self) -> int:
        """Median over the images of the shorter side."""
        return int(np.median(np.minimum(self.heights, self.widths)))

    def fingerprint(self) -> str:
        """A hash of the names, sizes and contents: whether a run resumes on the same images.

        It does not depend on where they lie. What it begins with is its version.
        """
        digest = hashlib.sha256()
        for name in self.names:
            # The zero byte between them: else `ab`, `c` and `a`, `bc` would be the same names.
            digest.update(name.encode(errors="surrogateescape") + b"\0")
        digest.update(self.heights.tobytes() + self.widths.tobytes())
        if self.checksums is not None:
            digest.update(self.checksums.tobytes())
        return f"2:{digest.hexdigest()}"


@dataclass(frozen=True)
class Collection:
    """What a path holds: images to learn from, and held-out ones where it has them.

    Attributes:
        train: the images to learn from.
        test: held-out images, for evaluation only.
        description: some sentences that say what was found.
        train_part: what the part to learn from is called, as "train"; empty where there are none.
        test_part: what the held-out part is called, as "val"; empty where there is none.
        left_out: what was found and is not used; images that cannot be read, or are beyond a limit,
            are in the sets.
        remarks: sentences on what was found.
    """

    train: ImageSet
    test: ImageSet | None
    description: str
    train_part: str = ""
    test_part: str = ""
    left_out: tuple[Skipped, ...] = ()
    remarks: tuple[str, ...] = ()

    def decoded_for(self, config: ImagesConfig) -> "Collection":
        """The same images, decoded and kept as another config asks."""
        test = None if self.test is None else self.test.decoded_for(config)
        return replace(self, train=self.train.decoded_for(config), test=test)

    @property
    def inventory(self) -> Inventory:
        """Everything that was looked at, and what became of it."""
        test = [] if self.test is None else [(self.test_part or "test", self.test)]
        parts = [(self.train_part, self.train), *test]
        beyond = [replace(one, part=name) for name, images in parts for one in images.beyond_limit]
        return Inventory(
            used=tuple((name, len(images)) for name, images in parts),
            unreadable=tuple(one for _, images in parts for one in images.skipped),
            left_out=(*self.left_out, *beyond),
            remarks=self.remarks,
            stacks=sum(images.stacks for _, images in parts),
            further_pages=sum(images.further_pages for _, images in parts),
        )


def held_out_config(config: ImagesConfig, learned: ImageSet) -> ImagesConfig:
    """How to open the held-out images of a set: all of them, with the channels learned from."""
    raw = learned.channels if config.color == "raw" else config.raw_channels
    return replace(config, limit=None, raw_channels=raw)


def spread_indices(count: int, most: int) -> NDArray[np.int64]:
    """Which of ``count`` images to take so that they are evenly spread: the first, ..., the last.

    Args:
        count: images there are.
        most: images wanted; all are taken where there are no more.

    Returns:
        (min(count, most),) indices in ascending order.

    >>> spread_indices(10, 4).tolist()
    [0, 3, 6, 9]
    """
    chosen: NDArray[np.int64] = np.unique(
        np.linspace(0, count - 1, min(count, most)).astype(np.int64)
    )
    return chosen


def on_classes(train: ImageSet, test: ImageSet | None, part: str) -> list[str]:
    """Sentences on what a reader of accuracies should know of the classes.

    Args:
        train: the images to learn from.
        test: held-out ones.
        part: what those are called.
    """
    sentences = []
    if train.labels is not None and train.classes:
        counts = np.bincount(train.labels[train.labels >= 0], minlength=len(train.classes))
        single = [name for name, count in zip(train.classes, counts, strict=True) if count == 1]
        unlabelled = int((train.labels < 0).sum())
        if single:
            sentences.append(
                f"{_named(single, 'class')} with a single image: {listed(single, most=10)}."
            )
        if unlabelled:
            sentences.append(f"{unlabelled:,} of {len(train):,} images have no label.")
    if test is None or test.labels is None or train.labels is None:
        return sentences
    held_out = readable(part or "test")
    sentences += _on_missing(test, train, f"of {held_out}", "those to learn from")
    return sentences + _on_missing(train, test, "to learn from", f"those of {held_out}")


def _on_missing(here: ImageSet, there: ImageSet, place: str, lacking: str) -> list[str]:
    """A sentence where one part has classes which another lacks."""
    known = set(there.classes)
    only = [number for number, name in enumerate(here.classes) if name not in known]
    if not only or here.labels is None:
        return []
    images = int(np.isin(here.labels, only).sum())
    names = [here.classes[number] for number in only]
    return [
        f"{_named(names, 'class')} {place}, with {images:,} images, not among {lacking}: "
        f"{listed(names, most=10)}."
    ]


def _named(names: Sequence[str], noun: str) -> str:
    return f"{len(names):,} {noun if len(names) == 1 else noun + 'es'}"


def choose(count: int, limit: int | None) -> NDArray[np.int64]:
    """A random subset of ``limit`` of so many images in ascending order; always the same one."""
    if limit is None or limit >= count:
        return np.arange(count, dtype=np.int64)
    # A seed of its own, not the run's: all runs on a set must mean the same subset by a limit.
    chosen = np.random.Generator(np.random.Philox(0)).permutation(count)[:limit]
    return np.sort(chosen).astype(np.int64)


def beyond(count: int, limit: int | None) -> tuple[Skipped, ...]:
    """How many of so many images ``choose`` leaves out, as a row of the inventory."""
    if limit is None or limit >= count:
        return ()
    return (Skipped("", f"beyond images.limit = {limit}", count=count - limit),)


def balanced_share(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Indices of a random share of the images, the same of each class, at least one of each.

    Images without a label, -1, are none of them.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    chosen = []
    for label in np.unique(labels[labels >= 0]):
        members = generator.permutation(np.flatnonzero(labels == label))
        chosen.append(members[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(chosen))


def present_classes(
    labels: NDArray[np.int64] | None, classes: tuple[str, ...]
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """The labels as positions among the classes that occur; -1 for an image without one.

    None where fewer than two classes occur, which says nothing.
    """
    if labels is None:
        return None, ()
    labelled = labels >= 0
    present, positions = np.unique(labels[labelled], return_inverse=True)
    if len(present) < 2:
        return None, ()
    found = np.full(len(labels), -1, dtype=np.int64)
    found[labelled] = positions.reshape(-1)
    return found, tuple(classes[i] for i in present)


def refuse_if_too_many(
    skipped: Sequence[Skipped], count: int, config: ImagesConfig, origin: str
) -> None:
    """Stops before training when the share of unreadable images is above the set one."""
    if len(skipped) == count or len(skipped) > config.max_unreadable_share * count:
        listed = "\n".join(f"  {readable(one.name)}: {readable(one.reason)}" for one in skipped[:5])
        more = f"\n  and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        over, cure = "", "Repair them."
        if len(skipped) < count:
            share = f"{config.max_unreadable_share:g}"
            over = f", more than images.max_unreadable_share = {share} allows"
            cure = "Repair or remove them, or raise that setting, which `diptych pretrain` takes."
        raise ImagesError(
            f"{len(skipped)} of {count} images in {origin} are unreadable{over}:\n{listed}{more}\n"
            f"{cure}"
        )


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
