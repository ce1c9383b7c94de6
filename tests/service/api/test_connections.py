"""When a connection is closed, decided on what it shows of itself; and which make room for new ones."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

import pytest

from service.api.connections import (
    MIN_RATE,
    SWEEP_AT_ONCE,
    Connection,
    ConnectionLimits,
    ConnectionMonitor,
    Phase,
    _Record,
    find_reason,
)
from service.errors import ConnectionReason

LIMITS = ConnectionLimits(header_timeout_s=10, body_timeout_s=20, send_timeout_s=30, max_connections=2, drain_s=5)
INTERVAL_S = 0.5


@dataclass(eq=False)
class FakeConnection:
    phase: Phase = Phase.REQUEST
    phase_began_at: float = 100.0
    num_body_bytes: int = 0
    num_drains: int = 0
    idle_since: object | None = None
    is_held: bool = False
    keep_alive_s: float = 75.0
    num_unsent_bytes: int = 0
    reasons: list[ConnectionReason] = field(default_factory=list)
    is_timed_out: asyncio.Event = field(default_factory=asyncio.Event)

    def time_out(self, reason: ConnectionReason) -> None:
        self.reasons.append(reason)
        self.is_timed_out.set()


def reasons_of(connection: FakeConnection, *times: float) -> list[ConnectionReason | None]:
    """What each of several sweeps finds."""
    record = _Record(100.0)
    return [find_reason(connection, record, time, LIMITS, INTERVAL_S) for time in times]


@pytest.mark.parametrize(
    ("connection", "age_s", "reason"),
    [
        (FakeConnection(Phase.HEAD), 10.0, None),
        (FakeConnection(Phase.HEAD), 10.1, "header_timeout"),
        (FakeConnection(Phase.BODY), 20.0, None),
        (FakeConnection(Phase.BODY), 20.1, "body_timeout"),
        (FakeConnection(Phase.BODY, num_body_bytes=4 * MIN_RATE), 24.0, None),
        (FakeConnection(Phase.BODY, num_body_bytes=4 * MIN_RATE), 24.1, "body_timeout"),
        (FakeConnection(Phase.REQUEST), 1e6, None),
        (FakeConnection(Phase.HEAD, is_held=True), 1e6, None),
        (FakeConnection(Phase.BODY, is_held=True), 1e6, None),
    ],
)
def test_a_head_and_a_body_have_their_time_and_an_answer_that_is_computed_has_any(
    connection: FakeConnection, age_s: float, reason: ConnectionReason | None
) -> None:
    assert reasons_of(connection, 100.0 + age_s) == [reason]


@pytest.mark.parametrize(
    ("began_at", "drains_from", "now", "reason"),
    [
        (100.0, 150.0, 155.0, None),
        (100.0, 150.0, 155.1, "drained"),
        (154.5, 150.0, 155.5, None),
        (154.5, 150.0, 155.6, "drained"),
        (160.0, -math.inf, 161.1, "drained"),
        (100.0, None, 180.1, None),
        (100.0, 150.0, 1121.0, "body_timeout"),
    ],
)
def test_a_server_that_ends_awaits_a_body_as_long_as_it_drains_and_no_more(
    began_at: float, drains_from: float | None, now: float, reason: ConnectionReason | None
) -> None:
    body = FakeConnection(Phase.BODY, began_at, num_body_bytes=1000 * MIN_RATE)
    assert find_reason(body, _Record(100.0), now, LIMITS, INTERVAL_S, drains_from) == reason


def test_a_connection_that_waits_for_its_next_request_is_closed_when_it_has_waited_for_long() -> None:
    answered = object()
    idle = FakeConnection(idle_since=answered)
    assert reasons_of(idle, 100, 174, 175, 175.1) == [None, None, None, "idle"]
    record = _Record(100.0)
    for time in range(100, 400, 50):
        idle.idle_since = object()  # a request was answered in between
        assert find_reason(idle, record, time, LIMITS, INTERVAL_S) is None


def test_a_client_that_does_not_read_is_closed_and_one_that_reads_slowly_is_not() -> None:
    assert reasons_of(FakeConnection(num_unsent_bytes=100), 100, 130, 130.1) == [None, None, "send_timeout"]
    slow, record = FakeConnection(num_unsent_bytes=10_000_000), _Record(100.0)
    for time in range(100, 400, 10):
        assert find_reason(slow, record, time, LIMITS, INTERVAL_S) is None
        slow.num_unsent_bytes -= 10 * MIN_RATE
    refilled, record = FakeConnection(num_unsent_bytes=70_000), _Record(100.0)
    for time in range(100, 400, 10):
        assert find_reason(refilled, record, time, LIMITS, INTERVAL_S) is None
        refilled.num_drains += 1


def test_while_the_server_does_not_read_no_time_passes_for_the_client() -> None:
    connection, record = FakeConnection(Phase.BODY, is_held=True), _Record(100.0)
    for sweep in range(100):
        assert find_reason(connection, record, 100 + sweep * INTERVAL_S, LIMITS, INTERVAL_S) is None
    connection.is_held = False
    assert find_reason(connection, record, 150.0, LIMITS, INTERVAL_S) is None


class Observer:
    def __init__(self) -> None:
        self.reasons: list[ConnectionReason] = []

    def connection_closed(self, reason: ConnectionReason) -> None:
        self.reasons.append(reason)


async def swept(monitor: ConnectionMonitor) -> None:
    """Until a sweep has seen all connections."""
    probe = FakeConnection(Phase.HEAD, phase_began_at=-1e9)
    monitor._records[probe] = _Record(0.0)  # the newest, so that it is seen last
    async with asyncio.timeout(10):
        await probe.is_timed_out.wait()
    monitor.remove(probe)


async def test_beyond_the_bound_an_idle_connection_makes_room_and_without_one_the_new_one_is_refused() -> None:
    observer, loop = Observer(), asyncio.get_running_loop()
    monitor = ConnectionMonitor(LIMITS, observer, interval_s=0.005)
    busy, idle = FakeConnection(), FakeConnection(idle_since=object())
    assert monitor.add(busy, loop)
    assert monitor.add(idle, loop)
    assert not monitor.add(FakeConnection(), loop), "no sweep has seen an idle one yet"
    await swept(monitor)
    observer.reasons.clear()
    assert monitor.add(FakeConnection(), loop)
    assert (idle.reasons, busy.reasons) == (["evicted"], [])
    assert not monitor.add(FakeConnection(), loop)
    assert observer.reasons == ["evicted", "too_many"]
    assert monitor.num_connections == 2


async def test_a_handshake_takes_a_place_and_its_connection_takes_it_over() -> None:
    observer, loop = Observer(), asyncio.get_running_loop()
    monitor = ConnectionMonitor(LIMITS, observer, interval_s=0.005)
    busy = FakeConnection()
    assert monitor.begin_handshake()
    assert monitor.add(busy, loop)
    monitor.end_handshake()
    assert monitor.begin_handshake()
    assert not monitor.begin_handshake()
    assert observer.reasons == ["too_many"]
    assert monitor.add(FakeConnection(), loop), "its handshake has the place"
    monitor.end_handshake()
    assert not monitor.begin_handshake()
    assert monitor.num_connections == 2
    monitor.remove(busy)
    assert monitor.begin_handshake()
    monitor.end_handshake()


async def test_a_connection_that_is_used_again_makes_no_room() -> None:
    loop = asyncio.get_running_loop()
    monitor = ConnectionMonitor(LIMITS, interval_s=0.005)
    idle, other = FakeConnection(idle_since=object()), FakeConnection()
    monitor.add(idle, loop)
    monitor.add(other, loop)
    await swept(monitor)
    idle.idle_since = object()
    assert not monitor.add(FakeConnection(), loop)
    assert idle.reasons == []


async def test_a_head_that_is_slow_makes_room_where_nothing_is_idle() -> None:
    loop = asyncio.get_running_loop()
    monitor = ConnectionMonitor(LIMITS, interval_s=0.005)
    slow = FakeConnection(Phase.HEAD, phase_began_at=loop.time() - 1)
    busy = FakeConnection()
    monitor.add(slow, loop)
    monitor.add(busy, loop)
    await swept(monitor)
    assert monitor.add(FakeConnection(), loop)
    assert slow.reasons == ["evicted"]


async def test_one_turn_of_the_loop_looks_at_a_bounded_number_of_connections() -> None:
    loop = asyncio.get_running_loop()
    monitor = ConnectionMonitor(LIMITS._replace(max_connections=10**6), interval_s=0.005)
    looked = 0

    class Counted(FakeConnection):
        @property
        def num_unsent_bytes(self) -> int:
            nonlocal looked
            looked += 1
            return 0

        @num_unsent_bytes.setter
        def num_unsent_bytes(self, value: int) -> None:
            pass

    connections: list[Connection] = [Counted() for _ in range(3 * SWEEP_AT_ONCE)]
    for connection in connections:
        monitor.add(connection, loop)
    async with asyncio.timeout(10):
        while looked < len(connections):
            before = looked
            await asyncio.sleep(0)
            assert looked - before <= SWEEP_AT_ONCE


async def test_connections_are_looked_at_also_after_the_last_one_has_gone() -> None:
    loop = asyncio.get_running_loop()
    monitor = ConnectionMonitor(LIMITS, interval_s=0.001)
    for _ in range(2):
        late = FakeConnection(Phase.HEAD, phase_began_at=-1e9)
        monitor.add(late, loop)
        async with asyncio.timeout(10):
            await late.is_timed_out.wait()
            monitor.remove(late)
            await asyncio.sleep(0.01)  # in which the timer may end
