"""What is admitted by the work that is pending, and what is learnt of it."""

from __future__ import annotations

import functools
import random

import pytest

from service.scheduling.admission import (
    CALM,
    DEFAULT_PRIORITY,
    LEAVING_WINDOWS,
    MAX_RETRY_AFTER_S,
    MIN_REQUESTS,
    REQUEST_BYTES,
    RETRY_AFTER_S,
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


def test_a_request_that_is_many_times_its_size_counts_so_often() -> None:
    clock = ManualClock()
    admission = control(clock)
    work(admission, clock, "/predict", 0.001, 2.0)
    waiting = fill(admission, "/predict", MIN_REQUESTS)
    before_s = admission.wait_s
    (ticket,) = fill(admission, "/predict", 1)
    own_s = admission.wait_s - before_s
    assert ticket.grow(50.0, TIMEOUT_S)
    assert admission.wait_s == pytest.approx(before_s + 50 * own_s)
    # A request that its size alone would let in has no room with all its rows: it counts as before.
    (other,) = fill(admission, "/predict", 1)
    wait_s = admission.wait_s
    assert not other.grow(1000.0, TIMEOUT_S)
    assert admission.wait_s == pytest.approx(wait_s)
    for each in (*waiting, ticket, other):
        admission.finish(each, is_done=False)
    assert admission.num_pending == 0
    assert admission.wait_s == pytest.approx(0.0)


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


def test_bodies_of_other_lengths_count_as_the_rows_that_they_hold() -> None:
    admission = control(ManualClock(), max_pending_rows=400)
    draw = random.Random(3)

    def admit() -> Ticket | None:
        return admission.admit("/predict", draw.choice((100, 10_000)), TIMEOUT_S)

    for _ in range(400):
        ticket = admit()
        assert ticket is not None
        admission.finish(ticket, 1, is_done=True)
    admitted = 0
    while admit() is not None:
        admitted += 1
    assert admitted == pytest.approx(400, rel=0.25), "of one row each"


def test_the_rows_of_requests_count_whether_their_model_is_known_or_not() -> None:
    admission = control(ManualClock(), max_pending_rows=400)
    for _ in range(400):
        (ticket,) = fill(admission, "/predict", 1)
        ticket.assign("a")
        admission.finish(ticket, 8, is_done=True, model="a")
    admitted = []
    while (one := admission.admit("/predict", BODY, TIMEOUT_S)) is not None:
        one.assign("a")
        admitted.append(one)
        assert len(admitted) < 100
    assert len(admitted) == pytest.approx(50, abs=2)
    for ticket in admitted:
        admission.finish(ticket, 8, is_done=True, model="a")
    assert admission.admit("/predict", BODY, TIMEOUT_S) is not None


def test_where_clients_leave_early_no_more_are_admitted_than_are_answered_before() -> None:
    clock = ManualClock()
    admission = control(clock)
    work(admission, clock, "/predict", 0.002, 3)
    assert count_admitted(admission) == pytest.approx(250, rel=0.1)
    for _ in range(60 * LEAVING_WINDOWS):
        (ticket,) = fill(admission, "/predict", 1)
        clock.advance(0.002)
        admission.finish(ticket, is_done=False, has_left=True)
    assert count_admitted(admission) < 60, "after 0.002 s they left"
    for _ in range(2000):
        (ticket,) = fill(admission, "/predict", 1)
        clock.advance(WINDOW_S)
        admission.finish(ticket, is_done=True)
    assert count_admitted(admission) == pytest.approx(250, rel=0.1)


def test_clients_that_leave_all_at_once_change_nothing_for_those_that_come_after_them() -> None:
    clock = ManualClock()
    admission = control(clock)
    work(admission, clock, "/predict", 0.002, 3)
    for pause_s in (0.0, 3600.0) * LEAVING_WINDOWS:
        for ticket in fill(admission, "/predict", 64):
            clock.advance(0.002)
            admission.finish(ticket, is_done=False, has_left=True)
        for ticket in fill(admission, "/predict", 0 if pause_s else 64):
            clock.advance(0.002)
            admission.finish(ticket, is_done=True)
        clock.advance(pause_s)
    assert count_admitted(admission) == pytest.approx(250, rel=0.2)


def test_a_few_clients_that_leave_change_nothing() -> None:
    clock = ManualClock()
    admission = control(clock)
    work(admission, clock, "/predict", 0.002, 3)
    for number in range(1000):
        (ticket,) = fill(admission, "/predict", 1)
        clock.advance(0.002)
        admission.finish(ticket, is_done=number % 4 > 0, has_left=number % 4 == 0)
    assert count_admitted(admission) > 200


def count_admitted(admission: AdmissionControl) -> int:
    """How many requests have room at once; they then give up their places."""
    tickets = []
    while (ticket := admission.admit("/predict", BODY, TIMEOUT_S)) is not None:
        tickets.append(ticket)
    for ticket in tickets:
        admission.finish(ticket, is_done=False)
    return len(tickets)


def test_refused_requests_are_sent_back_at_different_times() -> None:
    draws = iter((0.0, 1.0))
    admission = AdmissionControl(ManualClock().now, lambda: next(draws))
    assert admission.retry_after_s() < admission.retry_after_s()


def test_the_more_return_the_later_they_may_try_again() -> None:
    clock = ManualClock()
    admission = AdmissionControl(clock.now, lambda: 1.0)
    for _ in range(10):
        for _ in range(3000):
            admission.retry_after_s()
        clock.advance(1.0)
    assert admission.retry_after_s() == MAX_RETRY_AFTER_S
    for _ in range(10):
        clock.advance(1.0)
        admission.retry_after_s()
    assert admission.retry_after_s() == RETRY_AFTER_S[1]


def test_an_urgent_request_displaces_the_newest_of_the_least_urgent() -> None:
    clock = ManualClock()
    admission = control(clock, max_pending_bytes=20 * 1024)
    cancelled: list[str] = []
    tickets = {}
    for name, priority in [*((f"usual {n}", DEFAULT_PRIORITY) for n in range(16)), *((f"least {n}", 9) for n in range(4))]:
        ticket = admission.admit("/predict", BODY, TIMEOUT_S, priority)
        assert ticket is not None
        ticket.cancel = functools.partial(cancelled.append, name)
        tickets[name] = ticket
    assert admission.admit("/predict", BODY, TIMEOUT_S, 9) is None, "none is less urgent"
    urgent = [admission.admit("/predict", BODY, TIMEOUT_S, 1) for _ in range(5)]
    assert None not in urgent
    assert cancelled == ["least 3", "least 2", "least 1", "least 0", "usual 15"]
    assert tickets["least 0"].is_displaced
    assert not tickets["usual 0"].is_displaced
    for ticket in tickets.values():
        admission.finish(ticket, is_done=not ticket.is_displaced)
    assert admission.num_pending == len(urgent)


def test_nothing_is_displaced_for_a_request_that_would_not_have_room_then() -> None:
    admission = control(ManualClock(), max_pending_bytes=20 * 1024)
    cancelled: list[int] = []
    for number in range(20):
        ticket = admission.admit("/predict", BODY, TIMEOUT_S, 9)
        assert ticket is not None
        ticket.cancel = functools.partial(cancelled.append, number)
    assert admission.admit("/predict", 30 * 1024, TIMEOUT_S, 1) is None
    assert cancelled == []
    assert admission.num_pending == 20


def test_requests_that_cannot_be_cancelled_keep_their_place() -> None:
    admission = control(ManualClock(), max_pending_bytes=20 * 1024)
    for _ in range(20):
        assert admission.admit("/predict", BODY, TIMEOUT_S, 9) is not None
    assert admission.admit("/predict", BODY, TIMEOUT_S, 1) is None


def test_a_client_that_closes_gives_up_its_place_while_others_are_refused() -> None:
    admission = control(ManualClock(), max_pending_bytes=20 * 1024)
    cancelled: list[int] = []
    first, second, *others = fill(admission, "/predict", 20)
    for ticket in (first, second):
        ticket.cancel = functools.partial(cancelled.append, 1)
    first.close()
    assert cancelled == [], "it may wait for its answer, and nobody else wants the place"
    assert admission.admit("/predict", BODY, TIMEOUT_S) is None
    second.close()
    second.close()
    assert (cancelled, second.is_displaced, admission.num_pending) == ([1], True, 19)
    for ticket in (first, second, *others):
        admission.finish(ticket, is_done=not ticket.is_displaced)
    assert admission.num_pending == 0


def test_clients_that_close_count_as_those_that_left() -> None:
    clock = ManualClock()
    admission = control(clock)
    work(admission, clock, "/predict", 0.002, 3)
    for _ in range(60 * LEAVING_WINDOWS):
        (ticket,) = fill(admission, "/predict", 1)
        clock.advance(0.002)
        ticket.close()
        admission.finish(ticket, is_done=True)
    assert count_admitted(admission) < 60


def test_models_of_one_endpoint_are_told_apart() -> None:
    clock = ManualClock()
    admission = control(clock)

    def serve(model: str, request_s: float) -> None:
        tickets = fill(admission, "/predict", 64)
        for _ in range(round(0.5 / request_s)):
            clock.advance(request_s)
            ticket = tickets.pop(0)
            ticket.assign(model)
            admission.finish(ticket, is_done=True, model=model)
            tickets += fill(admission, "/predict", 1)
        for ticket in tickets:
            admission.finish(ticket, is_done=False)

    for _ in range(12):
        serve("large", 0.004)
        serve("small", 0.0005)
    for ticket in fill(admission, "/predict", 100):
        ticket.assign("small")
    assert admission.wait_s == pytest.approx(0.05, rel=0.2)
    for ticket in fill(admission, "/predict", 100):
        ticket.assign("large")
    assert admission.wait_s == pytest.approx(0.45, rel=0.2)
    unread = fill(admission, "/predict", 100)
    assert 0.5 < admission.wait_s < 0.9, "what is not read yet costs something between"
    unread[0].assign("one that does not exist")
    assert unread[0].account is unread[0].endpoint


def test_a_server_refuses_until_many_in_a_row_were_admitted() -> None:
    clock = ManualClock()
    admission = control(clock)
    work(admission, clock, "/predict", 0.002, 3)
    waiting = []
    while (ticket := admission.admit("/predict", BODY, TIMEOUT_S)) is not None:
        waiting.append(ticket)
    for number in range(3 * CALM):
        assert admission.is_refusing, "admitted and refused requests take turns"
        admission.finish(waiting.pop(), is_done=True)
        waiting += [admitted] if (admitted := admission.admit("/predict", BODY, TIMEOUT_S)) is not None else []
        if number % (CALM // 2) == 0:
            admission.retry_after_s()  # as where `would_refuse` said so
    admission.retry_after_s()
    for ticket in waiting:
        admission.finish(ticket, is_done=True)
    for number in range(CALM):
        assert admission.is_refusing, number
        ticket = admission.admit("/predict", BODY, TIMEOUT_S)
        assert ticket is not None
        admission.finish(ticket, is_done=True)
    assert not admission.is_refusing


def test_whether_a_usual_request_would_be_refused_is_known_before_it_is_looked_at() -> None:
    clock = ManualClock()
    admission = control(clock)
    assert not admission.would_refuse("/predict", BODY, TIMEOUT_S)
    work(admission, clock, "/predict", 0.002, 3)
    while admission.admit("/predict", BODY, TIMEOUT_S) is not None:
        assert not admission.is_refusing
    assert admission.is_refusing
    assert admission.would_refuse("/predict", BODY, TIMEOUT_S)
    assert not admission.would_refuse("/predict", BODY, 10 * TIMEOUT_S)
    less_urgent = admission.admit("/predict", BODY, 1e9, 9)
    assert less_urgent is not None
    assert not admission.would_refuse("/predict", BODY, TIMEOUT_S), "it could displace another one"


def test_refusals_beyond_the_share_of_the_processor_are_held() -> None:
    clock, busy = ManualClock(), ManualClock()
    budget = RefusalBudget(clock.now, busy.now, share=0.1)

    def refuse(number: int, interval_s: float, utilization: float) -> list[float]:
        delays = []
        for _ in range(number):
            clock.advance(interval_s)
            busy.advance(interval_s * utilization)
            delays.append(budget.delay_s())
        return delays

    refuse(100, 0.01, 1.0)
    # A tenth of a core is enough for 2,500 refusals of 40 µs in a second.
    assert max(refuse(2000, 1 / 2000, 1.0)) == 0.0
    assert refuse(4000, 1 / 4000, 1.0)[-1] > 0.1
    assert max(refuse(100_000, 1 / 50_000, 1.0)) == RefusalBudget.MAX_HOLD_S
    refuse(100, 0.1, 0.5)
    assert refuse(2000, 1 / 2000, 0.5)[-1] > 0.1


def test_bodies_that_have_not_come_keep_nobody_else_from_being_admitted() -> None:
    clock = ManualClock()
    admission = control(clock, max_pending_bytes=100_000)
    work(admission, clock, "/predict", 0.01, 2.0)
    slow = fill(admission, "/predict", MIN_REQUESTS)
    assert admission.wait_s > 0
    for ticket in slow:
        ticket.await_body()
    assert (admission.num_pending, admission.wait_s) == (0, 0.0)
    for _ in range(1000):
        admitted = admission.admit("/predict", 2_000_000, TIMEOUT_S)
        assert admitted is not None
        admitted.await_body()
    slow[0].complete_body()
    assert admission.num_pending == 1
    for ticket in slow:
        admission.finish(ticket, is_done=False)
    assert admission.num_pending == 0


def test_the_bytes_of_bodies_that_are_being_received_are_bounded() -> None:
    admission = control(ManualClock(), max_pending_bytes=10_000)
    first, second = fill(admission, "/predict", 2)
    for ticket in (first, second):
        ticket.await_body()
    assert first.receive(8000)
    assert not second.receive(3000)
    admission.finish(second, is_done=False)
    assert first.receive(2000)
    first.complete_body()
    admission.finish(first, is_done=True)
    assert admission._pending_bytes == 0
