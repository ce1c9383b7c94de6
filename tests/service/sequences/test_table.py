from __future__ import annotations

import random

import pytest

from service.sequences.store import SequenceKey
from service.sequences.table import Bounds, Found, Owner, SequenceTable, Stored, Ticket, holder_of
from tests.fakes import ManualClock

OWNER = Owner("toy", 1)


class Table(SequenceTable[str]):
    """A table of texts, a byte a character, with what it evicted and whom it granted."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.clock = ManualClock()
        self.evicted: list[tuple[Owner, str]] = []
        self.granted: list[str] = []
        super().__init__(bounds or Bounds(), self.clock.now, lambda *eviction: self.evicted.append(eviction))

    def take(self, *keys: str, name: str = "", within_s: float = 60.0) -> Ticket:
        return self.enqueue(keys, within_s, lambda: self.granted.append(name))

    def put(self, key: str, value: str, owner: Owner = OWNER) -> None:
        assert self.commit(self.take(key), [stored(value, owner)])

    def get(self, key: str) -> str | None:
        found = self.find(key)
        return None if found is None else found.stored.value


def stored(value: str, owner: Owner = OWNER) -> Stored[str]:
    return Stored(owner, len(value), value)


def test_what_is_committed_is_what_the_next_one_reads() -> None:
    table = Table()
    first = table.take("a", "b")
    assert first.is_granted
    assert table.read(first) == [None, None]
    assert table.commit(first, [stored("x"), stored("yy")])
    assert table.read(table.take("b", "a")) == [stored("yy"), stored("x")]
    assert (table.num_sequences, table.num_bytes) == (2, 3)


def test_a_released_ticket_leaves_what_was_there() -> None:
    table = Table()
    table.put("a", "x")
    ticket = table.take("a")
    table.release(ticket)
    table.release(ticket)  # once more means nothing
    assert table.get("a") == "x"


def test_requests_get_a_sequence_in_the_order_in_which_they_came() -> None:
    table = Table()
    tickets = [table.take("a", name=str(number)) for number in range(4)]
    assert [ticket.is_granted for ticket in tickets] == [True, False, False, False]
    table.release(tickets[2])  # it has left before its turn
    table.commit(tickets[0], [stored("x")])
    assert table.granted == ["1"]
    table.release(tickets[1])
    assert table.granted == ["1", "3"]
    assert table.read(tickets[3]) == [stored("x")]


def test_requests_for_several_sequences_do_not_wait_for_each_other_in_a_circle() -> None:
    table = Table()
    first = table.take("a", "b")
    second, third = table.take("b", "c", name="second"), table.take("c", "a", name="third")
    assert not second.is_granted
    assert not third.is_granted
    table.release(first)
    assert table.granted == ["second"]
    table.release(second)
    assert table.granted == ["second", "third"]


def test_a_sequence_that_is_not_used_ends_after_its_time_to_live() -> None:
    table = Table(Bounds(ttl_s=10))
    table.put("a", "x")
    table.clock.advance(6)
    table.put("b", "y")
    table.clock.advance(6)
    held = table.take("b")
    assert table.find("a") is None
    table.clock.advance(100)
    table.expire()
    assert table.get("b") == "y", "a sequence that a request has does not end"
    table.release(held)
    assert table.find("b") == Found(stored("y"), 0.0, False)
    table.clock.advance(4)
    assert table.find("b") == Found(stored("y"), 4.0, False)
    table.clock.advance(6)
    table.expire()
    assert table.num_sequences == 0
    assert table.evicted == [(OWNER, "idle")] * 2


@pytest.mark.parametrize("bounds", [Bounds(max_sequences=3), Bounds(max_bytes=6)], ids=["sequences", "bytes"])
def test_of_too_many_the_one_ends_that_was_not_used_for_longest(bounds: Bounds) -> None:
    table = Table(bounds)
    for key in "abc":
        table.put(key, key * 2)
        table.clock.advance(1)
    table.put("a", "AA")
    held = table.take("b")
    table.put("d", "dd")
    assert [key for key in "abcd" if table.get(key)] == ["a", "b", "d"], "neither what was used nor what is busy"
    table.put("e", "ee")
    assert [key for key in "abcde" if table.get(key)] == ["b", "d", "e"]
    assert table.evicted == [(OWNER, "lru")] * 2
    table.release(held)
    assert (table.num_sequences, table.num_bytes) == (3, 6)


def key_of(holder: str, id: object) -> str:
    return SequenceKey("toy", str(id), holder).text


@pytest.mark.parametrize("holder", ["", "a", "a.b-c_9"])
@pytest.mark.parametrize("id", ["1", "a/b", "toy/x", "日本"])
def test_the_holder_of_a_sequence_is_read_from_its_key(holder: str, id: str) -> None:
    assert holder_of(key_of(holder, id)) == holder


@pytest.mark.parametrize("bounds", [Bounds(max_sequences=10), Bounds(max_bytes=10)], ids=["sequences", "bytes"])
def test_a_holder_of_many_sequences_pushes_out_none_of_one_who_has_fewer(bounds: Bounds) -> None:
    table = Table(bounds)
    for number in range(3):
        table.put(key_of("quiet", number), "x")
    for number in range(100):
        table.put(key_of("greedy", number), "x")
    assert [table.get(key_of("quiet", number)) for number in range(3)] == ["x"] * 3
    assert table.get(key_of("greedy", 99)) == "x"
    assert table.num_sequences == 10
    # Who begins when all is taken gets a share from the one who has most, and holders who want as much get as much.
    for number in range(100):
        for holder in ("late", "later"):
            table.put(key_of(holder, number), "x")
    numbers = {
        holder: sum(table.get(key_of(holder, number)) is not None for number in range(100))
        for holder in ("quiet", "greedy", "late", "later")
    }
    assert numbers["quiet"] in (2, 3)
    assert sum(numbers.values()) == 10
    assert max(numbers.values()) <= 3
    assert table.get(key_of("late", 99)) == table.get(key_of("later", 99)) == "x"


def test_bytes_are_taken_from_who_holds_most_bytes_and_never_a_busy_sequence() -> None:
    table = Table(Bounds(max_bytes=20))
    for number in range(6):
        table.put(key_of("many", number), "x")
    table.put(key_of("large", 1), "x" * 10)
    held = table.take(key_of("large", 1))
    table.put(key_of("third", 1), "x" * 5)
    assert table.get(key_of("many", 0)) is None, "the largest share is busy, so the next one gives"
    assert table.get(key_of("large", 1)) == "x" * 10
    table.release(held)
    table.put(key_of("many", 9), "x")
    table.put(key_of("many", 10), "x")
    assert table.get(key_of("large", 1)) is None
    assert table.get(key_of("third", 1)) == "x" * 5


def test_nothing_is_kept_of_holders_whose_sequences_have_ended() -> None:
    table = Table(Bounds(ttl_s=10))
    for number in range(50):
        table.put(key_of(f"holder{number}", 1), "x")
    assert table.commit(table.take(key_of("holder0", 1)), [None])
    table.clock.advance(10)
    table.expire()
    assert table.num_sequences == 0
    assert not table._shares


def test_a_million_sequences_stay_within_the_bounds() -> None:
    table = Table(Bounds(max_sequences=1000))
    for number in range(20_000):
        table.put(str(number), "x")
    assert table.num_sequences == 1000
    assert len(table.evicted) == 19_000
    assert table.get("19000") == "x"


def test_a_request_that_ended_without_a_word_blocks_its_sequence_for_its_time_only() -> None:
    table = Table()
    table.put("a", "x")
    lost = table.take("a", within_s=5)
    table.take("a", name="next", within_s=60)
    table.clock.advance(4)
    table.expire()
    assert table.granted == []
    table.clock.advance(1)
    table.expire()
    assert table.granted == ["next"]
    assert not table.commit(lost, [stored("late")]), "what comes later is not kept"
    assert table.get("a") == "x"


def test_who_waits_for_longer_than_its_time_is_told_and_leaves_the_queue() -> None:
    table = Table()
    first = table.take("a")
    late = table.take("a", "b", name="late", within_s=5)
    table.take("a", name="next", within_s=60)
    table.clock.advance(5)
    table.expire()
    assert table.granted == ["late"]
    assert not late.is_valid
    assert table.take("b").is_granted
    table.release(first)
    assert table.granted == ["late", "next"]


def test_the_totals_are_those_of_each_version() -> None:
    table = Table()
    table.put("a", "xx")
    table.put("b", "y", Owner("toy", 2))
    table.put("a", "zzz", Owner("toy", 2))
    assert (table.totals[OWNER].num_sequences, table.totals[OWNER].num_bytes) == (0, 0)
    assert (table.totals[Owner("toy", 2)].num_sequences, table.totals[Owner("toy", 2)].num_bytes) == (2, 4)
    table.commit(table.take("a", "b"), [None, None])
    assert (table.totals[Owner("toy", 2)].num_sequences, table.num_sequences, table.num_bytes) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_each_sequence_has_one_request_at_a_time_and_the_last_committed_value(seed: int) -> None:
    draw = random.Random(seed)
    table = Table(Bounds(max_sequences=5, max_bytes=40, ttl_s=30))
    keys = [key_of("ab"[number % 2], number) if number < 6 else key_of("", number) for number in range(8)]
    model: dict[str, str] = {}
    tickets: list[Ticket] = []
    for _ in range(400):
        choice = draw.random()
        if choice < 0.45 or not tickets:
            tickets.append(table.take(*draw.sample(keys, draw.randint(1, 3)), within_s=1e9))
        elif choice < 0.55:
            table.clock.advance(draw.choice([0.5, 12]))
            table.expire()
        else:
            ticket = draw.choice(tickets)
            tickets.remove(ticket)
            if not ticket.is_granted or draw.random() < 0.3:
                table.release(ticket)
                continue
            for key, found in zip(ticket.keys, table.read(ticket), strict=True):
                assert found is None or found.value == model[key]
            changes = [None if draw.random() < 0.2 else "x" * draw.randint(1, 9) for _ in ticket.keys]
            assert table.commit(ticket, [None if change is None else stored(change) for change in changes])
            for key, change in zip(ticket.keys, changes, strict=True):
                model.pop(key, None)
                if change:
                    model[key] = change
        holders = [key for ticket in tickets if ticket.is_granted for key in ticket.keys]
        assert len(holders) == len(set(holders))
        there = [value for key in keys if (value := table.get(key)) is not None]
        assert (table.num_sequences, table.num_bytes) == (len(there), sum(map(len, there)))
        assert (table.num_sequences <= 5 and table.num_bytes <= 40) or not table._idle
        assert sum(share.num_bytes for share in table._shares.values()) == table.num_bytes
        assert sorted(key for share in table._shares.values() for key in share.idle) == sorted(table._idle)
    for ticket in tickets:
        table.release(ticket)
    assert not table._busy
