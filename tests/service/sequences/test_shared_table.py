"""What the table of several processes promises beyond the rules of every store; of its parts beside."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from service.errors import StoreUnavailable
from service.sequences.shared import create_memory
from service.sequences.shared_arrays import MAX_KEYS
from service.sequences.shared_table import MAX_ENDED, SharedTable
from service.sequences.table import Bounds
from tests.fakes import PATIENCE_S
from tests.service.sequences.shared_tables import OWNER, expect_consistent, fork, keep, open_table


def test_sequences_of_processes_that_are_killed_at_any_time_advance_together_and_none_goes_back() -> None:
    bounds = Bounds(1000, 2**22)
    memory = create_memory(bounds)
    table = SharedTable(memory, bounds)
    groups = [("a", "b", "c"), ("d", "e"), tuple(f"x{number}" for number in range(20))]
    for group in groups:
        keep(table, **dict.fromkeys(group, b"0"))

    def advance(seed: int) -> None:
        draw = random.Random(seed)
        own = SharedTable(memory, bounds)
        while True:
            group = draw.choice(groups)
            ticket = own.enqueue(group, PATIENCE_S)
            while not ticket.is_granted:
                own.poll()
            assert ticket.is_valid
            counts = {len(body or b"") for body in own.read(ticket)}
            assert len(counts) == 1, "all of a group or none"
            size = counts.pop() + 1 if draw.random() < 0.9 else 1 + draw.randrange(5)
            own.commit(ticket, [OWNER] * len(group), [b"1" * size] * len(group))

    draw = random.Random(7)
    pids = [fork(lambda seed=seed: advance(seed)) for seed in range(3)]  # type: ignore[misc]
    try:
        for number in range(60):
            time.sleep(draw.random() / 50)  # not to be right, but to be killed anywhere
            place = number % 3
            os.kill(pids[place], signal.SIGKILL)
            _, status = os.waitpid(pids[place], 0)
            assert status == signal.SIGKILL, "it has not failed before"
            table.expire()
            for group in groups:
                ticket = table.enqueue(group, PATIENCE_S)
                deadline = time.monotonic() + PATIENCE_S
                while not ticket.is_granted:
                    assert time.monotonic() < deadline, "the others, and the one that was killed, leave the sequences"
                    table.poll()
                assert len({*map(len, [body or b"" for body in table.read(ticket)])}) == 1
                table.release(ticket)
            pids[place] = fork(lambda seed=number + 10: advance(seed))  # type: ignore[misc]
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    table.expire()
    expect_consistent(table, *[key for group in groups for key in group])


def test_more_sequences_than_a_request_may_have_are_refused() -> None:
    with pytest.raises(StoreUnavailable, match="65536 sequences"):
        open_table().enqueue([str(number) for number in range(MAX_KEYS + 1)], PATIENCE_S)


def test_a_request_may_have_as_many_sequences_as_it_may_have_instances() -> None:
    table = open_table(Bounds(100_000, 2**24))
    keys = [str(number) for number in range(10_000)]
    ticket = table.enqueue(keys, PATIENCE_S)
    assert table.commit(ticket, [OWNER] * len(keys), [b"1" * 100] * len(keys))
    assert table.totals()[OWNER].num_sequences == 10_000


def test_of_very_many_sequences_whose_time_is_over_only_so_many_end_at_once() -> None:
    now_ns = [10**12]
    bounds = Bounds(10_000, 2**24, ttl_s=1.0)
    table = SharedTable(create_memory(bounds), bounds, lambda: now_ns[0])
    keep(table, **{str(number): b"1" for number in range(MAX_ENDED + 1)})
    now_ns[0] += 10**9
    assert table.expire(interval_s=0.5)
    assert table.totals()[OWNER].num_sequences == 1
    assert not table.expire(interval_s=0.5)
    assert table.totals()[OWNER].num_sequences == 0
