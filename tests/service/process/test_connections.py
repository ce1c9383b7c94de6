"""Which worker gets the next connection, and how it comes there."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import sys
from collections.abc import Iterator

import pytest

from service.process.connections import (
    MAX_IN_TRANSIT,
    DrainRequested,
    WorkerLoad,
    choose_worker,
    create_slots,
    has_waiting,
    move_to_high_number,
    receive_connection,
    refuse_handshakes,
    send_connection,
    send_drain,
)

Channel = tuple[socket.socket, socket.socket]


def ready(num_open: int, num_in_transit: int = 0) -> WorkerLoad:
    return WorkerLoad(True, num_in_transit, num_open)


def loading(num_open: int) -> WorkerLoad:
    return WorkerLoad(False, 0, num_open)


@pytest.mark.parametrize(
    ("loads", "start", "place"),
    [
        ([], 0, None),
        ([ready(0), ready(0), ready(0)], 0, 0),
        ([ready(0), ready(0), ready(0)], 1, 1),
        ([ready(0), ready(0), ready(0)], 5, 2),
        ([ready(3), ready(1), ready(2)], 0, 1),
        ([ready(3), loading(0), ready(2)], 0, 2),
        ([loading(3), loading(0)], 0, 1),
        ([ready(64, MAX_IN_TRANSIT), ready(99)], 0, 1),
        ([ready(64, MAX_IN_TRANSIT), loading(0)], 0, None),
        ([ready(64, MAX_IN_TRANSIT), ready(64, MAX_IN_TRANSIT)], 0, None),
    ],
)
def test_the_worker_with_the_fewest_connections_gets_the_next(loads: list[WorkerLoad], start: int, place: int | None) -> None:
    assert choose_worker(loads, start) == place


def test_a_worker_counts_in_a_slot_of_its_own_which_is_cleared_for_its_successor() -> None:
    first, second = create_slots(multiprocessing.get_context("spawn"), 2)
    for _ in range(3):
        first.count_heartbeat()
    second.count_received()
    second.count_received()
    second.count_closed()
    assert (first.num_heartbeats, first.num_received, first.num_closed) == (3, 0, 0)
    assert (second.num_heartbeats, second.num_received, second.num_closed) == (0, 2, 1)
    second.clear()
    assert (first.num_heartbeats, second.num_received, second.num_closed) == (3, 0, 0)


@pytest.fixture
def channel() -> Iterator[Channel]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def test_a_connection_works_after_it_was_sent(channel: Channel) -> None:
    ours, theirs = channel
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        with accepted:
            assert send_connection(ours, accepted)
        received = receive_connection(theirs)
        assert received is not None
        with received:
            assert received.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            received.sendall(b"hello")
            assert client.recv(5) == b"hello"
    with pytest.raises(BlockingIOError):
        receive_connection(theirs)


def test_a_channel_works_under_a_high_number_too(channel: Channel) -> None:
    ours, theirs = channel
    before = theirs.fileno()
    with move_to_high_number(theirs) as high, socket.socket() as connection:
        assert high.fileno() > before
        assert send_connection(ours, connection)
        received = receive_connection(high)
        assert received is not None
        received.close()


def test_nothing_is_sent_to_a_worker_that_has_ended(channel: Channel) -> None:
    ours, theirs = channel
    theirs.close()
    with socket.socket() as connection:
        assert not send_connection(ours, connection)


def test_a_worker_sees_that_its_parent_has_ended(channel: Channel) -> None:
    ours, theirs = channel
    ours.close()
    with pytest.raises(EOFError):
        receive_connection(theirs)


def test_the_order_to_drain_comes_between_the_connections_as_it_was_sent() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as listener:
        assert send_connection(ours, listener)
        send_drain(ours)
        assert send_connection(ours, listener)
        ours.shutdown(socket.SHUT_WR)
        first = receive_connection(theirs)
        with pytest.raises(DrainRequested):
            receive_connection(theirs)
        second = receive_connection(theirs)
        with pytest.raises(EOFError):
            receive_connection(theirs)
        for received in (first, second):
            assert received is not None
            received.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="packets are filtered on Linux only")
def test_who_begins_to_connect_after_the_refusal_does_not_reach_the_queue_and_who_connected_before_is_served() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as late:
        early = socket.create_connection(listener.getsockname(), 5)
        refuse_handshakes(listener)
        late.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            late.connect(listener.getsockname())
        assert has_waiting(listener)
        accepted, _ = listener.accept()
        with early, accepted:
            early.sendall(b"x")
            assert accepted.recv(1) == b"x"
            assert not has_waiting(listener)
