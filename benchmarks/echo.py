"""The ceiling of HTTP: a bare ASGI function on uvicorn that reads the body and answers a canned one. Computes nothing.

python -m benchmarks.echo answer.json 8002
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn

App = Callable[
    [dict[str, Any], Callable[[], Awaitable[dict[str, Any]]], Callable[[dict[str, Any]], Awaitable[None]]], Awaitable[None]
]


def create_app(answer: bytes) -> App:
    start = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))],
    }
    end = {"type": "http.response.body", "body": answer}

    async def app(
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        message = await receive()
        while message.get("more_body", False):
            message = await receive()
        await send(start)
        await send(end)

    return app


if __name__ == "__main__":
    app: Any = create_app(Path(sys.argv[1]).read_bytes())
    config = uvicorn.Config(
        app, host="127.0.0.1", port=int(sys.argv[2]), access_log=False, log_level="warning", http="httptools", lifespan="off"
    )
    uvicorn.Server(config).run()
