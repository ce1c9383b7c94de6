"""Synthetic series with daily and weekly seasons, for what the real ones of a recipe lack; the same for the same seed.

A network that learned from series with a strong rhythm alone takes every history for one. The kinds are what it then meets:
weather, bursts, exact weeks, noise, walks, counts, switches, one day over and over, days of two types. Each is drawn with
parameters of its own, and some are shifted far from zero, around it or below it, or rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from training.recipe import SyntheticKind

Array = NDArray[np.float64]
LONG = 7
"""Seasons in the long season, as days in a week."""
WARM_UP = 200
"""First steps of an autoregression that are dropped: it begins at zero."""


def make_series(kind: SyntheticKind, length: int, season_length: int, rng: np.random.Generator) -> Array:
    """One series of `length` values, (length,), finite; drawn from `rng` alone, its seasons of `season_length` steps."""
    values = _MAKERS[kind](length, season_length, rng)
    if kind == "counts":
        return values
    if rng.random() < 0.15:
        values = values - values.mean()
    if rng.random() < 0.1:
        values = -values
    if rng.random() < 0.15:
        values = values + rng.choice([100.0, 1000.0]) * np.abs(values - values.mean()).mean()
    if rng.random() < 0.1:
        values = np.round(values * rng.choice([1.0, 4.0]))
    return np.asarray(values * 10 ** rng.uniform(-1, 4))


def _weather(length: int, season_length: int, rng: np.random.Generator) -> Array:
    """A day whose strength comes and goes, on slow weather; some are cut at the top or the bottom, as humidity is."""
    day = rng.uniform(0, 2) * _repeat(season_length, 5, length, rng) * (1 + 0.3 * _autoregression(0.99, length, rng))
    values = day + rng.uniform(0.5, 3) * _autoregression(rng.uniform(0.95, 0.998), length, rng)
    values = values + rng.uniform(0, 0.6) * _autoregression(0.7, length, rng) + rng.uniform(-5, 20)
    if rng.random() < 0.4:
        values = values.clip(np.quantile(values, rng.uniform(0, 0.2)), np.quantile(values, rng.uniform(0.8, 1)))
    return values


def _bursts(length: int, season_length: int, rng: np.random.Generator) -> Array:
    day = rng.uniform(0, 0.7) * _repeat(season_length, 5, length, rng)
    return np.asarray(np.exp(rng.uniform(0.4, 1.2) * _autoregression(rng.uniform(0.8, 0.98), length, rng) + day))


def _seasonal(length: int, season_length: int, rng: np.random.Generator) -> Array:
    """The long season over and over, half of them exactly."""
    values = rng.uniform(1, 3) * _repeat(LONG * season_length, 14, length, rng) + rng.uniform(3, 20)
    return values + (rng.random() < 0.5) * rng.uniform(0.001, 0.15) * rng.normal(size=length)


def _noise(length: int, season_length: int, rng: np.random.Generator) -> Array:
    kinds: list[Callable[..., Array]] = [rng.standard_normal, rng.random, rng.standard_exponential]
    return kinds[rng.integers(3)](length) + rng.uniform(0, 10)


def _walk(length: int, season_length: int, rng: np.random.Generator) -> Array:
    steps = rng.normal(size=length) * rng.uniform(0.05, 1)
    return np.asarray(np.cumsum(steps) + rng.uniform(0, 1) * _repeat(season_length, 5, length, rng) + rng.uniform(10, 50))


def _counts(length: int, season_length: int, rng: np.random.Generator) -> Array:
    day = rng.uniform(0, 1) * _repeat(season_length, 5, length, rng)
    slow = rng.uniform(0, 0.5) * _autoregression(0.95, length, rng)
    rate = rng.choice([0.05, 0.3, 1.0, 3.0, 10.0]) * np.exp(day + slow)
    return np.asarray(rng.poisson(rate.clip(max=1e4)), np.float64)


def _switch(length: int, season_length: int, rng: np.random.Generator) -> Array:
    """On at the same places of each long season, and off by chance."""
    is_on = _repeat(LONG * season_length, 10, length, rng) > rng.uniform(-0.5, 1)
    values = is_on * rng.uniform(1, 5) * (1 + 0.1 * rng.integers(2) * rng.normal(size=length))
    values = values + rng.uniform(0, 1) * rng.integers(2)
    return np.where(rng.random(length) < rng.uniform(0, 0.02), 0.0, values)


def _daily(length: int, season_length: int, rng: np.random.Generator) -> Array:
    """One day over and over, no long season; half of them zero at night, as the sun is."""
    day = _repeat(season_length, 5, length, rng) * rng.uniform(0.5, 3) * np.exp(0.2 * _autoregression(0.99, length, rng))
    values = day + rng.uniform(3, 8) + rng.uniform(0, 0.3) * rng.normal(size=length)
    return np.maximum(values - np.quantile(values, 0.4), 0) if rng.random() < 0.5 else values


def _day_types(length: int, season_length: int, rng: np.random.Generator) -> Array:
    """Five days of one kind and two of another, as an electric load."""
    is_work = (np.arange(length) // season_length + rng.integers(LONG)) % LONG < LONG - 2
    work = _repeat(season_length, 4, length, rng)
    other = 0.6 * work + 0.4 * _repeat(season_length, 4, length, rng) - rng.uniform(0, 1.5)
    slow = rng.uniform(0.05, 0.6) * _autoregression(rng.uniform(0.9, 0.997), length, rng)
    return np.asarray(np.where(is_work, work, other) * rng.uniform(0.3, 1) + rng.uniform(3, 6) + slow)


_MAKERS: Mapping[SyntheticKind, Callable[[int, int, np.random.Generator], Array]] = {
    "weather": _weather,
    "bursts": _bursts,
    "seasonal": _seasonal,
    "noise": _noise,
    "walk": _walk,
    "counts": _counts,
    "switch": _switch,
    "daily": _daily,
    "day_types": _day_types,
}


def _repeat(period: int, num_waves: int, length: int, rng: np.random.Generator) -> Array:
    """A random sum of waves over one period, over and over, of mean magnitude 1."""
    numbers = np.arange(1, num_waves + 1)
    angles = numbers[:, None] * np.arange(period) * 2 * np.pi / period
    sine, cosine = rng.normal(size=(2, num_waves)) / numbers
    shape = sine @ np.sin(angles) + cosine @ np.cos(angles)
    return np.resize(shape / np.abs(shape).mean(), length)


def _autoregression(factor: float, length: int, rng: np.random.Generator) -> Array:
    """y = factor * y before + noise, of mean magnitude 1."""
    values = np.empty(length + WARM_UP)
    value = 0.0
    for step, noise in enumerate(rng.normal(size=len(values)).tolist()):
        value = factor * value + noise
        values[step] = value
    values = values[WARM_UP:]
    return np.asarray(values / np.abs(values).mean())
