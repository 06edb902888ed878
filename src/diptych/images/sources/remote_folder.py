"""Folders behind a URL: listed, and read image by image.

A server is not trusted: what it calls an image stays a name and never becomes a path on this disk.
"""

import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import unquote

from diptych.errors import ImagesError, UnreadableImage
from diptych.images.codecs.decode import EXTENSIONS
from diptych.images.collection import CompactNames
from diptych.images.inventory import HIDDEN, Tally, why_no_image
from diptych.images.listing import Listing
from diptych.images.sources.image_files import find_in_tree, labels_from_folders
from diptych.images.sources.remote import chunks, connect, is_http, one_line, with_retries
from diptych.images.splits import LocatedImages
from diptych.images.tree import Tree

_LARGEST_IMAGE: Final = 2**28  # bytes
_MOST_FOLDERS: Final = 100_000
_MOST_ENTRIES: Final = 20_000_000
Entry = dict[str, Any]
"""What is known of a remote file; ``name`` is its place."""


def find_in_remote_folder(url: str) -> LocatedImages:
    """The images below a URL; train and test folders are noticed as in a local folder.

    Raises:
        ImagesError: it cannot be listed or holds no images.
    """
    system, root = connect(url)
    try:
        entries, others = with_retries(lambda: _find(system, root.rstrip("/"), url))
    except ImagesError:
        raise
    except Exception as error:  # each protocol's client raises errors of its own
        raise ImagesError(
            f"{url} cannot be listed: {one_line(error)}. Check the address and the connection."
        ) from error
    if not entries:
        raise ImagesError(
            f"no images listed at {url}. Wanted a folder with files named "
            f"{', '.join(sorted(EXTENSIONS))}, or the URL of a .npz, .npy, .tar or .parquet file."
        )

    def listed(inside: str, part: str) -> Listing:
        start = f"{inside}/" if inside else ""
        own = {name[len(start) :]: one for name, one in entries.items() if name.startswith(start)}
        return _listing(url, system, own, part)

    tree = Tree(others=others)
    for name in entries:
        folder, _, base = name.rpartition("/")
        tree.images.setdefault(folder, []).append(base)
    return find_in_tree(url, tree, listed)


def _find(system: Any, root: str, url: str) -> tuple[dict[str, Entry], Tally]:
    """The images below a place by their names relative to it, sorted, and what else there is."""
    found = _walk(system, root, url) if is_http(system) else system.find(root, detail=True)
    if len(found) > _MOST_ENTRIES:
        raise ImagesError(f"{url} lists more than {_MOST_ENTRIES:,} files. Give a part of it.")
    named, others = dict[str, Entry](), Tally()
    for place, entry in found.items():
        name = place.removeprefix(root).strip("/")
        name = unquote(name) if is_http(system) else name
        if any(part.startswith(".") for part in name.split("/")):
            others.add(name, HIDDEN)
        elif os.path.splitext(name)[1].lower() in EXTENSIONS:
            named[name] = {**entry, "name": place}
        else:
            others.add(name, why_no_image(name))
    return dict(sorted(named.items())), others


def _walk(system: Any, root: str, url: str) -> dict[str, Entry]:
    """The files on a server's index pages; a server may invent pages without end."""
    found, waiting, seen = dict[str, Entry](), [root + "/"], {root + "/"}
    while waiting:
        for entry in system.ls(waiting.pop(), detail=True):
            place = str(entry["name"])
            if "?" in place or "#" in place or "/../" in place or place in seen:
                continue  # another order of the same page, or one that leads back
            if entry["type"] == "directory":
                seen.add(place)
                waiting.append(place)
            else:
                found[place] = entry
        if len(seen) > _MOST_FOLDERS or len(found) > _MOST_ENTRIES:
            raise ImagesError(
                f"{url} lists folders or files without end. Give a part of it, or fetch it as a "
                ".tar file."
            )
    return found


def _listing(url: str, system: Any, entries: dict[str, Entry], part: str) -> Listing:
    names = CompactNames.of(entries)
    places = list(entries.values())
    labels, classes = labels_from_folders(names)
    read, stamp = _reader(system, places), _stamper(system, places)
    return Listing(url, names, read, labels, classes, part, stamp)


def _reader(system: Any, entries: Sequence[Entry]) -> Callable[[int], bytes]:
    def read(index: int) -> bytes:
        try:
            return with_retries(lambda: _read_bounded(system, entries[index]["name"]))
        except UnreadableImage:
            raise
        except Exception as error:  # each protocol's client raises errors of its own
            raise UnreadableImage(one_line(error)) from error

    return read


def _read_bounded(system: Any, place: str) -> bytes:
    data = bytearray()
    for some in chunks(system, place):
        data += some
        if len(data) > _LARGEST_IMAGE:
            raise UnreadableImage(f"more than {_LARGEST_IMAGE:,} bytes")
    return bytes(data)


def _stamper(system: Any, entries: Sequence[Entry]) -> Callable[[int], tuple[int, int]] | None:
    """Sizes and times where a listing tells them; an index page does not."""
    if is_http(system):
        return None

    def stamp(index: int) -> tuple[int, int]:
        entry = entries[index]
        marks = [
            str(entry.get(key)) for key in ("ETag", "etag", "LastModified", "mtime", "created")
        ]
        return int(entry.get("size") or 0), zlib.crc32("\0".join(marks).encode())

    return stamp
