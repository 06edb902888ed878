"""The gallery's answers over HTTP: labels, and what is written of them."""

import asyncio
import time
from typing import Any, Final

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from diptych.gallery.contents import Gallery
from diptych.gallery.exports import EXPORTS, write_links
from diptych.gallery.labels import Change, check_class
from diptych.gallery.server.requests import (
    Refused,
    binary,
    one_of,
    read_body,
    read_json,
    rows_of_mask,
    whole_number,
)
from diptych.gallery.spread import spread

POLL_SECONDS: Final = 25.0
"""For which a request waits for other labels."""

_LOOK_SECONDS: Final = 0.25
_MOST_VERSION: Final = 2**53


def label_routes(gallery: Gallery) -> list[Route]:
    """All routes about labels."""
    labels, count = gallery.labels, len(gallery)

    def some(request: Request) -> Response:
        version, codes = labels.codes()
        classes = labels.classes()
        sizes = np.bincount(codes[codes >= 0], minlength=len(classes)).tolist()
        return JSONResponse({"version": version, "classes": classes, "counts": sizes})

    def codes(request: Request) -> Response:
        version, found = labels.codes()
        headers = {"X-Version": str(version)}
        return binary(request, found.astype("<i2").tobytes(), zipped=True, headers=headers)

    async def give(request: Request) -> Response:
        wanted = (count + 7) // 8
        mask = await read_body(request, wanted)
        if len(mask) != wanted:
            raise Refused(400, f"The body should be a bit for each image, {wanted} bytes.")
        name = request.query_params.get("class") or None
        expected = _version(request)
        rows = rows_of_mask(mask, count)
        change = await run_in_threadpool(labels.give, rows, name, expected=expected)
        return JSONResponse(_as_json(change))

    async def spread_them(request: Request) -> Response:
        given = await read_json(request)
        return JSONResponse(await run_in_threadpool(_spread, gallery, given))

    async def accept(request: Request) -> Response:
        rows, names = _proposals(await read_json(request), count)
        change = await run_in_threadpool(labels.accept, rows, names)
        return JSONResponse(_as_json(change))

    async def undo(request: Request) -> Response:
        return JSONResponse(_as_json(await run_in_threadpool(labels.undo)))

    async def changes(request: Request) -> Response:
        since = whole_number(request.query_params, "since", 0, _MOST_VERSION)
        ends = time.monotonic() + POLL_SECONDS
        while labels.version <= since and time.monotonic() < ends:
            if gallery.ending.is_set() or await request.is_disconnected():
                break
            await asyncio.sleep(_LOOK_SECONDS)
        found = await run_in_threadpool(labels.since, since)
        return JSONResponse({"version": labels.version, "words": [one.words for one in found]})

    def export(request: Request) -> Response:
        kind = one_of(request.query_params, "format", list(EXPORTS))
        made = EXPORTS[kind]
        headers = {"Content-Disposition": f'attachment; filename="{made.file}"'}
        return binary(request, made.write(gallery), made.media_type, zipped=True, headers=headers)

    async def links(request: Request) -> Response:
        one_of(await read_json(request), "format", ["links"])
        return JSONResponse(await run_in_threadpool(write_links, gallery))

    return [
        Route("/api/labels", some, methods=["GET"]),
        Route("/api/labels", give, methods=["POST"]),
        Route("/api/labels/codes", codes),
        Route("/api/labels/spread", spread_them, methods=["POST"]),
        Route("/api/labels/accept", accept, methods=["POST"]),
        Route("/api/labels/undo", undo, methods=["POST"]),
        Route("/api/labels/changes", changes),
        Route("/api/export", export, methods=["GET"]),
        Route("/api/export", links, methods=["POST"]),
    ]


def _spread(gallery: Gallery, given: dict[str, Any]) -> dict[str, Any]:
    """Proposals as JSON; nothing is kept."""
    confidence = given.get("confidence", 0.5)
    if type(confidence) not in (int, float) or not 0 <= confidence <= 1:
        raise Refused(400, "confidence should be a number from 0 to 1.")
    _, codes = gallery.labels.codes()
    classes = gallery.labels.classes()
    name = given.get("class") or None
    if name is not None and name not in classes:
        raise Refused(400, "There is no such class among the labels given here.")
    if not (codes >= 0).any():
        raise Refused(400, "Label some images first: labels spread from them to their neighbours.")
    found = spread(
        gallery.neighbours["A"].get(),
        codes,
        len(classes),
        only=None if name is None else classes.index(name),
        confidence=float(confidence),
    )
    return {
        "rows": found.rows.tolist(),
        "classes": [classes[code] for code in found.codes.tolist()],
        "confidences": [round(one, 4) for one in found.confidences.tolist()],
    }


def _version(request: Request) -> int | None:
    if "version" not in request.query_params:
        return None
    return whole_number(request.query_params, "version", 0, _MOST_VERSION)


def _as_json(change: Change) -> dict[str, Any]:
    return {"version": change.version, "changed": change.changed, "words": change.words}


def _proposals(given: dict[str, Any], count: int) -> tuple[Any, list[str | None]]:
    """Rows and their classes, as ``spread`` proposed them or the user left them."""
    rows, names = given.get("rows"), given.get("classes")
    if not isinstance(rows, list) or not isinstance(names, list) or len(rows) != len(names):
        raise Refused(400, "The body should have rows and classes, one for each.")
    if not all(type(row) is int and 0 <= row < count for row in rows):
        raise Refused(400, f"Rows are whole numbers from 0 to {count - 1}.")
    if len(set(rows)) < len(rows):
        raise Refused(400, "A row is there twice.")
    checked = {name: check_class(name) for name in set(map(str, names))}
    return np.array(rows, np.int64), [checked[str(name)] for name in names]
