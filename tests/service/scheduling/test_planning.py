from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scheduling.costs import HANDOVER_MS, CostModel
from service.scheduling.planning import LOOKAHEAD, Limits, RequestedLimits, group_rows, plan

NOW = 1000.0


@dataclass(frozen=True)
class Item:
    """An item as `plan` sees it."""

    name: str
    rows: int = 1
    steps: int = 1
    enqueued_at: float = NOW
    deadline: float | None = None
    key: Hashable = None
    runs_alone: bool = False
    is_cancelled: bool = False


def names(items: Sequence[Item]) -> str:
    return "".join(item.name for item in items)


TABLE: dict[str, tuple[list[Item], Limits, tuple[str, str, str]]] = {
    # rule: (waiting, limits, (batch, expired, cancelled))
    "an empty queue": ([], Limits(), ("", "", "")),
    "a lone item goes at once": ([Item("a")], Limits(), ("a", "", "")),
    "first come, first served": ([Item("a"), Item("b"), Item("c")], Limits(max_batch_size=2), ("ab", "", "")),
    "rows are counted, not items": ([Item("a", rows=3), Item("b", rows=2)], Limits(max_batch_size=4), ("a", "", "")),
    "a smaller one fills the gap": (
        [Item("a", rows=3), Item("b", rows=2), Item("c")],
        Limits(max_batch_size=4),
        ("ac", "", ""),
    ),
    "an item larger than a batch goes alone": ([Item("a", rows=99), Item("b")], Limits(max_batch_size=4), ("a", "", "")),
    "an item longer than a batch goes alone": (
        [Item("a", steps=999), Item("b", steps=999)],
        Limits(max_padded_steps=500),
        ("a", "", ""),
    ),
    "rows x longest is bounded": (
        [Item(name, steps=100) for name in "abcdef"],
        Limits(max_padded_steps=399),
        ("abc", "", ""),
    ),
    "padding counts as steps": (
        [Item("a", steps=100), Item("b", steps=101)],
        Limits(max_padded_steps=201),
        ("a", "", ""),
    ),
    "a cancelled item is dropped": (
        [Item("a", is_cancelled=True), Item("b"), Item("c", is_cancelled=True)],
        Limits(),
        ("b", "", "ac"),
    ),
    "an item past its deadline is dropped": (
        [Item("a", deadline=NOW), Item("b", deadline=NOW + 1)],
        Limits(),
        ("b", "a", ""),
    ),
    "a cancelled item is not also expired": ([Item("a", deadline=NOW - 1, is_cancelled=True)], Limits(), ("", "", "a")),
    "keys keep items apart": ([Item("a", key=1), Item("b", key=2), Item("c", key=1)], Limits(), ("ac", "", "")),
    "a long item does not join short ones": (
        [Item("a", steps=20), Item("b", steps=5000), Item("c", steps=24)],
        Limits(),
        ("ac", "", ""),
    ),
    "the long one goes when it is the oldest": (
        [Item("b", steps=5000), Item("c", steps=24), Item("d", steps=4800)],
        Limits(),
        ("bd", "", ""),
    ),
    "the nearest in length go first": (
        [Item("a", steps=100), Item("b", steps=160), Item("c", steps=110), Item("d", steps=101)],
        Limits(max_batch_size=3),
        ("adc", "", ""),
    ),
    "small differences are cheaper than another run": (
        [Item("a", steps=10), Item("b", steps=40), Item("c", steps=25)],
        Limits(),
        ("acb", "", ""),
    ),
    "a second try runs alone": ([Item("a", runs_alone=True), Item("b")], Limits(), ("a", "", "")),
    "nor does it join others": ([Item("a"), Item("b", runs_alone=True), Item("c")], Limits(), ("ac", "", "")),
}


@pytest.mark.parametrize(("waiting", "limits", "expected"), TABLE.values(), ids=TABLE.keys())
def test_plan(waiting: list[Item], limits: Limits, expected: tuple[str, str, str]) -> None:
    decision = plan(waiting, NOW, limits)
    assert (names(decision.batch), names(decision.expired), names(decision.cancelled)) == expected
    assert decision.wait_until is None


DELAYED = Limits(max_batch_size=3, max_queue_delay_s=0.5, max_padded_steps=100)
DELAYS: dict[str, tuple[list[Item], float, str, float | None]] = {
    # rule: (waiting, now, batch, wait_until)
    "an unfilled batch waits": ([Item("a")], NOW, "", NOW + 0.5),
    "it waits from its oldest": ([Item("a"), Item("b", enqueued_at=NOW + 0.4)], NOW + 0.4, "", NOW + 0.5),
    "until the delay is over": ([Item("a"), Item("b")], NOW + 0.5, "ab", None),
    "a full one does not wait": ([Item(name) for name in "abc"], NOW, "abc", None),
    "nor one that the next does not fit into": ([Item("a"), Item("b", rows=3)], NOW, "a", None),
    "nor one that is as long as can be": ([Item("a", steps=60), Item("b", steps=60)], NOW, "a", None),
    "nor one that would come too late": ([Item("a"), Item("b", deadline=NOW + 0.5)], NOW, "ab", None),
    "a second try does not wait": ([Item("a", runs_alone=True)], NOW, "a", None),
    "a cancelled item waits for nothing": ([Item("a", is_cancelled=True)], NOW, "", None),
}


@pytest.mark.parametrize(("waiting", "now", "batch", "wait_until"), DELAYS.values(), ids=DELAYS.keys())
def test_plan_with_a_delay(waiting: list[Item], now: float, batch: str, wait_until: float | None) -> None:
    decision = plan(waiting, now, DELAYED)
    assert (names(decision.batch), decision.wait_until) == (batch, wait_until)


items = st.lists(
    st.builds(
        Item,
        name=st.just("x"),
        rows=st.integers(1, 6),
        steps=st.integers(1, 400),
        deadline=st.none() | st.just(NOW - 1) | st.just(NOW + 1),
        key=st.integers(0, 1),
        runs_alone=st.booleans(),
        is_cancelled=st.booleans(),
    ),
    max_size=30,
)


@given(items, st.integers(1, 8), st.integers(1, 2000))
def test_a_plan_keeps_every_bound_and_never_skips_the_oldest(waiting: list[Item], max_batch_size: int, max_steps: int) -> None:
    decision = plan(waiting, NOW, Limits(max_batch_size=max_batch_size, max_padded_steps=max_steps))
    live = [item for item in waiting if not item.is_cancelled and item.deadline != NOW - 1]
    assert bool(decision.batch) == bool(live)
    if live:
        assert decision.batch[0] is live[0]
        assert len({id(item) for item in decision.batch}) == len(decision.batch)
        assert all(any(item is other for other in live) for item in decision.batch)
        assert len({item.key for item in decision.batch}) == 1
    if len(decision.batch) > 1:
        rows = sum(item.rows for item in decision.batch)
        assert rows <= max_batch_size
        assert rows * max(item.steps for item in decision.batch) <= max_steps
        assert not any(item.runs_alone for item in decision.batch)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3000), st.integers(0, 1)), min_size=1, max_size=40))
def test_no_item_starves(sizes: list[tuple[int, int, int]]) -> None:
    """Whatever comes later, the n-th in the queue is in one of the first n batches."""
    waiting = [Item(str(number), rows=rows, steps=steps, key=key) for number, (rows, steps, key) in enumerate(sizes)]
    for number in range(len(waiting)):
        newcomers = [Item("new", steps=1)] * 3
        batch = plan([*waiting, *newcomers], NOW, Limits(max_batch_size=4)).batch
        waiting = [item for item in waiting if item not in batch]
        assert all(int(item.name) > number for item in waiting)


def test_a_plan_looks_only_so_far_ahead() -> None:
    """However long the queue is, the decision costs the same."""
    looked_at = 0

    def endless() -> Any:
        nonlocal looked_at
        while True:
            looked_at += 1
            yield Item("x", steps=looked_at)

    assert plan(endless(), NOW, Limits(max_batch_size=8)).batch
    assert looked_at == LOOKAHEAD * 8


def test_a_plan_looks_no_further_ahead_for_long_rows_than_their_batches_hold() -> None:
    looked_at = 0

    def endless() -> Any:
        nonlocal looked_at
        while True:
            looked_at += 1
            yield Item("x", steps=100 - looked_at % 2)

    assert len(plan(endless(), NOW, Limits(max_batch_size=256, max_padded_steps=400)).batch) == 4
    assert looked_at == LOOKAHEAD * 4


def test_the_measured_cost_decides_which_items_are_worth_the_padding() -> None:
    waiting = [Item("a", steps=10), Item("b", steps=100)]
    # Where a step costs whatever the rows, the second row is nearly free; where each row pays for its steps, it is padding.
    shared = Limits(cost=CostModel(step_ms=0.1, row_step_ms=0.0001))
    apart = Limits(cost=CostModel(row_step_ms=0.1))
    assert [names(plan(waiting, NOW, limits).batch) for limits in (shared, apart)] == ["ab", "a"]


# ------------------------------------------------------------------------------------------------ the rows of a request

ROWS: dict[str, tuple[list[int], Limits, list[list[int]]]] = {
    # rule: (lengths, limits, groups)
    "a lone row": ([5], Limits(), [[0]]),
    "equal rows stay in their order": ([7] * 5, Limits(max_batch_size=2), [[0, 1], [2, 3], [4]]),
    "equal rows keep to the padded steps": ([7] * 5, Limits(max_padded_steps=21), [[0, 1, 2], [3, 4]]),
    "a row beyond the padded steps is alone": ([99, 99], Limits(max_padded_steps=50), [[0], [1]]),
    "short rows are not padded to a much longer one": ([300, 4, 5, 310, 30], Limits(), [[0, 3], [1, 2, 4]]),
    "the limits hold for ragged groups": (
        [30, 2, 3, 2, 20, 20, 50, 4],
        Limits(max_batch_size=3, max_padded_steps=60),
        [[6], [0, 4], [2, 5, 7], [1, 3]],
    ),
    "where a step costs whatever the rows, padding is free": (
        [10, 100, 50],
        Limits(cost=CostModel(step_ms=0.1)),
        [[0, 1, 2]],
    ),
    "where each row pays for its steps, only equal rows share a run": (
        [10, 100, 10],
        Limits(cost=CostModel(row_step_ms=0.1)),
        [[1], [0, 2]],
    ),
    "where a run costs much, all rows share it": (
        [10, 100, 10],
        Limits(cost=CostModel(overhead_ms=100, row_step_ms=0.1)),
        [[0, 1, 2]],
    ),
}


@pytest.mark.parametrize(("lengths", "limits", "groups"), ROWS.values(), ids=ROWS.keys())
def test_group_rows(lengths: list[int], limits: Limits, groups: list[list[int]]) -> None:
    assert group_rows(lengths, limits) == groups


costs = st.builds(CostModel, *(st.floats(0, 1) for _ in range(4)))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 8), st.integers(1, 100), costs)
def test_groups_hold_every_row_once_and_keep_the_limits(
    lengths: list[int], max_batch_size: int, max_padded_steps: int, cost: CostModel
) -> None:
    groups = group_rows(lengths, Limits(max_batch_size, max_padded_steps, cost=cost))
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        padded_steps = len(group) * max(lengths[row] for row in group)
        assert len(group) == 1 or (len(group) <= max_batch_size and padded_steps <= max_padded_steps)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12), costs)
def test_groups_cost_little_more_than_the_cheapest_partition(lengths: list[int], cost: CostModel) -> None:
    limits = Limits(max_padded_steps=10**6, cost=cost)

    def price(groups: Sequence[Sequence[int]]) -> float:
        return sum(HANDOVER_MS + cost.predict_ms(len(group), max(lengths[row] for row in group)) for group in groups)

    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    cheapest = [0.0]  # of the first rows in order of length, so many of them
    for end in range(1, len(order) + 1):
        cheapest.append(min(cheapest[start] + price([order[start:end]]) for start in range(end)))
    assert price(group_rows(lengths, limits)) <= 1.5 * cheapest[-1]


# ------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("requested", "limits"),
    [
        (RequestedLimits(), Limits()),
        (RequestedLimits(max_batch_size=3), Limits(max_batch_size=3)),
        (RequestedLimits(max_padded_steps=99, max_queue_size=5, max_queue_delay_s=0.5), Limits(32, 99, 5, 0.5)),
    ],
)
def test_what_is_not_asked_for_has_its_default(requested: RequestedLimits, limits: Limits) -> None:
    assert requested.with_defaults() == limits


def test_a_number_that_is_asked_for_stays() -> None:
    cost = CostModel(1, 2, 3, 4)
    assert RequestedLimits(7, None).resolve(100, 1000, cost=cost, max_inline_ms=1) == Limits(7, 1000, cost=cost, max_inline_ms=1)
    assert RequestedLimits(None, 99).resolve(100, 1000) == Limits(100, 99)
