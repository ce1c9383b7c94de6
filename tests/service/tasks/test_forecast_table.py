from __future__ import annotations

import numpy as np
import pytest

from service.tasks.forecast_table import SeenKeys
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
