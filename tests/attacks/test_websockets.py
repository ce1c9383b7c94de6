"""Hostile clients of `GET /predict/ws` against a real server: they are closed with a code, and others do not notice them."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.api.stream_sequence import MAX_LINE_BYTES
from service.api.websocket import WEBSOCKET_PATH
from service.api.websocket_protocol import MAX_FRAGMENTS
from tests.serving import PATIENCE_S, ServerProcess, server_process, wait_until
from tests.streams import cells, draw_rows, write_tensor_stream
from tests.websockets import BINARY, CLOSE, CONTINUATION, PING, TEXT, RawSocket, close_code, frame, text

HEAD = text({"model": "toy-stream"})
ROW = text([draw_rows(np.random.default_rng(3), 1)[0]])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    models = tmp_path_factory.mktemp("models")
    write_tensor_stream(models, cells("lstm"))
    with server_process(models, SLUICE_SEND_TIMEOUT_MS="1000", SLUICE_WEBSOCKET_IDLE_SECONDS="1") as server:
        yield server
        wait_until(lambda: in_flight(server) == 0, "every WebSocket is counted as closed")
        assert server.end() == 0
        assert "Traceback" not in server.log


@pytest.fixture
def opened(server: ServerProcess) -> Iterator[RawSocket]:
    connection = RawSocket(server.url, first=HEAD + ROW)
    connection.read_until(b'{"prediction"')
    yield connection
    connection.close()


def in_flight(server: ServerProcess) -> float:
    lines = httpx.get(f"{server.url}/metrics", trust_env=False, timeout=PATIENCE_S).text.splitlines()
    mark = f'sluice_http_requests_in_flight{{route="{WEBSOCKET_PATH}"}}'
    return next(float(line.split()[-1]) for line in lines if line.startswith(mark))


def resident_bytes(server: ServerProcess) -> int:
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


def assert_serves(server: ServerProcess) -> None:
    other = RawSocket(server.url, first=HEAD + ROW + text(b"null"))
    other.read_until(b'{"end"')
    other.close()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(TEXT, b"{}", is_masked=False), 1002),
        (frame(3, b"{}"), 1002),
        (bytes([0xF1, 0x80, 0, 0, 0, 0]), 1002),
        (frame(CONTINUATION, b"{}"), 1002),
        (frame(TEXT, b"[", is_last=False) + frame(TEXT, b"]"), 1002),
        (frame(PING, b"", is_last=False), 1002),
        (bytes([0x80 | PING, 0xFE, 0, 126, 0, 0, 0, 0]) + b"a" * 126, 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (frame(CLOSE, struct.pack(">H", 999)), 1002),
        (frame(CLOSE, struct.pack(">H", 1000)), 1000),
        (frame(BINARY, b"[]"), 1003),
        (frame(TEXT, b"[" + b" " * MAX_LINE_BYTES + b"]"), 1009),
        (bytes([0x81, 0xFF]) + struct.pack(">Q", 1 << 62) + b"\0\0\0\0", 1009),
        (frame(TEXT, b"[", is_last=False) + (frame(CONTINUATION, b" " * 60_000, is_last=False) * 3), 1009),
        (frame(TEXT, b"[", is_last=False) + frame(CONTINUATION, b"", is_last=False) * (MAX_FRAGMENTS + 1), 1008),
    ],
    ids=[
        "no UTF-8",
        "not masked",
        "no such opcode",
        "reserved bits",
        "a continuation of nothing",
        "a message within another",
        "half a ping",
        "a long ping",
        "half a code",
        "no such code",
        "a close",
        "bytes",
        "too long a message",
        "a length of 2^62",
        "too many bytes in fragments",
        "too many fragments",
    ],
)
def test_what_breaks_the_protocol_is_closed_with_its_code(
    server: ServerProcess, opened: RawSocket, sent: bytes, code: int
) -> None:
    opened.send(sent)
    with contextlib.suppress(ConnectionError):
        opened.send(frame(CLOSE, struct.pack(">H", code)))
    assert close_code(opened.read_rest()) == code
    assert_serves(server)


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (frame(PING, b"a") * 50 + HEAD + ROW + text(b"null"), 1000),
        (frame(CLOSE, struct.pack(">H", 1000)), 1000),
        (frame(3, b"{}"), 1002),
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(TEXT, b"\xff\xfe") + frame(CLOSE, struct.pack(">H", 1000)), 1000),
        (frame(BINARY, b"[]"), 1003),
    ],
    ids=["pings", "a close", "no such opcode", "no UTF-8", "no UTF-8 and a close", "bytes"],
)
def test_what_comes_with_the_request_to_open_it_is_answered_when_it_is_open(
    server: ServerProcess, first: bytes, code: int
) -> None:
    connection = RawSocket(server.url, first=first)
    with contextlib.suppress(ConnectionError):
        connection.send(frame(CLOSE, struct.pack(">H", code)))
    assert connection.read_head().split()[:2] == [b"HTTP/1.1", b"101"]
    assert close_code(connection.read_rest()) == code
    connection.close()
    assert_serves(server)


def test_half_a_message_is_not_awaited_for_ever(opened: RawSocket) -> None:
    opened.send(ROW[:-1])
    received = opened.read_until(b'{"end"')
    assert b'"code":"request_timeout"' in received
    opened.send(frame(CLOSE, struct.pack(">H", 1008)))
    assert close_code(opened.read_rest()) == 1008


def test_a_client_that_answers_no_close_is_cut_off(opened: RawSocket) -> None:
    opened.send(text(b"null"))
    assert close_code(opened.read_rest()) == 1000


@pytest.mark.parametrize("flood", [frame(PING, b"a" * 125) * 1000, ROW * 1000], ids=["pings", "steps"])
def test_who_sends_without_an_end_and_reads_nothing_is_not_read_from_and_closed(server: ServerProcess, flood: bytes) -> None:
    before = resident_bytes(server)
    sent = 0
    opened = RawSocket(server.url, first=text({"model": "toy-stream", "state": None}), receive_buffer=4096)
    with contextlib.suppress(ConnectionError):  # the server closes
        while sent < 1_000_000_000:
            opened.send(flood)
            sent += len(flood)
    opened.close()
    assert sent < 1_000_000_000
    assert resident_bytes(server) - before < 50_000_000
    assert_serves(server)


def test_floods_of_small_frames_hold_up_nobody(server: ServerProcess) -> None:
    """Others are served while several clients have megabytes of frames read that say nothing."""
    flood = frame(TEXT, b"") * 50_000
    floods = [RawSocket(server.url, first=HEAD) for _ in range(4)]
    for each in floods:
        each.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            each.socket.send(flood)
    for _ in range(5):
        assert_serves(server)
    for each in floods:
        each.close()


def test_clients_that_vanish_in_every_state_leave_nothing_behind(server: ServerProcess) -> None:
    for first in (b"", HEAD, HEAD + ROW, HEAD + ROW[:3], HEAD + ROW * 100, HEAD + text(b"null")):
        for _ in range(5):
            connection = RawSocket(server.url, first=first)
            # Closed by a reset, and not in order.
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
    wait_until(lambda: in_flight(server) == 0, "all are gone")
    assert_serves(server)
