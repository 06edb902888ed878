"""The gallery's server: bounded in connections, and not held up by slow clients."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from diptych.errors import ConfigError
from diptych.gallery.contents import Gallery
from diptych.gallery.server.app import make_app
from diptych.gallery.server.security import LEAST_TOKEN, Guard, is_loopback

MOST_CONNECTIONS: Final = 128
HEAD_SECONDS: Final = 10.0
"""In which the head of a request has to be there."""
BODY_SECONDS: Final = 60.0
"""In which a whole request has to be there."""
WRITE_SECONDS: Final = 30.0
"""In which a client has to take some of an answer."""
_IDLE_SECONDS: Final = 15
_BACKLOG: Final = 128
_MOST_DISCARDED: Final = 32 * 1024 * 1024
_MOST_PORT: Final = 65535


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 that cuts off clients that send or take too slowly, and too many of them."""

    _deadline: asyncio.TimerHandle | None = None
    _discarded = 0
    _write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Takes a connection, if there is room."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._deadline = self.loop.call_later(HEAD_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Takes what came of a request."""
        waiting = self.cycle is None or self.cycle.response_complete
        super().data_received(data)
        if self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
            # It was answered and still sends its body; some of it, so that it reads the answer.
            self._discarded += len(data)
            if self._discarded > _MOST_DISCARDED:
                self.transport.close()
        elif self.cycle is not None and not self.cycle.response_complete:
            if not self.cycle.more_body:
                self._cancel()
            elif waiting:
                self._restart(BODY_SECONDS)
        elif self._deadline is None:
            self._restart(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends what waits for the client."""
        self._cancel()
        self._took_some()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes nothing for now."""
        super().pause_writing()
        self._write_deadline = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client took some."""
        super().resume_writing()
        self._took_some()

    def _took_some(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def _restart(self, seconds: float) -> None:
        self._cancel()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Server(uvicorn.Server):
    """A server that says when it listens, and when it is to end.

    Args:
        config: of uvicorn.
        on_start: called when it listens.
        on_end: called before it waits for requests that are being answered.
    """

    def __init__(
        self, config: uvicorn.Config, on_start: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_start, self._on_end = on_start, on_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends."""
        self._on_end()
        await super().shutdown(sockets)


def check_address(host: str, token: str | None) -> None:
    """Refuses to let other machines in without a token.

    Raises:
        ConfigError: the host is not of loopback and there is no token, or it is too short.
    """
    if token is not None and (
        len(token) < LEAST_TOKEN or not token.isascii() or not token.isalnum()
    ):
        raise ConfigError(
            f"--token needs {LEAST_TOKEN} letters and digits or more, so that nobody guesses it."
        )
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} lets other machines in, who could read all images: give a --token too, "
            f"of {LEAST_TOKEN} letters and digits or more."
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        ConfigError: the address cannot be used.
    """
    if not 0 <= port <= _MOST_PORT:
        raise ConfigError(f"--port lies from 0 to {_MOST_PORT}; got {port}. 0 takes a free one.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {host}, port {port}: {error}. Give another --port; 0 takes a free "
            "one."
        ) from error


def make_server(
    gallery: Gallery,
    listening: socket.socket,
    *,
    token: str | None = None,
    on_start: Callable[[], None] = lambda: None,
) -> Server:
    """A server of a gallery; its ``run([listening])`` serves until it is interrupted.

    Args:
        gallery: what is shown.
        listening: a socket; see ``listen``.
        token: needed of everyone, if any.
        on_start: called when the server answers.
    """
    host, port = listening.getsockname()[:2]
    app: ASGIApp = Guard(make_app(gallery), host, port, token)
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=1,
    )
    return Server(config, on_start, gallery.ending.set)
