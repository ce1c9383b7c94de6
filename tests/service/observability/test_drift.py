"""Drift: histograms of samples against those of the manifest, over a window, added up over workers."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from service.manifest import FeatureStatistics, Statistics
from service.observability import drift
from service.observability.drift import MAX_ROWS, MAX_SAMPLES, MIN_ROWS, NUM_SLOTS, SAMPLE_S, DriftMonitor, compare
from service.wire import write
from tests.fakes import ManualClock

EVEN = FeatureStatistics(name="x", edges=[0.0, 1.0, 2.0], shares=[0.25, 0.25, 0.25, 0.25])
STATISTICS = Statistics(num_rows=1000, features=[EVEN])
WINDOW_S = 120.0


def feed(clock: ManualClock, sampler: drift.Sampler, values: np.ndarray) -> None:
    """Batches of values, each late enough to be sampled whole."""
    for start in range(0, len(values), MAX_ROWS):
        clock.advance(SAMPLE_S)
        sampler.offer({"x": values[start : start + MAX_ROWS]}, {})


def open_monitor(clock: ManualClock, directory: Path | None = None) -> tuple[DriftMonitor, drift.Sampler]:
    monitor = DriftMonitor(WINDOW_S, directory, clock.now)
    return monitor, monitor.open_sampler("m", "1", STATISTICS, lambda inputs, outputs: {"x": inputs["x"]})


def test_the_measures_are_those_of_the_literature() -> None:
    same = compare(EVEN, np.array([5, 5, 5, 5]))
    assert same is not None
    assert max(same) == pytest.approx(0.0)
    found = compare(EVEN, np.array([10, 20, 30, 40]))
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    assert found is not None
    assert found.psi == pytest.approx(((shares - 0.25) * np.log(shares / 0.25)).sum())
    assert found.ks == pytest.approx(0.2)
    assert compare(EVEN, np.zeros(4, np.int64)) is None
    alone = compare(EVEN, np.array([0, 0, 0, 9]))
    assert alone is not None
    assert alone.psi > 5
    assert alone.ks == pytest.approx(0.75)


def test_rows_are_counted_in_the_bins_and_scored_once_there_are_enough() -> None:
    clock = ManualClock()
    monitor, sampler = open_monitor(clock)
    feed(clock, sampler, np.tile([-1.0, 0.5, 2.0, 9.0], MIN_ROWS // 4 - 1))
    monitor.update()
    assert list(sampler.drift) == [MIN_ROWS - 4, {}]
    feed(clock, sampler, np.array([-1.0, 0.5, 2.0, 9.0, np.nan, np.inf]))
    monitor.update()
    assert max(sampler.drift.features["x"]) == pytest.approx(0.0)
    assert monitor.collect() == {("m", "1"): sampler.drift}
    assert sampler.describe() == {"num_rows": MIN_ROWS + 2, "features": {"x": {"psi": 0.0, "ks": 0.0}}}


def test_what_has_left_the_window_counts_no_more() -> None:
    clock = ManualClock()
    monitor, sampler = open_monitor(clock)
    feed(clock, sampler, np.full(MIN_ROWS, 9.0))
    monitor.update()
    assert sampler.drift.features["x"].psi > 1
    clock.advance(WINDOW_S + WINDOW_S / NUM_SLOTS)
    feed(clock, sampler, np.tile([-1.0, 0.5, 2.0, 9.0], MIN_ROWS // 4))
    monitor.update()
    assert sampler.drift.num_rows == MIN_ROWS
    assert sampler.drift.features["x"].psi == pytest.approx(0.0)


def test_samples_are_few_small_and_copies() -> None:
    clock = ManualClock()
    _, sampler = open_monitor(clock)
    values = np.arange(1000.0)
    sampler.offer({"x": values}, {})
    sampler.offer({"x": values}, {})  # at once: not sampled
    values[:] = -1
    sampler.count()
    num_rows, (counts,) = sampler.totals()
    assert 0 < num_rows <= MAX_ROWS
    assert counts[0] <= 1
    clock.advance(SAMPLE_S)
    sampler.offer({"x": np.zeros((2, 10**6))}, {})  # rows that are too large
    sampler.count()
    assert sampler.totals()[0] == num_rows
    feed(clock, sampler, np.zeros(3 * MAX_SAMPLES * MAX_ROWS))
    sampler.count()
    assert sampler.totals()[0] == num_rows + MAX_SAMPLES * MAX_ROWS


def test_workers_add_up_what_they_count(tmp_path: Path) -> None:
    clock = ManualClock()
    monitor, sampler = open_monitor(clock, tmp_path)
    feed(clock, sampler, np.full(MIN_ROWS, 9.0))
    entries = [
        ["m", "1", sampler.fingerprint, MIN_ROWS, [[MIN_ROWS, 0, 0, 0]]],
        ["m", "1", sampler.fingerprint + 1, 10**6, [[0, 10**6]]],  # of other histograms
        ["other", "1", 1, 10**6, [[1]]],
    ]
    (tmp_path / "drift_1.json").write_bytes(write(entries))
    monitor.update()
    assert sampler.drift.num_rows == 2 * MIN_ROWS
    assert sampler.drift.features["x"].ks == pytest.approx(0.25)
    (tmp_path / "drift_1.json").unlink()
    monitor.update()
    assert sampler.drift.num_rows == MIN_ROWS


def test_a_sampler_ends_with_its_model_and_one_that_fails_harms_no_other() -> None:
    clock = ManualClock()
    monitor, sampler = open_monitor(clock)
    broken = monitor.open_sampler("b", "1", STATISTICS, lambda inputs, outputs: {"x": inputs["missing"]})
    feed(clock, broken, np.zeros(4))
    feed(clock, sampler, np.zeros(4))
    monitor.update()
    assert sampler.drift.num_rows == 4
    other = monitor.open_sampler("other", "1", STATISTICS, lambda inputs, outputs: {})
    assert ("other", "1") in monitor.collect()
    del other
    gc.collect()
    assert ("other", "1") not in monitor.collect()
