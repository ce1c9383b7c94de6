"""Sends a case over a socket, and reads what comes back as HTTP/1.1, strictly: any byte that does not belong is an error."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tests.fuzz.cases import Case

TIMEOUT_S = 30.0
"""A connection that the server has neither answered nor closed by then has stalled."""

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [\t\x20-\x7e]*\r\n")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)\r\n")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")


class MalformedResponse(Exception):
    """What the server sent is no sequence of HTTP/1.1 responses."""


@dataclass(frozen=True)
class Exchange:
    """What came back. `has_ended`: the server closed the connection in time, by a reset where `was_reset`."""

    received: bytes
    has_ended: bool
    was_reset: bool
    duration_s: float


@dataclass(frozen=True)
class Response:
    """One final response; header names are in lower case, and a repeated header holds its last value."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_head: bool = False

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").split(";")[0].strip().lower()


def send(address: tuple[str, int], case: Case, timeout_s: float = TIMEOUT_S) -> Exchange:
    """Send the case and read until the server closes. Raises OSError when the server cannot be reached."""
    began_at = time.monotonic()
    received = bytearray()
    was_reset = False
    with socket.create_connection(address, timeout=timeout_s) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for chunk in case.chunks:
                connection.sendall(chunk)
            if case.ending == "half-close":
                connection.shutdown(socket.SHUT_WR)
        except (ConnectionError, OSError):
            was_reset = True  # the server closed before it had read everything; what it said may still be there
        if case.ending in ("close", "reset"):
            if case.ending == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return Exchange(b"", True, True, time.monotonic() - began_at)
        has_ended = False
        try:
            while time.monotonic() - began_at < timeout_s:
                block = connection.recv(1 << 20)
                if not block:
                    has_ended = True
                    break
                received += block
        except TimeoutError:
            pass
        except ConnectionError:
            has_ended = was_reset = True
    return Exchange(bytes(received), has_ended, was_reset, time.monotonic() - began_at)


def parse_responses(received: bytes, *, may_be_head: bool = False, was_reset: bool = False) -> list[Response]:
    """The final responses in these bytes, interim ones (100) left out.

    `may_be_head`: a response may belong to a HEAD request, and have no body; `was_reset`: the last one may be cut off. Raises
    MalformedResponse.
    """
    responses = []
    rest = received
    while rest:
        try:
            response, rest = _parse_response(rest, may_be_head)
        except _Incomplete:
            if was_reset:
                break
            raise MalformedResponse(f"a response is cut off: {rest[:200]!r}") from None
        if response.status >= 200:
            responses.append(response)
    return responses


class _Incomplete(Exception):
    pass


def _parse_response(data: bytes, may_be_head: bool) -> tuple[Response, bytes]:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        raise _Incomplete
    head, rest = data[: end + 2], data[end + 4 :]
    line = _STATUS_LINE.match(head)
    if line is None:
        raise MalformedResponse(f"no status line: {data[:200]!r}")
    status, position = int(line[1]), line.end()
    headers: dict[str, str] = {}
    while position < len(head):
        header = _HEADER.match(head, position)
        if header is None:
            raise MalformedResponse(f"no header: {head[position : position + 200]!r}")
        name, value = header[1].decode().lower(), header[2].decode("latin-1")
        if name in ("content-length", "transfer-encoding", "content-type") and name in headers:
            raise MalformedResponse(f"{name} twice: {head[:500]!r}")
        headers[name] = value
        position = header.end()
    if status < 200 or status in (204, 304):
        return Response(status, headers, b""), rest
    if "transfer-encoding" in headers:
        if headers["transfer-encoding"] != "chunked" or "content-length" in headers:
            raise MalformedResponse(f"framed twice or oddly: {head[:500]!r}")
        if may_be_head and (not rest or rest.startswith(b"HTTP/1.")):
            return Response(status, headers, b"", is_head=True), rest
        body, rest = _parse_chunks(rest)
        return Response(status, headers, body), rest
    length = headers.get("content-length", "")
    if not re.fullmatch("[0-9]{1,12}", length):
        raise MalformedResponse(f"no length: {head[:500]!r}")
    if may_be_head and int(length) and (not rest or rest.startswith(b"HTTP/1.")):
        return Response(status, headers, b"", is_head=True), rest
    if len(rest) < int(length):
        raise _Incomplete
    return Response(status, headers, rest[: int(length)]), rest[int(length) :]


def _parse_chunks(rest: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size = _CHUNK.match(rest)
        if size is None:
            if len(rest) < 10:
                raise _Incomplete
            raise MalformedResponse(f"no chunk: {rest[:200]!r}")
        num_bytes, rest = int(size[1], 16), rest[size.end() :]
        if len(rest) < num_bytes + 2:
            raise _Incomplete
        if rest[num_bytes : num_bytes + 2] != b"\r\n":
            raise MalformedResponse(f"a chunk without its end: {rest[:200]!r}")
        body, rest = body + rest[:num_bytes], rest[num_bytes + 2 :]
        if num_bytes == 0:
            return body, rest
