"""One process that serves: uvicorn, and an app on listening sockets or on connections that a parent sends, until a signal.

Knows nothing of the command line, and of several processes only how to be a worker.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from service import __version__
from service.api.access.wiring import RateTables
from service.api.gateway import Gateway
from service.api.stream_sequence import MAX_LINE_BYTES
from service.api.transport import choose_protocol
from service.app import create_app
from service.errors import ServiceError, StartError
from service.files import FileWatch
from service.models.packing import PACKED_FOLDER
from service.models.preloading import Preload
from service.models.repository import Repository
from service.models.verification import Verification
from service.observability.logs import escape_controls, set_up_logs
from service.process.connections import DrainRequested, Slot, has_waiting, receive_connection, refuse_handshakes
from service.process.machine import cores_of_worker
from service.process.memory import bound_address_space, configure_malloc
from service.process.messages import connect
from service.process.notices import Notices
from service.process.supervisor import CANNOT_START, SIGHUP, WorkerContext, signals_to_handle
from service.process.tls import Certificate, Tls
from service.sequences.shared_memory import SharedMemory
from service.settings import Settings

log = logging.getLogger(__name__)

BACKLOG = 2048
# Requests leave few cycles behind: the collector runs every 5,000 objects rather than every 700, which saves 5 % of a request.
GC_THRESHOLDS = (5000, 20, 20)
# How often the event loop of a worker counts a heartbeat, and how many connections it receives in one turn.
HEARTBEAT_INTERVAL_S = 0.25
RECEIVE_AT_ONCE = 16
# When a process has too many files open, it tries again to accept after so long.
ACCEPT_AGAIN_S = 1.0
# For so long a server that ends accepts connections that were begun before; what then waits is accepted in any case.
LAST_ACCEPT_S = 0.05
# The address space of threads, of which each model has some while it runs: their stacks are hardly used, and count as a whole.
STACKS_BYTES = 2**30
# For so long a connection that has just been accepted may wait for its first request when the server ends.
FIRST_REQUEST_S = 1.0


class Service:
    """An app, built and not yet served: in this process, or by the workers that it forks afterwards."""

    def __init__(
        self,
        settings: Settings,
        url: str,
        *,
        metrics_dir: Path | None = None,
        preload: Preload | None = None,
        verification: Verification | None = None,
        rates: RateTables | None = None,
        control_path: Path | None = None,
        sequence_memory: SharedMemory | None = None,
        max_bytes: int | None = None,
    ) -> None:
        """`control_path` is the socket of the process that decides what is served, None: nothing changes after the start;
        `sequence_memory` is that in which all workers keep the states of sequences, None: this process does.

        `max_bytes` are what the process may take beyond what it has when the models are loaded, None: what it needs.
        """
        self._url = url
        self._curl = "curl -s" if settings.api_keys_file is None else "curl -s -H 'X-API-Key: KEY'"
        self._tls = open_tls(settings)
        self._on_loaded: Callable[[str], None] = lambda _: None
        self._server: uvicorn.Server | None = None
        self._failure: StartError | None = None
        self._drain_s = settings.drain_seconds
        self._max_bytes = max_bytes
        self._notices = Notices()
        self._app = create_app(
            settings,
            metrics_dir=metrics_dir,
            preload=preload,
            verification=verification,
            rates=rates,
            connect_control=None if control_path is None else functools.partial(connect, control_path),
            packed_graphs=None if control_path is None else control_path.parent / PACKED_FOLDER,
            sequence_memory=sequence_memory,
            on_loaded=self._finish_loading,
            on_failed=self._stop_with,
            on_stuck=self._be_replaced,
            notices=self._notices,
        )
        self._config = uvicorn_config(self._app, settings)
        # Both import the rest of what serving needs, which a parent does for all its workers.
        self._config.load()
        self._config.get_loop_factory()
        self._config.http_protocol_class = patient_connection(self._config.http_protocol_class)

    def serve(
        self, sockets: Sequence[socket.socket], *, on_loaded: Callable[[str], None], context: WorkerContext | None = None
    ) -> int:
        """Serve until SIGTERM, SIGINT or SIGHUP; then drain, and finish the requests that are being answered. Raises StartError.

        A second signal ends it without waiting.

        Connections come from the sockets, or to a worker over the channel of its `context`. `on_loaded` gets a message for the
        operator when each model is READY or UNAVAILABLE.
        """
        self._on_loaded = on_loaded
        if context is None:
            server: Server = DrainingServer(self._config, self._tls, self._app, self._drain_s)
            if SIGHUP in signals_to_handle():
                signal.signal(SIGHUP, server.handle_exit)
        else:
            server = WorkerServer(self._config, self._tls, self._app, context, self._notices)
        self._server = server
        server.run(list(sockets))
        if self._failure is not None:
            raise self._failure
        return 0

    def _finish_loading(self, repository: Repository) -> None:
        # What is there now stays, and the garbage collector need not look at it again: a full run stops every request for 30 ms.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        if self._max_bytes is not None:
            bound_address_space(self._max_bytes + STACKS_BYTES)
        self._on_loaded(startup_message(repository, self._url, self._curl))

    def _be_replaced(self) -> None:
        """A graph takes a core for ever: a worker finishes what it answers and ends, and its parent starts another one."""
        if isinstance(self._server, WorkerServer):
            os.kill(os.getpid(), signal.SIGTERM)

    def _stop_with(self, exc: StartError) -> None:
        assert self._server is not None
        self._failure = exc
        self._server.should_exit = True


def run_worker(settings: Settings, service: Service | Callable[[], Service], context: WorkerContext) -> None:
    """Serve as one worker process, and exit; `service` is what its parent built, or builds it here."""
    configure_malloc()
    set_up_logs(settings.log_level, settings.log_format, worker=os.getpid())
    if settings.pin_workers and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores_of_worker(context.slot.number, settings.workers, os.sched_getaffinity(0)))
    try:
        service = service if isinstance(service, Service) else service()
        status = service.serve([], on_loaded=context.reports.send, context=context)
    except ServiceError as exc:
        print(f"sluice: {exc.message}", file=sys.stderr)
        status = CANNOT_START
    sys.exit(status)


def open_tls(settings: Settings) -> Tls | None:
    """The certificate of these settings; None for plain HTTP. Raises StartError."""
    if settings.tls_certfile is None:
        if settings.tls_keyfile is not None or settings.tls_key_password_file is not None:
            raise StartError("a TLS key needs its certificate: SLUICE_TLS_CERTFILE names the file")
        return None
    certificate = Certificate(settings.tls_certfile, settings.tls_keyfile, settings.tls_key_password_file)
    return Tls(certificate, settings.tls_handshake_timeout_ms / 1000)


class Server(uvicorn.Server):
    """uvicorn's server, with a bound on the TLS handshake and a certificate that is read again when it changes."""

    def __init__(self, config: uvicorn.Config, tls: Tls | None, app: Gateway) -> None:
        super().__init__(config)
        self._app = app
        self._tls = tls
        self._connection_class: Callable[..., asyncio.Protocol] = config.http_protocol_class
        self._watch: asyncio.Task[None] | None = None
        self._listening: list[socket.socket] = []
        # Those that are being begun, with TLS until the end of the handshake, the oldest first.
        self._connecting: dict[asyncio.Task[None], None] = {}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._tls is None:
            await super().startup(sockets)
            return
        await super().startup([])
        loop = asyncio.get_running_loop()
        self._listening = list(sockets or [])
        for listener in self._listening:
            listener.setblocking(False)
            loop.add_reader(listener, self._accept, loop, listener)
        certificate = self._tls.certificate
        self._watch = loop.create_task(FileWatch(certificate.files, certificate.reload).run())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        for listener in self._listening:
            asyncio.get_running_loop().remove_reader(listener)
        self._listening.clear()
        if self._connecting:
            await asyncio.wait(self._connecting, timeout=FIRST_REQUEST_S)
        for task in self._connecting:  # handshakes
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        await super().shutdown(sockets)

    def _accept(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        """Begin the connections that have come. In place of the event loop's own way, which shows nothing of handshakes."""
        for _ in range(RECEIVE_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError as exc:
                log.error("a connection cannot be accepted: %s", exc.strerror)
                loop.remove_reader(listener)
                loop.call_later(ACCEPT_AGAIN_S, self._accept_again, loop, listener)
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._begin(loop, connection)

    def _accept_again(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        if listener in self._listening:
            loop.add_reader(listener, self._accept, loop, listener)

    def _begin(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        """Begin a connection, with TLS by its handshake, which takes a place: where there is none, the oldest handshake's."""
        if self._tls is not None and not self._app.connections.begin_handshake():
            oldest = next(iter(self._connecting), None)
            if oldest is None:
                connection.close()
                self._count_closed()
                return
            del self._connecting[oldest]
            oldest.cancel()
            self._app.connections.replace_handshake()
        task = loop.create_task(self._connect(loop, connection))
        self._connecting[task] = None  # the loop itself holds tasks weakly
        task.add_done_callback(self._finish_begin)

    def _finish_begin(self, task: asyncio.Task[None]) -> None:
        self._connecting.pop(task, None)
        if self._tls is not None:
            self._app.connections.end_handshake()

    async def _connect(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        options = {} if self._tls is None else self._tls.options
        try:
            await loop.connect_accepted_socket(self._make_protocol, connection, **options)
        except (OSError, asyncio.CancelledError):  # the client has disconnected, or another one has its place
            connection.close()
            self._count_closed()

    def _count_closed(self) -> None:
        """A connection has ended without a protocol."""

    def _make_protocol(self) -> asyncio.Protocol:
        return self._connection_class(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


class DrainingServer(Server):
    """The only process of a server: accepts connections itself, and drains for `drain_s` before it ends."""

    def __init__(self, config: uvicorn.Config, tls: Tls | None, app: Gateway, drain_s: float) -> None:
        super().__init__(config, tls, app)
        self._drain_s = drain_s
        self._drains_until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In place of uvicorn's, which ends at the first signal, and raises it again at the end."""
        if self._drains_until is not None:
            self.should_exit = self.force_exit = True
            return
        log.info("stopping", extra={"signal": signal.Signals(sig).name, "drain_s": self._drain_s})
        self._drains_until = time.monotonic() + self._drain_s
        self._app.start_draining()

    async def on_tick(self, counter: int) -> bool:
        self.should_exit |= self._drains_until is not None and time.monotonic() >= self._drains_until
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.start_draining()
        for listener in sockets or []:
            refuse_handshakes(listener)
        if not self.force_exit:
            await asyncio.sleep(LAST_ACCEPT_S)
            for _ in range(BACKLOG):  # each turn of the loop accepts some
                if self.force_exit or not any(map(has_waiting, sockets or [])):
                    break
                await asyncio.sleep(0)
            await asyncio.sleep(LAST_ACCEPT_S)  # until the connections that were accepted have their protocols
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()


class WorkerServer(Server):
    """A worker: receives the connections that its parent accepted until there will be no more, and counts heartbeats."""

    def __init__(self, config: uvicorn.Config, tls: Tls | None, app: Gateway, context: WorkerContext, notices: Notices) -> None:
        super().__init__(config, tls, app)
        self._context = context
        self._notices = notices
        self._connection_class = counted_connection(config.http_protocol_class, context.slot)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        self._notices.open(self._context.notices, loop)
        loop.add_reader(self._context.channel, self._receive)
        self._count_heartbeat(loop)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Leave at SIGTERM: the parent sends no more connections, and ends the channel. It also sees to other signals."""
        if sig == signal.SIGTERM:
            self._context.slot.set_leaving()
            self._app.start_draining()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.start_draining()
        asyncio.get_running_loop().remove_reader(self._context.channel)
        await super().shutdown(sockets)

    def _count_heartbeat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._context.slot.count_heartbeat()
        loop.call_later(HEARTBEAT_INTERVAL_S, self._count_heartbeat, loop)

    def _receive(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(RECEIVE_AT_ONCE):
            try:
                connection = receive_connection(self._context.channel)
            except BlockingIOError:
                return
            except DrainRequested:
                self._app.start_draining()
                continue
            except EOFError:  # the parent has closed its port, or was killed: there will be no more connections
                loop.remove_reader(self._context.channel)
                self.should_exit = True
                return
            self._context.slot.count_received()
            if connection is None:
                self._context.slot.count_closed()
                continue
            self._begin(loop, connection)

    def _count_closed(self) -> None:
        self._context.slot.count_closed()


def counted_connection(protocol: type[asyncio.Protocol], slot: Slot) -> Callable[..., asyncio.Protocol]:
    """The protocol, whichever it is, with the end of each of its connections counted in the worker's slot."""

    class CountedConnection(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            slot.count_closed()

    return type(protocol.__name__, (CountedConnection, protocol), {})


def patient_connection(protocol: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """uvicorn's protocol, whichever it is, that does not close a connection before its first request when the server ends."""

    class PatientConnection(asyncio.Protocol):
        loop: asyncio.AbstractEventLoop
        # uvicorn's name for the last request of a connection, of its protocols and of the fast path.
        cycle: Any

        def shutdown(self) -> None:
            end: Callable[[], None] = super().shutdown  # type: ignore[misc]
            if self.cycle is None:
                self.loop.call_later(FIRST_REQUEST_S, end)
            else:
                end()

    return type(protocol.__name__, (PatientConnection, protocol), {})


def uvicorn_config(app: Gateway, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs the app of these settings."""
    http = choose_protocol(fast_path=settings.fast_path)
    return uvicorn.Config(
        app,
        http=http,
        # Our protocol opens WebSockets itself, with more bounds than these.
        ws="websockets-sansio" if http == "auto" else "none",
        ws_max_size=2 * MAX_LINE_BYTES,  # what is a little too large gets an error, and not only a code
        ws_per_message_deflate=False,  # messages are small, and a compressor takes more memory than all else of a connection
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=math.ceil(grace_s(settings)),
    )


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A listening socket. Raises StartError that names the setting when the port is taken or the host is not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as exc:
        # The errors of name lookup have negative numbers, and a text of their own.
        why = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else exc.strerror
        raise StartError(
            f"cannot listen on {host}:{port}: {why}; {setting} chooses another port, SLUICE_HOST the address"
        ) from exc


def startup_message(repository: Repository, url: str, curl: str = "curl -s") -> str:
    """What the operator reads when loading is over: the address of the server, and a command to try."""
    reason = escape_controls(repository.reason or "")  # which may hold what a folder says
    if not repository.is_serving and not repository.is_ready:
        return f"Sluice {__version__} listens on {url}, but no model is ready: {reason}"
    state = "is ready:" if repository.is_ready else f"is not ready ({reason}), and answers at"
    where = f"Sluice {__version__} {state} {url} (documentation at {url}/docs)"
    return f"{where}\nTry it:\n  {command_to_try(repository, f'{curl} {url}')}"


def command_to_try(repository: Repository, curl: str) -> str:
    """One curl command that these models answer; `curl` is the command up to the URL of the server."""
    request = repository.example_request()
    if request is None:
        return f"{curl}/models"
    return f"{curl}{request.path} -H 'Content-Type: application/json' -d '{json.dumps(request.body)}'"


def grace_s(settings: Settings) -> float:
    """How long requests that are being answered may take when the server ends."""
    return settings.request_timeout_ms / 1000 + 1
