"""The budget of a turn of the event loop is spent once requests have computed for long, and the next turn has a new one."""

from __future__ import annotations

import asyncio

from service.scheduling.loop_budget import LoopBudget
from tests.fakes import ManualClock


async def test_a_budget_is_spent_when_a_turn_has_been_long_and_renewed_by_the_next() -> None:
    clock = ManualClock()
    budget = LoopBudget(0.004, clock.now)
    assert not budget.is_spent()
    clock.advance(0.004)
    assert not budget.is_spent()
    clock.advance(0.001)
    assert budget.is_spent()
    await asyncio.sleep(0)
    assert not budget.is_spent()


async def test_what_waits_computes_in_a_later_turn_in_the_order_of_arrival() -> None:
    clock = ManualClock()
    budget = LoopBudget(0.004, clock.now)
    turn = 0
    computed: list[tuple[int, int]] = []

    async def compute(number: int) -> None:
        await budget.renewal()
        clock.advance(0.003)
        computed.append((turn, number))

    async def count_turns() -> None:
        nonlocal turn
        while len(computed) < 6:
            turn += 1
            await asyncio.sleep(0)

    await asyncio.gather(count_turns(), *(compute(number) for number in range(6)))
    assert [number for _, number in computed] == list(range(6))
    turns = [turn for turn, _ in computed]
    assert turns[::2] == turns[1::2], "two in a turn"
    assert len(set(turns)) == 3


async def test_a_turn_resumes_as_many_as_its_time_is_enough_for() -> None:
    clock = ManualClock()
    budget = LoopBudget(0.004, clock.now)
    most_at_once = 0
    in_turn: list[int] = []

    async def compute(seconds: float) -> None:
        await budget.renewal()
        clock.advance(seconds)
        in_turn.append(1)

    async def count() -> None:
        nonlocal most_at_once
        while budget.num_waiting:
            in_turn.clear()
            await asyncio.sleep(0)
            most_at_once = max(most_at_once, len(in_turn))

    clock.advance(1)
    assert not budget.is_spent()
    clock.advance(0.005)
    tasks = [asyncio.ensure_future(compute(0.0005)) for _ in range(200)]
    await asyncio.sleep(0)
    assert budget.num_waiting > 180
    await asyncio.gather(count(), *tasks)
    assert 4 <= most_at_once <= 12


async def test_what_gave_up_takes_no_time_of_a_turn() -> None:
    clock = ManualClock()
    budget = LoopBudget(0.004, clock.now)
    assert not budget.is_spent()
    clock.advance(0.005)
    tasks = [asyncio.ensure_future(budget.renewal()) for _ in range(100)]
    await asyncio.sleep(0)
    for task in tasks[:99]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert tasks[99].done()
    assert budget.num_waiting == 0


async def test_a_newcomer_does_not_overtake_those_that_wait() -> None:
    clock = ManualClock()
    budget = LoopBudget(0.004, clock.now)

    async def compute() -> None:
        await budget.renewal()
        clock.advance(0.005)

    tasks = [asyncio.ensure_future(compute()) for _ in range(10)]
    await asyncio.sleep(0)
    assert budget.num_waiting
    while budget.num_waiting:
        assert budget.is_spent(), "however new the turn is"
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
