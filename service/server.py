"""One process that serves: uvicorn, an app on listening sockets or on connections that a parent hands over, until a signal.

Knows nothing of the command line, and nothing of other workers but how to be one.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from starlette.types import ASGIApp

from service import __version__
from service.api.transport import choose_protocol
from service.app import RateTables, create_app
from service.errors import ModelNotFound, ModelNotReady, ServiceError, StartError
from service.files import FileWatch
from service.models.repository import Opened, Repository
from service.observability.logs import set_up_logs
from service.process.connections import Slot, take_over
from service.process.machine import cores_of_worker
from service.process.memory import settle_heap
from service.process.supervisor import CANNOT_START, Seat
from service.process.tls import Certificate
from service.settings import Settings, SettingsError

BACKLOG = 2048
# Longer than the 60 s after which load balancers drop idle connections, so that never we close one just as it is used.
KEEP_ALIVE_S = 75
# Requests leave few cycles behind: looking for them every 5,000 objects rather than 700 takes 5 % off each request.
GC_THRESHOLDS = (5000, 20, 20)
# How often a worker tells its parent that its event loop turns, and how many connections it takes over in one turn.
BEAT_S = 0.25
TAKE_AT_ONCE = 16
# How long a connection that ends waits for the client's end of TLS.
TLS_SHUTDOWN_TIMEOUT_S = 5.0


class Service:
    """An app, built and not yet served: in this process, or by the workers that it forks afterwards."""

    def __init__(
        self,
        settings: Settings,
        url: str,
        *,
        metrics_dir: Path | None = None,
        opened: Opened | None = None,
        rates: RateTables | None = None,
    ) -> None:
        self._url = url
        self._curl = "curl -s" if settings.api_keys_file is None else "curl -s -H 'X-API-Key: KEY'"
        self._tls = open_tls(settings)
        self._on_loaded: Callable[[str], None] = lambda _: None
        self._server: uvicorn.Server | None = None
        self._failure: StartError | None = None
        app = create_app(
            settings, metrics_dir=metrics_dir, opened=opened, rates=rates, on_loaded=self._loaded, on_failed=self._failed
        )
        self._config = uvicorn_config(app, settings)
        # Both import the rest of what serving needs, which a parent does for all its workers.
        self._config.load()
        self._config.get_loop_factory()

    def serve(self, sockets: Sequence[socket.socket], *, on_loaded: Callable[[str], None], seat: Seat | None = None) -> int:
        """Serve until SIGTERM or SIGINT; requests that are being answered are finished. Raises StartError.

        Connections come from the sockets, or to a worker's `seat`. `on_loaded` gets a greeting for the operator when each
        model is READY or UNAVAILABLE.
        """
        self._on_loaded = on_loaded
        server = self._server = Server(self._config, self._tls) if seat is None else SeatedServer(self._config, self._tls, seat)

        def end(*_: object) -> None:
            server.should_exit = True

        # uvicorn raises the signal again when it is done; with this handler the process then ends with status 0.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        server.run(list(sockets))
        if self._failure is not None:
            raise self._failure
        return 0

    def _loaded(self, repository: Repository) -> None:
        # What is there now stays: the garbage collector need not look at it again. Each of its full runs stopped every
        # request for 30 ms, and they came every few seconds under load.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        self._on_loaded(greeting(repository, self._url, self._curl))

    def _failed(self, exc: StartError) -> None:
        assert self._server is not None
        self._failure = exc
        self._server.should_exit = True


def work(settings: Settings, service: Service | Callable[[], Service], seat: Seat) -> None:
    """The life of one worker process; `service` is what its parent built, or builds it here."""
    settle_heap()
    set_up_logs(settings.log_level, settings.log_format, worker=os.getpid())
    if settings.pin_workers and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores_of_worker(seat.slot.number, settings.workers, os.sched_getaffinity(0)))
    try:
        service = service if isinstance(service, Service) else service()
        status = service.serve([], on_loaded=seat.reports.send, seat=seat)
    except ServiceError as exc:
        print(f"sluice: {exc.message}", file=sys.stderr)
        status = CANNOT_START
    sys.exit(status)


class Tls(NamedTuple):
    """How connections are encrypted."""

    certificate: Certificate
    handshake_timeout_s: float

    @property
    def options(self) -> dict[str, Any]:
        """For the event loop's methods that begin connections."""
        return {
            "ssl": self.certificate.context,
            "ssl_handshake_timeout": self.handshake_timeout_s,
            "ssl_shutdown_timeout": TLS_SHUTDOWN_TIMEOUT_S,
        }


def open_tls(settings: Settings) -> Tls | None:
    """The certificate of these settings; None for plain HTTP. Raises StartError."""
    if settings.tls_certfile is None:
        if settings.tls_keyfile is not None or settings.tls_key_password_file is not None:
            raise SettingsError("a TLS key needs its certificate: SLUICE_TLS_CERTFILE names the file")
        return None
    certificate = Certificate(settings.tls_certfile, settings.tls_keyfile, settings.tls_key_password_file)
    return Tls(certificate, settings.tls_handshake_timeout_ms / 1000)


class Server(uvicorn.Server):
    """uvicorn's server, with a bound on the TLS handshake and a certificate that is read again when it changes."""

    def __init__(self, config: uvicorn.Config, tls: Tls | None) -> None:
        super().__init__(config)
        self._tls = tls
        self._connection_class: Callable[..., asyncio.Protocol] = config.http_protocol_class
        self._watch: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._tls is None:
            await super().startup(sockets)
            return
        await super().startup([])
        loop = asyncio.get_running_loop()
        for listener in sockets or []:
            server = await loop.create_server(self._protocol, sock=listener, backlog=BACKLOG, **self._tls.options)
            self.servers.append(server)
        certificate = self._tls.certificate
        self._watch = loop.create_task(FileWatch(certificate.files, certificate.reload).run())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        return self._connection_class(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


class SeatedServer(Server):
    """A worker: takes over the connections that its parent accepted, and tells it that its event loop turns."""

    def __init__(self, config: uvicorn.Config, tls: Tls | None, seat: Seat) -> None:
        super().__init__(config, tls)
        self._seat = seat
        self._connection_class = counted_connection(config.http_protocol_class, seat.slot)
        self._arrivals: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._seat.channel, self._take)
        self._beat(loop)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().remove_reader(self._seat.channel)
        await super().shutdown(sockets)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._seat.slot.beat()
        loop.call_later(BEAT_S, self._beat, loop)

    def _take(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(TAKE_AT_ONCE):
            try:
                connection = take_over(self._seat.channel)
            except BlockingIOError:
                return
            except EOFError:  # a worker whose parent was killed would serve for ever, unseen
                loop.remove_reader(self._seat.channel)
                self.should_exit = True
                return
            self._seat.slot.taken()
            if connection is None:
                self._seat.slot.closed()
                continue
            task = loop.create_task(self._welcome(loop, connection))
            self._arrivals.add(task)  # the loop itself holds tasks weakly
            task.add_done_callback(self._arrivals.discard)

    async def _welcome(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        try:
            await loop.connect_accepted_socket(self._protocol, connection, **({} if self._tls is None else self._tls.options))
        except OSError:  # the client has left
            connection.close()
            self._seat.slot.closed()


def counted_connection(protocol: type[asyncio.Protocol], slot: Slot) -> Callable[..., asyncio.Protocol]:
    """The protocol, whichever it is, with the end of each of its connections counted in the worker's slot."""

    class CountedConnection(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            slot.closed()

    return type(protocol.__name__, (CountedConnection, protocol), {})


def uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs the app of these settings."""
    return uvicorn.Config(
        app,
        http=choose_protocol(fast_path=settings.fast_path),
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


def greeting(repository: Repository, url: str, curl: str = "curl -s") -> str:
    """What the operator reads when loading is over: where the server is, and what to try."""
    if not repository.is_ready:
        return f"Sluice {__version__} listens on {url}, but no model is ready: {repository.reason}"
    where = f"Sluice {__version__} is ready: {url} (documentation at {url}/docs)"
    return f"{where}\nTry it:\n  {command_to_try(repository, f'{curl} {url}')}"


def command_to_try(repository: Repository, curl: str) -> str:
    """One curl that these models answer; `curl` is the command with the URL of the server."""
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
