"""Windows of streams: what follows each step, gaps, and where the parts of a series begin and end."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.series import Series
from training.data.sources import DataError
from training.data.streams import cut_stream, num_streams, sample_streams, validation_stream, window_length
from training.recipe import ForecastSettings

FORECAST = ForecastSettings(context_length=50, horizon=3, streaming=True, quantiles=[0.1, 0.5, 0.9], warm_up=4)


def make_series(*lengths: int, num_features: int = 1) -> Series:
    values = tuple(
        np.arange(length, dtype=np.float64)[:, None] + 1000 * number + 0.25 * np.arange(num_features)
        for number, length in enumerate(lengths)
    )
    names = tuple("abc"[:num_features])
    return Series(tuple(map(str, lengths)), values, names, names[-1:], validation_length=6, test_length=5)


def test_what_follows_each_step_is_its_future() -> None:
    window = cut_stream(make_series(40, num_features=2), FORECAST, 0, 7, 10)
    assert window.history[0, :, 0].tolist() == list(range(7, 17))
    assert window.future.shape == (1, 10, 3, 1)
    assert window.future[0, :, :, 0].tolist() == [[step + ahead + 0.25 for ahead in (1, 2, 3)] for step in range(7, 17)]


def test_windows_lie_in_the_training_parts_and_long_series_give_more_of_them() -> None:
    series = make_series(20, 60)  # training parts of 9 and 49 steps; of the first there is room for one window
    assert num_streams(series, FORECAST, 6) == 1 + 41
    seen = set()
    options = {"length": 6, "batch_size": 8, "num_batches": 60, "missing_share": 0.0}
    for batch in sample_streams(series, FORECAST, rng=np.random.default_rng(0), **options):  # type: ignore[arg-type]
        seen |= {float(history[0, 0]) for history in batch.history}
        assert batch.future.max() < 1000 + 49
        assert not np.isnan(batch.history).any()
    assert seen == {0.0, *(1000.0 + start for start in range(41))}


def test_gaps_take_their_share_of_the_history_and_none_of_the_future() -> None:
    options = {"length": 30, "batch_size": 32, "num_batches": 20, "missing_share": 0.2}
    batches = list(sample_streams(make_series(60), FORECAST, rng=np.random.default_rng(0), **options))  # type: ignore[arg-type]
    share = np.mean([np.isnan(batch.history).mean() for batch in batches])
    assert 0.12 < share < 0.22  # gaps overlap, and those that begin before the window are not in it
    assert not any(np.isnan(batch.future).any() for batch in batches)


def test_a_validation_part_is_read_behind_what_came_before() -> None:
    window, first = validation_stream(make_series(60), FORECAST, 0, 10)
    assert window.history[0, first, 0] == 48  # the last step of the training part
    assert window.future[0, first, :, 0].tolist() == [49, 50, 51]
    assert window.future[0, -1, -1, 0] == 54  # the last of the validation part


def test_a_window_is_no_longer_than_the_longest_training_part() -> None:
    assert window_length(make_series(60, 30), FORECAST, 40) == 40
    assert window_length(make_series(60, 30), FORECAST, 100) == 46
    with pytest.raises(DataError, match="no series is long enough: a window has 4 steps that are not scored and more"):
        window_length(make_series(18), FORECAST, 40)
