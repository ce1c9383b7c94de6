"""Which items go into the next batch, and what each gets: its own result, or the reason why not, in time."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.clock import MonotonicClock
from service.context import CURRENT, RequestContext, Timing
from service.errors import DeadlineExceeded, InferenceFailed, InvalidInput, ModelNotReady, Overloaded
from service.scheduling.batching import Batcher, Submission
from service.scheduling.costs import CostModel
from service.scheduling.planning import Limits
from tests.fakes import PATIENCE_S, Gate, ManualClock, RecordingObserver


@asynccontextmanager
async def batching(
    run: Callable[[Sequence[Any]], Sequence[Any]],
    limits: Limits | None = None,
    *,
    num_workers: int = 1,
    clock: ManualClock | None = None,
    observer: RecordingObserver | None = None,
) -> AsyncIterator[Batcher[Any, Any]]:
    batcher: Batcher[Any, Any] = Batcher(
        run, limits or Limits(), num_workers, clock or ManualClock(), observer or RecordingObserver(), name="toy"
    )
    await batcher.start()
    try:
        yield batcher
    finally:
        if isinstance(run, Gate):
            run.open()
        await batcher.stop()


async def begin(batcher: Batcher[Any, Any], *payloads: Any, **facts: Any) -> list[asyncio.Task[Any]]:
    """Submit without waiting for answers; all are in the queue, or with a worker, when this returns."""
    tasks = [asyncio.create_task(batcher.submit(payload, **facts)) for payload in payloads]
    await turns()
    return tasks


async def turns(count: int = 3) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


async def busy(batcher: Batcher[Any, Any], gate: Gate[Any]) -> asyncio.Task[Any]:
    """Make the only worker busy, so that what follows stays in the queue."""
    (task,) = await begin(batcher, "busy")
    await gate.entered()
    return task


async def test_each_item_gets_its_own_result() -> None:
    async with batching(lambda payloads: [payload * 10 for payload in payloads], num_workers=3) as batcher:
        assert await asyncio.gather(*(batcher.submit(number) for number in range(200))) == [n * 10 for n in range(200)]


async def test_a_lone_item_goes_at_once_without_any_timer() -> None:
    clock = ManualClock()
    async with batching(Gate(is_open=True), clock=clock) as batcher:
        assert await batcher.submit("a") == "a"
        assert clock.num_alarms == 0


async def test_a_free_worker_takes_what_gathered_while_it_was_busy() -> None:
    gate: Gate[str] = Gate()
    async with batching(gate, Limits(max_batch_size=3)) as batcher:
        await busy(batcher, gate)
        await begin(batcher, *"abcd")
        assert repr(batcher) == "<Batcher 'toy' open: 4 items (4 rows) queued, 1 of 1 workers busy>"
        gate.let()
        await gate.entered()
        assert gate.batches == [["busy"], ["a", "b", "c"]]
        gate.let(2)
        await gate.entered()
        assert gate.batches[2] == ["d"]


async def test_items_of_the_same_turn_of_the_loop_share_a_batch() -> None:
    gate: Gate[str] = Gate(is_open=True)
    async with batching(gate, num_workers=2) as batcher:
        await asyncio.gather(*(batcher.submit(name) for name in "abc"))
        assert gate.batches == [["a", "b", "c"]]


async def test_several_workers_run_side_by_side() -> None:
    gate: Gate[str] = Gate()
    async with batching(gate, Limits(max_batch_size=1), num_workers=2) as batcher:
        await begin(batcher, *"abc")
        await gate.entered(2)
        assert sorted(gate.batches) == [["a"], ["b"]]
        assert batcher.num_queued == 1


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    gate: Gate[str] = Gate()
    observer = RecordingObserver()
    async with batching(gate, Limits(max_queue_size=5), observer=observer) as batcher:
        await busy(batcher, gate)
        await begin(batcher, "a", "b", rows=2)
        with pytest.raises(Overloaded, match="4 rows wait, the limit is 5") as caught:
            await batcher.submit("c", rows=2)
        assert caught.value.facts == {"model": "toy", "queued": 4, "limit": 5}
        assert caught.value.retry_after_s == 1.0
        (last,) = await begin(batcher, "d", rows=1)
        gate.open()
        assert await last == "d"
        assert observer.num_refused == 1


async def test_the_time_to_come_back_is_estimated_from_what_a_row_takes() -> None:
    clock = ManualClock()

    def two_seconds(payloads: Sequence[Any]) -> Sequence[Any]:
        clock.advance(2.0)
        return payloads

    run: Callable[[Sequence[Any]], Sequence[Any]] = two_seconds
    gate: Gate[Any] = Gate()
    async with batching(lambda payloads: run(payloads), Limits(max_queue_size=4), clock=clock) as batcher:
        await batcher.submit("a", rows=4)  # half a second a row
        run = gate
        await busy(batcher, gate)
        await begin(batcher, "b", rows=4)
        with pytest.raises(Overloaded) as caught:
            await batcher.submit("c")
        assert caught.value.retry_after_s == 2.0
        gate.open()


async def test_an_item_larger_than_the_queue_is_taken_when_the_queue_is_empty() -> None:
    async with batching(Gate(is_open=True), Limits(max_queue_size=4)) as batcher:
        assert await batcher.submit("large", rows=100) == "large"


async def test_an_item_is_not_refused_while_a_worker_is_free() -> None:
    """The queue holds one row, but four come in one turn of the loop and four workers are free."""
    gate: Gate[str] = Gate(is_open=True)
    async with batching(gate, Limits(max_queue_size=1, max_batch_size=1), num_workers=4) as batcher:
        assert await asyncio.gather(*(batcher.submit(name) for name in "abcd")) == list("abcd")


async def test_a_cancelled_item_does_not_disturb_its_batch() -> None:
    gate: Gate[str] = Gate()
    async with batching(gate) as batcher:
        first, middle, last = await begin(batcher, *"abc")
        await gate.entered()
        middle.cancel()
        await asyncio.wait([middle])
        gate.let()
        assert (await first, await last) == ("a", "c")
        assert middle.cancelled()


async def test_an_item_cancelled_in_the_queue_is_not_computed_and_makes_room_at_once() -> None:
    gate: Gate[str] = Gate()
    observer = RecordingObserver()
    async with batching(gate, Limits(max_queue_size=2), observer=observer) as batcher:
        await busy(batcher, gate)
        first, second = await begin(batcher, *"ab")
        first.cancel()
        await asyncio.wait([first])
        assert batcher.queued_rows == 1
        (third,) = await begin(batcher, "c")
        gate.open()
        assert (await second, await third) == ("b", "c")
        assert gate.batches == [["busy"], ["b", "c"]]
        assert (1, 1, "cancelled") in observer.left


async def test_the_queue_tells_how_long_its_oldest_waits() -> None:
    gate: Gate[str] = Gate()
    clock = ManualClock()
    async with batching(gate, clock=clock) as batcher:
        await busy(batcher, gate)
        assert batcher.oldest_wait_s is None
        (first,) = await begin(batcher, "a")
        clock.advance(2.0)
        (second,) = await begin(batcher, "b")
        clock.advance(0.5)
        assert batcher.oldest_wait_s == 2.5
        first.cancel()
        await asyncio.wait([first])
        assert batcher.oldest_wait_s == 0.5
        gate.open()
        assert await second == "b"
        assert batcher.oldest_wait_s is None


async def test_an_item_cancelled_in_the_very_turn_of_its_batch_is_not_computed() -> None:
    gate: Gate[str] = Gate(is_open=True)
    observer = RecordingObserver()
    async with batching(gate, observer=observer) as batcher:
        first, second = (asyncio.create_task(batcher.submit(name)) for name in "ab")
        await asyncio.sleep(0)
        first.cancel()
        assert await second == "b"
        assert gate.batches == [["b"]]
        assert first.cancelled()
        assert observer.left == [(1, 1, "cancelled"), (1, 1, "taken")]


async def test_a_deadline_holds_while_queued() -> None:
    gate: Gate[str] = Gate()
    clock, observer = ManualClock(), RecordingObserver()
    async with batching(gate, clock=clock, observer=observer) as batcher:
        await busy(batcher, gate)
        (hasty,) = await begin(batcher, "hasty", deadline=clock.now() + 1)
        (patient,) = await begin(batcher, "patient", deadline=clock.now() + 9)
        clock.advance(1)
        with pytest.raises(DeadlineExceeded):
            await hasty
        assert (batcher.num_queued, batcher.queued_rows) == (1, 1)
        gate.open()
        assert await patient == "patient"
        assert gate.batches == [["busy"], ["patient"]]
        assert (1, 1, "expired") in observer.left


async def test_a_deadline_holds_while_the_batch_runs_on() -> None:
    gate: Gate[str] = Gate()
    clock = ManualClock()
    async with batching(gate, clock=clock) as batcher:
        hasty, patient = [
            asyncio.create_task(batcher.submit(name, deadline=clock.now() + timeout)) for name, timeout in (("a", 1), ("b", 9))
        ]
        await gate.entered()
        clock.advance(1)
        with pytest.raises(DeadlineExceeded):
            await hasty
        assert gate.batches == [["a", "b"]]
        gate.let()
        assert await patient == "b"


async def test_a_deadline_in_the_past_is_refused_before_it_is_queued() -> None:
    clock = ManualClock()
    async with batching(Gate(is_open=True), clock=clock) as batcher:
        with pytest.raises(DeadlineExceeded):
            await batcher.submit("a", deadline=clock.now())
        assert batcher.num_queued == 0


async def test_a_later_submission_may_have_the_earlier_deadline() -> None:
    gate: Gate[str] = Gate()
    clock = ManualClock()
    async with batching(gate, clock=clock) as batcher:
        await busy(batcher, gate)
        tasks = [(await begin(batcher, str(timeout), deadline=clock.now() + timeout))[0] for timeout in (5, 3, 4, 1, 2)]
        finished = []
        for _ in range(5):
            clock.advance(1)
            await turns()
            finished.append([number for number, task in enumerate(tasks) if task.done()])
        assert finished == [[3], [3, 4], [1, 3, 4], [1, 2, 3, 4], [0, 1, 2, 3, 4]]
        assert all(isinstance(task.exception(), DeadlineExceeded) for task in tasks)
        assert clock.num_alarms == 0


async def test_one_poisonous_item_does_not_harm_the_others(caplog: pytest.LogCaptureFixture) -> None:
    gate: Gate[Any] = Gate()
    observer = RecordingObserver()
    poison = ValueError("secret internals")
    async with batching(gate, observer=observer) as batcher:
        await busy(batcher, gate)
        good, bad, fine = await begin(batcher, "good", poison, "fine")
        gate.open()
        assert (await good, await fine) == ("good", "fine")
        with pytest.raises(InferenceFailed) as caught:
            await bad
        assert "secret" not in caught.value.message
        assert caught.value.__cause__ is poison
        assert gate.batches == [["busy"], ["good", poison, "fine"], ["good"], [poison], ["fine"]]
        assert [(batch["rows"], batch["is_ok"]) for batch in observer.batches] == [
            (1, True),
            (3, False),
            (1, True),
            (1, False),
            (1, True),
        ]
        assert (observer.num_queued, observer.queued_rows, batcher.queued_rows) == (0, 0, 0)
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]


async def test_a_failure_is_logged_with_the_id_of_its_own_request(caplog: pytest.LogCaptureFixture) -> None:
    gate: Gate[Any] = Gate()
    poison = ValueError("poison")
    async with batching(gate) as batcher:
        await busy(batcher, gate)
        tasks = []
        for name, payload in (("a", "good"), ("b", poison)):
            token = CURRENT.set(RequestContext(name, ""))
            tasks += await begin(batcher, payload)
            CURRENT.reset(token)
        gate.open()
        await asyncio.gather(*tasks, return_exceptions=True)
    batch, lone = (vars(record) for record in caplog.records)
    assert (batch["request_ids"], lone["request_id"]) == (["a", "b"], "b")


async def test_a_timed_request_is_told_when_it_waited_and_when_its_graph_ran() -> None:
    clock = ManualClock()
    gate: Gate[Any] = Gate()
    context = RequestContext("a", "")
    timing = context.timing = Timing()
    timing.stages = []
    async with batching(gate, clock=clock) as batcher:
        await busy(batcher, gate)
        token = CURRENT.set(context)
        timed = await begin(batcher, "timed")
        CURRENT.reset(token)
        (other,) = await begin(batcher, "other")
        clock.advance(2.0)
        gate.let(1)
        await gate.entered()
        clock.advance(3.0)
        gate.open()
        await asyncio.gather(*timed, other)
    assert timing.seconds == {"queue": 2.0, "run": 3.0}
    queue, run = timing.stages
    assert (queue.started_at, queue.ended_at, run.ended_at) == (1000.0, 1002.0, 1005.0)
    assert queue.batch is run.batch is not None
    assert (run.batch.rows, run.batch.requests) == (2, [context])


async def test_a_cancelled_item_of_a_failed_batch_is_not_tried_again() -> None:
    gate: Gate[Any] = Gate()
    poison = ValueError("poison")
    async with batching(gate) as batcher:
        tasks = await begin(batcher, "a", poison, "b")
        await gate.entered()
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        gate.open()
        assert await tasks[2] == "b"
        with pytest.raises(InferenceFailed):
            await tasks[1]
        assert gate.batches == [["a", poison, "b"], [poison], ["b"]]


async def test_a_second_try_goes_before_later_items() -> None:
    gate: Gate[Any] = Gate()
    poison = ValueError("poison")
    async with batching(gate) as batcher:
        early = await begin(batcher, "a", poison)
        await gate.entered()
        late = await begin(batcher, "c", "d")
        gate.open()
        await asyncio.wait([*early, *late])
        assert gate.batches == [["a", poison], ["a"], [poison], ["c", "d"]]
        assert isinstance(early[1].exception(), InferenceFailed)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidInput("token 9 is unknown"), InvalidInput),
        (InferenceFailed("already a service error"), InferenceFailed),
        (StopIteration(), InferenceFailed),
        (SystemExit(3), InferenceFailed),
        (asyncio.CancelledError(), InferenceFailed),
    ],
)
async def test_whatever_run_raises_becomes_a_service_error_and_the_worker_lives(
    error: BaseException, expected: type[Exception]
) -> None:
    async with batching(Gate(is_open=True)) as batcher:
        with pytest.raises(expected):
            await batcher.submit(error)
        assert await batcher.submit("next") == "next"


async def test_a_run_that_loses_answers_is_a_failure_not_a_wait_for_ever() -> None:
    async with batching(lambda payloads: payloads[1:]) as batcher:
        with pytest.raises(InferenceFailed):
            await batcher.submit("a")


async def test_every_event_is_reported_once() -> None:
    gate: Gate[str] = Gate()
    clock, observer = ManualClock(), RecordingObserver()
    async with batching(gate, clock=clock, observer=observer) as batcher:
        first = await busy(batcher, gate)
        second = asyncio.create_task(batcher.submit("a", rows=2, steps=10, true_steps=13))
        third = asyncio.create_task(batcher.submit("b", rows=1, steps=20))
        await turns()
        assert (observer.num_queued, observer.queued_rows) == (2, 3)
        clock.advance(3)
        gate.let()
        await gate.entered()
        clock.advance(0.5)
        gate.let()
        await asyncio.wait([first, second, third])
        assert (observer.num_queued, observer.queued_rows) == (0, 0)
        assert observer.left == [(1, 1, "taken"), (2, 3, "taken")]
        event = {"rows": 3, "steps": 33, "padded_steps": 60, "queue_s": [3.0, 3.0], "compute_s": 0.5, "is_ok": True}
        assert observer.batches[1] == event


async def test_with_a_delay_an_unfilled_batch_waits_for_more_rows() -> None:
    gate: Gate[str] = Gate(is_open=True)
    clock = ManualClock()
    async with batching(gate, Limits(max_batch_size=3, max_queue_delay_s=0.5), clock=clock) as batcher:
        first = await begin(batcher, "a")
        clock.advance(0.4)
        second = await begin(batcher, "b")
        assert gate.batches == []
        clock.advance(0.1)
        await asyncio.wait([*first, *second])
        assert gate.batches == [["a", "b"]]
        await asyncio.wait(await begin(batcher, *"cde"))
        assert gate.batches[1:] == [["c", "d", "e"]]
        assert clock.num_alarms == 0


async def test_stop_runs_every_item_that_was_admitted() -> None:
    gate: Gate[str] = Gate()
    clock = ManualClock()
    async with batching(gate, clock=clock) as batcher:
        first = await busy(batcher, gate)
        queued = await begin(batcher, *"ab")
        stopping = asyncio.create_task(batcher.stop())
        await turns()
        with pytest.raises(ModelNotReady):
            await batcher.submit("late")
        assert not stopping.done()
        gate.open()
        await stopping
        assert [await task for task in (first, *queued)] == ["busy", "a", "b"]
        assert repr(batcher) == "<Batcher 'toy' closed: 0 items (0 rows) queued, 0 of 1 workers busy>"
        assert clock.num_alarms == 0
        await batcher.stop()


async def test_stop_without_draining_fails_the_queued_and_waits_for_the_running() -> None:
    gate: Gate[str] = Gate()
    observer = RecordingObserver()
    async with batching(gate, observer=observer) as batcher:
        first = await busy(batcher, gate)
        queued = await begin(batcher, *"ab")
        stopping = asyncio.create_task(batcher.stop(drain=False))
        await asyncio.wait(queued)
        assert all(isinstance(task.exception(), ModelNotReady) for task in queued)
        assert not stopping.done()
        gate.let()
        await stopping
        assert await first == "busy"
        assert (2, 2, "stopped") in observer.left


async def test_stop_gives_up_after_its_grace() -> None:
    gate: Gate[str] = Gate()
    clock = ManualClock()
    async with batching(gate, clock=clock) as batcher:
        first = await busy(batcher, gate)
        queued = await begin(batcher, "a")
        stopping = asyncio.create_task(batcher.stop(grace_s=2))
        await turns()
        clock.advance(2)
        await stopping
        with pytest.raises(ModelNotReady):
            await first
        with pytest.raises(ModelNotReady):
            await queued[0]


async def test_before_start_nothing_is_taken() -> None:
    batcher: Batcher[str, str] = Batcher(list, Limits())
    with pytest.raises(ModelNotReady):
        await batcher.submit("a")
    await batcher.stop()


async def test_a_request_of_many_items_is_answered_in_order() -> None:
    async with batching(lambda payloads: [payload * 10 for payload in payloads], num_workers=2) as batcher:
        assert await batcher.submit_all([Submission(number) for number in range(1000)]) == [number * 10 for number in range(1000)]
        assert await batcher.submit_all([]) == []


async def test_a_request_may_have_more_rows_than_the_queue_and_leaves_room_for_others() -> None:
    gate: Gate[Any] = Gate()
    async with batching(gate, Limits(max_batch_size=4, max_queue_size=10)) as batcher:
        large = asyncio.create_task(batcher.submit_all([Submission(number, rows=4) for number in range(20)]))
        await gate.entered()
        await turns()
        assert batcher.queued_rows <= 8
        gate.open()
        assert await large == list(range(20))


async def test_a_request_under_way_waits_for_room_instead_of_being_refused() -> None:
    gate: Gate[Any] = Gate()
    async with batching(gate, Limits(max_batch_size=4, max_queue_size=4)) as batcher:
        await busy(batcher, gate)
        (other,) = await begin(batcher, "other", rows=3)
        large = asyncio.create_task(batcher.submit_all([Submission(number) for number in range(8)]))
        await turns()
        assert batcher.queued_rows == 4
        with pytest.raises(Overloaded):
            await batcher.submit_all([Submission("nothing of this one is under way")])
        gate.open()
        assert await large == list(range(8))
        assert await other == "other"


async def test_a_large_request_fills_its_batches() -> None:
    gate: Gate[int] = Gate(is_open=True)
    async with batching(gate, Limits(max_batch_size=4)) as batcher:
        assert await batcher.submit_all([Submission(number) for number in range(24)]) == list(range(24))
        assert [len(batch) for batch in gate.batches] == [4] * 6


async def test_when_one_item_of_a_request_fails_the_others_are_given_up() -> None:
    gate: Gate[Any] = Gate()
    observer = RecordingObserver()
    poison = InvalidInput("poison")
    async with batching(gate, Limits(max_batch_size=1), observer=observer) as batcher:
        request = asyncio.create_task(batcher.submit_all([Submission(poison), Submission("b"), Submission("c")]))
        await gate.entered()
        gate.let()
        with pytest.raises(InvalidInput):
            await request
        assert batcher.num_queued == 0
    assert "c" not in [payload for batch in gate.batches for payload in batch]
    assert observer.queued_rows == 0


async def test_failures_that_no_request_waits_for_are_not_logged_by_asyncio() -> None:
    """asyncio reports a future's exception that was never looked at, from the garbage collector."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    third_runs = threading.Event()

    def run(payloads: Sequence[str]) -> Sequence[str]:
        match payloads[0]:
            case "first":
                assert third_runs.wait(PATIENCE_S)
            case "third":
                third_runs.set()
        raise InvalidInput(payloads[0])

    async with batching(run, Limits(max_batch_size=1), num_workers=2) as batcher:
        # The worker that takes the third gets it only after the second has failed.
        request = asyncio.create_task(batcher.submit_all([Submission("first"), Submission("second"), Submission("third")]))
        await asyncio.wait([request])
        assert repr(request.exception()) == "InvalidInput('first')"
        del request
    gc.collect()
    assert complaints == []


async def test_a_cancelled_request_takes_all_its_items_along() -> None:
    gate: Gate[Any] = Gate()
    async with batching(gate, Limits(max_batch_size=1)) as batcher:
        await busy(batcher, gate)
        request = asyncio.create_task(batcher.submit_all([Submission("a"), Submission("b")]))
        await turns()
        assert batcher.num_queued == 2
        request.cancel()
        await asyncio.wait([request])
        assert batcher.num_queued == 0
    assert gate.batches == [["busy"]]


async def test_the_deadline_of_a_request_is_that_of_each_item() -> None:
    gate: Gate[Any] = Gate()
    clock = ManualClock()
    async with batching(gate, Limits(max_batch_size=1), clock=clock) as batcher:
        request = asyncio.create_task(
            batcher.submit_all([Submission("a"), Submission("b"), Submission("c")], deadline=clock.now() + 1)
        )
        await gate.entered()
        clock.advance(1)
        with pytest.raises(DeadlineExceeded):
            await request
        assert batcher.num_queued == 0


@pytest.mark.parametrize("seed", range(3))
async def test_in_any_turmoil_each_item_gets_its_own_result_or_reason(seed: int) -> None:
    draw = random.Random(seed)
    observer = RecordingObserver()
    gate: Gate[Any] = Gate(is_open=True)
    batcher: Batcher[Any, Any] = Batcher(gate, Limits(4, 400, 40), 2, observer=observer)
    await batcher.start()
    outcomes: Counter[str] = Counter()

    async def call(number: int) -> None:
        await turns(draw.randrange(30))
        is_poison = draw.random() < 0.1
        payload = ValueError(number) if is_poison else number
        timeout_s = draw.choice([None, 0.0005, 60.0])
        deadline = None if timeout_s is None else MonotonicClock().now() + timeout_s
        facts = {"rows": draw.randint(1, 5), "steps": draw.randint(1, 90), "key": draw.randrange(2)}
        task = asyncio.create_task(batcher.submit(payload, deadline=deadline, **facts))
        if draw.random() < 0.2:
            await turns(draw.randrange(4))
            task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            outcomes["cancelled"] += 1
        elif (error := task.exception()) is None:
            assert task.result() == number
            assert not is_poison
            outcomes["answered"] += 1
        else:
            assert isinstance(error, DeadlineExceeded | Overloaded | InferenceFailed)
            assert is_poison or not isinstance(error, InferenceFailed)
            outcomes[error.code] += 1

    await asyncio.wait_for(asyncio.gather(*(call(number) for number in range(400))), PATIENCE_S)
    await batcher.stop()
    assert outcomes.total() == 400
    assert outcomes["answered"] > 0
    assert outcomes["inference_failed"] > 0
    assert outcomes["cancelled"] > 0
    assert (batcher.num_queued, batcher.queued_rows, observer.num_queued, observer.queued_rows) == (0, 0, 0, 0)


async def test_the_real_clock_sets_off_its_alarms() -> None:
    clock = MonotonicClock()
    rang = asyncio.Event()
    clock.call_at(clock.now() + 3600, lambda: pytest.fail("an hour passed")).cancel()
    clock.call_at(clock.now() + 0.001, rang.set)
    await asyncio.wait_for(rang.wait(), PATIENCE_S)


async def test_on_the_real_clock_a_deadline_is_kept() -> None:
    gate: Gate[str] = Gate()
    batcher: Batcher[str, str] = Batcher(gate, Limits())
    await batcher.start()
    with pytest.raises(DeadlineExceeded):
        await batcher.submit("a", deadline=MonotonicClock().now() + 0.01)
    gate.open()
    await batcher.stop()


# ----------------------------------------------------------------------------------------------- alone, on the event loop


class WhereItRan:
    """A `run` that remembers which thread it was called on, and answers each payload with itself."""

    def __init__(self) -> None:
        self.threads: list[tuple[list[Any], bool]] = []

    def __call__(self, payloads: Sequence[Any]) -> list[Any]:
        self.threads.append((list(payloads), threading.current_thread() is threading.main_thread()))
        if "broken" in payloads:
            raise ValueError("broken")
        return list(payloads)


INLINE = Limits(cost=CostModel(row_step_ms=0.01), max_inline_ms=0.5)


async def test_a_cheap_item_that_is_alone_needs_no_thread() -> None:
    run, observer = WhereItRan(), RecordingObserver()
    async with batching(run, INLINE, observer=observer) as batcher:
        assert await batcher.submit("cheap", steps=50) == "cheap"
        assert await batcher.submit("dear", steps=51) == "dear"
        tasks = await begin(batcher, "one", "two", steps=5)
        assert await asyncio.gather(*tasks) == ["one", "two"]
    assert run.threads == [(["cheap"], True), (["dear"], False), (["one", "two"], False)]
    assert [batch["rows"] for batch in observer.batches] == [1, 1, 2]


async def test_while_a_thread_computes_the_loop_does_not() -> None:
    gate: Gate[Any] = Gate()
    async with batching(gate, INLINE, num_workers=2) as batcher:
        dear = await begin(batcher, "dear", steps=1000)
        await gate.entered()
        cheap = await begin(batcher, "cheap", steps=1)  # would wait here for ever
        await gate.entered()
        gate.open()
        assert await asyncio.gather(*dear, *cheap) == ["dear", "cheap"]


async def test_a_failure_on_the_event_loop_is_reported_like_any_other() -> None:
    async with batching(WhereItRan(), INLINE) as batcher:
        with pytest.raises(InferenceFailed):
            await batcher.submit("broken")
        assert await batcher.submit("fine") == "fine"


async def test_graphs_that_were_not_measured_run_on_threads() -> None:
    run = WhereItRan()
    async with batching(run) as batcher:
        await batcher.submit("x")
    assert run.threads == [(["x"], False)]


async def test_a_run_that_takes_too_long_is_reported_once_and_quick_ones_are_not() -> None:
    clock, gate, reports = ManualClock(), Gate[int](), []
    batcher = Batcher(gate, Limits(), 1, clock, max_run_s=30.0, on_overdue=lambda: reports.append(clock.now()))
    await batcher.start()
    for _ in range(3):
        quick = asyncio.create_task(batcher.submit(1))
        await gate.entered()
        clock.advance(20.0)
        gate.let()
        await quick
    assert reports == []
    endless = asyncio.create_task(batcher.submit(1))
    await gate.entered()
    clock.advance(29.0)
    assert reports == []
    clock.stall(2.0)
    assert reports == [], "it may be over, and not yet be known to be"
    clock.advance(2.0)
    assert len(reports) == 1
    clock.advance(100.0)
    assert len(reports) == 1
    gate.open()
    await endless
    await batcher.stop()


async def test_threads_start_with_the_first_batch_and_end_when_nothing_runs() -> None:
    names = [thread.name for thread in threading.enumerate()]
    batcher: Batcher[int, int] = Batcher(lambda payloads: list(payloads), Limits(), 3, name="lazy", idle_s=0.005)
    await batcher.start()

    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "lazy"]

    assert threads() == []
    for round_ in range(100):
        answers = await asyncio.gather(*(batcher.submit(number, key=number) for number in range(5)))
        assert answers == list(range(5))
        assert len(threads()) <= 6, "three, and three that are just ending"
        if round_ % 2 == 0:
            for thread in threads():
                await asyncio.to_thread(thread.join, PATIENCE_S)
            assert threads() == []
    await batcher.stop()
    assert "lazy" not in names


async def test_batches_that_come_as_threads_end_are_all_run() -> None:
    batcher: Batcher[int, int] = Batcher(lambda payloads: list(payloads), Limits(), 2, name="lazy", idle_s=0.0005)
    await batcher.start()
    async with asyncio.timeout(PATIENCE_S):
        for number in range(300):
            assert await batcher.submit(number) == number
            await asyncio.sleep(0.0001 * (number % 10))
    await batcher.stop()
