"""Thousands of requests that no page would send: no fault, nothing from outside, bounded memory."""

import json
import resource
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from diptych.gallery.server import label_routes
from served_gallery import COUNT, Served, served, small_gallery

# What is served, as an OpenAPI description has it: method, path, names of the query.
ROUTES = [
    ("GET", "/", ["token"]),
    ("GET", "/static/{}", []),
    ("GET", "/api/set", []),
    ("GET", "/api/maps/{}", []),
    ("GET", "/api/columns/{}", []),
    ("GET", "/api/thumbnails/{}", []),
    ("GET", "/api/pictures/{}", []),
    ("GET", "/api/rows", ["first", "count"]),
    ("POST", "/api/rows", []),
    ("POST", "/api/neighbours", []),
    ("POST", "/api/search", ["k", "run"]),
    ("GET", "/api/panels/{}", ["first", "count"]),
    ("POST", "/api/subset", []),
    ("GET", "/api/moved", ["row", "k"]),
    ("GET", "/api/labels", []),
    ("POST", "/api/labels", ["class", "version"]),
    ("GET", "/api/labels/codes", []),
    ("POST", "/api/labels/spread", []),
    ("POST", "/api/labels/accept", []),
    ("POST", "/api/labels/undo", []),
    ("GET", "/api/labels/changes", ["since"]),
    ("GET", "/api/export", ["format"]),
    ("POST", "/api/export", []),
]
FIELDS = (
    *("row", "rows", "k", "run", "budget", "way", "class", "classes", "confidence"),
    *("confidences", "format"),
)
WORDS = some.sampled_from(
    [
        *("A", "B", "0", "1", "-1", "69", "70", "1e9", "9" * 30, "NaN", "typical", "k-centre"),
        *("csv", "coco", "links", "copies", "clusters", "cat", "../../etc/passwd", "index.html"),
        *("%00", "\x00", "\u202e", "<script>", "' or 1=1 --", "${jndi:ldap://x}", "2" * 5000),
    ]
)
TEXTS = WORDS | some.text(max_size=40)
VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | TEXTS,
    lambda inner: some.lists(inner, max_size=5) | some.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
USUAL = some.integers(0, COUNT) | some.lists(some.integers(-1, COUNT), max_size=4) | VALUES
OBJECTS = some.dictionaries(some.sampled_from(FIELDS), USUAL, max_size=4)
BODIES = (
    some.binary(max_size=400)
    | some.binary(min_size=9, max_size=9)
    | OBJECTS.map(lambda one: json.dumps(one).encode())
    | some.sampled_from([b"[" * 100_000, b'{"row": 1' + b"0" * 5000 + b"}", b"\xff\xfe{}"])
)
REQUESTS = some.tuples(some.sampled_from(ROUTES), TEXTS, some.lists(TEXTS, max_size=3), BODIES)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_routes, "POLL_SECONDS", 0.01)
        with served(small_gallery(tmp_path_factory.mktemp("gallery"))) as page:
            yield page


def address(route: str, place: str, names: list[str], values: list[str]) -> str:
    """As a client writes it: anything within a path or a query is quoted."""
    path = route.replace("{}", quote(place.encode(errors="surrogatepass"), safe=""))
    query = "&".join(
        f"{name}={quote(value.encode(errors='surrogatepass'), safe='')}"
        for name, value in zip(names, values, strict=False)
    )
    return f"{path}?{query}" if query else path


def check(page: Served, request: Any) -> None:
    (method, route, names), place, values, body = request
    path = address(route, place, names, values)
    status, headers, answer = page.ask(path, body if method == "POST" else None, method=method)
    assert status < 500, (method, path, body[:200], answer)
    assert b"root:" not in answer
    assert headers["X-Content-Type-Options"] == "nosniff"
    if status >= 400:
        assert set(json.loads(answer)) == {"error"}
        assert b"Traceback" not in answer


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(request=REQUESTS)
def test_hostile_requests_are_answered_in_words(page: Served, request: Any) -> None:
    check(page, request)


@pytest.mark.slow
def test_two_thousand_hostile_requests(page: Served) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
    @given(request=REQUESTS)
    def ask(request: Any) -> None:
        check(page, request)

    ask()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # kilobytes
    assert page.ask("/api/set")[0] == 200


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(head=some.binary(max_size=200), names=some.binary(max_size=40))
def test_what_is_no_http_ends_the_connection(page: Served, head: bytes, names: bytes) -> None:
    for sent in (head, b"GET / HTTP/1.1\r\nHost: localhost\r\n" + names + b": x\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", page.port), timeout=5) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            found = b""
            while part := connection.recv(65536):
                found += part
            assert not found.startswith(b"HTTP/1.1 5"), (sent, found)


@pytest.mark.slow
def test_large_bodies_are_not_kept(page: Served) -> None:
    """A gigabyte without a length, to each address that takes a body."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    for method, route, _ in ROUTES:
        head = f"{method} {route} HTTP/1.1\r\nHost: localhost\r\nX-Diptych: gallery\r\n"
        with socket.create_connection(("127.0.0.1", page.port), timeout=20) as connection:
            try:
                connection.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
                for _ in range(1000):
                    connection.sendall(chunk)
            except OSError:
                continue
            raise AssertionError(f"{method} {route} took a gigabyte")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    assert page.ask("/api/set")[0] == 200
