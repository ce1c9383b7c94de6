"""Which request this is: `X-Request-ID` and W3C Trace Context, taken from the request where well-formed, else made.

An id that is made has 16 random hexadecimal digits of the process and 16 of the request: unique within a process for 2^64
requests, and among processes unless two draw the same 64 bits. It serves as trace id as well.
"""

from __future__ import annotations

import itertools
import os
import re

from service.api.request import Headers
from service.context import RequestContext

MAX_ID_BYTES = 128
MAX_TRACESTATE_BYTES = 512
_NAMES = frozenset((b"x-request-id", b"traceparent", b"tracestate"))
_ID = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,%d}" % MAX_ID_BYTES)
# Version ff and ids of zeros are invalid; a later version may append fields, which are dropped (W3C Trace Context, 3.2).
_TRACEPARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.{0,400})?")
_MEMBER = re.compile(rb"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
MAX_MEMBERS = 32


class IdSource:
    """The ids of one process. Consecutive numbers are spread over 64 bits by an odd factor, which keeps them distinct.

    Spread, because samplers decide by the lower bits of a trace id.
    """

    def __init__(self) -> None:
        self.reseed()

    def reseed(self) -> None:
        """Begin anew with other random bits, as a process must that was forked."""
        self._prefix = os.urandom(8).hex()
        self._numbers = itertools.count(1 + int.from_bytes(os.urandom(6), "big"))

    def make(self) -> str:
        """32 hexadecimal digits."""
        return "%s%016x" % (self._prefix, next(self._numbers) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)  # noqa: UP031


_IDS = IdSource()
os.register_at_fork(after_in_child=_IDS.reseed)


def new_context() -> RequestContext:
    """Of a request that says nothing about itself."""
    made = _IDS.make()
    return RequestContext(made, f"00-{made}-{made[16:]}-00")


def identify(headers: Headers) -> RequestContext:
    """The ids that a request came with; in place of each that is missing, doubled or malformed a new one."""
    for name, _ in headers:
        if name in _NAMES:
            return _read(headers)
    return new_context()


def add_ids(context: RequestContext, headers: Headers) -> None:
    """Add the ids to the headers of an answer."""
    headers += ((b"x-request-id", context.request_id.encode()), (b"traceparent", context.traceparent.encode()))
    if context.tracestate is not None:
        headers.append((b"tracestate", context.tracestate.encode()))


def _read(headers: Headers) -> RequestContext:
    ids = [value for name, value in headers if name == b"x-request-id"]
    parents = [value for name, value in headers if name == b"traceparent"]
    context = new_context()
    if len(ids) == 1 and _ID.fullmatch(ids[0]):
        context.request_id = ids[0].decode()
    parent = _TRACEPARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if parent is not None and (parent[1] != b"00" or parent[3] is None):
        context.traceparent = "00-" + parent[2].decode()
        context.tracestate = _read_tracestate([value for name, value in headers if name == b"tracestate"])
        context.is_continued = True
    return context


def _read_tracestate(values: list[bytes]) -> str | None:
    """The members of all the headers; None where there are none, or one is malformed, or they are too long."""
    text = b",".join(values)
    if len(text) > MAX_TRACESTATE_BYTES:
        return None
    members = [member for part in text.split(b",") if (member := part.strip(b" \t"))]
    is_valid = 0 < len(members) <= MAX_MEMBERS and all(map(_MEMBER.fullmatch, members))
    return b",".join(members).decode() if is_valid else None
