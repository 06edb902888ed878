"""What the gallery refuses, whoever asks."""

import json
from collections.abc import Iterator

import pytest

from served_gallery import POST, Served, served, small_gallery

TOKEN = "4f9c1be07a52d368"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(small_gallery(tmp_path_factory.mktemp("gallery"))) as page:
        yield page


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "", "0.0.0.0"),
        *("localhost:{port}@evil.example", "localhost:99999999", "[::1", "192.168.0.7:{port}"),
        *("localhost/../evil", "LOCALHOST.evil", "localhost#", "127.1"),
    ],
)
def test_other_names_of_this_machine_are_refused(page: Served, host: str) -> None:
    """As they come when a site's own name is made to mean this machine."""
    status, _, body = page.ask("/api/set", headers={"Host": host.format(port=page.port)})
    assert status == 403, body
    assert "name" in json.loads(body)["error"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8765", "LocalHost", "[::1]:1"])
def test_names_of_loopback_are_taken(page: Served, host: str) -> None:
    assert page.ask("/api/set", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ],
)
@pytest.mark.parametrize("body", [None, b"{}"])
def test_other_pages_are_refused(page: Served, headers: dict[str, str], body: bytes | None) -> None:
    filled = {name: value.format(port=page.port) for name, value in headers.items()}
    path = "/api/set" if body is None else "/api/labels/undo"
    assert page.ask(path, body, headers=filled)[0] == 403


def test_its_own_page_and_links_to_it_are_taken(page: Served) -> None:
    own = {"Origin": f"http://127.0.0.1:{page.port}", "Sec-Fetch-Site": "same-origin"}
    assert page.ask("/api/rows", b"", headers=own)[0] == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert page.ask("/", headers=link)[0] == 200


def test_nothing_changes_without_the_header(page: Served) -> None:
    for value in ("", "other"):
        status, _, body = page.ask("/api/labels/undo", b"", headers={"X-Diptych": value})
        assert status == 403
        assert "X-Diptych" in json.loads(body)["error"]
    assert page.ask("/api/set", method="PUT", headers=POST)[0] == 405
    assert page.ask("/api/set", method="DELETE")[0] == 403
    assert page.ask("/api/labels/undo")[0] == 405


@pytest.mark.parametrize("path", ["/", "/api/set", "/api/nothing", "/static/a.js", "/api/maps/A"])
def test_every_answer_has_a_strict_policy(page: Served, path: str) -> None:
    headers = page.ask(path)[1]
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Server" not in headers
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/static/../contents.py",
        "/static/..%2fcontents.py",
        "/static/%2e%2e/%2e%2e/__init__.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/..%5ccontents.py",
        "/static/index.html%00.js",
        "/static/.",
        "/static/",
        "/../../etc/passwd",
        "/api/pictures/../../../etc/passwd",
        "/api/pictures/%2e%2e%2fetc%2fpasswd",
        "/api/thumbnails/..%2flabels.sqlite",
        "/labels.sqlite",
        "/api/pictures/-1",
        "/api/pictures/1e3",
        "/api/pictures/%31%32%33%34%35%36%37%38%39%30%31%32%33%34",
        "/api/columns/%D9%A1",  # a digit, of Arabic
        "http://evil.example/api/set",
        "*",
    ],
)
def test_no_way_leads_out_of_what_is_served(page: Served, path: str) -> None:
    status, headers, body = page.ask(path)
    assert 400 <= status < 500
    assert b"root:" not in body
    assert b"import" not in body
    assert "text/html" not in headers.get("Content-Type", "")


def test_with_a_token_nothing_is_answered_without_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    gallery = small_gallery(tmp_path_factory.mktemp("token"))
    with served(gallery, TOKEN) as page:
        for path in (
            "/",
            "/api/set",
            "/static/a.js",
            f"/api/set?token={TOKEN}",
            "/?token=x",
        ):
            assert page.ask(path)[0] == 401, path
        status, headers, _ = page.ask(f"/?token={TOKEN}")
        assert (status, headers["Location"]) == (303, "/")
        cookie = headers["Set-Cookie"]
        assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
        sent = {"Cookie": cookie.split(";")[0]}
        assert page.ask("/api/set", headers=sent)[0] == 200
        assert page.ask("/api/labels/undo", b"", headers=sent)[0] == 400  # nothing to undo
        wrong = {"Cookie": cookie.split("=")[0] + "=" + "x" * 16}
        assert page.ask("/api/set", headers=wrong)[0] == 401
        assert page.ask("/api/set", headers=sent | {"Host": "evil.example"})[0] == 403
