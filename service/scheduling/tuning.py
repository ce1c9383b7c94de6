"""How large a batch of one graph should be: its cost is measured on the provider that runs it, and the bounds follow.

`measure` runs the graph, within a bound of time; `fit_cost` and `choose_limits` are pure. Time comes as an argument.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.errors import ServiceError
from service.runtime.base import CPU, CUDA, Runtime
from service.runtime.synthetic import MAX_ROWS, USUAL_STEPS, synthetic
from service.runtime.tensors import Signature, Tensors
from service.scheduling.costs import BATCH_MS, CostModel
from service.scheduling.planning import DEFAULTS, Limits, RequestedLimits

log = logging.getLogger(__name__)

# More rows are taken only for what they bring: a batch within 5 % of the best rate is as good, and its rows wait less.
GOOD_ENOUGH = 0.95
# The rate of one batch of `forecast-hourly` differs by so much from load to load on a busy machine (14 % of eight loads).
NOISE = 0.15
# A run that takes so much of the target of latency is short: fewer rows would save no wait that counts.
SHORT_SHARE = 0.1
# A GPU still gains where a core has long been full. TensorRT would build another engine for more than it was shown.
MAX_ROWS_ON_CUDA = 1024
SHORT_STEPS = 8
WORTH_MORE = 1.03
MAX_VAIN = 3
NUM_ROUNDS = 6
# Of work that nobody waits for: the largest batch, which bounds its memory, and how it is looked for.
MAX_BULK_ROWS = 256
MAX_BULK_STEPS = 65_536
MAX_BULK_VAIN = 2
NUM_BULK_RUNS = 3
# How much longer than its budget measuring may take where other processes have the core.
PATIENCE = 3
# A lone item's run may hold up the event loop for so long: a tenth of what would be noticed.
MAX_INLINE_MS = 1.0
# The least that a run is taken to cost: below it a clock is too coarse.
TICK_MS = 1e-4

TimeSource = Callable[[], float]
"""Seconds that only go forward."""

_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, slots=True)
class Point:
    """The least time that a run of `rows` rows of `steps` steps took."""

    rows: int
    steps: int
    ms: float

    @property
    def rows_per_s(self) -> float:
        """What a server gets out of such runs: what each batch costs it beside the graph is in it."""
        return self.rows / (self.ms + BATCH_MS) * 1000


@dataclass(frozen=True)
class Tuning:
    """What was measured of a graph, and the limits that follow."""

    limits: Limits
    points: tuple[Point, ...]
    best: Point
    """The run that the bounds are drawn from: the smallest that is good enough, at the longest rows that were measured."""


def tune(
    runtime: Runtime,
    signature: Signature,
    requested: RequestedLimits,
    *,
    num_steps: int | None,
    latency_target_ms: float,
    budget_s: float,
    clock: TimeSource = time.perf_counter,
    stopwatch: TimeSource | None = None,
) -> Tuning | None:
    """Measure the graph and choose the limits that are not requested; None where the graph refuses made-up rows.

    `num_steps` is the length of a long row, None where the model does not say. Graphs of one process are measured one at
    a time, or they would measure each other.
    """
    if stopwatch is None:
        # On the CPU a graph runs on the thread that calls it, whose own time does not pass while another
        # process has the core: beside three busy processes on two cores, wall-clock minima were still up to 8 times off.
        stopwatch = time.thread_time if runtime.provider == CPU else clock
    has_time = signature.time_input is not None
    num_steps = max(num_steps or USUAL_STEPS, signature.min_length) if has_time else 1
    with _ONE_AT_A_TIME:
        try:
            points = measure(
                runtime,
                signature,
                num_steps=num_steps,
                budget_s=budget_s,
                max_rows=MAX_ROWS_ON_CUDA if runtime.provider == CUDA else MAX_ROWS,
                clock=clock,
                stopwatch=stopwatch,
            )
        except ServiceError as exc:
            log.info("the graph takes no made-up rows, its cost is assumed: %s", exc.message)
            return None
    cost = fit_cost(points, has_time=has_time)
    limits = choose_limits(points, cost, requested, num_steps=num_steps, latency_target_ms=latency_target_ms)
    limits = replace(limits, max_inline_ms=MAX_INLINE_MS if runtime.provider == CPU else 0.0)
    return Tuning(limits, tuple(points), _smallest_good_enough(_longest_rows(points)))


def tune_bulk(
    runtime: Runtime,
    signature: Signature,
    limits: Limits,
    requested: RequestedLimits,
    *,
    num_steps: int,
    budget_s: float,
    clock: TimeSource = time.perf_counter,
    stopwatch: TimeSource | None = None,
) -> Limits:
    """The limits for work that nobody waits for: these, or larger ones where larger batches of long rows are faster.

    Batches are doubled as long as that brings something. Numbers that are requested stay. `num_steps`, the clocks and the end
    of measuring as in `tune`.
    """
    if requested.max_batch_size or requested.max_padded_steps:
        return limits
    stopwatch = stopwatch or (time.thread_time if runtime.provider == CPU else clock)
    num_steps = max(num_steps, signature.min_length) if signature.time_input is not None else 1
    first = max(1, min(limits.max_batch_size, limits.max_padded_steps // num_steps))
    ends, runs_end = clock() + PATIENCE * budget_s, stopwatch() + budget_s
    least: dict[int, float] = {}
    with _ONE_AT_A_TIME:
        try:
            rows, num_vain = first, 0
            while (
                rows <= MAX_BULK_ROWS and rows * num_steps <= max(MAX_BULK_STEPS, first * num_steps) and num_vain < MAX_BULK_VAIN
            ):
                batch = synthetic(signature, [num_steps] * rows)
                before = min((seconds / size for size, seconds in least.items()), default=math.inf)
                for _ in range(NUM_BULK_RUNS):
                    # The runs that are to come take about twice as long as the last ones.
                    if least and (stopwatch() + 2 * least[max(least)] > runs_end or clock() > ends):
                        break
                    started = stopwatch()
                    runtime.run(batch)
                    least[rows] = min(least.get(rows, math.inf), max(stopwatch() - started, TICK_MS / 1000))
                if rows not in least:
                    break
                num_vain = 0 if before > WORTH_MORE * least[rows] / rows else num_vain + 1
                rows *= 2
        except ServiceError as exc:
            log.info("larger batches are not measured: %s", exc.message)
    best = min(least, key=lambda size: least[size] / size, default=first)
    if best == first or least[first] / first < WORTH_MORE * least[best] / best:
        return limits
    return replace(
        limits,
        max_batch_size=max(limits.max_batch_size, best),
        max_padded_steps=max(limits.max_padded_steps, best * num_steps),
    )


# ----------------------------------------------------------------------------------------------------------- measuring


def measure(
    runtime: Runtime,
    signature: Signature,
    *,
    num_steps: int,
    budget_s: float,
    max_rows: int = MAX_ROWS,
    clock: TimeSource = time.perf_counter,
    stopwatch: TimeSource = time.perf_counter,
) -> list[Point]:
    """Run made-up rows, from cheap to dear: short ones in ever larger batches, then rows of up to `num_steps`.

    `stopwatch` times the runs. Only the first is taken unseen: any other is left out when it would, by the ones before,
    go beyond `budget_s`, or begin after `PATIENCE` times as long by `clock`. A larger batch is not tried when the last ones
    brought little. Noise only ever adds, and comes in bursts: what was tried is run again in rounds, and the least time of
    each counts. Raises what the graph raises.
    """
    stops, ends = stopwatch() + budget_s, clock() + PATIENCE * budget_s
    batches: dict[tuple[int, int], Tensors] = {}
    least_ms: dict[tuple[int, int], float] = {}

    def run(size: tuple[int, int]) -> None:
        started = stopwatch()
        runtime.run(batches[size])
        run_ms = max((stopwatch() - started) * 1000, TICK_MS)
        least_ms[size] = min(run_ms, least_ms.get(size, run_ms))

    def has_time_for(expected_ms: float) -> bool:
        return stopwatch() + expected_ms / 1000 <= stops and clock() + expected_ms / 1000 <= ends

    def climb(steps: int, growth: int, expected_ms: float) -> None:
        best_rate, num_vain = 0.0, 0
        for rows in _powers(growth, max_rows):
            if least_ms and not has_time_for(expected_ms):
                return
            size = rows, steps
            batches[size] = synthetic(signature, [steps] * rows)
            try:
                run(size)
            except ServiceError:
                if rows == 1:
                    raise
                del batches[size]  # too large for the device's memory
                return
            if has_time_for(least_ms[size]):
                run(size)  # the first one fetches memory
            rate = Point(rows, steps, least_ms[size]).rows_per_s
            num_vain = 0 if rate > WORTH_MORE * best_rate else num_vain + 1
            if num_vain == MAX_VAIN:
                return
            best_rate = max(best_rate, rate)
            expected_ms = growth * least_ms[size]  # rows side by side cost no more than one after the other

    short = min(max(SHORT_STEPS, signature.min_length), num_steps)
    climb(short, 4, 0.0)
    # Long enough to see what a step costs, short enough that batches of 16 can be seen several times within the budget.
    batch_ms = next((ms for (rows, _), ms in least_ms.items() if rows >= 16), max(least_ms.values()))
    long = min(num_steps, int(short * budget_s * 1000 / 8 / batch_ms))
    if long > short:
        climb(long, 2, least_ms[1, short] * long / short)
    for _ in range(NUM_ROUNDS):
        for size in batches:
            if has_time_for(least_ms[size]):
                run(size)
    return [Point(rows, steps, ms) for (rows, steps), ms in least_ms.items()]


def _powers(base: int, limit: int) -> Iterator[int]:
    return itertools.takewhile(lambda power: power <= limit, (base**exponent for exponent in itertools.count()))


# ------------------------------------------------------------------------------------------------------------ deciding


def fit_cost(points: Sequence[Point], *, has_time: bool = True) -> CostModel:
    """The cost model nearest to the points in relative terms, none of its parts negative.

    Non-negative least squares (Lawson and Hanson, 1974) by trying every set of parts, of which there are 15: the optimum is
    the plain least squares of the parts that it does not set to 0. Where the points do not separate the parts, time is put
    down to rows and steps rather than to overhead.
    """
    rows, steps, ms = (np.array(column, np.float64) for column in zip(*((p.rows, p.steps, p.ms) for p in points), strict=True))
    columns = np.stack([rows * steps, steps, rows, np.ones_like(rows)], axis=1) / ms[:, np.newaxis]
    usable = range(4) if has_time else (2, 3)
    best, best_error = np.zeros(4), np.inf
    for size in range(1, len(usable) + 1):
        for parts in itertools.combinations(usable, size):
            chosen = columns[:, parts]
            scale = np.linalg.norm(chosen, axis=0)
            found, _, rank, _ = np.linalg.lstsq(chosen / scale, np.ones_like(ms))
            if rank < size or found.min() < 0:
                continue
            error = float(np.square(chosen @ (found / scale) - 1).sum())
            if error < best_error - 1e-12:
                best, best_error = np.zeros(4), error
                best[list(parts)] = found / scale
    row_step_ms, step_ms, row_ms, overhead_ms = (float(value) for value in best)
    return CostModel(overhead_ms, row_ms, step_ms, row_step_ms)


def choose_limits(
    points: Sequence[Point], cost: CostModel, requested: RequestedLimits, *, num_steps: int, latency_target_ms: float
) -> Limits:
    """The limits with the measured cost, and the bounds that it suggests; a number that the operator requested stays.

    Long rows decide on the padded steps, short ones on the rows. No batch that the chosen bounds allow is predicted to
    take longer than `latency_target_ms`, or than twice the longest row alone where that is more: a large graph gains most
    by batches, and its requests take long anyway.
    """
    bound_ms = max(latency_target_ms, 2 * cost.predict_ms(1, num_steps))
    short_ms = SHORT_SHARE * latency_target_ms
    shortest = [point for point in points if point.steps == points[0].steps]
    long_rows = _most(
        _best_rows(_longest_rows(points), cost, short_ms), lambda rows: cost.predict_ms(rows, num_steps) <= bound_ms
    )
    max_padded_steps = requested.max_padded_steps or long_rows * num_steps
    # Among all shapes of equal padded steps, one of the two ends costs most: the longest rows, or the most rows.
    short_rows = _most(
        _best_rows(shortest, cost, short_ms),
        lambda rows: cost.predict_ms(rows, min(num_steps, max_padded_steps / rows)) <= bound_ms,
    )
    return requested.resolve(max(short_rows, long_rows), max_padded_steps, cost=cost)


def _longest_rows(points: Sequence[Point]) -> list[Point]:
    steps = max(point.steps for point in points)
    return [point for point in points if point.steps == steps]


def _smallest_good_enough(points: Sequence[Point]) -> Point:
    """The smallest batch whose rate is near the best."""
    best = max(point.rows_per_s for point in points)
    return next(point for point in points if point.rows_per_s >= GOOD_ENOUGH * best)


def _best_rows(points: Sequence[Point], cost: CostModel, short_ms: float) -> int:
    """The rows that the graph runs best together, measured at one length.

    Where larger batches were still gaining when time was up, the fitted cost tells how far that goes, up to the usual rows.
    Fewer than the usual ones are best only where that is seen clearly, or where a run of the usual ones takes more than
    `short_ms`: noise makes large batches look slower, since they are measured less often, and never faster.
    """
    usual = DEFAULTS.max_batch_size
    enough = _smallest_good_enough(points)
    if enough.rows >= usual:
        return enough.rows
    if enough is points[-1]:
        sizes = [rows for rows in _powers(2, usual) if rows >= enough.rows]
        return _smallest_good_enough([Point(rows, enough.steps, cost.predict_ms(rows, enough.steps)) for rows in sizes]).rows
    larger = next((point for point in points if point.rows >= usual), None)
    is_short = larger is not None and larger.ms <= short_ms * larger.rows / usual
    if larger is not None and is_short and larger.rows_per_s >= (1 - NOISE) * enough.rows_per_s:
        return usual
    return enough.rows


def _most(rows: int, is_allowed: Callable[[int], bool]) -> int:
    return next((fewer for fewer in range(rows, 1, -1) if is_allowed(fewer)), 1)
