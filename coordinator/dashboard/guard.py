"""Who may come in, and what a browser may do with what it is given.

* A page of somebody else's may send a browser here by a name that it lets point at this machine (DNS rebinding): only
  names that are ours, and addresses, are answered.
* Where something can be done, or others can reach the port, whoever comes must have the token: in the address once, in
  a cookie from then on.
* What is done needs a POST from a page of ours, with a word that only these have.
* A page fetches nothing from anywhere else, runs no script but ours, and is shown in no frame.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""For files that runs have left: their own style, and nothing else."""
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_YEAR_S = 31_536_000


@dataclass(frozen=True)
class Door:
    """What somebody must have to come in."""

    names: frozenset[str]
    """Host names that are this machine's, in lower case; addresses are let in anyway."""
    token: str = ""
    """Empty: nobody is asked for one, and nothing can be done."""
    secure: bool = False
    """Whether the way here is TLS."""

    @property
    def word(self) -> str:
        """Give what a form of ours carries."""
        return hmac.new(self.token.encode(), b"form", hashlib.sha256).hexdigest() if self.token else ""

    def knows(self, host: str) -> bool:
        """Say whether a Host header (with or without a port) names this machine."""
        name = host.rsplit(":", 1)[0] if not host.endswith("]") and host.count(":") != 0 else host
        name = name.strip("[]").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return True


class Guard:
    """Stands before an application."""

    def __init__(self, app: Asgi, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not self._door.knows(host):
            await _say(
                send, 421, f"{host[:100]!r} is no name of this dashboard; start it with --name to let it be one\n"
            )
        elif self._door.token and not self._has_token(scope, headers):
            await self._let_in(scope, send)
        elif scope["method"] not in ("GET", "HEAD") and not _of_ours(headers):
            await _say(send, 403, "that did not come from a page of this dashboard\n")
        else:
            await self._app(scope, receive, _with_headers(send))

    def _cookie(self, scope: Scope) -> str:
        """Name the cookie: those of a machine's ports are not told apart by browsers."""
        return f"edge-dashboard-{(scope.get('server') or ('', 0))[1]}"

    def _has_token(self, scope: Scope, headers: Mapping[str, str]) -> bool:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._cookie(scope))
        except CookieError:
            return False
        return cookie is not None and self._same(cookie.value)

    def _same(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._door.token.encode())

    async def _let_in(self, scope: Scope, send: Send) -> None:
        """Take the token from the address, where it does not stay."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if scope["method"] != "GET" or not given or not self._same(given[0]):
            await _say(send, 403, "open the address, with its token, that edge-coordinator dashboard has printed\n")
            return
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        place = "/" + quote(scope["path"].lstrip("/")) + (f"?{rest}" if rest else "")
        cookie = f"{self._cookie(scope)}={self._door.token}; Path=/; Max-Age={_YEAR_S}; HttpOnly; SameSite=Lax"
        cookie += "; Secure" if self._door.secure else ""
        await _say(send, 303, "", {"location": place, "set-cookie": cookie})


def _of_ours(headers: Mapping[str, str]) -> bool:
    """Say whether a browser tells that a page of ours sent this; `Origin` comes with every POST of one."""
    origin = headers.get("origin", "").partition("://")[2]
    return origin == headers["host"] and headers.get("sec-fetch-site", "same-origin") == "same-origin"


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            ours = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            message = {**message, "headers": [*message["headers"], *(one for one in ours if one[0] not in given)]}
        await send(message)

    return sending


async def _say(send: Send, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
    told = {**_HEADERS, "content-type": "text/plain; charset=utf-8", **(headers or {})}
    start = {"type": "http.response.start", "status": status}
    await send({**start, "headers": [(name.encode(), value.encode("latin-1")) for name, value in told.items()]})
    await send({"type": "http.response.body", "body": text.encode()})
