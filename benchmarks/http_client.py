"""One request, and several at the same time, for checks of responses. Measures nothing."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

TIMEOUT_S = 30.0
HEADERS = {"Content-Type": "application/json"}


def post(url: str, body: bytes) -> bytes:
    """The response to one JSON body. Raises urllib's URLError, for an error status too."""
    request = urllib.request.Request(url, body, HEADERS)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        content: bytes = response.read()
        return content


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
