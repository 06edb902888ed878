"""What comes in, bounded and checked, and how answers go out."""

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

MOST_UPLOAD_BYTES: Final = 20 * 1024 * 1024
MOST_JSON_BYTES: Final = 32 * 1024 * 1024  # proposals for a million images
_LEAST_ZIPPED: Final = 1024
_GAIN: Final = 0.9  # of the size, above which zipping is not worth it


class Refused(Exception):
    """An answer with an error.

    Attributes:
        status: of HTTP.
        sentence: for people.
    """

    def __init__(self, status: int, sentence: str, **more: Any) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.more = status, sentence, more

    def response(self) -> JSONResponse:
        """As it is sent."""
        return JSONResponse({"error": self.sentence, **self.more}, self.status)


async def read_body(request: Request, most: int) -> bytes:
    """The body, of which no more is read than is allowed.

    Raises:
        Refused: it is larger, or the client went away.
    """
    claimed = request.headers.get("content-length", "0")
    if claimed.isdecimal() and int(claimed) > most:
        raise _too_large(most)
    found = bytearray()
    try:
        async for part in request.stream():
            found += part
            if len(found) > most:
                raise _too_large(most)
    except ClientDisconnect as error:
        raise Refused(400, "The request ended before its body did.") from error
    return bytes(found)


def _too_large(most: int) -> Refused:
    return Refused(413, f"The body is larger than {most:,} bytes, the most that is taken here.")


async def read_json(request: Request) -> dict[str, Any]:
    """A JSON object from the body.

    Raises:
        Refused: it is none.
    """
    try:
        found = json.loads(await read_body(request, MOST_JSON_BYTES), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise Refused(400, "The body should be a JSON object.")
    return found


def rows_of_mask(mask: bytes, count: int) -> NDArray[np.int64]:
    """The rows whose bit is set, least significant bit of the first byte first.

    >>> rows_of_mask(bytes([0b101, 1]), 9).tolist()
    [0, 2, 8]
    """
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[:count]
    return np.flatnonzero(bits)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def whole_number(
    given: Mapping[str, Any], name: str, low: int, high: int, default: int | None = None
) -> int:
    """A whole number of a query or a JSON object.

    Raises:
        Refused: it is missing, none, or out of range.
    """
    value = given.get(name)
    value = default if value is None else value
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,11}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Refused(400, f"{name} should be a whole number from {low} to {high}.")
    return value


Word = TypeVar("Word", bound=str)


def one_of(
    given: Mapping[str, Any], name: str, allowed: Sequence[Word], default: Word | None = None
) -> Word:
    """One of some words.

    Raises:
        Refused: it is another.
    """
    value = given.get(name) or default
    found = [word for word in allowed if word == value]
    if not found:
        raise Refused(400, f"{name} should be one of {', '.join(allowed)}.")
    return found[0]


def binary(
    request: Request,
    body: bytes,
    media_type: str = "application/octet-stream",
    *,
    zipped: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Bytes with an ETag, or 304 where the client has them.

    Args:
        request: that is answered.
        body: the bytes.
        media_type: what they are.
        zipped: whether gzip may help.
        headers: more of them.
    """
    tag = f'"{blake2b(body, digest_size=12).hexdigest()}"'
    found = {"ETag": tag, "Cache-Control": "private, no-cache", **(headers or {})}
    if zipped:
        found["Vary"] = "Accept-Encoding"
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=found)
    if zipped and len(body) >= _LEAST_ZIPPED and _takes_gzip(request):
        small = gzip.compress(body, 1, mtime=0)
        if len(small) < _GAIN * len(body):
            body, found["Content-Encoding"] = small, "gzip"
    return Response(body, media_type=media_type, headers=found)


def _takes_gzip(request: Request) -> bool:
    return "gzip" in request.headers.get("accept-encoding", "")
