"""The upper bound of HTTP: a bare ASGI function on uvicorn that reads the body and sends a canned response. Computes nothing.

The response to POST /NAME is the file NAME of a folder; every other path gets an empty one.

    python -m benchmarks.echo FOLDER 8002
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import uvicorn

App = Callable[
    [dict[str, Any], Callable[[], Awaitable[dict[str, Any]]], Callable[[dict[str, Any]], Awaitable[None]]], Awaitable[None]
]


def create_app(responses: Mapping[str, bytes]) -> App:
    """An ASGI function with one canned response per path."""
    messages = {path: _messages(body) for path, body in responses.items()}
    empty = _messages(b"")

    async def app(
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        message = await receive()
        while message.get("more_body", False):
            message = await receive()
        start, end = messages.get(scope["path"], empty)
        await send(start)
        await send(end)

    return app


def _messages(body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return {"type": "http.response.start", "status": 200, "headers": headers}, {"type": "http.response.body", "body": body}


if __name__ == "__main__":
    app: Any = create_app({f"/{file.name}": file.read_bytes() for file in Path(sys.argv[1]).iterdir()})
    config = uvicorn.Config(
        app, host="127.0.0.1", port=int(sys.argv[2]), access_log=False, log_level="warning", http="httptools", lifespan="off"
    )
    uvicorn.Server(config).run()
