"""Cross-origin requests (CORS): which pages of other origins may read the answers of this server in a browser.

Not Starlette's CORSMiddleware: answers of the fast path do not pass ASGI, and a preflight that is refused must not get an
error that is none of the table of errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.request import Headers, HttpRequest

ANY = "*"
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:[0-9]{1,5})?")
METHODS = b"GET, HEAD, POST"
# What a page may send beside what browsers allow in any case, and what it may read.
REQUEST_HEADERS = b"authorization, content-type, traceparent, tracestate, x-api-key, x-request-id, x-request-timeout-ms"
RESPONSE_HEADERS = b"retry-after, traceparent, www-authenticate, x-request-id"
# Browsers keep the answer to a preflight for two hours at most.
MAX_AGE_S = 7200


def parse_origins(texts: Iterable[str]) -> frozenset[str]:
    """Origins such as `https://app.example.com`, as browsers write them, or `*` for any. Raises ValueError."""
    origins = frozenset(texts)
    for origin in origins - {ANY}:
        if _ORIGIN.fullmatch(origin) is None:
            raise ValueError(f'"{origin[:100]}" is not an origin such as https://app.example.com')
    return origins


class Cors:
    """A hook that lets pages of some origins read answers, and the app that answers their preflights.

    Cookies are not allowed for: no endpoint reads any.
    """

    def __init__(self, origins: frozenset[str]) -> None:
        self._allows_any = ANY in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    def allows(self, origin: bytes) -> bool:
        """Whether pages of this origin may read answers."""
        return self._allows_any or origin in self._origins

    def before(self, request: HttpRequest) -> None:
        """Nothing: what a page may not read, it may still send."""

    def after(self, request: HttpRequest, headers: Headers) -> None:
        """Say which origin may read this answer, an error's too."""
        if self._allows_any:
            headers.append((b"access-control-allow-origin", b"*"))
        else:
            _add_vary(headers)
            origin = next((value for name, value in request.headers if name == b"origin"), None)
            if origin is None or origin not in self._origins:
                return
            headers.append((b"access-control-allow-origin", origin))
        headers.append((b"access-control-expose-headers", RESPONSE_HEADERS))

    def finished(self, request: HttpRequest) -> None:
        """Nothing."""

    def wrap(self, inner: ASGIApp) -> ASGIApp:
        """The app that answers preflights, whatever their path, and leaves all else to `inner`."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if not _is_preflight(scope):
                await inner(scope, receive, send)
                return
            headers = [
                (b"access-control-allow-methods", METHODS),
                (b"access-control-allow-headers", REQUEST_HEADERS),
                (b"access-control-max-age", b"%d" % MAX_AGE_S),
                (b"vary", b"access-control-request-method, access-control-request-headers"),
            ]
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

        return app


def allows_origin(cors: Cors | None, headers: Headers) -> bool:
    """Whether what opens a WebSocket is no page, or one that may read the answers: of this server's own origin, or of `cors`.

    Browsers let every page open a WebSocket, and leave it to the server to look where it comes from.
    """
    origins = [value for name, value in headers if name == b"origin"]
    if not origins:
        return True
    hosts = [value.lower() for name, value in headers if name == b"host"]
    is_own = len(origins) == len(hosts) == 1 and origins[0].lower().partition(b"://")[2] == hosts[0]
    return is_own or (len(origins) == 1 and cors is not None and cors.allows(origins[0]))


def _is_preflight(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "OPTIONS":
        return False
    names = {name for name, _ in scope["headers"]}
    return {b"origin", b"access-control-request-method"} <= names


def _add_vary(headers: Headers) -> None:
    for index, (name, value) in enumerate(headers):
        if name == b"vary":
            headers[index] = (name, value + b", origin")
            return
    headers.append((b"vary", b"origin"))
