"""What the table of several processes promises beyond the rules of every store: whenever one of them is killed."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from service.errors import StoreUnavailable
from service.sequences import shared_table
from service.sequences.shared import create_memory
from service.sequences.shared_memory import SharedMemory
from service.sequences.shared_table import SharedTable, table_bytes
from service.sequences.state import CHECKSUM_BYTES
from service.sequences.table import Bounds, Owner
from tests.fakes import PATIENCE_S

OWNER, OTHER = Owner("toy", 1), Owner("toy", 2)


def open_table(bounds: Bounds | None = None) -> SharedTable:
    bounds = bounds or Bounds(1000, 2**20)
    return SharedTable(create_memory(bounds), bounds)


def keep(table: SharedTable, **bodies: bytes | None) -> None:
    ticket = table.enqueue([*bodies], PATIENCE_S)
    assert table.commit(ticket, [None if body is None else OWNER for body in bodies.values()], [*bodies.values()])


def bodies_of(table: SharedTable, *keys: str) -> list[bytes | None]:
    return [None if (found := table.find(key)) is None else found.stored.value for key in keys]


def expect_consistent(table: SharedTable, *keys: str) -> None:
    """The totals are those of what is kept, and all of it can be had."""
    kept = [body for body in bodies_of(table, *keys) if body is not None]
    totals = table.totals().values()
    assert sum(total.num_sequences for total in totals) == len(kept)
    assert sum(total.num_bytes for total in totals) == sum(len(body) + CHECKSUM_BYTES for body in kept)
    ticket = table.enqueue(keys, PATIENCE_S)
    assert ticket.is_granted
    assert [body for body in table.read(ticket) if body is not None] == kept
    table.release(ticket)


def fork(act: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return pid


def be_killed_at_line(number: int) -> None:
    """Have this process killed at so many lines of the table from here on."""
    num_lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal num_lines
        if frame.f_code.co_filename != shared_table.__file__:
            return None
        if event == "line":
            num_lines += 1
            if num_lines == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def was_killed(pid: int) -> bool:
    """Whether it was, once it has ended; False where it has done all that it was to do."""
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return status != 0


def killed_at_line(number: int, act: Callable[[], object]) -> bool:
    """Have another process do it that is killed at so many lines of the table; False where there are not as many."""

    def run() -> None:
        be_killed_at_line(number)
        act()

    return was_killed(fork(run))


def commits_of_every_kind(table: SharedTable) -> None:
    """The next step of one sequence, one whose state has another size, one that ends, one that begins, and one too many."""
    ticket = table.enqueue(["same", "other", "ended", "new"], PATIENCE_S)
    table.commit(ticket, [OWNER, OTHER, None, OWNER], [b"B" * 100, b"B" * 1000, None, b"B" * 100])
    table.release(table.enqueue(["none"], PATIENCE_S))


@pytest.mark.parametrize("first", [pytest.param(first, marks=[pytest.mark.slow] if first else []) for first in range(6)])
def test_wherever_a_process_is_killed_a_commit_is_whole_or_nothing_and_the_others_go_on(first: int) -> None:
    bounds = Bounds(4, 2**20)
    before: list[bytes | None] = [b"A" * 100, b"A" * 100, b"A" * 100, None]
    after: list[bytes | None] = [b"B" * 100, b"B" * 1000, None, b"B" * 100]
    names = ("same", "other", "ended", "new")
    seen: set[bool] = set()
    draw = random.Random(first)
    for line in range(1 + first, 10_000, 6):
        table = open_table(bounds)
        keep(table, oldest=b"O" * 70)
        keep(table, same=b"A" * 100, other=b"A" * 100, ended=b"A" * 100)
        is_killed = killed_at_line(line, lambda table=table: commits_of_every_kind(table))  # type: ignore[misc]
        if is_killed:  # and the next one while it makes good what that one has left
            killed_at_line(1 + draw.randrange(300), table.expire)
        table.expire()
        found = bodies_of(table, *names)
        assert found in (before, after)
        seen.add(found == after)
        expect_consistent(table, *names, "oldest")
        keep(table, **dict.fromkeys((*names, "oldest"), b"C" * 300))
        assert bodies_of(table, *names, "oldest").count(b"C" * 300) == 4
        expect_consistent(table, *names, "oldest")
        if not is_killed:
            break
    assert seen == {False, True}


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


def test_states_of_other_sizes_find_room_where_smaller_ones_were() -> None:
    bounds = Bounds(100, 100_000)
    table = open_table(bounds)
    draw = random.Random(1)
    expected: dict[str, bytes] = {}
    for number in range(3000):
        key = f"k{draw.randrange(40)}"
        body = bytes([number % 251]) * draw.randrange(60, 2000)
        keep(table, **{key: body})
        expected[key] = body
    assert bodies_of(table, *expected) == [*expected.values()]
    expect_consistent(table, *expected)


def test_a_state_for_which_there_is_no_room_is_refused_and_the_sequence_stays() -> None:
    bounds = Bounds(100, 100_000)
    table = open_table(bounds)
    keep(table, a=b"1" * 100)
    ticket = table.enqueue(["a"], PATIENCE_S)
    with pytest.raises(StoreUnavailable):
        table.commit(ticket, [OWNER], [bytes(2**26)])
    assert bodies_of(table, "a") == [b"1" * 100]
    expect_consistent(table, "a")


def test_a_process_that_is_killed_leaves_its_place_in_the_queue() -> None:
    table = open_table()
    keep(table, a=b"1")
    first = table.enqueue(["a"], PATIENCE_S)

    def wait() -> None:
        table.enqueue(["a"], PATIENCE_S)
        time.sleep(PATIENCE_S)

    killed = fork(wait)
    deadline = time.monotonic() + PATIENCE_S
    while len(table._turns()) == 0:
        assert time.monotonic() < deadline
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
    deadline = time.monotonic() + PATIENCE_S
    while len(table._turns()) == 0:
        assert time.monotonic() < deadline
    last = table.enqueue(["a"], PATIENCE_S)
    assert table.commit(first, [OWNER], [b"2"])
    _, status = os.waitpid(other, 0)
    assert status == 0
    table.poll()
    assert last.is_granted
    assert table.read(last) == [b"23"]


def test_memory_is_taken_by_what_is_written_alone() -> None:
    bounds = Bounds(10**9, 2**34)
    memory = SharedMemory.create(table_bytes(bounds))
    table = SharedTable(memory, bounds)
    keep(table, a=b"1" * 1000)
    assert table_bytes(bounds) > 2**34
    taken = os.stat(memory._path).st_blocks * 512
    assert taken < 2**20
    assert Path(f"/proc/{os.getpid()}").exists()


def test_more_sequences_than_a_request_may_have_are_refused() -> None:
    with pytest.raises(StoreUnavailable, match="65536 sequences"):
        open_table().enqueue([str(number) for number in range(shared_table.MAX_KEYS + 1)], PATIENCE_S)


def test_a_process_that_is_killed_while_it_moves_states_together_takes_none_with_it() -> None:
    bounds = Bounds(100, 100_000)
    names = [f"k{number}" for number in range(6)]
    line, is_killed = 1, True
    while is_killed:
        table = open_table(bounds)
        keep(table, **{name: bytes([number]) * (100 + 150 * number) for number, name in enumerate(names)})
        keep(table, k0=None, k3=None)
        busy = table.enqueue(["k1", "k2", "new"], PATIENCE_S)

        def move(table: SharedTable = table) -> None:
            with table._change():
                table._compact(num_at_once=2)

        is_killed = killed_at_line(line, move)
        assert table.read(busy) == [b"\1" * 250, b"\2" * 400, None]
        table.release(busy)
        kept = [None if number in (0, 3) else bytes([number]) * (100 + 150 * number) for number in range(6)]
        assert bodies_of(table, *names) == kept
        expect_consistent(table, *names)
        line += 3


def test_a_request_may_have_as_many_sequences_as_it_may_have_instances() -> None:
    table = open_table(Bounds(100_000, 2**24))
    keys = [str(number) for number in range(10_000)]
    ticket = table.enqueue(keys, PATIENCE_S)
    assert table.commit(ticket, [OWNER] * len(keys), [b"1" * 100] * len(keys))
    assert table.totals()[OWNER].num_sequences == 10_000


def test_wherever_a_process_is_killed_while_it_leaves_its_sequences_those_that_wait_get_them_in_their_order() -> None:
    bounds = Bounds(100, 2**20)
    line, is_killed = 1, True
    while is_killed:
        memory = create_memory(bounds)
        table = SharedTable(memory, bounds)
        keep(table, a=b"1", b=b"2")
        (see_queued, say_queued), (see_others, say_others) = os.pipe(), os.pipe()

        def leave(line: int = line, memory: SharedMemory = memory, queued: int = say_queued, others: int = see_others) -> None:
            own = SharedTable(memory, bounds)
            tickets = [own.enqueue(keys, PATIENCE_S) for keys in (["a", "b", "new"], ["a"])]
            os.write(queued, b".")
            os.read(others, 1)
            be_killed_at_line(line)
            for ticket in tickets:
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
        assert len(table._turns()) == 0
        expect_consistent(table, "a", "b", "new")
        for file in (see_queued, say_queued, see_others, say_others):
            os.close(file)
        line += 3


def test_a_commit_that_is_refused_leaves_what_the_request_still_has() -> None:
    bounds = Bounds(100, 2**20)
    memory = create_memory(bounds)
    here, there = SharedTable(memory, bounds), SharedTable(memory, bounds)
    keep(here, a=b"1", b=b"1")
    ticket = here.enqueue(["a", "b"], PATIENCE_S)
    here._ticket[ticket.entries[0]] = 0  # others have it
    assert not here.commit(ticket, [OWNER, OWNER], [b"2", b"2"])
    assert there.enqueue(["a", "b"], PATIENCE_S).is_granted


def test_of_very_many_sequences_whose_time_is_over_only_so_many_end_at_once() -> None:
    now_ns = [10**12]
    bounds = Bounds(10_000, 2**24, ttl_s=1.0)
    table = SharedTable(create_memory(bounds), bounds, lambda: now_ns[0])
    keep(table, **{str(number): b"1" for number in range(shared_table.MAX_ENDED + 1)})
    now_ns[0] += 10**9
    assert table.expire(interval_s=0.5)
    assert table.totals()[OWNER].num_sequences == 1
    assert not table.expire(interval_s=0.5)
    assert table.totals()[OWNER].num_sequences == 0


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


def test_a_state_of_no_bytes_has_a_place_of_its_own() -> None:
    table = open_table()
    keep(table, a=b"", b=b"1" * 100)
    keep(table, a=None)
    assert bodies_of(table, "a", "b") == [None, b"1" * 100]


def test_what_is_found_of_a_sequence_counts_as_many_bytes_as_the_totals() -> None:
    table = open_table()
    keep(table, a=b"1" * 100)
    found = table.find("a")
    assert found is not None
    assert found.stored.num_bytes == table.totals()[OWNER].num_bytes
