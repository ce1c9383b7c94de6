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
    assert [turn for turn, _ in computed] == [1, 1, 2, 2, 3, 3]
