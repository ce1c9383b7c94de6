"""What is admitted by the work that is pending, and what is learnt of it."""

from __future__ import annotations

import pytest

from service.scheduling.admission import (
    DEFAULT_PRIORITY,
    MIN_REQUESTS,
    REQUEST_BYTES,
    WINDOW_S,
    AdmissionControl,
    RefusalBudget,
    Ticket,
)
from tests.fakes import ManualClock

BODY = 1024 - REQUEST_BYTES
TIMEOUT_S = 1.0


def control(clock: ManualClock, **bounds: int) -> AdmissionControl:
    return AdmissionControl(clock.now, lambda: 0.5, **bounds)


def fill(admission: AdmissionControl, endpoint: str, number: int, num_bytes: int = BODY) -> list[Ticket]:
    tickets = [admission.admit(endpoint, num_bytes, 1e9) for _ in range(number)]
    assert None not in tickets
    return [ticket for ticket in tickets if ticket is not None]


def work(
    admission: AdmissionControl, clock: ManualClock, endpoint: str, request_s: float, seconds: float, pending: int = 64
) -> None:
    """Keep `pending` requests waiting, each of which takes `request_s`, for so long; then let all of them finish."""
    tickets = fill(admission, endpoint, pending)
    for _ in range(round(seconds / request_s)):
        clock.advance(request_s)
        admission.finish(tickets.pop(0), is_done=True)
        tickets += fill(admission, endpoint, 1)
    for ticket in tickets:
        admission.finish(ticket, is_done=False)


def test_everything_is_admitted_until_something_is_known() -> None:
    admission = control(ManualClock())
    fill(admission, "/predict", 1000)
    assert admission.num_pending == 1000
    assert admission.wait_s == 0.0


def test_the_wait_is_learnt_from_what_finishes_while_work_waits() -> None:
    clock = ManualClock()
    admission = control(clock)
    work(admission, clock, "/predict", 0.002, 3)
    fill(admission, "/predict", 100)
    assert admission.wait_s == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("has_learnt", [False, True])
def test_a_pause_of_the_process_is_not_taken_for_the_cost_of_the_requests_around_it(has_learnt: bool) -> None:
    for paused in range(30):
        clock = ManualClock()
        admission = control(clock)
        if has_learnt:
            work(admission, clock, "/predict", 0.001, 3)
        clock.advance(0.2)
        tickets = fill(admission, "/predict", 64)
        for number in range(40):
            clock.advance(0.15 if number == paused else 0.001)
            admission.finish(tickets.pop(0), is_done=True)
            tickets += fill(admission, "/predict", 1)
            assert admission.wait_s < 64 * 0.15 / 8 + 0.1, f"pause at {paused}, now at {number}"


def test_a_request_whose_answer_would_come_too_late_is_refused_and_admitted_again_when_work_is_done() -> None:
    clock = ManualClock()
    admission = control(clock)
    work(admission, clock, "/predict", 0.002, 3)
    tickets = fill(admission, "/predict", 240)
    admitted = 0
    while (ticket := admission.admit("/predict", BODY, TIMEOUT_S)) is not None:
        tickets.append(ticket)
        admitted += 1
    assert 0 < admitted < 20, "half of a second at 2 ms a request"
    for ticket in tickets[:10]:
        admission.finish(ticket, is_done=True)
    assert admission.admit("/predict", BODY, TIMEOUT_S) is not None


@pytest.mark.parametrize(("priority", "limit"), [(1, 450), (DEFAULT_PRIORITY, 250), (9, 50)])
def test_the_least_urgent_are_refused_first(priority: int, limit: int) -> None:
    clock = ManualClock()
    admission = control(clock)
    work(admission, clock, "/predict", 0.002, 3)
    admitted = 0
    while admission.admit("/predict", BODY, TIMEOUT_S, priority) is not None:
        admitted += 1
    assert admitted == pytest.approx(limit, rel=0.1)


def test_a_shorter_timeout_is_refused_earlier() -> None:
    clock = ManualClock()
    admission = control(clock)
    work(admission, clock, "/predict", 0.002, 3)
    fill(admission, "/predict", 100)
    assert admission.admit("/predict", BODY, 0.3) is None
    assert admission.admit("/predict", BODY, 0.5) is not None


def test_endpoints_of_different_cost_are_told_apart() -> None:
    clock = ManualClock()
    admission = control(clock)
    for _ in range(10):
        work(admission, clock, "/predict/sentiment", 0.004, 0.5)
        work(admission, clock, "/predict/forecast", 0.0005, 0.5)
    fill(admission, "/predict/forecast", 100)
    assert admission.wait_s == pytest.approx(0.05, rel=0.2)
    fill(admission, "/predict/sentiment", 100)
    assert admission.wait_s == pytest.approx(0.45, rel=0.2)


def test_a_little_load_teaches_nothing() -> None:
    clock = ManualClock()
    admission = control(clock)
    for _ in range(50):
        (ticket,) = fill(admission, "/predict", 1)
        clock.advance(WINDOW_S)
        admission.finish(ticket, is_done=True)
    fill(admission, "/predict", 1000)
    assert admission.wait_s == 0.0


def test_a_few_are_always_admitted_so_that_a_stall_is_forgotten() -> None:
    clock = ManualClock()
    admission = control(clock)
    work(admission, clock, "/predict", 1.0, 20)
    assert fill(admission, "/predict", MIN_REQUESTS)
    assert admission.admit("/predict", BODY, TIMEOUT_S) is None


def test_what_was_given_up_counts_as_no_work() -> None:
    clock = ManualClock()
    admission = control(clock)
    work(admission, clock, "/predict", 0.002, 3)
    before = admission.wait_s
    tickets = fill(admission, "/predict", 64)
    for ticket in tickets:
        clock.advance(0.0001)
        admission.finish(ticket, is_done=False)
    assert admission.wait_s == before == 0.0
    fill(admission, "/predict", 100)
    assert admission.wait_s == pytest.approx(0.2, rel=0.05)


def test_the_bytes_that_are_pending_are_bounded() -> None:
    admission = control(ManualClock(), max_pending_bytes=100_000)
    fill(admission, "/predict", MIN_REQUESTS)
    assert admission.admit("/predict", 90_000, TIMEOUT_S) is None
    assert admission.admit("/predict", 1_000, TIMEOUT_S) is not None


def test_the_rows_that_are_pending_are_bounded_by_what_earlier_bodies_held() -> None:
    clock = ManualClock()
    admission = control(clock, max_pending_rows=400)
    for ticket in fill(admission, "/predict", 200):
        admission.finish(ticket, 8, is_done=True)
    admitted = 0
    while admission.admit("/predict", BODY, TIMEOUT_S) is not None:
        admitted += 1
    assert admitted == pytest.approx(50, abs=2)


def test_refused_requests_are_sent_back_at_different_times() -> None:
    draws = iter((0.0, 1.0))
    admission = AdmissionControl(ManualClock().now, lambda: next(draws))
    assert admission.retry_after_s() < admission.retry_after_s()


def test_refusals_beyond_the_budget_are_held() -> None:
    clock = ManualClock()
    budget = RefusalBudget(clock.now, per_second=10)
    assert [budget.delay_s() for _ in range(12)] == [0.0] * 10 + [RefusalBudget.HOLD_S] * 2
    clock.advance(0.35)
    assert [budget.delay_s() for _ in range(4)] == [0.0] * 3 + [RefusalBudget.HOLD_S]
