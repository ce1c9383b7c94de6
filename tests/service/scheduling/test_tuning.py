"""Costs that were planted are found again, bounds follow from them, and measuring ends in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.errors import InferenceFailed
from service.runtime.base import CPU, CUDA
from service.runtime.synthetic import MAX_ROWS
from service.runtime.tensors import LENGTHS, Signature, Tensors, TensorSpec
from service.scheduling.costs import BATCH_MS, CostModel
from service.scheduling.planning import Limits, RequestedLimits
from service.scheduling.tuning import (
    MAX_BULK_ROWS,
    MAX_BULK_STEPS,
    PATIENCE,
    Point,
    choose_limits,
    fit_cost,
    measure,
    tune,
    tune_bulk,
)
from tests.fakes import SUM_SIGNATURE, FakeRuntime, ManualClock

AUTO = RequestedLimits()
FLAT = Signature((TensorSpec("x", "FP32", ("batch", 3)),), (TensorSpec("y", "FP32", ("batch", 3)),))
Cost = Callable[[int, int], float]
"""(rows, steps) → milliseconds."""

# Like a 2x64 LSTM: a step costs 1 µs and 1 µs per row.
LSTM = CostModel(overhead_ms=0.03, row_ms=0.001, step_ms=0.001, row_step_ms=0.001)
# Like one whose weights do not fit into the cache: what costs is to read them, once per step.
LARGE = CostModel(overhead_ms=0.1, row_ms=0.0, step_ms=2.0, row_step_ms=0.05)


class Timed(FakeRuntime):
    """A runtime that takes so many milliseconds of a manual clock per run."""

    def __init__(self, cost: Cost, signature: Signature = SUM_SIGNATURE, provider: str = CPU) -> None:
        super().__init__(signature, self._take, provider=provider)
        self.clock = ManualClock()
        self.sizes: list[tuple[int, int]] = []
        self._cost = cost

    def _take(self, tensors: Tensors) -> Tensors:
        array = next(iter(tensors.values()))
        size = array.shape[0], array.shape[1] if LENGTHS in tensors else 1
        self.sizes.append(size)
        self.clock.advance(self._cost(*size) / 1000)
        return {}

    def measured(self, num_steps: int = 168, budget_s: float = 0.1) -> list[Point]:
        signature = Signature(self.inputs, self.outputs)
        now = self.clock.now
        return measure(self, signature, num_steps=num_steps, budget_s=budget_s, clock=now, stopwatch=now)

    def limits(self, requested: RequestedLimits = AUTO, *, num_steps: int = 168, target_ms: float = 50.0) -> Limits:
        signature = Signature(self.inputs, self.outputs)
        tuning = tune(
            self,
            signature,
            requested,
            num_steps=num_steps,
            latency_target_ms=target_ms,
            budget_s=0.1,
            clock=self.clock.now,
            stopwatch=self.clock.now,
        )
        assert tuning is not None
        return tuning.limits


# ----------------------------------------------------------------------------------------------------------- measuring


@pytest.mark.parametrize("cost", [LSTM, CostModel(0.0, 0.0, 0.0, 0.002), CostModel(0.04, 0.007, 0.0001, 0.0001)])
def test_planted_costs_are_found_again(cost: CostModel) -> None:
    found = fit_cost(Timed(cost.predict_ms).measured())
    for rows, steps in [(1, 1), (3, 50), (64, 8), (30, 168), (200, 400)]:
        assert found.predict_ms(rows, steps) == pytest.approx(cost.predict_ms(rows, steps), rel=1e-3)


def test_a_model_without_time_is_measured_by_rows_alone() -> None:
    runtime = Timed(CostModel(overhead_ms=0.2, row_ms=0.05).predict_ms, FLAT)
    found = fit_cost(runtime.measured(num_steps=1), has_time=False)
    assert {steps for _, steps in runtime.sizes} == {1}
    assert astuple(found) == pytest.approx((0.2, 0.05, 0.0, 0.0))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99))
def test_noise_that_only_adds_changes_little(seed: int) -> None:
    draw = np.random.default_rng(seed)

    def noisy(rows: int, steps: int) -> float:
        # A third of the runs are held up, by up to ten times what they cost.
        return LSTM.predict_ms(rows, steps) * (1 + 10 * draw.random() * (draw.random() < 0.33))

    found = fit_cost(Timed(noisy).measured())
    assert found.predict_ms(8, 100) == pytest.approx(LSTM.predict_ms(8, 100), rel=0.5)


@pytest.mark.parametrize("row_ms", [0.0001, 0.01, 1.0, 20.0, 100.0])
@pytest.mark.parametrize("signature", [SUM_SIGNATURE, FLAT], ids=["time", "no time"])
def test_measuring_ends_in_time_after_the_first_run(row_ms: float, signature: Signature) -> None:
    cost = CostModel(row_ms=row_ms, row_step_ms=row_ms / 10)
    runtime = Timed(cost.predict_ms, signature)
    began = runtime.clock.now()
    assert runtime.measured(budget_s=0.1)
    first_s = cost.predict_ms(*runtime.sizes[0]) / 1000
    assert runtime.clock.now() - began <= max(0.1, first_s) + 1e-9


def test_of_a_graph_that_takes_a_second_one_run_must_do() -> None:
    runtime = Timed(lambda rows, steps: 1000.0)
    [point] = runtime.measured()
    assert (point.rows, point.steps) == (1, 8)
    assert point.ms == pytest.approx(1000.0)
    assert runtime.sizes == [(1, 8)]


def test_where_others_have_the_core_measuring_is_more_patient_but_not_endless() -> None:
    runtime = Timed(LSTM.predict_ms)
    began = runtime.clock.now()
    # The thread's own time stands still: all that passes is others'.
    points = measure(runtime, SUM_SIGNATURE, num_steps=168, budget_s=0.1, clock=runtime.clock.now, stopwatch=lambda: 0.0)
    last_s = LSTM.predict_ms(*runtime.sizes[-1]) / 1000
    assert points
    assert 0.1 < runtime.clock.now() - began - last_s <= PATIENCE * 0.1


def test_the_least_of_several_runs_counts() -> None:
    first: set[tuple[int, int]] = set()

    def slow_at_first(rows: int, steps: int) -> float:
        factor = 1 if (rows, steps) in first else 5
        first.add((rows, steps))
        return factor * LSTM.predict_ms(rows, steps)

    *points, dearest = Timed(slow_at_first).measured()
    assert dearest.ms > max(point.ms for point in points)  # for which time may be up after the first run
    assert [point.ms for point in points] == [pytest.approx(LSTM.predict_ms(p.rows, p.steps)) for p in points]


def test_batches_beyond_the_best_are_not_tried_to_the_end() -> None:
    def worse_when_large(rows: int, steps: int) -> float:
        return LSTM.predict_ms(rows, steps) * max(1.0, rows / 16)

    rows = {point.rows for point in Timed(worse_when_large).measured() if point.steps > 8}
    assert 16 in rows
    assert MAX_ROWS not in rows


def test_a_batch_that_the_device_cannot_hold_ends_the_climb_and_not_the_load() -> None:
    def limited(rows: int, steps: int) -> float:
        if rows > 16:
            raise InferenceFailed("out of memory")
        return LSTM.predict_ms(rows, steps)

    assert max(point.rows for point in Timed(limited).measured()) == 16


# ------------------------------------------------------------------------------------------------------------ deciding


def test_fit_is_never_negative_and_puts_unknown_time_down_to_steps() -> None:
    assert astuple(fit_cost([Point(1, 8, 4.0)])) == pytest.approx((0.0, 0.0, 0.0, 0.5))
    cost = fit_cost([Point(1, 8, 4.0), Point(4, 8, 5.0), Point(16, 8, 3.0)])
    assert min(cost.overhead_ms, cost.row_ms, cost.step_ms, cost.row_step_ms) >= 0


times = st.floats(1e-4, 1e3)


@given(st.lists(st.builds(Point, st.integers(1, 256), st.integers(1, 400), times), min_size=1, max_size=12))
def test_whatever_was_measured_the_cost_never_falls(points: list[Point]) -> None:
    cost = fit_cost(points)
    assert cost.predict_ms(2, 10) >= cost.predict_ms(1, 10) >= 0
    assert cost.predict_ms(2, 11) >= cost.predict_ms(2, 10)


parts = st.floats(0, 5)
costs = st.builds(CostModel, parts, parts, st.floats(0, 0.5), st.floats(0, 0.1))


@settings(max_examples=30, deadline=None)  # each example measures, and makes up batches
@given(costs, st.integers(2, 400), st.floats(0.1, 500), st.data())
def test_no_batch_within_the_bounds_is_predicted_to_miss_the_target(
    cost: CostModel, num_steps: int, target_ms: float, data: st.DataObject
) -> None:
    assume(cost.predict_ms(1, 1) > 1e-3)
    limits = Timed(cost.predict_ms).limits(num_steps=num_steps, target_ms=target_ms)
    rows = data.draw(st.integers(2, max(2, limits.max_batch_size)))
    longest = min(num_steps, limits.max_padded_steps // rows)
    assume(longest >= 1 and rows <= limits.max_batch_size)
    bound_ms = max(target_ms, 2 * limits.cost.predict_ms(1, num_steps))
    assert limits.cost.predict_ms(rows, longest) <= bound_ms * (1 + 1e-6)


def test_the_best_batch_is_the_smallest_that_is_good_enough() -> None:
    def best_at_16(rows: int, steps: int) -> float:
        return rows * steps * 0.002 * (1 + abs(math.log2(rows / 16)) / 5)

    limits = Timed(best_at_16).limits(num_steps=100)
    assert limits.max_padded_steps == 16 * 100


def rows_chosen(rates: Mapping[int, float], *, num_steps: int = 336) -> int:
    """The rows of the longest rows in a batch, for these rows per millisecond of batches, the batch's own cost included."""
    points = [Point(rows, num_steps, rows / rate - BATCH_MS) for rows, rate in rates.items()]
    limits = choose_limits(points, fit_cost(points), AUTO, num_steps=num_steps, latency_target_ms=50.0)
    return limits.max_padded_steps // num_steps


# Rows per millisecond of `forecast-hourly` on a busy machine, where 32 and 64 rows would run at 14 and 15 on an idle one.
NOISY = {1: 2.2, 2: 3.9, 4: 6.9, 8: 9.3, 16: 11.6, 32: 12.1, 64: 11.0}


def test_noise_does_not_choose_fewer_rows_than_usual_for_a_cheap_graph() -> None:
    assert NOISY[16] > 0.95 * max(NOISY.values())  # by what was measured 16 are good enough
    assert rows_chosen(NOISY) == 32
    assert rows_chosen(NOISY | {32: 10.5}) == 32


@pytest.mark.parametrize("rates", [NOISY | {32: 9.0, 64: 8.0}, {rows: rate / 10 for rows, rate in NOISY.items()}])
def test_fewer_rows_than_usual_are_chosen_where_more_are_clearly_slower_or_take_long(rates: Mapping[int, float]) -> None:
    assert rows_chosen(rates) == 16


def test_where_time_was_up_the_fitted_cost_tells_whether_more_rows_would_still_gain() -> None:
    gaining = CostModel(overhead_ms=1.0, row_ms=0.1)
    flat = CostModel(overhead_ms=0.0, row_ms=1.0)  # nothing but the batch's own cost is saved
    for cost, expected in ((gaining, 32), (flat, 8)):
        rates = {rows: rows / (cost.predict_ms(rows, 1) + BATCH_MS) for rows in (1, 2, 4)}
        assert rows_chosen(rates, num_steps=1) == expected


def test_a_graph_that_gains_by_every_row_gets_large_batches() -> None:
    limits = Timed(LARGE.predict_ms).limits(num_steps=100, target_ms=1.0)
    # One row of 100 steps takes 205 ms whatever the target: twice as long is allowed, and holds forty rows.
    assert LARGE.predict_ms(1, 100) == pytest.approx(205.1)
    assert 30 * 100 <= limits.max_padded_steps <= 42 * 100


def test_a_lower_target_makes_smaller_batches() -> None:
    padded = [Timed(LSTM.predict_ms).limits(target_ms=target_ms).max_padded_steps for target_ms in (0.5, 1.5, 50.0)]
    assert padded == sorted(padded)
    assert padded[0] < padded[-1]


@pytest.mark.parametrize("given", [RequestedLimits(7), RequestedLimits(None, 99), RequestedLimits(7, 99)])
def test_a_number_of_the_operator_wins(given: RequestedLimits) -> None:
    limits = Timed(LSTM.predict_ms).limits(given)
    assert limits.max_batch_size == 7 if given.max_batch_size else limits.max_batch_size > 7
    assert limits.max_padded_steps == 99 if given.max_padded_steps else limits.max_padded_steps > 99
    assert limits.cost.row_step_ms == pytest.approx(LSTM.row_step_ms, rel=0.01)


def test_other_limits_stay() -> None:
    limits = Timed(LSTM.predict_ms).limits(RequestedLimits(max_queue_size=5, max_queue_delay_s=0.25))
    assert (limits.max_queue_size, limits.max_queue_delay_s) == (5, 0.25)


@pytest.mark.parametrize("signature", [SUM_SIGNATURE, FLAT], ids=["time", "no time"])
def test_a_graph_that_costs_nothing_gets_the_largest_batch_that_was_tried(signature: Signature) -> None:
    limits = Timed(lambda rows, steps: 0.0, signature).limits()
    assert limits.max_batch_size == MAX_ROWS
    assert limits.max_padded_steps >= MAX_ROWS


def test_on_cuda_larger_batches_are_tried() -> None:
    assert Timed(lambda rows, steps: 0.01, provider=CUDA).limits().max_batch_size > MAX_ROWS


def test_when_time_was_up_before_the_best_batch_was_seen_the_usual_one_is_taken() -> None:
    points = [Point(1, 10, 5.0)]
    limits = choose_limits(points, CostModel(overhead_ms=5.0), AUTO, num_steps=10, latency_target_ms=50.0)
    assert (limits.max_batch_size, limits.max_padded_steps) == (Limits().max_batch_size, Limits().max_batch_size * 10)


def test_a_graph_that_refuses_made_up_rows_is_not_tuned() -> None:
    def refuse(rows: int, steps: int) -> float:
        raise InferenceFailed("no such token")

    runtime = Timed(refuse)
    assert tune(runtime, SUM_SIGNATURE, AUTO, num_steps=8, latency_target_ms=50, budget_s=0.1) is None


# ---------------------------------------------------------------------------------------------------------------- bulk


def bulk(
    runtime: Timed, limits: Limits, requested: RequestedLimits = AUTO, *, num_steps: int = 168, budget_s: float = 1.0
) -> Limits:
    signature = Signature(runtime.inputs, runtime.outputs)
    now = runtime.clock.now
    return tune_bulk(runtime, signature, limits, requested, num_steps=num_steps, budget_s=budget_s, clock=now, stopwatch=now)


def test_batches_of_files_grow_as_long_as_that_brings_something() -> None:
    limits = Limits(max_batch_size=32, max_padded_steps=16 * 168)

    def best_at_64(rows: int, steps: int) -> float:
        return rows * (1.0 if rows == 64 else 1.2)

    found = bulk(Timed(best_at_64), limits)
    assert (found.max_batch_size, found.max_padded_steps) == (64, 64 * 168)
    assert bulk(Timed(LARGE.predict_ms), limits, budget_s=100.0).max_batch_size == MAX_BULK_ROWS
    longest = bulk(Timed(LARGE.predict_ms), limits, num_steps=2048, budget_s=1000.0)
    assert limits.max_padded_steps < longest.max_padded_steps <= MAX_BULK_STEPS


def test_batches_of_files_are_as_of_requests_where_larger_ones_bring_nothing() -> None:
    limits = Limits(max_batch_size=32, max_padded_steps=16 * 168)
    assert bulk(Timed(lambda rows, steps: rows * 1.0), limits) == limits
    assert bulk(Timed(lambda rows, steps: rows * rows * 1.0), limits) == limits


def test_numbers_of_the_operator_hold_for_files_too() -> None:
    runtime = Timed(LARGE.predict_ms)
    for requested in (RequestedLimits(max_batch_size=8), RequestedLimits(max_padded_steps=100)):
        limits = requested.with_defaults()
        assert bulk(runtime, limits, requested) == limits
    assert not runtime.sizes


def test_measuring_for_files_ends_in_time_and_with_a_batch_that_does_not_fit() -> None:
    runtime = Timed(lambda rows, steps: 300.0 * rows)
    bulk(runtime, Limits(max_batch_size=2))
    assert runtime.sizes == [(2, 168)]

    def limited(rows: int, steps: int) -> float:
        if rows > 64:
            raise InferenceFailed("out of memory")
        return 100.0 + rows

    assert bulk(Timed(limited), Limits(max_batch_size=32, max_padded_steps=32 * 168), budget_s=10.0).max_batch_size == 64
