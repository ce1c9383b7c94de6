"""How many requests a client may send: the rate, the bounded table, and what processes that share it may do together."""

from __future__ import annotations

import math
import multiprocessing
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.access.rates import WAYS, Rate, RateTable, parse_rate

ROWS = 8 * WAYS


@pytest.mark.parametrize(
    ("text", "count", "interval_s"), [("100/s", 100, 0.01), ("6000/min", 6000, 0.01), ("1/h", 1, 3600.0), ("7/s", 7, 1 / 7)]
)
def test_a_rate_is_a_number_of_requests_and_a_unit(text: str, count: int, interval_s: float) -> None:
    rate = parse_rate(text)
    assert (rate.num_requests, rate.text) == (count, text)
    assert rate.interval_s == pytest.approx(interval_s)


@pytest.mark.parametrize(
    "text", ["", "100", "0/s", "-1/s", "1.5/s", "100/day", "100 / s", "100/s ", "٣/s", "1" * 10 + "/s", "100/s\n"]
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rate such as 100/s"):
        parse_rate(text)


def test_as_many_requests_as_the_rate_names_come_at_once_and_then_one_per_interval() -> None:
    table, rate = RateTable(ROWS), parse_rate("10/s")
    assert [table.take("a", rate, 5.0) for _ in range(10)] == [0.0] * 10
    assert table.take("a", rate, 5.0) == pytest.approx(0.1)
    assert table.take("a", rate, 5.06) == pytest.approx(0.04)
    assert table.take("a", rate, 5.101) == 0.0
    assert table.take("a", rate, 5.101) > 0
    assert [table.take("a", rate, 60.0) for _ in range(11)][-1] > 0


def test_a_request_that_is_refused_is_not_counted() -> None:
    table, rate = RateTable(ROWS), parse_rate("1/s")
    assert table.take("a", rate, 0.0) == 0.0
    for _ in range(1000):
        assert table.take("a", rate, 0.4) == pytest.approx(0.6)
    assert table.take("a", rate, 1.0) == 0.0


def test_clients_are_counted_apart() -> None:
    table, rate = RateTable(ROWS), parse_rate("1/s")
    assert [table.take(client, rate, 0.0) > 0 for client in ("a", "b", "a", "b")] == [False, False, True, True]


@given(
    st.integers(1, 50),
    st.lists(st.floats(0, 0.3, allow_nan=False), max_size=120),
)
def test_over_any_time_no_more_pass_than_the_bucket_and_what_flows_in(count: int, pauses: list[float]) -> None:
    table, rate = RateTable(WAYS), parse_rate(f"{count}/s")
    now, passed = 1e6, 0
    for pause in pauses:
        now += pause
        passed += table.take("a", rate, now) == 0.0
        assert passed <= count + (now - 1e6) * count + 1


@given(st.integers(1, 10**9), st.sampled_from(["s", "min", "h"]), st.floats(0, 1e9))
def test_whoever_waits_as_told_is_let_in(count: int, unit: str, now: float) -> None:
    rate = parse_rate(f"{count % 10**9 or 1}/{unit}")
    table = RateTable(WAYS)
    # As if all of them had been used up.
    table.take("a", rate, now)
    table._due_at[next(row for row in range(WAYS) if table._clients[row])] = now + rate.num_requests * rate.interval_s
    wait_s = table.take("a", rate, now)
    assert table.take("a", rate, now + math.ceil(wait_s)) == 0.0


def test_more_clients_than_rows_are_counted_with_those_that_owe_most() -> None:
    table, rate = RateTable(WAYS), parse_rate("10/s")
    for _ in range(10):
        assert table.take("greedy", rate, 0.0) == 0.0
    for number in range(1000):
        table.take(f"other {number}", rate, 0.0)
    assert table.take("greedy", rate, 0.0) > 0


def test_two_tables_find_different_rows_for_the_same_clients() -> None:
    clients = [f"client {number}" for number in range(32)]
    one, other = RateTable(ROWS), RateTable(ROWS)
    assert [one._fingerprint(client) for client in clients] != [other._fingerprint(client) for client in clients]


def send(table: RateTable, rate: Rate, tries: int, passed: SimpleQueue[int]) -> None:
    passed.put(sum(table.take("a", rate, 1.0) == 0.0 for _ in range(tries)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_together_let_through_exactly_the_rate(method: str) -> None:
    context = multiprocessing.get_context(method)
    table, rate = RateTable(ROWS, context, max_wait_s=30.0), parse_rate("5000/s")
    passed: SimpleQueue[int] = context.SimpleQueue()
    processes: list[BaseProcess] = [
        context.Process(target=send, args=(table, rate, 4000, passed))  # type: ignore[attr-defined]
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    counts = [passed.get() for _ in processes]
    assert sum(counts) == 5000
    assert table.take("a", rate, 1.0) > 0


def hold(table: RateTable) -> None:
    assert table._lock is not None
    table._lock.acquire()


def test_a_worker_that_was_killed_within_the_lock_holds_nobody_up_twice(caplog: pytest.LogCaptureFixture) -> None:
    context: BaseContext = multiprocessing.get_context("fork")
    table, rate = RateTable(ROWS, context), parse_rate("2/s")
    process = context.Process(target=hold, args=(table,))  # type: ignore[attr-defined]
    process.start()
    process.join(30)
    assert [table.take("a", rate, 1.0) > 0 for _ in range(4)] == [False, False, True, True]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_holder_that_comes_back_leaves_the_lock_whole() -> None:
    context: BaseContext = multiprocessing.get_context("fork")
    table, rate = RateTable(ROWS, context), parse_rate("2/s")
    assert table._lock is not None
    table._lock.acquire()  # a worker that is stopped within it
    table.take("a", rate, 1.0)  # takes over
    with pytest.raises(ValueError, match="released too many times"):
        table._lock.release()  # the worker goes on
    assert table._lock.acquire(False)
    assert not table._lock.acquire(False)
