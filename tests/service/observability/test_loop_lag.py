"""How late the event loop is, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.observability.loop_lag import LoopLagMonitor
from tests.fakes import ManualAlarm, ManualClock


def test_a_loop_in_time_is_never_late() -> None:
    clock, observed = ManualClock(), list[float]()
    LoopLagMonitor(observed.append, clock, interval_s=0.02).start()
    clock.advance(0.1)
    assert observed == pytest.approx([0.0] * 5, abs=1e-9)


def test_a_stall_is_observed_once_by_the_delay_of_the_next_timer() -> None:
    clock, observed = ManualClock(), list[float]()
    LoopLagMonitor(observed.append, clock, interval_s=0.02).start()
    clock.stall(0.05)
    clock.advance(0.03)
    assert observed == pytest.approx([0.03, 0.0], abs=1e-9)


def test_an_early_timer_is_not_negative() -> None:
    class EarlyClock(ManualClock):
        def call_at(self, when: float, callback: Callable[[], None]) -> ManualAlarm:
            return super().call_at(when - 0.0004, callback)

    clock, observed = EarlyClock(), list[float]()
    LoopLagMonitor(observed.append, clock, interval_s=0.02).start()
    clock.advance(0.1)
    assert observed
    assert min(observed) >= 0


def test_nothing_is_observed_after_the_stop() -> None:
    clock, observed = ManualClock(), list[float]()
    monitor = LoopLagMonitor(observed.append, clock, interval_s=0.02)
    monitor.start()
    monitor.stop()
    clock.advance(1.0)
    assert observed == []
    assert clock.num_alarms == 0
