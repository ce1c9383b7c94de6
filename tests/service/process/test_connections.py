"""Who gets the next connection, and how it comes to its worker."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Iterator

import pytest

from service.process.connections import MAX_ON_WAY, Standing, choose, hand_over, raised, slots, take_over

Channel = tuple[socket.socket, socket.socket]


def ready(num_open: int, num_on_way: int = 0) -> Standing:
    return Standing(True, num_on_way, num_open)


def loading(num_open: int) -> Standing:
    return Standing(False, 0, num_open)


@pytest.mark.parametrize(
    ("standings", "start", "place"),
    [
        ([], 0, None),
        ([ready(0), ready(0), ready(0)], 0, 0),
        ([ready(0), ready(0), ready(0)], 1, 1),
        ([ready(0), ready(0), ready(0)], 5, 2),
        ([ready(3), ready(1), ready(2)], 0, 1),
        ([ready(3), loading(0), ready(2)], 0, 2),
        ([loading(3), loading(0)], 0, 1),
        ([ready(64, MAX_ON_WAY), ready(99)], 0, 1),
        ([ready(64, MAX_ON_WAY), loading(0)], 0, None),
        ([ready(64, MAX_ON_WAY), ready(64, MAX_ON_WAY)], 0, None),
    ],
)
def test_the_worker_with_the_fewest_connections_gets_the_next(standings: list[Standing], start: int, place: int | None) -> None:
    assert choose(standings, start) == place


def test_what_a_worker_tells_is_its_own_and_forgotten_with_it() -> None:
    first, second = slots(multiprocessing.get_context("spawn"), 2)
    for _ in range(3):
        first.beat()
    second.taken()
    second.taken()
    second.closed()
    assert (first.num_beats, first.num_taken, first.num_closed) == (3, 0, 0)
    assert (second.num_beats, second.num_taken, second.num_closed) == (0, 2, 1)
    second.clear()
    assert (first.num_beats, second.num_taken, second.num_closed) == (3, 0, 0)


@pytest.fixture
def channel() -> Iterator[Channel]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def test_a_connection_survives_its_handover(channel: Channel) -> None:
    ours, theirs = channel
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        with accepted:
            assert hand_over(ours, accepted)
        taken = take_over(theirs)
        assert taken is not None
        with taken:
            assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            taken.sendall(b"hello")
            assert client.recv(5) == b"hello"
    with pytest.raises(BlockingIOError):
        take_over(theirs)


def test_a_channel_works_on_under_a_high_number(channel: Channel) -> None:
    ours, theirs = channel
    before = theirs.fileno()
    with raised(theirs) as high, socket.socket() as connection:
        assert high.fileno() > before
        assert hand_over(ours, connection)
        taken = take_over(high)
        assert taken is not None
        taken.close()


def test_a_worker_that_is_gone_takes_nothing(channel: Channel) -> None:
    ours, theirs = channel
    theirs.close()
    with socket.socket() as connection:
        assert not hand_over(ours, connection)


def test_a_parent_that_is_gone_is_seen(channel: Channel) -> None:
    ours, theirs = channel
    ours.close()
    with pytest.raises(EOFError):
        take_over(theirs)
