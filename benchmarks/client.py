"""Closed-loop load from Python: so many kept connections, each sends its next request when it was answered.

Every answer is read and checked, and clients may leave in the middle: what `wrk` cannot do. It costs about as much
processor time per request as a small server, so both sides of a comparison are driven by it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import uvloop

from benchmarks.traffic import Ask

PATIENCE_S = 30.0
WRONG_SHOWN = 5


@dataclass
class Seen:
    """What a burst saw: for each kind the latencies in seconds of what was answered, in the order of the answers."""

    latencies_s: dict[str, list[float]] = field(default_factory=dict)
    num_left: int = 0
    num_wrong: int = 0
    wrong: list[str] = field(default_factory=list)
    duration_s: float = 0.0

    @property
    def num_answered(self) -> int:
        return sum(len(some) for some in self.latencies_s.values())

    def rate(self, kind: str) -> float:
        """Answers of this kind per second."""
        return len(self.latencies_s.get(kind, ())) / self.duration_s

    def quantile_ms(self, kind: str, share: float) -> float:
        ordered = sorted(self.latencies_s[kind])
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def note_wrong(self, line: str) -> None:
        self.num_wrong += 1
        if len(self.wrong) < WRONG_SHOWN:
            self.wrong.append(line)


class Answer(NamedTuple):
    status: int
    body: bytes
    ends_connection: bool
    num_bytes: int


def read_answer(received: bytes | bytearray) -> Answer | None:
    """The first answer in what was received, once all of it is there. Reads what this server writes: lower case, a length."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(received[:end])
    at = head.find(b"content-length: ") + len(b"content-length: ")
    stop = head.find(b"\r", at)
    num_bytes = end + 4 + int(head[at : stop if stop > 0 else len(head)])
    if len(received) < num_bytes:
        return None
    return Answer(int(head[9:12]), bytes(received[end + 4 : num_bytes]), b"\r\nconnection: close" in head, num_bytes)


def burst(
    host: str, port: int, asks: Iterator[Ask], connections: int, *, duration_s: float | None = None, count: int | None = None
) -> Seen:
    """Send `asks` over so many connections for so long, or so many of them; all that were sent are waited for."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_burst(host, port, asks, connections, duration_s, count))


async def _burst(
    host: str, port: int, asks: Iterator[Ask], connections: int, duration_s: float | None, count: int | None
) -> Seen:
    crowd = _Crowd(host, port, asks, duration_s, count)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: crowd.fail(context))
    started = time.perf_counter()
    for _ in range(connections):
        crowd.join()
    await crowd.everybody_left
    crowd.seen.duration_s = time.perf_counter() - started
    return crowd.seen


class _Crowd:
    """The connections of one burst, what they send next and what they saw."""

    def __init__(self, host: str, port: int, asks: Iterator[Ask], duration_s: float | None, count: int | None) -> None:
        self.seen = Seen()
        self.everybody_left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._place = host, port
        self._asks = asks
        self._ends_at = None if duration_s is None else time.perf_counter() + duration_s
        self._num_to_send = count
        self._num_present = 0
        self._joining: set[asyncio.Task[None]] = set()

    def next(self) -> Ask | None:
        """What to send now; None when the burst is over."""
        if self._ends_at is not None and time.perf_counter() >= self._ends_at:
            return None
        if self._num_to_send is not None:
            if self._num_to_send == 0:
                return None
            self._num_to_send -= 1
        return next(self._asks)

    def join(self) -> None:
        """One more connection."""
        self._num_present += 1
        task = asyncio.get_running_loop().create_task(self._connect())
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    def leave(self) -> None:
        self._num_present -= 1
        if self._num_present == 0 and not self.everybody_left.done():
            self.everybody_left.set_result(None)

    def fail(self, context: dict[str, Any]) -> None:
        """End the burst with what went wrong in a callback."""
        if not self.everybody_left.done():
            self.everybody_left.set_exception(context.get("exception") or RuntimeError(context["message"]))

    async def _connect(self) -> None:
        try:
            await asyncio.wait_for(asyncio.get_running_loop().create_connection(lambda: _Caller(self), *self._place), PATIENCE_S)
        except OSError as exc:
            self.fail({"exception": exc})


class _Caller(asyncio.Protocol):
    """One connection."""

    def __init__(self, crowd: _Crowd) -> None:
        self._crowd = crowd
        self._received = bytearray()
        self._ask: Ask | None = None
        self._sent_at = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in what they do, not by their class.
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        answer = read_answer(self._received)
        if answer is None or self._ask is None:
            return
        seen, ask = self._crowd.seen, self._ask
        del self._received[: answer.num_bytes]
        if ask.is_cancelled:
            return  # answered before it left; it leaves when it wanted to
        seen.latencies_s.setdefault(ask.kind, []).append(time.perf_counter() - self._sent_at)
        if not ask.is_right(answer.status, answer.body):
            seen.note_wrong(f"{ask.kind}: {answer.status} {answer.body[:300]!r}")
        self._ask = None
        if answer.ends_connection:
            self._replace()
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ask is not None:
            self._crowd.seen.note_wrong(f"{self._ask.kind}: the server closed the connection ({exc})")
            self._ask = None
            self._replace()

    def _send(self) -> None:
        assert self._transport is not None
        ask = self._ask = self._crowd.next()
        if ask is None:
            self._transport.close()
            self._crowd.leave()
            return
        self._sent_at = time.perf_counter()
        if ask.leaves_after_s is None:
            self._transport.write(ask.request)
        else:
            self._transport.write(ask.request[: int(len(ask.request) * ask.sent_share)])
            asyncio.get_running_loop().call_later(ask.leaves_after_s, self._walk_away)

    def _walk_away(self) -> None:
        if self._ask is not None:
            self._crowd.seen.num_left += 1
            self._ask = None
            self._replace()

    def _replace(self) -> None:
        """This connection ends, another one takes its place."""
        assert self._transport is not None
        self._transport.abort()
        self._crowd.join()
        self._crowd.leave()
