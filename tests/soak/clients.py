"""Clients of many kinds on connections of their own: patient ones, slow ones, ones that leave, ones that send too much.

A client sends requests until it is told to end, and records what each came to; the answers are checked here, not in the server.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tests.soak.traffic import MAX_BODY_BYTES, Message, choose, differences, get

Outcome = Literal["answered", "refused", "left", "wrong", "broken"]
"""Answered as it is alone; 503 or 504 with its reason; the client left; any other answer; no answer at all."""

PATIENCE_S = 40.0
READS = ("/models", "/health/ready", "/metrics", "/")
SLOW_PAUSE_S = 0.05
RETRY_S = 0.05


@dataclass(frozen=True)
class Record:
    """What one request came to, and when: seconds of the monotonic clock."""

    kind: str
    outcome: Outcome
    connected_at: float
    sent_at: float
    ended_at: float
    detail: str = ""
    is_refused_connection: bool = False


@dataclass
class Records:
    """Of all clients, which go on until `is_over`: with `limit`, when so many requests are over."""

    limit: float = math.inf
    found: list[Record] = field(default_factory=list)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, record: Record) -> None:
        self.found.append(record)
        if len(self.found) >= self.limit:
            self.is_over.set()


class Connection:
    """A keep-alive connection that reads answers as Sluice writes them: with a length."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.opened_at = time.monotonic()
        self.is_over = False

    @classmethod
    async def open(cls, address: tuple[str, int]) -> Connection:
        return cls(*await asyncio.open_connection(*address, limit=1 << 20))

    async def read(self) -> tuple[int, bytes]:
        """Status and body of the next answer. Raises OSError or EOFError (IncompleteReadError is one)."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        _, _, rest = head.partition(b"\r\ncontent-length: ")
        body = await self._reader.readexactly(int(rest.partition(b"\r\n")[0]))
        self.is_over = b"\r\nconnection: close" in head
        return int(head[9:12]), body

    def write(self, content: bytes) -> None:
        """Raises ConnectionResetError when the server has closed the connection."""
        if self._writer.transport.is_closing():
            raise ConnectionResetError("the server closed the connection")
        self._writer.write(content)

    async def exchange(self, content: bytes) -> tuple[int, bytes]:
        self.write(content)
        return await self.read()

    def abort(self) -> None:
        self._writer.transport.abort()


async def record_alone(address: tuple[str, int], messages: Sequence[Message]) -> list[Message]:
    """Each message with the answer that it gets when nothing else is sent."""
    connection = await Connection.open(address)
    found = []
    for message in messages:
        status, body = await asyncio.wait_for(connection.exchange(message.content), PATIENCE_S)
        predictions = json.loads(body)["predictions"] if status == 200 else None
        found.append(replace(message, status=status, predictions=predictions))
        if connection.is_over:
            connection.abort()
            connection = await Connection.open(address)
    connection.abort()
    return found


def classify(message: Message, status: int, body: bytes) -> tuple[Outcome, str]:
    """Whether an answer is the one that the message gets alone."""
    if status in (503, 504):
        code = json.loads(body).get("code")
        explained = {503: ("overloaded", "model_not_ready"), 504: ("deadline_exceeded",)}[status]
        return ("refused", f"{status} {code}") if code in explained else ("wrong", f"{status}: {body[:200]!r}")
    if status != message.status:
        return "wrong", f"{status}, alone {message.status}: {body[:200]!r}"
    if status == 200:
        predictions = json.loads(body)["predictions"]
        if message.is_exact and predictions != message.predictions:
            return "wrong", f"not bit-equal: {next(differences(predictions, message.predictions), 'by rounding')}"
        if difference := next(differences(predictions, message.predictions), None):
            return "wrong", difference
    return "answered", ""


class Client:
    """One client. `kind` says what it does: `patient`, `slow`, `leaving`, `oversize` or `reading`."""

    def __init__(self, kind: str, address: tuple[str, int], pool: Sequence[Message], records: Records, seed: int) -> None:
        self._kind = kind
        self._address = address
        self._pool = pool
        self._records = records
        self._draw = random.Random(seed)
        self._connection: Connection | None = None
        self._connected_at = 0.0

    async def run(self) -> None:
        """Send requests one after the other until the records say that it is over."""
        try:
            while not self._records.is_over.is_set():
                await self._run_one()
        finally:
            self._close()

    async def _run_one(self) -> None:
        sent_at = time.monotonic()
        message = choose(self._draw, self._pool)
        kind = message.kind if self._kind == "patient" else self._kind
        try:
            if self._connection is None:
                self._connected_at = sent_at
                self._connection = await asyncio.wait_for(Connection.open(self._address), PATIENCE_S)
            outcome, detail = await asyncio.wait_for(getattr(self, f"_be_{self._kind}")(self._connection, message), PATIENCE_S)
            is_refused_connection = False
        except (OSError, EOFError, TimeoutError) as exc:
            outcome, detail = "broken", repr(exc)[:200]
            is_refused_connection = isinstance(exc, ConnectionRefusedError)
        ended_at = time.monotonic()
        self._records.add(Record(kind, outcome, self._connected_at, sent_at, ended_at, detail, is_refused_connection))
        if outcome in ("broken", "left") or self._connection is None or self._connection.is_over:
            self._close()
        if is_refused_connection:
            await asyncio.sleep(RETRY_S)

    async def _be_patient(self, connection: Connection, message: Message) -> tuple[Outcome, str]:
        return classify(message, *await connection.exchange(message.content))

    async def _be_slow(self, connection: Connection, message: Message) -> tuple[Outcome, str]:
        """Send in ten parts with pauses."""
        size = len(message.content) // 10 + 1
        for start in range(0, len(message.content), size):
            connection.write(message.content[start : start + size])
            await asyncio.sleep(SLOW_PAUSE_S)
        return classify(message, *await connection.read())

    async def _be_leaving(self, connection: Connection, message: Message) -> tuple[Outcome, str]:
        """Close amid the request, right behind it, or while the answer is computed."""
        connection.write(message.content[: int(len(message.content) * self._draw.choice((0.5, 1.0, 1.0)))])
        await asyncio.sleep(self._draw.choice((0.0, 0.001, 0.005, 0.02)))
        connection.abort()
        return "left", ""

    async def _be_oversize(self, connection: Connection, message: Message) -> tuple[Outcome, str]:
        """Send more than is taken, with a length or in chunks."""
        head, block = b"POST /predict HTTP/1.1\r\nHost: sluice\r\nContent-Type: application/json\r\n", b" " * 100_000
        num_blocks = MAX_BODY_BYTES // len(block) + 1
        if self._draw.random() < 0.5:
            connection.write(head + b"Content-Length: %d\r\n\r\n" % (num_blocks * len(block)) + num_blocks * block)
        else:
            chunks = num_blocks * (b"%x\r\n%s\r\n" % (len(block), block))
            connection.write(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        status, body = await connection.read()
        connection.is_over = True
        return classify(Message("oversize", b"", 413), status, body)

    async def _be_reading(self, connection: Connection, message: Message) -> tuple[Outcome, str]:
        """Read what operators read; `/health/ready` may be 503 with its reasons."""
        path = self._draw.choice(READS)
        status, body = await connection.exchange(get(path))
        await asyncio.sleep(0.1)
        if status == 200 or (path == "/health/ready" and status == 503):
            return "answered", ""
        return "wrong", f"{path}: {status}: {body[:200]!r}"

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            self._connection = None


KINDS = ("patient",) * 20 + ("slow",) * 4 + ("leaving",) * 4 + ("oversize", "reading")


def make_clients(num: int, address: tuple[str, int], pool: Sequence[Message], records: Records, seed: int = 0) -> list[Client]:
    """So many clients, of each kind as KINDS has them; of a few, one of each kind at least where there are enough."""
    kinds = [*dict.fromkeys(KINDS), *KINDS]
    return [Client(kinds[number % len(kinds)], address, pool, records, seed + number) for number in range(num)]
