from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scheduling.costs import CostModel
from service.scheduling.planning import LOOKAHEAD, Limits, plan

NOW = 1000.0


@dataclass(frozen=True)
class Guest:
    """An item as `plan` sees it."""

    name: str
    rows: int = 1
    steps: int = 1
    enqueued_at: float = NOW
    deadline: float | None = None
    key: Hashable = None
    runs_alone: bool = False
    has_left: bool = False


def names(guests: Sequence[Guest]) -> str:
    return "".join(guest.name for guest in guests)


TABLE: dict[str, tuple[list[Guest], Limits, tuple[str, str, str]]] = {
    # rule: (waiting, limits, (batch, expired, left))
    "nobody waits": ([], Limits(), ("", "", "")),
    "a lone item goes at once": ([Guest("a")], Limits(), ("a", "", "")),
    "first come, first served": ([Guest("a"), Guest("b"), Guest("c")], Limits(max_batch_size=2), ("ab", "", "")),
    "rows are counted, not items": ([Guest("a", rows=3), Guest("b", rows=2)], Limits(max_batch_size=4), ("a", "", "")),
    "a smaller one fills the gap": (
        [Guest("a", rows=3), Guest("b", rows=2), Guest("c")],
        Limits(max_batch_size=4),
        ("ac", "", ""),
    ),
    "an item larger than a batch goes alone": ([Guest("a", rows=99), Guest("b")], Limits(max_batch_size=4), ("a", "", "")),
    "an item longer than a batch goes alone": (
        [Guest("a", steps=999), Guest("b", steps=999)],
        Limits(max_padded_steps=500),
        ("a", "", ""),
    ),
    "rows x longest is bounded": (
        [Guest(name, steps=100) for name in "abcdef"],
        Limits(max_padded_steps=399),
        ("abc", "", ""),
    ),
    "padding counts as steps": (
        [Guest("a", steps=100), Guest("b", steps=101)],
        Limits(max_padded_steps=201),
        ("a", "", ""),
    ),
    "who left is dropped": ([Guest("a", has_left=True), Guest("b"), Guest("c", has_left=True)], Limits(), ("b", "", "ac")),
    "who is too late is dropped": ([Guest("a", deadline=NOW), Guest("b", deadline=NOW + 1)], Limits(), ("b", "a", "")),
    "who left is not also too late": ([Guest("a", deadline=NOW - 1, has_left=True)], Limits(), ("", "", "a")),
    "keys keep items apart": ([Guest("a", key=1), Guest("b", key=2), Guest("c", key=1)], Limits(), ("ac", "", "")),
    "one long series keeps its distance": (
        [Guest("a", steps=20), Guest("b", steps=5000), Guest("c", steps=24)],
        Limits(),
        ("ac", "", ""),
    ),
    "the long one goes when it is the oldest": (
        [Guest("b", steps=5000), Guest("c", steps=24), Guest("d", steps=4800)],
        Limits(),
        ("bd", "", ""),
    ),
    "the nearest in length go first": (
        [Guest("a", steps=100), Guest("b", steps=160), Guest("c", steps=110), Guest("d", steps=101)],
        Limits(max_batch_size=3),
        ("adc", "", ""),
    ),
    "small differences are cheaper than another run": (
        [Guest("a", steps=10), Guest("b", steps=40), Guest("c", steps=25)],
        Limits(),
        ("acb", "", ""),
    ),
    "a second try has no company": ([Guest("a", runs_alone=True), Guest("b")], Limits(), ("a", "", "")),
    "nor is it company": ([Guest("a"), Guest("b", runs_alone=True), Guest("c")], Limits(), ("ac", "", "")),
}


@pytest.mark.parametrize(("waiting", "limits", "expected"), TABLE.values(), ids=TABLE.keys())
def test_plan(waiting: list[Guest], limits: Limits, expected: tuple[str, str, str]) -> None:
    decision = plan(waiting, NOW, limits)
    assert (names(decision.batch), names(decision.expired), names(decision.left)) == expected
    assert decision.wait_until is None


DELAYED = Limits(max_batch_size=3, max_queue_delay_s=0.5, max_padded_steps=100)
DELAYS: dict[str, tuple[list[Guest], float, str, float | None]] = {
    # rule: (waiting, now, batch, wait_until)
    "an unfilled batch waits": ([Guest("a")], NOW, "", NOW + 0.5),
    "it waits from its oldest": ([Guest("a"), Guest("b", enqueued_at=NOW + 0.4)], NOW + 0.4, "", NOW + 0.5),
    "until the delay is over": ([Guest("a"), Guest("b")], NOW + 0.5, "ab", None),
    "a full one does not wait": ([Guest(name) for name in "abc"], NOW, "abc", None),
    "nor one that the next does not fit into": ([Guest("a"), Guest("b", rows=3)], NOW, "a", None),
    "nor one that is as long as can be": ([Guest("a", steps=60), Guest("b", steps=60)], NOW, "a", None),
    "nor one that would come too late": ([Guest("a"), Guest("b", deadline=NOW + 0.5)], NOW, "ab", None),
    "a second try does not wait": ([Guest("a", runs_alone=True)], NOW, "a", None),
    "nobody waits for nobody": ([Guest("a", has_left=True)], NOW, "", None),
}


@pytest.mark.parametrize(("waiting", "now", "batch", "wait_until"), DELAYS.values(), ids=DELAYS.keys())
def test_plan_with_a_delay(waiting: list[Guest], now: float, batch: str, wait_until: float | None) -> None:
    decision = plan(waiting, now, DELAYED)
    assert (names(decision.batch), decision.wait_until) == (batch, wait_until)


guests = st.lists(
    st.builds(
        Guest,
        name=st.just("x"),
        rows=st.integers(1, 6),
        steps=st.integers(1, 400),
        deadline=st.none() | st.just(NOW - 1) | st.just(NOW + 1),
        key=st.integers(0, 1),
        runs_alone=st.booleans(),
        has_left=st.booleans(),
    ),
    max_size=30,
)


@given(guests, st.integers(1, 8), st.integers(1, 2000))
def test_a_plan_keeps_every_bound_and_never_skips_the_oldest(waiting: list[Guest], max_batch_size: int, max_steps: int) -> None:
    decision = plan(waiting, NOW, Limits(max_batch_size=max_batch_size, max_padded_steps=max_steps))
    live = [guest for guest in waiting if not guest.has_left and guest.deadline != NOW - 1]
    assert bool(decision.batch) == bool(live)
    if live:
        assert decision.batch[0] is live[0]
        assert len({id(guest) for guest in decision.batch}) == len(decision.batch)
        assert all(any(guest is other for other in live) for guest in decision.batch)
        assert len({guest.key for guest in decision.batch}) == 1
    if len(decision.batch) > 1:
        rows = sum(guest.rows for guest in decision.batch)
        assert rows <= max_batch_size
        assert rows * max(guest.steps for guest in decision.batch) <= max_steps
        assert not any(guest.runs_alone for guest in decision.batch)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3000), st.integers(0, 1)), min_size=1, max_size=40))
def test_nobody_starves(sizes: list[tuple[int, int, int]]) -> None:
    """Whatever comes later, the n-th in the queue is in one of the first n batches."""
    waiting = [Guest(str(number), rows=rows, steps=steps, key=key) for number, (rows, steps, key) in enumerate(sizes)]
    for number in range(len(waiting)):
        newcomers = [Guest("new", steps=1)] * 3
        batch = plan([*waiting, *newcomers], NOW, Limits(max_batch_size=4)).batch
        waiting = [guest for guest in waiting if guest not in batch]
        assert all(int(guest.name) > number for guest in waiting)


def test_a_plan_looks_only_so_far_ahead() -> None:
    """However long the queue is, the decision costs the same."""
    looked_at = 0

    def endless() -> Any:
        nonlocal looked_at
        while True:
            looked_at += 1
            yield Guest("x", steps=looked_at)

    assert plan(endless(), NOW, Limits(max_batch_size=8)).batch
    assert looked_at == LOOKAHEAD * 8


def test_a_plan_looks_no_further_ahead_for_long_rows_than_their_batches_hold() -> None:
    looked_at = 0

    def endless() -> Any:
        nonlocal looked_at
        while True:
            looked_at += 1
            yield Guest("x", steps=100 - looked_at % 2)

    assert len(plan(endless(), NOW, Limits(max_batch_size=256, max_padded_steps=400)).batch) == 4
    assert looked_at == LOOKAHEAD * 4


def test_the_cost_that_was_measured_decides_whose_company_is_worth_the_padding() -> None:
    waiting = [Guest("a", steps=10), Guest("b", steps=100)]
    # Where a step costs whatever the rows, the second row is nearly free; where each row pays for its steps, it is padding.
    shared = Limits(cost=CostModel(step_ms=0.1, row_step_ms=0.0001))
    apart = Limits(cost=CostModel(row_step_ms=0.1))
    assert [names(plan(waiting, NOW, limits).batch) for limits in (shared, apart)] == ["ab", "a"]
