"""Level and spread of a stream: against a loop in float64, over gaps, in pieces, and for values that are hard to scale."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.layers.base import Signal
from training.layers.running_scaling import Running, RunningScaler

SPAN = 9


def read(values: NDArray[np.float64], state: dict[str, Tensor] | None = None, span: int = SPAN) -> Running:
    """One row."""
    history = torch.from_numpy(values.reshape(1, len(values), -1)).float()
    return RunningScaler(span, history.shape[2]).read(Signal(history, torch.tensor([len(values)])), state or {})


def level_and_spread(values: NDArray[np.float64], span: int = SPAN) -> tuple[list[float], list[float]]:
    """By their definition: means of all values so far, each weighted by the number of steps that it is ago."""
    decay = 1 - 2 / (span + 1)
    levels: list[float] = []
    distances: list[float] = []
    spreads: list[float] = []

    def mean(known: list[float]) -> float:
        weights = decay ** np.arange(len(known))[::-1]
        is_known = np.isfinite(known)
        return float((weights * np.nan_to_num(known)).sum() / weights[is_known].sum()) if is_known.any() else 0.0

    for step, value in enumerate(values):
        has_level = np.isfinite(values[:step]).any()
        distances.append(abs(value - levels[-1]) if has_level else np.nan)
        levels.append(mean(values[: step + 1].tolist()))
        spreads.append(mean(distances))
    return levels, spreads


def test_level_and_spread_are_weighted_means_of_the_values_there_are() -> None:
    values = 100 + 10 * np.random.default_rng(0).standard_normal(60)
    values[[0, 1, 7, 20, 21, 22, 59]] = np.nan
    found = read(values)
    levels, spreads = level_and_spread(values)
    np.testing.assert_allclose(found.level[0, :, 0], levels, rtol=1e-5)
    np.testing.assert_allclose(found.spread[0, :, 0], np.array(spreads) + 1e-5 * np.abs(levels), rtol=1e-3, atol=1e-6)
    assert found.level_before[0, 1:].equal(found.level[0, :-1])
    assert found.spread_before[0, 1:].equal(found.spread[0, :-1])


def test_a_stream_in_pieces_has_the_level_of_the_whole() -> None:
    values = np.random.default_rng(1).lognormal(size=30)
    whole = read(values)
    state: dict[str, Tensor] = {}
    for start, end in ((0, 1), (1, 4), (4, 30)):
        piece = read(values[start:end], dict(state))
        for name in ("level", "spread", "level_before", "spread_before"):
            assert getattr(piece, name).equal(getattr(whole, name)[:, start:end]), name
        state = dict(piece.state)
    assert all(state[name].equal(part) for name, part in whole.state.items())


def test_a_constant_stream_an_empty_one_and_extreme_values_are_scaled_by_finite_numbers() -> None:
    for values in ([7.0] * 20, [0.0] * 20, [np.nan] * 20, [3e38, -3e38] * 10, [1e-38] * 20, [0.0, 1e38, 0.0]):
        found = read(np.array(values))
        for part in (found.values, found.level, found.spread, *found.state.values()):
            assert part.isfinite().all(), values
        assert (found.spread > 0).all()


def test_what_is_far_above_its_own_spread_is_still_scaled_by_it() -> None:
    season = np.sin(np.arange(200) / 3)
    raised = read(10_000 + season, span=50)
    np.testing.assert_allclose(raised.spread[0, 50:, 0], read(season, span=50).spread[0, 50:, 0], rtol=0.25)
