"""Forecasts without any learning, as the competitions define them: Naive, seasonal naive, Naive2, Theta. Pure.

Histories are numpy vectors, oldest first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RATES = np.arange(0.01, 1.0, 0.01)
"""Of simple exponential smoothing, among which the one with the smallest squared error is taken."""


def naive(history: Floats, horizon: int) -> Floats:
    """The last value."""
    return np.full(horizon, history[-1])


def seasonal_naive(history: Floats, horizon: int, season_length: int) -> Floats:
    """The last season, repeated; the last value where there is less than one."""
    if len(history) < season_length:
        return naive(history, horizon)
    return history[-season_length:][np.arange(horizon) % season_length]


def naive2(history: Floats, horizon: int, season_length: int) -> Floats:
    """The last value of the deseasonalised history, times the season; no season where a test finds none (Makridakis 1982)."""
    season = seasonal_factors(history, season_length)
    rest = history / at_steps(season, len(history))
    return naive(rest, horizon) * ahead(season, horizon)


def theta(history: Floats, horizon: int, season_length: int) -> Floats:
    """The mean of the trend and of the smoothed line of double curvature (Assimakopoulos and Nikolopoulos 2000)."""
    season = seasonal_factors(history, season_length)
    rest = history / at_steps(season, len(history))
    steps = np.arange(len(rest))
    slope, start = np.polyfit(steps, rest, 1) if len(rest) > 1 else (0.0, rest[0])
    trend = start + slope * np.arange(len(rest), len(rest) + horizon)
    level = smooth(2 * rest - (start + slope * steps))
    found: Floats = (trend + level) / 2 * ahead(season, horizon)
    return found


def smooth(values: Floats) -> float:
    """The level at the end by simple exponential smoothing, with the rate that forecasts the values best one step ahead."""
    level = np.full(len(RATES), values[0])
    error = np.zeros(len(RATES))
    for value in values[1:]:
        difference = value - level
        error += difference**2
        level = level + RATES * difference
    return float(level[error.argmin()])


def seasonal_factors(history: Floats, season_length: int) -> Floats:
    """Factors by place in the season, the last step of the history at the last place; ones where there is no season.

    By classical multiplicative decomposition, where the autocorrelation at one season is significant at 90 %, as in the M3 and
    M4 competitions.
    """
    ones: Floats = np.ones(season_length)
    if season_length < 2 or not is_seasonal(history, season_length) or history.min() <= 0:
        return ones
    kernel = np.ones(season_length) / season_length
    if season_length % 2 == 0:
        kernel = np.convolve(kernel, [0.5, 0.5])
    average = np.convolve(history, kernel, mode="valid")
    half = (len(history) - len(average)) // 2
    ratios = history[half : half + len(average)] / average
    places = (np.arange(half, half + len(average)) - len(history)) % season_length
    factors = np.array([ratios[places == place].mean() for place in range(season_length)])
    normalised: Floats = factors / factors.mean()
    return normalised


def is_seasonal(history: Floats, season_length: int) -> bool:
    """Whether the autocorrelation at one season exceeds its 90 % bound; no, for less than three seasons."""
    if len(history) < 3 * season_length:
        return False
    centred = history - history.mean()
    total = float((centred**2).sum())
    if total == 0:
        return False
    found = np.array([(centred[lag:] * centred[: len(centred) - lag]).sum() / total for lag in range(1, season_length + 1)])
    bound = 1.645 * np.sqrt((1 + 2 * (found[:-1] ** 2).sum()) / len(history))
    return bool(abs(found[-1]) > bound)


def at_steps(season: Floats, num_steps: int) -> Floats:
    """The season's factors at the steps of a history."""
    return season[(np.arange(num_steps) - num_steps) % len(season)]


def ahead(season: Floats, horizon: int) -> Floats:
    """The season's factors at the steps behind a history."""
    return season[np.arange(horizon) % len(season)]
