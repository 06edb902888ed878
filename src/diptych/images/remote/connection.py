"""What lies behind a URL, read with patience and within bounds."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from diptych.errors import ImagesError, UnreadableImage
from diptych.images.extras import import_extra

SECONDS: Final = 60.0
"""Without a byte, after which a server is given up."""

_PAUSES: Final = (0.5, 2.0)  # seconds before another try
Result = TypeVar("Result")


def is_url(path: str) -> bool:
    """Whether it is a URL, as ``https://...`` or ``s3://...``."""
    return "://" in path


def connect(url: str) -> tuple[Any, str]:
    """The file system behind a URL and the place on it.

    Raises:
        ImagesError: the package for this kind of URL is missing, or it is of no known kind.
    """
    if "::" in url or url.startswith(("file:", "local:")):
        raise ImagesError(
            f"{url}: wanted one plain URL, as https://host/images or s3://bucket/images; for files "
            "on this computer, give their path."
        )
    fsspec = import_extra("fsspec", "remote", "URLs")
    options: dict[str, Any] = {}
    try:
        if url.startswith(("http://", "https://")):
            aiohttp = import_extra("aiohttp", "remote", "http URLs")
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=SECONDS, sock_read=SECONDS)
            options = {"client_kwargs": {"timeout": timeout}, "use_listings_cache": False}
        system, place = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise ImagesError(f"{url} cannot be opened: {error}") from error
    return system, str(place)


def persist(read: Callable[[], Result]) -> Result:
    """Tries again when a connection fails; what is not there is not asked for twice."""
    for pause in _PAUSES:
        try:
            return read()
        except (FileNotFoundError, PermissionError, UnreadableImage, ImagesError):
            raise
        except Exception:  # each protocol's client raises errors of its own
            time.sleep(pause)
    return read()


def chunks(system: Any, place: str, size: int = 2**20) -> Iterator[bytes]:
    """The bytes of a remote file, from its beginning to its end."""
    # For http, size and block size as here give a plain stream, without a question beforehand.
    options = {"block_size": 0, "size": 1} if is_http(system) else {}
    with system.open(place, "rb", **options) as file:
        while data := file.read(size):
            yield data


def in_words(error: Exception) -> str:
    """An error of any client, on one line."""
    if isinstance(error, FileNotFoundError):
        return "not found there"
    status = getattr(error, "status", None)
    text = f"the server answers {status}" if status else str(error).strip()
    return (text or type(error).__name__).splitlines()[0][:200]


def is_http(system: Any) -> bool:
    """Whether a file system speaks http: it lists pages, and knows sizes only by asking."""
    return "https" in system.protocol
