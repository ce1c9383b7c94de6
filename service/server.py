"""One process that serves: uvicorn, an app on open sockets, until a signal comes.

Knows nothing of the command line, and nothing of other workers but how to be one.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

import uvicorn

from service import __version__
from service.app import create_app
from service.errors import ModelNotFound, ModelNotReady, ServiceError, StartError
from service.logs import set_up_logs
from service.protocol import Protocol
from service.repository import Repository
from service.settings import Settings
from service.workers import CANNOT_START

BACKLOG = 2048
# Longer than the 60 s after which load balancers drop idle connections, so that never we close one just as it is used.
KEEP_ALIVE_S = 75


def serve(
    settings: Settings,
    sockets: Sequence[socket.socket],
    url: str,
    *,
    on_loaded: Callable[[str], None],
    metrics_dir: Path | None = None,
) -> int:
    """Serve the sockets in this process until SIGTERM or SIGINT; requests that are being answered are finished.

    `on_loaded` gets a greeting for the operator when each model is READY or UNAVAILABLE.
    """
    failures: list[StartError] = []

    def failed(exc: StartError) -> None:
        failures.append(exc)
        server.should_exit = True

    app = create_app(
        settings,
        metrics_dir=metrics_dir,
        on_loaded=lambda repository: on_loaded(greeting(repository, url)),
        on_failed=failed,
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(grace_s(settings)),
        )
    )

    def end(*_: object) -> None:
        server.should_exit = True

    # uvicorn raises the signal again when it is done; with this handler the process then ends with status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    server.run(list(sockets))
    if failures:
        raise failures[0]
    return 0


def work(settings: Settings, url: str, metrics_dir: Path, sockets: Sequence[socket.socket], reports: Connection) -> None:
    """The life of one worker process."""
    set_up_logs(settings.log_level, settings.log_format)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        status = serve(settings, sockets, url, on_loaded=reports.send, metrics_dir=metrics_dir)
    except ServiceError as exc:
        print(f"sluice: {exc.message}", file=sys.stderr)
        status = CANNOT_START
    sys.exit(status)


def _end_with_parent() -> None:
    """A worker whose parent was killed would hold the port for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A listening socket. Raises StartError that names the setting when the port is taken or the host is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as exc:
        # The errors of name lookup have negative numbers, and a text of their own.
        why = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else exc.strerror
        raise StartError(
            f"cannot listen on {host}:{port}: {why}; {setting} chooses another port, SLUICE_HOST the address"
        ) from exc


def greeting(repository: Repository, url: str) -> str:
    """What the operator reads when loading is over: where the server is, and what to try."""
    if not repository.is_ready:
        return f"Sluice {__version__} listens on {url}, but no model is ready: {repository.reason}"
    where = f"Sluice {__version__} is ready: {url} (documentation at {url}/docs)"
    return f"{where}\nTry it:\n  {command_to_try(repository, url)}"


def command_to_try(repository: Repository, url: str) -> str:
    """One curl that these models answer."""
    curl = f"curl -s {url}"
    for task, door, instance in (
        ("classify", "sentiment", lambda _: '"A quiet, moving film."'),
        ("forecast", "forecast", _series),
    ):
        try:
            model = repository.default_for(task)
        except (ModelNotFound, ModelNotReady):
            continue
        forecast = model.manifest.forecast
        body = f'{{"instances": [{instance(forecast.min_length if forecast else 1)}]}}'
        return f"{curl}/predict/{door} -H 'Content-Type: application/json' -d '{body}'"
    return f"{curl}/models"


def _series(min_length: int) -> str:
    history = [round(10 + 3 * math.sin(2 * math.pi * hour / 24), 1) for hour in range(max(24, min_length))]
    return f'{{"history": {history}, "horizon": 6}}'


def grace_s(settings: Settings) -> float:
    """How long requests that are being answered may take when the server ends."""
    return settings.request_timeout_ms / 1000 + 1
