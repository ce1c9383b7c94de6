from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from service.sequences.shared import create_memory
from service.sequences.shared_arrays import table_bytes
from service.sequences.shared_memory import SharedMemory
from service.sequences.shared_table import SharedTable
from service.sequences.table import Bounds
from tests.fakes import PATIENCE_S
from tests.service.sequences.shared_tables import (
    OWNER,
    be_killed_at_line,
    expect_consistent,
    fork,
    keep,
    open_memory,
    open_table,
    was_killed,
)


def await_one_that_waits(table: SharedTable) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(table._turns.waiting()) == 0:
        assert time.monotonic() < deadline


def test_a_process_that_is_killed_leaves_its_place_in_the_queue() -> None:
    table = open_table()
    keep(table, a=b"1")
    first = table.enqueue(["a"], PATIENCE_S)

    def wait() -> None:
        table.enqueue(["a"], PATIENCE_S)
        time.sleep(PATIENCE_S)

    killed = fork(wait)
    await_one_that_waits(table)
    last = table.enqueue(["a"], PATIENCE_S)
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    assert table.commit(first, [OWNER], [b"2"])
    assert last.is_granted
    assert table.read(last) == [b"2"]


def test_a_ticket_of_another_process_is_granted_in_its_turn() -> None:
    table = open_table()
    keep(table, a=b"1")
    first = table.enqueue(["a"], PATIENCE_S)

    def follow() -> None:
        ticket = table.enqueue(["a"], PATIENCE_S)
        while not ticket.is_granted:
            table.poll()
        assert table.commit(ticket, [OWNER], [(table.read(ticket)[0] or b"") + b"3"])

    other = fork(follow)
    await_one_that_waits(table)
    last = table.enqueue(["a"], PATIENCE_S)
    assert table.commit(first, [OWNER], [b"2"])
    _, status = os.waitpid(other, 0)
    assert status == 0
    table.poll()
    assert last.is_granted
    assert table.read(last) == [b"23"]


def test_wherever_a_process_is_killed_while_it_leaves_its_sequences_those_that_wait_get_them_in_their_order() -> None:
    bounds = Bounds(100, 2**20)
    line, is_killed = 1, True
    while is_killed:
        memory, table = open_memory(bounds, a=b"1", b=b"2")
        (see_queued, say_queued), (see_others, say_others) = os.pipe(), os.pipe()

        def leave(line: int = line, memory: SharedMemory = memory, queued: int = say_queued, others: int = see_others) -> None:
            own = SharedTable(memory, bounds)
            first, second, third = (own.enqueue(keys, PATIENCE_S) for keys in (["a", "b", "new"], ["a"], ["b"]))
            os.write(queued, b".")
            os.read(others, 1)
            be_killed_at_line(line)
            for ticket in (third, first, second):  # one that waits, one that has what the next one waits for, and that one
                own.release(ticket)

        pid = fork(leave)
        os.read(see_queued, 1)
        tickets = [table.enqueue(keys, PATIENCE_S) for keys in (["b", "a"], ["a"], ["b", "new"], ["a"])]
        os.write(say_others, b".")
        is_killed = was_killed(pid)
        for place, ticket in enumerate(tickets):
            table.poll()
            assert ticket.is_granted
            assert ticket.is_valid
            assert not any(each.is_granted for each in tickets[place + 1 :] if {*each.entries} & {*ticket.entries})
            assert table.commit(ticket, [OWNER] * len(ticket.entries), [b"3"] * len(ticket.entries))
        assert len(table._turns.waiting()) == 0
        expect_consistent(table, "a", "b", "new")
        for file in (see_queued, say_queued, see_others, say_others):
            os.close(file)
        line += 3


@pytest.mark.parametrize("has_number", [True, False], ids=["of_another_number", "of_the_same_number"])
def test_wherever_a_process_is_killed_while_it_takes_what_another_has_left_all_is_free_in_the_end(has_number: bool) -> None:
    bounds = Bounds(100, 2**20)
    line, is_killed = 1, True
    while is_killed:
        memory, table = open_memory(bounds, a=b"1", b=b"2")

        def lose(memory: SharedMemory = memory) -> None:
            own = SharedTable(memory, bounds)
            own.enqueue(["a", "b", "new"], PATIENCE_S)
            own.enqueue(["a"], PATIENCE_S)

        def follow(line: int = line, memory: SharedMemory = memory, lose: Callable[[], None] = lose) -> None:
            own = SharedTable(memory, bounds)
            if has_number:  # it takes no other: not that of the one that ends
                own.release(own.enqueue(["none"], PATIENCE_S))
            assert not was_killed(fork(lose))
            be_killed_at_line(line)
            ticket = own.enqueue(["b", "a"], PATIENCE_S)
            while not ticket.is_granted:
                own.poll()
            assert own.read(ticket) == [b"2", b"1"]
            own.release(ticket)

        is_killed = was_killed(fork(follow))
        table.expire()
        ticket = table.enqueue(["a", "b", "new"], PATIENCE_S)
        assert ticket.is_granted
        assert table.read(ticket) == [b"1", b"2", None]
        table.release(ticket)
        assert len(table._turns.waiting()) == 0
        expect_consistent(table, "a", "b", "new")
        line += 7


def test_a_commit_that_is_refused_leaves_what_the_request_still_has() -> None:
    bounds = Bounds(100, 2**20)
    memory, here = open_memory(bounds, a=b"1", b=b"1")
    there = SharedTable(memory, bounds)
    ticket = here.enqueue(["a", "b"], PATIENCE_S)
    here._arrays.ticket[ticket.entries[0]] = 0  # others have it
    assert not here.commit(ticket, [OWNER, OWNER], [b"2", b"2"])
    assert there.enqueue(["a", "b"], PATIENCE_S).is_granted


def test_a_request_whose_time_was_over_before_it_has_read_its_sequences_reads_none_of_others() -> None:
    now_ns = [10**12]
    bounds = Bounds(100, 2**20)
    memory = create_memory(bounds)
    here, there = SharedTable(memory, bounds, lambda: now_ns[0]), SharedTable(memory, bounds, lambda: now_ns[0])
    first = there.enqueue(["toy/a"], 60.0)
    ticket = here.enqueue(["toy/a"], 1.0)
    there.release(first)
    here.poll()
    assert ticket.is_granted
    now_ns[0] += 10**9
    there.expire()
    keep(there, **{"toy/other\0b": b"secret"})
    assert there.enqueue(["toy/other\0b"], 60.0).entries == ticket.entries, "where the first one was"
    assert here.read(ticket) == [None]
    assert not ticket.is_valid


class _CountingMemory(SharedMemory):
    """Counts how often it was asked whether a process lives."""

    num_asked = 0

    def is_free(self, number: int) -> bool:
        self.num_asked += 1
        return super().is_free(number)


def test_of_very_many_sequences_that_others_wait_for_a_request_leaves_all_at_once() -> None:
    bounds = Bounds(1000, 2**20)
    memory = _CountingMemory.create(table_bytes(bounds))
    here, there = SharedTable(memory, bounds), SharedTable(memory, bounds)
    keys = [str(number) for number in range(100)]
    first, following = here.enqueue(keys, PATIENCE_S), there.enqueue(keys, PATIENCE_S)
    memory.num_asked = 0
    here.release(first)
    assert memory.num_asked == 1, "whether the process that waits lives"
    there.poll()
    assert following.is_granted
    assert there.commit(following, [OWNER] * 100, [b"1"] * 100)
