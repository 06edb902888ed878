"""The gallery's pages and answers over HTTP: what is read."""

import importlib.resources
from typing import Any, Final

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from diptych.errors import DiptychError
from diptych.escaping import readable
from diptych.gallery.contents import Gallery
from diptych.gallery.labels import OutdatedLabels
from diptych.gallery.pieces import Failed, NotReady
from diptych.gallery.server.label_routes import label_routes
from diptych.gallery.server.requests import (
    MOST_UPLOAD_BYTES,
    Refused,
    binary,
    one_of,
    read_body,
    read_json,
    whole_number,
)
from diptych.gallery.server.subsets import choose, moved, ways_of
from diptych.gallery.shown_runs import Run

PAGE: Final = "index.html"
PAGE_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
"""Files of the page that are served; no other, whatever lies beside them."""

MOST_ROWS: Final = 1000
MOST_NEIGHBOURS: Final = 1000
_MOST_PLACES: Final = 10_000_000


def make_app(gallery: Gallery) -> Starlette:
    """The application, without what guards it; see ``security.Guard``."""
    routes = [*_page_routes(), *_data_routes(gallery), *_picture_routes(gallery)]
    routes += [*_question_routes(gallery), *label_routes(gallery)]
    return Starlette(
        routes=routes,
        exception_handlers={
            Refused: _refused,
            NotReady: _not_ready,
            Failed: _failed,
            OutdatedLabels: _outdated,
            DiptychError: _wrong,
            HTTPException: _http,
            Exception: _fault,
        },
    )


# --- the page -------------------------------------------------------------------------------------


def page_files() -> dict[str, str]:
    """Names of the page's files that may be served, and their types."""
    found = {}
    for file in importlib.resources.files("diptych.gallery").joinpath("page").iterdir():
        kind = PAGE_TYPES.get("." + file.name.rpartition(".")[2])
        if kind and file.is_file():
            found[file.name] = kind
    return found


def _page_routes() -> list[Route]:
    files = page_files()
    folder = importlib.resources.files("diptych.gallery").joinpath("page")

    def static(request: Request) -> Response:
        name = request.path_params.get("name", PAGE)
        if name not in files:
            raise Refused(404, "There is no such file.")
        return binary(request, folder.joinpath(name).read_bytes(), files[name], zipped=True)

    return [Route("/", static), Route("/static/{name}", static)]


# --- answers --------------------------------------------------------------------------------------


def _data_routes(gallery: Gallery) -> list[Route]:
    """What the page shows of all images: one value, or point, for each."""
    count = len(gallery)

    def described(request: Request) -> Response:
        return JSONResponse(describe(gallery))

    def a_map(request: Request) -> Response:
        piece = gallery.maps.get(request.path_params["run"])
        if piece is None:
            raise Refused(404, "There is no such run.")
        return binary(request, piece.get().astype("<f4").tobytes())

    def a_column(request: Request) -> Response:
        index = whole_number(request.path_params, "index", 0, len(gallery.columns) - 1)
        column = gallery.columns[index]
        values = column.values()
        data = values.astype("<i2" if column.kind == "class" else "<f4").tobytes()
        return binary(request, data, zipped=True)

    def some_rows(request: Request) -> Response:
        first = whole_number(request.query_params, "first", 0, count, 0)
        size = whole_number(request.query_params, "count", 0, MOST_ROWS, 100)
        return JSONResponse(_rows(gallery, list(range(first, min(first + size, count)))))

    async def given_rows(request: Request) -> Response:
        body = await read_body(request, 4 * MOST_ROWS)
        if len(body) % 4:
            raise Refused(400, "The body should be row numbers of 4 bytes each.")
        rows = np.frombuffer(body, "<i4")
        if len(rows) and (rows.min() < 0 or rows.max() >= count):
            raise Refused(400, f"Rows lie from 0 to {count - 1}.")
        return JSONResponse(await run_in_threadpool(_rows, gallery, rows.tolist()))

    return [
        Route("/api/set", described),
        Route("/api/maps/{run}", a_map),
        Route("/api/columns/{index}", a_column),
        Route("/api/rows", some_rows, methods=["GET"]),
        Route("/api/rows", given_rows, methods=["POST"]),
    ]


def _picture_routes(gallery: Gallery) -> list[Route]:
    """Pictures, always encoded anew."""

    def thumbnails(request: Request) -> Response:
        _require_pictures(gallery)
        page = whole_number(request.path_params, "page", 0, gallery.atlas.pages - 1)
        return binary(request, gallery.atlas.page(page), "image/webp")

    def a_picture(request: Request) -> Response:
        _require_pictures(gallery)
        row = whole_number(request.path_params, "row", 0, len(gallery) - 1)
        data = gallery.atlas.picture(row)
        if data is None:
            raise Refused(404, "This image is not there, or cannot be read.")
        return binary(request, data, "image/webp")

    return [
        Route("/api/thumbnails/{page}", thumbnails),
        Route("/api/pictures/{row}", a_picture),
    ]


def _question_routes(gallery: Gallery) -> list[Route]:
    """What is found for a question; changes nothing."""
    count, runs = len(gallery), gallery.runs.by_name()

    async def neighbours(request: Request) -> Response:
        given = await read_json(request)
        run = runs[one_of(given, "run", list(runs), "A")]
        row = whole_number(given, "row", 0, count - 1)
        k = whole_number(given, "k", 1, MOST_NEIGHBOURS, 20)
        found = await run_in_threadpool(run.nearest_to_row, row, k)
        return JSONResponse(_found(found))

    async def search(request: Request) -> Response:
        run = runs[one_of(request.query_params, "run", list(runs), "A")]
        k = whole_number(request.query_params, "k", 1, MOST_NEIGHBOURS, 20)
        image = await read_body(request, MOST_UPLOAD_BYTES)
        return JSONResponse(await run_in_threadpool(_searched, gallery, run, image, k))

    def panel(request: Request) -> Response:
        chosen = gallery.panels().get(request.path_params["name"])
        if chosen is None:
            raise Refused(404, "There is no such panel.")
        first = whole_number(request.query_params, "first", 0, _MOST_PLACES, 0)
        size = whole_number(request.query_params, "count", 0, MOST_ROWS, 50)
        places = range(first, min(first + size, chosen.total))
        items = [chosen.item(place)._asdict() for place in places]
        return JSONResponse({"total": chosen.total, "words": chosen.words, "items": items})

    async def subset(request: Request) -> Response:
        given = await read_json(request)
        return JSONResponse(await run_in_threadpool(choose, gallery, given))

    def a_moved(request: Request) -> Response:
        row = whole_number(request.query_params, "row", 0, count - 1)
        k = whole_number(request.query_params, "k", 1, 100, 10)
        return JSONResponse(moved(gallery, row, k))

    return [
        Route("/api/neighbours", neighbours, methods=["POST"]),
        Route("/api/search", search, methods=["POST"]),
        Route("/api/panels/{name}", panel),
        Route("/api/subset", subset, methods=["POST"]),
        Route("/api/moved", a_moved),
    ]


def describe(gallery: Gallery) -> dict[str, Any]:
    """What the page has to know first."""
    atlas, search = gallery.atlas, gallery.search
    return {
        "count": len(gallery),
        "title": readable(gallery.title("A")),
        "source": readable(str(gallery.runs.first.vectors.source)),
        "runs": list(gallery.maps),
        "titles": {name: readable(gallery.title(name)) for name in gallery.maps},
        "maps": [
            {"run": name, "ready": piece.ready, "progress": piece.progress, "why": piece.why}
            for name, piece in gallery.maps.items()
        ],
        "columns": [column.described() for column in gallery.columns],
        "thumbnails": {
            "side": atlas.side,
            "columns": atlas.columns,
            "rows": atlas.columns,
            "pages": 0 if atlas.missing else atlas.pages,
            "ready": atlas.made,
            "why": readable(atlas.missing),
        },
        "search": {"upload": search.source is not None, "why": search.why},
        "subset": {"ways": ways_of(gallery)},
        "labels": {"version": gallery.labels.version},
    }


def _rows(gallery: Gallery, rows: list[int]) -> list[dict[str, Any]]:
    vectors = gallery.runs.first.vectors
    _, codes = gallery.labels.codes()
    classes = gallery.labels.classes()
    shown = [column for column in gallery.columns if column.ready()]
    found = []
    for row in rows:
        label = None if vectors.labels is None else vectors.labels[row]
        found.append(
            {
                "row": row,
                "name": readable(vectors.names[row]),
                "label": None if label is None else readable(label),
                "given": classes[codes[row]] if codes[row] >= 0 else None,
                "values": {column.name: column.text(row) for column in shown},
            }
        )
    return found


def _found(found: Any) -> dict[str, Any]:
    return {"rows": found.rows.tolist(), "similarities": found.similarities.tolist()}


def _searched(gallery: Gallery, run: Run, image: bytes, k: int) -> dict[str, Any]:
    if run.name != "A":
        raise Refused(400, "Images are embedded by the encoder of run A only.")
    return _found(run.nearest_to(gallery.search.embed(image), k))


def _require_pictures(gallery: Gallery) -> None:
    if gallery.atlas.missing:
        raise Refused(404, readable(gallery.atlas.missing))


# --- errors ---------------------------------------------------------------------------------------


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error.response()


async def _not_ready(request: Request, error: Exception) -> Response:
    assert isinstance(error, NotReady)
    return JSONResponse({"progress": error.progress}, 202)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": readable(str(error))}, 409)


async def _outdated(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 409)


async def _wrong(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": readable(str(error))}, 400)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {404: "There is nothing here.", 405: "This cannot be done here."}
    sentence = sentences.get(error.status_code, str(error.detail))
    return JSONResponse({"error": sentence}, error.status_code, headers=error.headers)


async def _fault(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "The server met a fault; its terminal says more."}, 500)
