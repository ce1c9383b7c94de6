from __future__ import annotations

import numpy as np
import pytest

from service.tasks.forecast_table import Histories, SeenKeys, Series
from service.tasks.frequencies import is_one_step, read_frequency, step_times, timestamps


def test_a_name_that_was_there_is_found_however_long_ago() -> None:
    seen = SeenKeys()
    for start in range(0, 5000, 7):
        assert seen.add([None, *(f"s{number}" for number in range(start, start + 7))]) is None
    assert len(seen) == 7 * 715
    for number in (0, 2499, 4999):
        assert seen.add(["new", f"s{number}"]) == f"s{number}"
    assert seen.add(["other", "third", "other"]) == "other"


@pytest.mark.parametrize("name", ["S", "15T", "H", "D", "W", "M", "2M", "ME", "QS", "QE", "Y", "YE"])
@pytest.mark.parametrize("start", ["2023-01-31T05:30:00", "2024-02-29T00:00:00", "2023-11-15T23:59:59.250000"])
def test_times_of_many_series_are_those_of_one(name: str, start: str) -> None:
    frequency = read_frequency(name)
    assert frequency is not None
    steps = np.arange(30)
    found = step_times(np.array([start, start], "M8[us]"), frequency, np.stack([steps, steps + 3]))
    expected = np.array(timestamps(start, frequency, range(33)), "M8[us]")
    np.testing.assert_array_equal(found[0], expected[:30])
    np.testing.assert_array_equal(found[1], expected[3:])
    assert is_one_step(expected[1:-1], expected[2:], frequency).all()
    assert not is_one_step(expected[1:-2], expected[3:], frequency).any()
    assert not is_one_step(expected[1:], expected[1:], frequency).any()


FEATURES = 2
LAID_OUT: dict[str, tuple[list[tuple[int, int]], bool]] = {
    # how histories lie in one array, from where to where, and whether that is a view of it
    "side by side": ([(0, 5), (5, 10), (10, 15)], True),
    "with as much between them": ([(2, 5), (7, 10), (12, 15)], False),
    "of several lengths": ([(0, 5), (5, 9), (9, 15)], False),
    "one is left out": ([(0, 5), (10, 15), (15, 20)], False),
    "out of order": ([(5, 10), (0, 5)], False),
    "overlapping": ([(0, 5), (3, 8)], False),
    "one": ([(3, 8)], True),
    "behind what is not there": ([(0, 3), (5, 8)], False),
}


@pytest.mark.parametrize(("bounds", "is_view"), LAID_OUT.values(), ids=LAID_OUT.keys())
def test_histories_are_stacked_however_they_lie(bounds: list[tuple[int, int]], is_view: bool) -> None:
    values = np.arange(20 * FEATURES, dtype=np.float32).reshape(20, FEATURES)
    histories = Histories([Series(values, start, end, 0, end - start, False) for start, end in bounds])
    apart = Histories([Series(values[start:end].copy(), 0, end - start, 0, end - start, False) for start, end in bounds])
    stacked, lengths = histories.stack(range(len(bounds)))
    assert lengths.tolist() == histories.lengths == [end - start for start, end in bounds]
    for row, (start, end) in zip(stacked, bounds, strict=True):
        np.testing.assert_array_equal(row[: end - start], values[start:end])
        assert not row[end - start :].any()
    np.testing.assert_array_equal(apart.stack(range(len(bounds)))[0], stacked)
    assert np.shares_memory(stacked, values) == is_view
