"""How one process serves: its protocol, the connections that a worker receives, its certificate, and how it ends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import multiprocessing
import signal
import socket
from pathlib import Path

import httpx
import pytest
import uvicorn

from service.app import create_app
from service.errors import StartError
from service.process.connections import create_slots
from service.process.notices import Notices
from service.process.supervisor import WorkerContext
from service.process.tls import Certificate, Tls
from service.server import WorkerServer, counted_connection, open_tls
from service.settings import Settings
from tests.certificates import make_certificate
from tests.folders import write_forecast_folder
from tests.serving import PATIENCE_S, ServerProcess, server_process, wait_until

BODY = json.dumps({"instances": [{"history": [1, 2, 3]}]}).encode()


def test_the_end_of_a_connection_is_counted_whatever_the_protocol() -> None:
    class Recording(asyncio.Protocol):
        def __init__(self, name: str) -> None:
            self.name = name
            self.lost: list[Exception | None] = []

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.append(exc)

    [slot] = create_slots(multiprocessing.get_context("spawn"), 1)
    connection = counted_connection(Recording, slot)("a")
    assert isinstance(connection, Recording)
    connection.connection_lost(None)
    assert (connection.name, connection.lost, slot.num_closed) == ("a", [None], 1)


@pytest.mark.parametrize("sent", [b"", bytes(1000), b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "garbage", "half a hello"])
async def test_a_connection_without_a_handshake_is_counted_as_closed_once(tmp_path: Path, sent: bytes) -> None:
    context = multiprocessing.get_context("spawn")
    [slot] = create_slots(context, 1)
    channel, other_end = socket.socketpair()
    reports, _ = context.Pipe(duplex=False)
    notices, _ = context.Pipe()
    config = uvicorn.Config(lambda: None, lifespan="off", log_config=None)
    config.load()
    tls = Tls(Certificate(*make_certificate(tmp_path)), handshake_timeout_s=0.2)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with channel, other_end, theirs:
        server = WorkerServer(
            config,
            tls,
            create_app(Settings(models=tmp_path)),
            WorkerContext(channel, slot, reports, notices),
            Notices(),
        )
        server.lifespan = config.lifespan_class(config)
        theirs.sendall(sent)
        await server._connect(asyncio.get_running_loop(), ours)
    assert slot.num_closed == 1


def test_a_key_without_its_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="SLUICE_TLS_CERTFILE names the file"):
        open_tls(Settings(tls_keyfile=tmp_path / "key.pem"))
    assert open_tls(Settings()) is None


# ---------------------------------------------------------------------------------------------------- the end of a server


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_forecast_folder(folder)
    return folder


class Client:
    """Posts over a new connection each time, until connections are refused."""

    MAX_REQUESTS = 20_000

    def __init__(self, server: ServerProcess) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        self._address = host, int(port)
        self.num_answers = 0
        self.num_closed = 0
        self.failures: list[str] = []

    def run(self) -> None:
        for _ in range(self.MAX_REQUESTS):
            connection = http.client.HTTPConnection(*self._address, timeout=PATIENCE_S)
            try:
                connection.request("POST", "/predict/forecast", BODY, {"content-type": "application/json"})
                answer = connection.getresponse()
                answer.read()
            except ConnectionRefusedError:
                return
            except (OSError, http.client.HTTPException) as exc:
                self.failures.append(repr(exc))
                continue
            finally:
                connection.close()
            self.num_answers += 1
            self.num_closed += answer.headers["connection"] == "close"
            if answer.status != 200:
                self.failures.append(f"status {answer.status}")
        self.failures.append("the listener was never closed")


def end_under_load(server: ServerProcess, number: int, num_clients: int) -> list[Client]:
    """Send the signal while the clients post; returns them when the server has ended."""
    clients = [Client(server) for _ in range(num_clients)]
    with concurrent.futures.ThreadPoolExecutor(num_clients) as pool:
        futures = [pool.submit(client.run) for client in clients]
        try:
            wait_until(lambda: min(client.num_answers for client in clients) > 1, "all clients are served")
        finally:
            status = server.end(number)
        for future in futures:
            future.result()
    assert status == 0, server.log
    assert "Traceback" not in server.log
    return clients


@pytest.mark.resilience
@pytest.mark.parametrize(("num_workers", "fast_path"), [("1", "true"), ("1", "false"), ("2", "true")])
def test_no_request_fails_while_a_server_ends(models: Path, num_workers: str, fast_path: str) -> None:
    with server_process(models, SLUICE_WORKERS=num_workers, SLUICE_FAST_PATH=fast_path, SLUICE_DRAIN_SECONDS="0.3") as server:
        clients = end_under_load(server, signal.SIGTERM, 16)
    assert [client.failures for client in clients] == [[]] * 16
    assert all(client.num_closed > 0 for client in clients)
    assert any(client.num_closed < client.num_answers for client in clients)


@pytest.mark.resilience
@pytest.mark.slow
@pytest.mark.parametrize("drain_s", ["0", "0.3"])
@pytest.mark.parametrize("num_workers", ["1", "2"])
def test_no_request_fails_in_many_ends_of_a_server(models: Path, num_workers: str, drain_s: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) * 5:
        with server_process(models, SLUICE_WORKERS=num_workers, SLUICE_DRAIN_SECONDS=drain_s) as server:
            clients = end_under_load(server, number, 16)
        assert [client.failures for client in clients] == [[]] * 16


@pytest.mark.resilience
@pytest.mark.parametrize(("num_workers", "number"), [("1", signal.SIGTERM), ("1", signal.SIGHUP), ("2", signal.SIGINT)])
def test_a_server_that_drains_is_not_ready_answers_and_closes_and_a_second_signal_ends_it(
    models: Path, num_workers: str, number: int
) -> None:
    with server_process(models, SLUICE_WORKERS=num_workers, SLUICE_DRAIN_SECONDS="600") as server:
        before = [httpx.Client(base_url=server.url, timeout=PATIENCE_S) for _ in range(2)]
        assert [client.get("/health/ready").headers.get("connection") for client in before] == [None] * 2
        server.process.send_signal(number)
        wait_until(lambda: httpx.get(f"{server.url}/health/ready").status_code == 503, "it is not ready")
        kept = [before[0].get("/models"), before[1].post("/predict/forecast", content=BODY)]
        ready = httpx.get(f"{server.url}/health/ready")
        assert ready.json()["reason"] == "the server is about to end"
        unknown = httpx.get(f"{server.url}/nothing")
        answers = [*kept, ready, unknown, httpx.post(f"{server.url}/predict/forecast", content=b"{")]
        assert [answer.status_code for answer in answers] == [200, 200, 503, 404, 400]
        assert [answer.headers.get_list("connection") for answer in answers] == [["close"]] * 5
        for client in before:
            client.close()
        assert server.end(number) == 0
        assert "Traceback" not in server.log


@pytest.mark.resilience
def test_a_connection_that_waits_in_the_kernel_when_the_server_ends_is_answered(models: Path) -> None:
    with server_process(models) as server:
        host, port = server.url.removeprefix("http://").split(":")
        # The stopped process accepts nothing: the kernel does.
        server.process.send_signal(signal.SIGSTOP)
        connections = [socket.create_connection((host, int(port)), PATIENCE_S) for _ in range(32)]
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGCONT)
        for connection in connections:
            with connection:
                connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
                with connection.makefile("rb") as answer:
                    assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
        assert server.process.wait(PATIENCE_S) == 0


UNFINISHED = {
    "small": b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
    "large": b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 900000\r\n\r\n"
    + b" " * 200_000,
}


@pytest.mark.resilience
@pytest.mark.parametrize("num_workers", ["1", "2"])
@pytest.mark.parametrize("fast_path", ["true", "false"])
def test_a_body_that_is_not_whole_when_the_time_of_a_server_is_over_gets_a_refusal(
    models: Path, num_workers: str, fast_path: str
) -> None:
    with server_process(
        models,
        SLUICE_WORKERS=num_workers,
        SLUICE_FAST_PATH=fast_path,
        SLUICE_REQUEST_TIMEOUT_MS="500",
        SLUICE_BODY_TIMEOUT_MS="600000",
    ) as server:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(begin_request(server, sent)) for sent in UNFINISHED.values()]
            assert server.end() == 0
            for client in clients:
                answer = read_answer(client)
                # It is awaited until the drain is over; where all ends before that is seen, it is refused.
                is_late = answer.startswith(b"HTTP/1.1 408 ") and b'"code":"request_timeout"' in answer
                assert is_late or (answer.startswith(b"HTTP/1.1 503 ") and b'"code":"overloaded"' in answer), answer
        assert "Traceback" not in server.log
        assert "Exception in ASGI application" not in server.log


@pytest.mark.resilience
@pytest.mark.parametrize("num_workers", ["1", "2"])
@pytest.mark.parametrize("fast_path", ["true", "false"])
def test_while_a_server_ends_a_body_has_its_timeout_however_much_of_it_has_come(
    models: Path, num_workers: str, fast_path: str
) -> None:
    # What has come of the large one gives it 12 s more while the server does not end, and the time of the server is a day.
    with server_process(
        models,
        SLUICE_WORKERS=num_workers,
        SLUICE_FAST_PATH=fast_path,
        SLUICE_REQUEST_TIMEOUT_MS="86400000",
        SLUICE_BODY_TIMEOUT_MS="800",
    ) as server:
        with begin_request(server, UNFINISHED["large"]) as client:
            assert server.end() == 0
            assert read_answer(client).startswith(b"HTTP/1.1 503 "), "the client was not slow: another server may take it"
        assert "Traceback" not in server.log


def begin_request(server: ServerProcess, sent: bytes) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), PATIENCE_S)
    client.sendall(sent)
    return client


def read_answer(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(1 << 16):
            received += part
    return received
