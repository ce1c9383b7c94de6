"""How one process serves: its protocol, the connections that a worker receives, and its certificate."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
from pathlib import Path

import pytest
import uvicorn

from service.errors import StartError
from service.process.connections import create_slots
from service.process.supervisor import WorkerContext
from service.process.tls import Certificate, Tls
from service.server import WorkerServer, counted_connection, open_tls
from service.settings import Settings
from tests.certificates import make_certificate


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
    config = uvicorn.Config(lambda: None, lifespan="off", log_config=None)
    config.load()
    tls = Tls(Certificate(*make_certificate(tmp_path)), handshake_timeout_s=0.2)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with channel, other_end, theirs:
        server = WorkerServer(config, tls, WorkerContext(channel, slot, reports))
        server.lifespan = config.lifespan_class(config)
        theirs.sendall(sent)
        await server._connect(asyncio.get_running_loop(), ours)
    assert slot.num_closed == 1


def test_a_key_without_its_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="SLUICE_TLS_CERTFILE names the file"):
        open_tls(Settings(tls_keyfile=tmp_path / "key.pem"))
    assert open_tls(Settings()) is None
