"""One request, and several at the same time, for checks of responses. Measures nothing."""

from __future__ import annotations

import http.client
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from types import MappingProxyType
from urllib.parse import urlsplit

TIMEOUT_S = 30.0
HEADERS = {"Content-Type": "application/json"}
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


def post(url: str, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> bytes:
    """The response to one body, JSON where `headers` do not say otherwise. Raises urllib's URLError, for an error status too."""
    request = urllib.request.Request(url, body, {**HEADERS, **headers})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        content: bytes = response.read()
        return content


def exchange(url: str, message: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to a whole request as bytes, on a connection of its own. Raises OSError."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), TIMEOUT_S) as connection:
        connection.sendall(message)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.read()


def post_together(url: str, bodies: Sequence[bytes]) -> list[bytes]:
    """The responses to several JSON bodies, each on a connection of its own; all are sent before the first response is read.

    Raises OSError, or http.client's HTTPException, for an error status too.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    with ExitStack() as stack:
        connections = [
            stack.enter_context(closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_S)))
            for _ in bodies
        ]
        for connection in connections:
            connection.connect()
        for connection, body in zip(connections, bodies, strict=True):
            connection.request("POST", parts.path, body, HEADERS)
        return [_read(connection) for connection in connections]


def _read(connection: http.client.HTTPConnection) -> bytes:
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise http.client.HTTPException(f"status {response.status}: {content[:200]!r}")
    return content
