from __future__ import annotations

import random

import pytest

from service.errors import StoreUnavailable
from service.sequences.shared_table import SharedTable
from service.sequences.store import SequenceKey
from service.sequences.table import Bounds, Owner
from tests.fakes import PATIENCE_S
from tests.service.sequences.shared_tables import OTHER, OWNER, bodies_of, expect_consistent, keep, killed_at_line, open_table

MORE = SequenceKey("toy", "more", "holder").text


def commits_of_every_kind(table: SharedTable) -> None:
    """The next step of one sequence, one whose state has another size, one that ends, and one that begins; then one too many."""
    ticket = table.enqueue(["same", "other", "ended", "new"], PATIENCE_S)
    table.commit(ticket, [OWNER, OTHER, None, OWNER], [b"B" * 100, b"B" * 1000, None, b"B" * 100])
    table.release(table.enqueue(["none"], PATIENCE_S))
    table.commit(table.enqueue([MORE], PATIENCE_S), [Owner("new", 1)], [b"M" * 100])  # in a place that is free again


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
        expect_consistent(table, *names, "oldest", MORE)
        keep(table, **dict.fromkeys((*names, "oldest"), b"C" * 300))
        more = bodies_of(table, MORE)
        assert more in ([None], [b"M" * 100])
        assert bodies_of(table, *names, "oldest").count(b"C" * 300) == 4 - (more != [None])
        expect_consistent(table, *names, "oldest", MORE)
        if not is_killed:
            assert more != [None]
            break
    assert seen == {False, True}


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
            with table._change:
                table._log.compact(num_at_once=2)

        is_killed = killed_at_line(line, move)
        assert table.read(busy) == [b"\1" * 250, b"\2" * 400, None]
        table.release(busy)
        kept = [None if number in (0, 3) else bytes([number]) * (100 + 150 * number) for number in range(6)]
        assert bodies_of(table, *names) == kept
        expect_consistent(table, *names)
        line += 3


def test_a_state_for_which_there_is_no_room_is_refused_and_the_sequence_stays() -> None:
    bounds = Bounds(100, 100_000)
    table = open_table(bounds)
    keep(table, a=b"1" * 100)
    ticket = table.enqueue(["a"], PATIENCE_S)
    with pytest.raises(StoreUnavailable):
        table.commit(ticket, [OWNER], [bytes(2**26)])
    assert bodies_of(table, "a") == [b"1" * 100]
    expect_consistent(table, "a")
