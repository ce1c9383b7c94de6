"""The ceiling of HTTP: a bare ASGI function on uvicorn that reads the body and answers a canned one. Computes nothing.

The answer of POST /NAME is the file NAME of a folder; every other path is answered with nothing.

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


def create_app(answers: Mapping[str, bytes]) -> App:
    """An ASGI function that answers by path."""
    messages = {path: _messages(answer) for path, answer in answers.items()}
    nothing = _messages(b"")

    async def app(
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        message = await receive()
        while message.get("more_body", False):
            message = await receive()
        start, end = messages.get(scope["path"], nothing)
        await send(start)
        await send(end)

    return app


def _messages(answer: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    return {"type": "http.response.start", "status": 200, "headers": headers}, {"type": "http.response.body", "body": answer}


if __name__ == "__main__":
    app: Any = create_app({f"/{file.name}": file.read_bytes() for file in Path(sys.argv[1]).iterdir()})
    config = uvicorn.Config(
        app, host="127.0.0.1", port=int(sys.argv[2]), access_log=False, log_level="warning", http="httptools", lifespan="off"
    )
    uvicorn.Server(config).run()
