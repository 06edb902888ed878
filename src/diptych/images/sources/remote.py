"""What lies behind a URL: files are fetched whole, folders are listed and read image by image.

Every question is repeated when a connection fails, and every answer is bounded. A server is not
trusted: what it calls an image stays a name and never becomes a path on this disk.
"""

import hashlib
import json
import os
import posixpath
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError, UnreadableImage
from diptych.images.codecs.decode import EXTENSIONS
from diptych.images.collection import CompactNames
from diptych.images.inventory import HIDDEN, Tally, why_no_image
from diptych.images.listing import Listing
from diptych.images.pixels import cache_folder
from diptych.images.sources.image_files import find_in_tree, labels_from_folders
from diptych.images.sources.tar_shards import expand_braces
from diptych.images.splits import LocatedImages
from diptych.images.tree import Tree
from diptych.runs.atomic import atomic_path, atomic_write
from diptych.runs.folder import is_url

SECONDS: Final = 60.0
"""Without a byte, after which a server is given up."""

_PAUSES: Final = (0.5, 2.0)  # seconds before another try
Answer = TypeVar("Answer")


def connect(url: str) -> tuple[Any, str]:
    """The file system behind a URL and the place on it.

    Raises:
        ImagesError: the package for this kind of URL is missing, or it is of no known kind.
    """
    # With `::` fsspec chains protocols, and could be led to files of this machine.
    if "::" in url or url.startswith(("file:", "local:")):
        raise ImagesError(
            f"{url}: wanted one plain URL, as https://host/images or s3://bucket/images; for files "
            "on this computer, give their path."
        )
    fsspec = _import_extra("fsspec", "URLs")
    options: dict[str, Any] = {}
    try:
        if url.startswith(("http://", "https://")):
            aiohttp = _import_extra("aiohttp", "http URLs")
            # No bound on the whole: a large file may take hours. Only a silent server is given up.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=SECONDS, sock_read=SECONDS)
            options = {"client_kwargs": {"timeout": timeout}, "use_listings_cache": False}
        system, place = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise ImagesError(f"{url} cannot be opened: {error}") from error
    return system, str(place)


def _import_extra(module: str, purpose: str) -> Any:
    """A module of an optional package.

    Raises:
        ImagesError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImagesError(
            f"{purpose} need the package {module.partition('.')[0]}, which cannot be imported "
            f"({error}). Install it by: pip install 'diptych[remote]'"
        ) from error


def with_retries(read: Callable[[], Answer]) -> Answer:
    """Tries again when a connection fails; what is not there is not asked for twice."""
    for pause in _PAUSES:
        try:
            return read()
        except (FileNotFoundError, PermissionError, UnreadableImage, ImagesError):
            raise
        except Exception:  # every protocol's client has its own classes of errors
            time.sleep(pause)
    return read()


def chunks(system: Any, place: str, size: int = 2**20) -> Iterator[bytes]:
    """The bytes of a remote file, from its beginning to its end."""
    # For http, size and block size as here give a plain stream, without a question beforehand.
    options = {"block_size": 0, "size": 1} if is_http(system) else {}
    with system.open(place, "rb", **options) as file:
        while data := file.read(size):
            yield data


def one_line(error: Exception) -> str:
    """An error of any client, on one line."""
    if isinstance(error, FileNotFoundError):
        return "not found there"
    status = getattr(error, "status", None)
    text = f"the server answers {status}" if status else str(error).strip()
    return (text or type(error).__name__).splitlines()[0][:200]


def is_http(system: Any) -> bool:
    """Whether a file system speaks http: it lists pages, and knows sizes only by asking."""
    return "https" in system.protocol


_SUFFIXES: Final = (".npz", ".npy", ".tar", ".parquet")
_NOTE: Final = "source.json"
_MARKS: Final = ("size", "ETag", "etag", "Last-Modified", "LastModified", "mtime", "created")
_ROOM_LEFT: Final = 2**28  # bytes of the disk that a copy leaves free


def is_remote_file(url: str) -> bool:
    """Whether a URL names a file, or a pattern of files, that is fetched whole."""
    name = _last_part(url)
    return is_url(url) and (name.endswith(_SUFFIXES) or "idx3" in name)


def addresses(url: str) -> list[str]:
    """The files that a URL stands for; braces and wildcards may name several.

    Raises:
        ImagesError: there are none, or the server cannot be asked.
    """
    return [name for one in expand_braces(url) for name in _matches(one)]


def names_of(urls: Sequence[str]) -> list[str]:
    """Of some URLs of one server, the paths below the folder that all are in.

    >>> names_of(["s3://b/a/train/0.tar", "s3://b/a/val/0.tar"])
    ['train/0.tar', 'val/0.tar']
    """
    paths = [url.partition("://")[2].partition("?")[0] for url in urls]
    folder = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    names = [posixpath.relpath(path, folder or ".") for path in paths]
    if len(set(names)) < len(names):  # told apart by what stands behind a question mark
        names = [f"{number}/{name}" for number, name in enumerate(names)]
    return names


def fetch(urls: Sequence[str], config: ImagesConfig) -> list[Path]:
    """Local copies of some files.

    A copy is used again as long as the server gives the same size and marks. Labels that lie beside
    an IDX file come with it.

    Raises:
        ImagesError: a file is not there, breaks off, or is larger than the bound.
    """
    budget = config.cache_file_megabytes * 2**20
    copies = list[Path]()
    for name in urls:
        key = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
        folder = cache_folder(config) / "fetched" / key
        copies.append(_fetch_into(folder, name, budget))
        if "idx3" in copies[-1].name:
            _fetch_labels(folder, name, budget)
        budget -= copies[-1].stat().st_size
    return copies


def _matches(url: str) -> list[str]:
    if not any(mark in _last_part(url) for mark in "*["):
        return [url]
    system, place = connect(url)
    found = sorted(str(name) for name in _asked(url, lambda: system.glob(place)))
    if not found:
        raise ImagesError(f"{url} matches no files there. Check the address.")
    return [system.unstrip_protocol(name) for name in found]


def _fetch_into(folder: Path, url: str, budget: int) -> Path:
    system, place = connect(url)
    known = _asked(url, lambda: system.info(place))
    source = {"url": url, **{key: str(known[key]) for key in _MARKS if known.get(key) is not None}}
    copy = folder / _plain(_last_part(url))
    note = folder / f"{copy.name}.{_NOTE}"
    if _is_current(copy, note, source):
        return copy
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # Every try starts over: the file may have been replaced since the last one.
        size = with_retries(lambda: _download(system, place, url, copy, budget, known.get("size")))
    except ImagesError:
        raise
    except Exception as error:  # every protocol's client has its own classes of errors
        raise ImagesError(
            f"{url} could not be fetched into {folder}: {one_line(error)}. Check the connection "
            "and try again."
        ) from error
    # After the copy, which counts only with a note that fits it.
    atomic_write(note, json.dumps({**source, "bytes": size}).encode())
    return copy


def _download(
    system: Any, place: str, url: str, copy: Path, budget: int, expected: int | None
) -> int:
    _require_fit(url, expected or 0, budget, copy.parent)
    size = 0
    with atomic_path(copy) as temporary:
        with open(temporary, "wb") as file:
            for some in chunks(system, place):
                size += len(some)
                _require_fit(url, size, budget, copy.parent)
                file.write(some)
        if expected is not None and size != expected:
            # An OSError, not an ImagesError: it is tried again.
            raise OSError(f"{size} bytes came, {expected} were announced")
    return size


def _require_fit(url: str, size: int, budget: int, folder: Path) -> None:
    if size > budget:
        raise ImagesError(
            f"{url} is larger than what images.cache_file_megabytes leaves for it ({budget:,} "
            "bytes). Raise it, or fetch the file yourself and give its path."
        )
    if shutil.disk_usage(folder).free < size // 100 + _ROOM_LEFT:
        raise ImagesError(
            f"{url} does not fit on the disk of {folder}. Free some room, or choose another place "
            "by images.cache_folder, or by XDG_CACHE_HOME."
        )


def _is_current(copy: Path, note: Path, source: dict[str, str]) -> bool:
    try:
        kept = json.loads(note.read_bytes())
        return bool(kept == {**source, "bytes": copy.stat().st_size})
    except (OSError, ValueError):
        return False


def _fetch_labels(folder: Path, url: str, budget: int) -> None:
    """The labels beside IDX images, where there are any."""
    head, _, name = url.rpartition("/")
    beside = name.replace("images", "labels").replace("idx3", "idx1")
    system, place = connect(f"{head}/{beside}")
    try:
        there = beside != name and with_retries(lambda: bool(system.exists(place)))
    except Exception as error:  # every protocol's client has its own classes of errors
        raise ImagesError(f"{head}/{beside} cannot be asked for: {one_line(error)}.") from error
    if there:
        _fetch_into(folder, f"{head}/{beside}", budget)


def _asked(url: str, question: Any) -> Any:
    try:
        return with_retries(question)
    except Exception as error:  # every protocol's client has its own classes of errors
        raise ImagesError(
            f"{url} cannot be opened: {one_line(error)}. Check the address and the connection."
        ) from error


def _last_part(url: str) -> str:
    return PurePosixPath(url.partition("?")[0]).name


def _plain(name: str) -> str:
    """A name for the copy that is nothing but a name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-100:].lstrip(".") or "file"


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
    except Exception as error:  # every protocol's client has its own classes of errors
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
    found = _walk_pages(system, root, url) if is_http(system) else system.find(root, detail=True)
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


def _walk_pages(system: Any, root: str, url: str) -> dict[str, Entry]:
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
        except Exception as error:  # every protocol's client has its own classes of errors
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
    """Sizes and times where a listing has them; an index page has none."""
    if is_http(system):
        return None

    def stamp(index: int) -> tuple[int, int]:
        entry = entries[index]
        marks = [
            str(entry.get(key)) for key in ("ETag", "etag", "LastModified", "mtime", "created")
        ]
        # As a time in nanoseconds it lies in the first seconds of 1970: old enough to be believed.
        return int(entry.get("size") or 0), zlib.crc32("\0".join(marks).encode())

    return stamp
