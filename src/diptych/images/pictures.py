"""Which pictures of the files of a listing are images: all but the excluded ones, pages, frames."""

import os
from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError, UnreadableImage
from diptych.images.codecs.decode import MANY_PAGED, VIDEOS, page_of, pages
from diptych.images.codecs.video import count_frames, video_frame
from diptych.images.collection import CompactNames
from diptych.images.inventory import EXCLUDED, Tally
from diptych.images.listing import Listing
from diptych.images.tree import matches

MOST_PICTURES: Final = 100_000
"""Of one file."""


def without_excluded(listing: Listing, config: ImagesConfig, excluded: Tally) -> Listing:
    """The images that no pattern of ``images.exclude`` names, by their own path or a folder's.

    Args:
        listing: the images.
        config: gives the patterns.
        excluded: takes up those that are left out.

    Raises:
        ImagesError: none is left.
    """
    if not config.exclude:
        return listing
    kept = array("q")
    for row, name in enumerate(listing.names):
        if any(matches(one, config.exclude) for one in _and_folders(name)):
            excluded.add(name, EXCLUDED, listing.part)
        else:
            kept.append(row)
    if not kept:
        raise ImagesError(
            f"images.exclude = {', '.join(config.exclude)} leaves no image of {listing.origin}."
        )
    if len(kept) == len(listing.names):
        return listing
    return listing.select(np.array(kept, dtype=np.int64))


def _and_folders(path: str) -> Iterator[str]:
    while path and path != os.sep:
        yield path
        path = os.path.dirname(path)


def each_picture(listing: Listing, config: ImagesConfig) -> Listing:
    """Every page of a file, and every so many seconds of a video, as an image of its own.

    Its name is the file's with the number of the page, from 1, after a ``#``. Files are read once
    to count their pages; a file of one page keeps its name.

    Args:
        listing: of files.
        config: says what is wanted.

    Raises:
        ImagesError: a file claims more than ``MOST_PICTURES``.
    """
    rows, numbers, names = array("q"), array("q"), list[str]()
    for row, name in enumerate(listing.names):
        count = _count(listing, row, config)
        if count > MOST_PICTURES:  # a header of a few bytes may claim any number
            raise ImagesError(
                f"{listing.origin}: {name} says that it holds {count:,} pictures; wanted at most "
                f"{MOST_PICTURES:,} of a file. Leave it out with images.exclude, or split it."
            )
        rows.extend([row] * count)
        numbers.extend(range(count) if count > 1 or _end(name) in VIDEOS else (-1,))
        names += [f"{name}#{number + 1}" for number in range(count)] if count > 1 else [name]
    if len(rows) == len(listing.names) and max(numbers, default=-1) < 0:
        return listing
    files = listing.select(np.array(rows, dtype=np.int64))

    def read(index: int) -> bytes:
        number = numbers[index]
        if number < 0:
            return files.read(index)
        if _end(listing.names[rows[index]]) in VIDEOS:
            return video_frame(_path(files, index), number, config)
        return page_of(files.read(index), number, config)

    # A picture is no file of its own: who takes the file takes its first page, or a whole video.
    return replace(files, names=CompactNames.of(names), read=read, file=None)


def _end(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _count(listing: Listing, row: int, config: ImagesConfig) -> int:
    """Pictures in a file; 1 of one that cannot be read, which is reported when it is decoded."""
    end = _end(listing.names[row])
    try:
        if end in VIDEOS and config.video_seconds is not None:
            return count_frames(_path(listing, row), config.video_seconds)
        if end in MANY_PAGED and config.pages == "all":
            return pages(listing.read(row))
    except UnreadableImage:
        return 1
    return 1


def _path(listing: Listing, row: int) -> str:
    if listing.file is None:
        raise UnreadableImage("a video that is no file on this disk; unpack or fetch it first")
    return listing.file(row)
