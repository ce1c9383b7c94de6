"""A turn of the event loop is over once those who asked have computed for long, and the next one begins anew."""

from __future__ import annotations

import asyncio

from service.scheduling.loop_budget import Turns
from tests.fakes import ManualClock


async def test_a_turn_is_over_when_it_has_been_long_and_the_next_begins_anew() -> None:
    clock = ManualClock()
    turns = Turns(0.004, clock.now)
    assert not turns.is_over()
    clock.advance(0.004)
    assert not turns.is_over()
    clock.advance(0.001)
    assert turns.is_over()
    await asyncio.sleep(0)
    assert not turns.is_over()


async def test_whoever_waits_computes_in_a_later_turn_in_the_order_of_arrival() -> None:
    clock = ManualClock()
    turns = Turns(0.004, clock.now)
    turn = 0
    computed: list[tuple[int, int]] = []

    async def compute(number: int) -> None:
        await turns.next()
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
