"""The server against slow clients and very many of them."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from diptych.errors import ConfigError
from diptych.gallery.server import serve
from diptych.gallery.server.serve import check_address, listen
from served_gallery import Served, served, small_gallery


@pytest.fixture
def page(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    monkeypatch.setattr(serve, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(serve, "BODY_SECONDS", 0.8)
    with served(small_gallery(tmp_path_factory.mktemp("gallery"))) as page:
        yield page


def seconds_until_closed(connection: socket.socket, drip: bytes = b"") -> float:
    """How long the server keeps a client that sends a byte now and then."""
    begun = time.monotonic()
    connection.settimeout(0.1)
    while time.monotonic() - begun < 10:
        try:
            if drip:
                connection.sendall(drip)
            if not connection.recv(65536):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - begun


HEAD = b"POST /api/rows HTTP/1.1\r\nHost: localhost\r\nX-Diptych: gallery\r\n"


@pytest.mark.parametrize(
    ("sent", "drip"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"x"),
        (HEAD + b"Content-Length: 4000\r\n\r\n", b"x"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        # The second request of a connection.
        (b"GET /api/labels HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT", b"x"),
    ],
)
def test_slow_clients_are_cut_off(page: Served, sent: bytes, drip: bytes) -> None:
    with socket.create_connection(("127.0.0.1", page.port)) as connection:
        connection.sendall(sent)
        assert seconds_until_closed(connection, drip) < 4
    assert page.ask("/api/set")[0] == 200


@pytest.mark.slow
def test_a_client_that_takes_nothing_is_cut_off(
    page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "WRITE_SECONDS", 0.5)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", page.port))
        connection.settimeout(0.2)
        gone = False
        begun = time.monotonic()
        while not gone and time.monotonic() - begun < 10:
            try:  # asks again and again, and never reads
                connection.sendall(
                    b"GET /api/thumbnails/0 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20
                )
            except TimeoutError:
                continue
            except OSError:
                gone = True
        assert gone
    assert page.ask("/api/set")[0] == 200


def test_connections_are_bounded(page: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MOST_CONNECTIONS", 10)
    monkeypatch.setattr(serve, "HEAD_SECONDS", 5.0)
    with ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", page.port)))
            for _ in range(40)
        ]
        time.sleep(0.3)
        refused = 0
        for one in held:
            one.settimeout(0.01)
            try:
                refused += one.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionResetError:
                refused += 1
        assert refused == 30
    time.sleep(0.3)
    assert page.ask("/api/set")[0] == 200


@pytest.mark.slow
def test_thousands_of_connections(page: Served) -> None:
    """Some idle, some that send half a request, some whole ones; then it answers as before."""
    sent = [b"", b"GET / HT", HEAD + b"Content-Length: 4\r\n\r\n\0\0\0\0"]
    for _ in range(20):
        with ExitStack() as stack:
            for number in range(200):
                one = stack.enter_context(socket.create_connection(("127.0.0.1", page.port)))
                try:
                    one.sendall(sent[number % 3])
                except OSError:
                    continue
    assert answers_again(page)


def answers_again(page: Served) -> bool:
    """Once it has got rid of those that are gone."""
    for _ in range(50):
        try:
            return page.ask("/api/set")[0] == 200
        except OSError:
            time.sleep(0.2)
    return False


def test_other_machines_need_a_token() -> None:
    check_address("127.0.0.1", None)
    check_address("::1", None)
    check_address("0.0.0.0", "4f9c1be07a52d368")
    for host in ("0.0.0.0", "192.168.0.7", "::", "my-machine"):
        with pytest.raises(ConfigError, match="--token"):
            check_address(host, None)
    for token in ("short", "with spaces in it 123", "x" * 15):
        with pytest.raises(ConfigError, match="16 letters"):
            check_address("127.0.0.1", token)


def test_a_taken_port_is_said() -> None:
    with (
        listen("127.0.0.1", 0) as taken,
        pytest.raises(ConfigError, match="another --port"),
    ):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match="0 to 65535"):
        listen("127.0.0.1", 70_000)
