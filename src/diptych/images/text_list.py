"""A text file with the path of an image in each line, to a listing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from diptych.errors import ImagesError, UnreadableImage
from diptych.images.folder import list_files
from diptych.images.listing import Listing
from diptych.images.names import CompactNames
from diptych.images.remote.connection import is_url

_LONGEST_LINE: Final = 4096 + 2  # bytes; no path is longer
_MARK: Final = b"\xef\xbb\xbf"  # that some editors put before UTF-8


def list_text(path: Path) -> Listing:
    """The images that a file lists, in its order, repeated ones too; none has a label.

    A path is absolute or relative to the folder of the list. Blank lines, and lines that begin
    with ``#``, are left out.

    Raises:
        ImagesError: the file cannot be read, is no list of paths, or lists nothing.
    """
    try:
        names = CompactNames.of_bytes(_lines(path))
    except OSError as error:
        raise ImagesError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not names:
        raise ImagesError(f"{path} lists no images; wanted the path of one in each line.")
    listing = list_files(path.parent, names, origin=str(path))

    def read(index: int) -> bytes:
        name = names[index]
        if is_url(name) and not (path.parent / name).exists():
            raise UnreadableImage("a URL; a list takes paths, and a URL is given by itself")
        return listing.read(index)

    return replace(listing, read=read)


def _lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if (len(line) == _LONGEST_LINE and not line.endswith(b"\n")) or b"\0" in line:
                raise ImagesError(
                    f"{path}, line {number} is no path; wanted the path of an image in each line."
                )
            name = line.removeprefix(_MARK if number == 1 else b"").strip()
            if name and not name.startswith(b"#"):
                yield name
