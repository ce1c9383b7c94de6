"""Requests that are refused by their bytes alone, before they are parsed: under overload a refusal must cost next to nothing.

Recognises a whole, simple request as it came from the socket; whether to refuse it is decided by the gateway. What is not
recognised here, for whatever reason, is parsed and answered as ever, so that only requests that mean the same to every HTTP
parser may be recognised. Refusals that are not sent at once wait here.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from service.api.request import Headers
from service.context import RequestContext

MAX_HEAD_BYTES = 2048
MAX_HEADS = 256
# A head that holds anything of these says more than the early refusal looks at, or may be understood in two ways.
_ODD = (
    b"transfer-encoding",
    b"expect",
    b"upgrade",
    b"x-request-",
    b"traceparent",
    b"tracestate",
    b"proxy-",
    b"forwarded",
    b"\n ",
    b"\n\t",
    b"\n:",
)
_KEEP_ALIVE = b"\r\nconnection: keep-alive\r\n"
_LENGTH = b"\r\ncontent-length:"
_VERSION = b" http/1.1"
_TEXT = bytes(range(0x20, 0x7F)) + b"\t\r\n"


class SimpleRequest(NamedTuple):
    """A whole POST request by HTTP/1.1 that keeps its connection open."""

    path: str
    num_bytes: int
    """Of the body."""


class Recogniser:
    """Recognises simple requests; clients send the same head over and over, so those that were seen last are remembered."""

    def __init__(self) -> None:
        self._heads: dict[bytes, SimpleRequest | None] = {}

    def recognise(self, received: bytes) -> SimpleRequest | None:
        """The request that these bytes are, from the first to the last; None where they may be anything else."""
        end = received.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
        head = received[:end]
        if head not in self._heads:
            if end < 4:
                return None
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            self._heads[head] = read_head(head)
        found = self._heads[head]
        return found if found is not None and end + found.num_bytes == len(received) else None


def read_head(head: bytes) -> SimpleRequest | None:
    """The request that this head, with the empty line at its end, belongs to; None where it may be anything but simple."""
    if not head.startswith(b"POST /"):
        return None
    lines = head[:-2].lower()
    line_end = lines.find(b"\r\n")
    start = lines.find(_LENGTH, line_end)
    if start < 0 or not lines.endswith(_VERSION, 0, line_end) or _is_odd(lines):
        return None
    digits = lines[start + len(_LENGTH) : lines.find(b"\r", start + 2)].strip(b" ")
    if not digits.isdigit() or len(digits) > 9:
        return None
    path = head[5 : line_end - len(_VERSION)]
    return None if b" " in path else SimpleRequest(path.decode(), int(digits))


class RefusalTemplate:
    """An answer that differs from one request to the next in its ids alone."""

    def __init__(self, headers: Headers, body: bytes, context: RequestContext) -> None:
        """`headers` and `body` are those of a request with the ids of `context`, which were made for it."""
        content = b"".join(b"%s: %s\r\n" % header for header in headers) + b"\r\n" + body
        ids = re.compile(b"|".join(re.escape(each.encode()) for each in (context.traceparent, context.request_id)))
        self._format = ids.sub(
            lambda found: b"%(parent)b" if found[0] == context.traceparent.encode() else b"%(id)b", content.replace(b"%", b"%%")
        )
        self.body_bytes = len(body)

    def render(self, context: RequestContext) -> bytes:
        """From the first header on."""
        return self._format % {b"id": context.request_id.encode(), b"parent": context.traceparent.encode()}


class HeldRefusals:
    """Refusals that are sent later, many at a time: one timer for all, and one turn of the event loop for those of `TICK_S`."""

    TICK_S = 0.01

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()
        self._has_timer = False

    def add(self, loop: asyncio.AbstractEventLoop, delay_s: float, send: Callable[[], None]) -> None:
        """Call `send` after the delay, or a little later; no earlier than those that were added before."""
        self._waiting.append((loop.time() + delay_s, send))
        if not self._has_timer:
            self._has_timer = True
            loop.call_later(max(delay_s, self.TICK_S), self._send, loop)

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        while self._waiting and self._waiting[0][0] <= now:
            self._waiting.popleft()[1]()
        self._has_timer = bool(self._waiting)
        if self._has_timer:
            loop.call_later(max(self._waiting[0][0] - now, self.TICK_S), self._send, loop)


def _is_odd(head: bytes) -> bool:
    for sign in _ODD:
        if sign in head:
            return True
    num_lines = head.count(b"\r\n")
    return (
        head.count(b"content-length") != 1
        or head.count(b"\n") != num_lines
        or head.count(b"\r") != num_lines
        or head.count(b"connection") != head.count(_KEEP_ALIVE)
        or bool(head.translate(None, _TEXT))
    )
