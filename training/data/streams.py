"""Windows of series for a network that reads streams: what follows each step is forecast at that step. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.data.series import Array, Float32, Int64, Series
from training.data.sources import DataError
from training.recipe import ForecastSettings

GAP_LENGTHS = (1, 8)
"""Steps of the gaps that are made: a value lost, and a sensor that is silent for a while."""


@dataclass(frozen=True)
class Streams:
    """A batch of windows from their beginning: NaN in `history` is a gap, `future` is what truly follows each step."""

    history: Float32  # (B, T, F)
    lengths: Int64  # (B,)
    future: Float32  # (B, T, horizon, targets)


def sample_streams(
    series: Series,
    forecast: ForecastSettings,
    *,
    length: int,
    batch_size: int,
    num_batches: int,
    missing_share: float,
    rng: np.random.Generator,
) -> Iterator[Streams]:
    """Batches of windows of `length` steps from random places of the training parts, each series as often as it is long.

    `missing_share` of the values are left out, in gaps of `GAP_LENGTHS`.
    """
    counts = np.array(_num_places(series, forecast, length))
    for _ in range(num_batches):
        chosen = rng.choice(len(counts), batch_size, p=counts / counts.sum())
        windows = [cut_stream(series, forecast, int(index), int(rng.integers(counts[index])), length) for index in chosen]
        history = np.stack([window.history[0] for window in windows])
        history[_draw_gaps(history.shape, missing_share, rng)] = np.nan
        future = np.stack([window.future[0] for window in windows])
        yield Streams(history, np.full(batch_size, length, np.int64), future)


def window_length(series: Series, forecast: ForecastSettings, wanted: int) -> int:
    """The steps of a training window: as wanted, or as the longest training part allows.

    Raises DataError where that is not beyond the steps that are not scored.
    """
    longest = max(series.learning_end(i) for i in range(len(series.ids))) - forecast.horizon
    if longest <= forecast.num_unscored:
        raise DataError(
            f"no series is long enough: a window has {forecast.num_unscored} steps that are not scored and more, "
            f"the longest training part leaves {longest}",
            location=("forecast", "warm_up"),
        )
    return min(wanted, longest)


def num_streams(series: Series, forecast: ForecastSettings, length: int) -> int:
    """Places of training windows in all series."""
    return sum(_num_places(series, forecast, length))


def _num_places(series: Series, forecast: ForecastSettings, length: int) -> list[int]:
    """Of training windows in each series."""
    return [max(0, series.learning_end(i) - length - forecast.horizon + 1) for i in range(len(series.ids))]


def validation_stream(series: Series, forecast: ForecastSettings, index: int, length: int) -> tuple[Streams, int]:
    """One row: `length` steps of series `index` to warm up, then its validation part; and the first step that counts."""
    start = max(0, series.training_end(index) - length)
    steps = series.test_start(index) - forecast.horizon - start
    return cut_stream(series, forecast, index, start, steps), series.training_end(index) - 1 - start


def cut_stream(series: Series, forecast: ForecastSettings, index: int, start: int, length: int) -> Streams:
    """`length` steps of series `index` from `start` on, as one row: (1, T, F), and its futures (1, T, horizon, targets)."""
    values: Array = series.values[index]
    targets = values[start + 1 : start + length + forecast.horizon, series.target_indices].astype(np.float32)
    future = np.lib.stride_tricks.sliding_window_view(targets, forecast.horizon, axis=0)  # (T, targets, horizon)
    history = values[start : start + length].astype(np.float32)
    return Streams(history[np.newaxis], np.array([length]), future.transpose(0, 2, 1)[np.newaxis])


def _draw_gaps(shape: tuple[int, ...], share: float, rng: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """(B, T, F), true where a value is left out."""
    missing = np.zeros(shape, bool)
    for length in GAP_LENGTHS if share else ():
        begins = rng.random(shape) < share / len(GAP_LENGTHS) / length
        for shift in range(min(length, shape[1])):
            missing[:, shift:] |= begins[:, : shape[1] - shift]
    return missing
