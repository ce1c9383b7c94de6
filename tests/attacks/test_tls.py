"""HTTPS with one process and with two: what a client sees, and what those get who never finish a handshake."""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest

from tests.certificates import CertificateFiles, make_certificate
from tests.folders import write_forecast_folder
from tests.serving import PATIENCE_S, ServerProcess, server_process, wait_until

HANDSHAKE_TIMEOUT_MS = 500
BODY = {"instances": [{"history": [1, 2, 3]}]}
CONTENT = b'{"instances": [{"history": [1, 2, 3]}]}'
GARBAGE = {
    "zeros": bytes(20_000),
    "HTTP": b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a record of 16 MB": b"\x16\x03\x01\xff\xff" + bytes(70_000),
    "an alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "half a hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "one byte": b"\x16",
}


class Encrypted(NamedTuple):
    server: ServerProcess
    files: CertificateFiles

    @property
    def address(self) -> tuple[str, int]:
        found = urlsplit(self.server.url)
        assert found.hostname is not None
        assert found.port is not None
        return found.hostname, found.port

    def client(self, trusted: Path | None = None) -> httpx.Client:
        context = ssl.create_default_context(cafile=trusted or self.files.certfile)
        return httpx.Client(base_url=self.server.url, verify=context, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_forecast_folder(folder)
    return folder


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "two workers"])
def encrypted(request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    files = make_certificate(tmp_path_factory.mktemp("tls"))
    with server_process(
        models,
        SLUICE_WORKERS=request.param,
        SLUICE_NUM_THREADS="1",
        SLUICE_TLS_CERTFILE=str(files.certfile),
        SLUICE_TLS_KEYFILE=str(files.keyfile),
        SLUICE_TLS_HANDSHAKE_TIMEOUT_MS=str(HANDSHAKE_TIMEOUT_MS),
    ) as server:
        yield Encrypted(server, files)
        assert server.end() == 0
        assert "Traceback" not in server.log
        assert "ERROR" not in server.log


def test_clients_that_trust_the_certificate_are_answered_by_both_paths(encrypted: Encrypted) -> None:
    assert encrypted.server.url.startswith("https://")
    with encrypted.client() as client:
        for _ in range(20):
            assert client.post("/predict/forecast", json=BODY).status_code == 200
            assert client.post("/predict/forecast", content=iter([b'{"instances": [{"history": [1]}]}'])).status_code in (
                200,
                422,
            )
            assert client.get("/models").json()["models"][0]["state"] == "READY"


def test_a_large_body_and_a_large_answer_pass(encrypted: Encrypted) -> None:
    with encrypted.client() as client:
        body = {"instances": [{"history": [1.5] * 500}] * 500}
        answer = client.post("/predict/forecast", json=body)
        assert len(answer.json()["predictions"]) == 500
        assert client.get("/static/swagger-ui-bundle.js").status_code == 200


def test_clients_that_do_not_trust_it_or_speak_older_versions_are_not(encrypted: Encrypted) -> None:
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(encrypted.server.url)
    old = ssl.create_default_context(cafile=encrypted.files.certfile)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError):
        httpx.get(encrypted.server.url, verify=old)


@pytest.mark.parametrize("sent", GARBAGE.values(), ids=GARBAGE)
def test_whoever_sends_no_handshake_is_disconnected(encrypted: Encrypted, sent: bytes) -> None:
    with socket.create_connection(encrypted.address, timeout=PATIENCE_S) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        assert_is_disconnected(connection)
    assert_serves(encrypted)


def assert_is_disconnected(connection: socket.socket) -> None:
    """Nothing comes but a TLS alert, and then the end."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(4096):
            received += part
    assert received[:1] in (b"", b"\x15")


def assert_serves(encrypted: Encrypted) -> None:
    with encrypted.client() as client:
        assert client.post("/predict/forecast", json=BODY).status_code == 200


def test_many_silent_clients_hold_nobody_up_and_are_disconnected(encrypted: Encrypted) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(encrypted.address, timeout=PATIENCE_S)) for _ in range(200)]
        for _ in range(5):
            assert_serves(encrypted)
        for connection in silent:
            assert_is_disconnected(connection)
    assert_serves(encrypted)


def test_clients_that_vanish_amid_the_handshake_leave_nothing_behind(encrypted: Encrypted) -> None:
    for _ in range(50):
        connection = socket.create_connection(encrypted.address, timeout=PATIENCE_S)
        connection.sendall(GARBAGE["half a hello"])
        # A reset instead of an orderly end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.close()
    assert_serves(encrypted)


def test_a_client_that_closes_without_a_word_gets_no_stack_trace_logged(encrypted: Encrypted) -> None:
    context = ssl.create_default_context(cafile=encrypted.files.certfile)
    for linger in (False, True):
        plain = socket.create_connection(encrypted.address, timeout=PATIENCE_S)
        connection = context.wrap_socket(plain, server_hostname="localhost")
        connection.sendall(b"POST /predict/forecast HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        if linger:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.close()
    assert_serves(encrypted)
    assert "Traceback" not in encrypted.server.log


def test_a_new_certificate_is_shown_without_a_restart_and_a_bad_one_is_not(models: Path, tmp_path: Path) -> None:
    shown, newer = make_certificate(tmp_path), make_certificate(tmp_path, "newer")
    with server_process(
        models,
        SLUICE_WORKERS="2",
        SLUICE_NUM_THREADS="1",
        SLUICE_TLS_CERTFILE=str(shown.certfile),
        SLUICE_TLS_KEYFILE=str(shown.keyfile),
    ) as server:
        encrypted = Encrypted(server, shown)
        older = Path(shutil.copy(shown.certfile, tmp_path / "older.pem"))

        def is_shown_by_all(trusted: Path) -> bool:
            for _ in range(6):
                try:
                    with encrypted.client(trusted) as client:
                        assert client.get("/health/live").status_code == 200
                except httpx.ConnectError:
                    return False
            return True

        with encrypted.client(older) as lasting:
            assert lasting.get("/health/live").status_code == 200
            (tmp_path / "text").write_text("no certificate")
            (tmp_path / "text").rename(shown.certfile)
            wait_until(lambda: server.log.count("a changed file is not used") == 2, "both workers have seen the bad file")
            assert is_shown_by_all(older)
            newer.keyfile.rename(shown.keyfile)
            newer.certfile.rename(shown.certfile)
            wait_until(lambda: is_shown_by_all(shown.certfile), "both workers show the new certificate")
            assert lasting.get("/health/live").status_code == 200  # what was connected before stays so


def test_the_end_of_the_server_does_not_wait_for_handshakes(models: Path, tmp_path: Path) -> None:
    files = make_certificate(tmp_path)
    for workers in ("1", "2"):
        with server_process(
            models,
            SLUICE_WORKERS=workers,
            SLUICE_NUM_THREADS="1",
            SLUICE_TLS_CERTFILE=str(files.certfile),
            SLUICE_TLS_KEYFILE=str(files.keyfile),
            SLUICE_TLS_HANDSHAKE_TIMEOUT_MS="60000",
        ) as server:
            encrypted = Encrypted(server, files)
            with socket.create_connection(encrypted.address):
                assert_serves(encrypted)
                assert server.end() == 0


def has_ended(connection: socket.socket) -> bool:
    """Whether the server has closed it."""
    if not select.select([connection], [], [], 0)[0]:
        return False
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("workers", ["1", "2"])
def test_handshakes_count_as_connections_and_the_oldest_make_room(models: Path, tmp_path: Path, workers: str) -> None:
    files = make_certificate(tmp_path)
    with (
        server_process(
            models,
            SLUICE_WORKERS=workers,
            SLUICE_NUM_THREADS="1",
            SLUICE_MAX_CONNECTIONS="4",
            SLUICE_TLS_CERTFILE=str(files.certfile),
            SLUICE_TLS_KEYFILE=str(files.keyfile),
            SLUICE_TLS_HANDSHAKE_TIMEOUT_MS="60000",
        ) as server,
        contextlib.ExitStack() as stack,
    ):
        encrypted = Encrypted(server, files)
        silent = [stack.enter_context(socket.create_connection(encrypted.address, PATIENCE_S)) for _ in range(40)]
        # Each worker keeps its four youngest, which are not the youngest of all where one was given more in between.
        wait_until(lambda: sum(map(has_ended, silent)) >= len(silent) - 4 * int(workers), "all others had to make room")
        assert has_ended(silent[0])
        assert not has_ended(silent[-1])
        with encrypted.client() as client:
            assert client.post("/predict/forecast", json=BODY).status_code == 200
        assert server.end() == 0
        assert "Traceback" not in server.log
