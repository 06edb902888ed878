"""A .txt list of images: paths of files, and of folders, all of whose images are meant."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError, UnreadableImage
from diptych.escaping import readable
from diptych.images.codecs.decode import EXTENSIONS
from diptych.images.collection import CompactNames
from diptych.images.inventory import Skipped
from diptych.images.listing import Listing
from diptych.images.sources.image_files import labels_from_folders, list_files, whole_folder
from diptych.images.splits import LocatedImages
from diptych.runs.folder import is_url

_LONGEST_LINE: Final = 4096 + 2  # bytes; no path is longer
_MARK: Final = b"\xef\xbb\xbf"  # that some editors put before UTF-8


def fits_a_line(name: str) -> bool:
    r"""Whether a list that has a name as a line gives it back as it is.

    >>> fits_a_line("a b.png"), fits_a_line("a.png "), fits_a_line("a\nb.png"), fits_a_line("#1")
    (True, False, False, False)
    """
    breaks = "\n" in name or "\r" in name
    return bool(name) and name == name.strip() and not breaks and not name.startswith("#")


def find_list(path: str, config: ImagesConfig) -> LocatedImages:
    """The images that a file lists, in its order, repeated ones too.

    A path is absolute or relative to the folder of the list. Blank lines, and lines that begin
    with ``#``, are left out. A folder stands for all images in and below it, and gives them labels
    by its own top-level folders; of one name in several listed folders they are one class.

    Raises:
        ImagesError: the file cannot be read, is no list of paths, or lists nothing.
    """
    try:
        names = CompactNames.of_bytes(_lines(Path(path)))
    except OSError as error:
        raise ImagesError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not names:
        raise ImagesError(f"{path} lists no images; wanted the path of one in each line.")
    around = Path(path).parent
    folders = [name for name in names if _is_folder(around, name)]
    if folders:
        _refuse_nested(path, around, folders)
        return _with_folders(path, around, names, set(folders), config)
    return LocatedImages(_files(path, around, list_files(around, names, origin=path)))


def _files(path: str, around: Path, listing: Listing) -> Listing:
    names = listing.names

    def read(index: int) -> bytes:
        name = names[index]
        if is_url(name) and not (around / name).exists():
            raise UnreadableImage("a URL; a list takes paths, and a URL is given by itself")
        return listing.read(index)

    return replace(listing, read=read)


def _is_folder(around: Path, name: str) -> bool:
    # Of a long list most are images by their names: those are not asked of the disk.
    end = os.path.splitext(name)[1].lower()
    return end not in EXTENSIONS and (around / name).is_dir()


def _refuse_nested(path: str, around: Path, folders: Sequence[str]) -> None:
    """Refuses folders whose images would be taken twice."""
    places = [(around / name).resolve() for name in folders]
    first = dict(zip(places, folders, strict=True))
    for place, name in zip(places, folders, strict=True):
        outer = next((first[one] for one in place.parents if one in first), None)
        if outer is None and first[place] != name:
            outer = first[place]
        if outer is not None:
            raise ImagesError(
                f"{path} lists {readable(name)} and {readable(outer)}, whose images it would take "
                "twice. Wanted folders of which none lies in another; remove one line."
            )


def _with_folders(
    path: str, around: Path, names: Sequence[str], folders: set[str], config: ImagesConfig
) -> LocatedImages:
    files, inner, left_out = list[str](), list[str](), list[Skipped]()
    for name in names:
        if name not in folders:
            files.append(name)
            inner.append(os.path.basename(name))
            continue
        found, beside = whole_folder(around / name, config)
        files += [os.path.join(name, one) for one in found]
        inner += found
        left_out += [replace(one, name=os.path.join(name, one.name)) for one in beside]
    labels, classes = labels_from_folders(inner)
    listing = list_files(around, CompactNames.of(files), labels, classes, origin=path)
    return LocatedImages(_files(path, around, listing), left_out=tuple(left_out))


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
