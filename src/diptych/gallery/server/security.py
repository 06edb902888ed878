"""What every request to the gallery has to pass before it is answered.

A page of another site can make a browser send requests here, and a name of its own can be made to
mean this machine (DNS rebinding). So the name that was asked for is checked, and where the request
comes from; what changes anything needs a header that no other site may send.
"""

import hmac
import ipaddress
import re
import socket
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER: Final = ("x-diptych", "gallery")
"""Header that a request needs to change anything."""

LEAST_TOKEN: Final = 16  # letters
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_COOKIE_SECONDS: Final = 30 * 24 * 3600


@dataclass(frozen=True)
class Guard:
    """Lets requests through that come from the gallery's own page.

    Attributes:
        app: that answers them.
        host: that the server listens at.
        port: the same.
        token: needed of everyone; None on loopback.
    """

    app: ASGIApp
    host: str
    port: int
    token: str | None = None
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        own = [] if is_loopback(self.host) else [self.host, socket.gethostname(), socket.getfqdn()]
        object.__setattr__(self, "names", frozenset(one.lower() for one in (*LOOPBACK, *own)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        answer = self._answer(scope)
        await (answer or self.app)(scope, receive, _with_headers(send))

    def _answer(self, scope: Scope) -> Response | None:
        """What is answered in the place of the application; None for its own answer."""
        headers = Headers(scope=scope)
        why = self._refusal(scope["method"], scope["path"], headers)
        if why is not None:
            return JSONResponse({"error": why}, 403)
        if self.token is None:
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if scope["path"] == "/" and any(self._is_token(one) for one in given):
            return self._welcome()
        if self._is_token(self._cookie(headers)):
            return None
        return JSONResponse({"error": "Open the address with the token that was printed."}, 401)

    def _refusal(self, method: str, path: str, headers: Headers) -> str | None:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return "This name is not one that the gallery is served under."
        if origins and origins != [f"http://{hosts[0]}"]:
            return "The request comes from another page."
        site = headers.get("sec-fetch-site", "none")
        if site not in ("same-origin", "none") and not _is_visit(method, path, headers):
            return "The request comes from another page."
        if method not in ("GET", "HEAD") and headers.get(HEADER[0]) != HEADER[1]:
            return "A change needs the header X-Diptych: gallery."
        return None

    def _is_own(self, host: str) -> bool:
        name = _host_name(host)
        if name is None:
            return False
        # An address cannot be made to mean another machine, as a name can.
        return name in self.names or (not is_loopback(self.host) and _is_address(name))

    def _is_token(self, given: str) -> bool:
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())

    @property
    def cookie(self) -> str:
        """Its name; with the port, as browsers share cookies between ports."""
        return f"diptych-{self.port}"

    def _cookie(self, headers: Headers) -> str:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return ""
        return "" if found is None else found.value

    def _welcome(self) -> Response:
        # To an address without the token, so that it stays out of history and screenshots.
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            self.cookie,
            self.token or "",
            max_age=_COOKIE_SECONDS,
            httponly=True,
            samesite="strict",
        )
        return answer


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    return host.lower() in LOOPBACK or (
        _is_address(host) and ipaddress.ip_address(host).is_loopback
    )


def _host_name(host: str) -> str | None:
    """The name or address in a Host header, in small letters; None if it is none."""
    found = _HOST.fullmatch(host.lower())
    return None if found is None else found[1].strip("[]")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_visit(method: str, path: str, headers: Headers) -> bool:
    """Whether a person follows a link to the page, as from a run's report."""
    return method == "GET" and path == "/" and headers.get("sec-fetch-mode") == "navigate"


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
        await send(message)

    return sending
