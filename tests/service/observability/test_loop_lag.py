"""How late the event loop is, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.observability.loop_lag import LagWatch
from tests.fakes import ManualAlarm, ManualClock


def test_a_loop_in_time_is_never_late() -> None:
    clock, told = ManualClock(), list[float]()
    LagWatch(told.append, clock, every_s=0.02).start()
    clock.advance(0.1)
    assert told == pytest.approx([0.0] * 5, abs=1e-9)


def test_a_stall_is_told_once_with_what_the_next_alarm_waited() -> None:
    clock, told = ManualClock(), list[float]()
    LagWatch(told.append, clock, every_s=0.02).start()
    clock.stall(0.05)
    clock.advance(0.03)
    assert told == pytest.approx([0.03, 0.0], abs=1e-9)


def test_an_early_alarm_is_not_negative() -> None:
    class Hasty(ManualClock):
        def call_at(self, when: float, callback: Callable[[], None]) -> ManualAlarm:
            return super().call_at(when - 0.0004, callback)

    clock, told = Hasty(), list[float]()
    LagWatch(told.append, clock, every_s=0.02).start()
    clock.advance(0.1)
    assert told
    assert min(told) >= 0


def test_nothing_is_told_after_the_stop() -> None:
    clock, told = ManualClock(), list[float]()
    watch = LagWatch(told.append, clock, every_s=0.02)
    watch.start()
    watch.stop()
    clock.advance(1.0)
    assert told == []
    assert clock.num_alarms == 0
