"""Disturbed windows: of the share of rows, within their lengths, and in the future only what goes on."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.disturbances import FAR, KINDS, SHORTEST, disturb

PADDING = 12345.0


def windows(num_rows: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    steps = np.arange(length + 4 + 6, dtype=np.float32)
    values = np.broadcast_to(10 + np.sin(steps)[None, :, None], (num_rows, len(steps), 1)).astype(np.float32)
    history = values[:, : length + 4].copy()
    history[:, length:] = PADDING
    return history, np.full(num_rows, length, np.int64), values[:, length : length + 6].copy()


def kind_of(before: np.ndarray, after: np.ndarray, *, goes_on: bool) -> str:
    """What became of a history (time,) that was changed."""
    (changed,) = np.nonzero(before != after)
    if goes_on:
        return "offset" if len(changed) == len(before) else "shift"
    if len(changed) == 1 and after[changed[0]] == pytest.approx(FAR * before[changed[0]]):
        return "outlier"
    return "outage" if np.ptp(after[changed]) == 0 else "line"


@pytest.mark.parametrize("length", [SHORTEST, 9, 30, 200])
def test_every_kind_comes_and_none_reaches_the_padding(length: int) -> None:
    history, lengths, future = windows(200, length)
    before, future_before = history.copy(), future.copy()
    disturb(history, lengths, future, share=0.999, season_length=4, rng=np.random.default_rng(1))
    assert (history[:, length:] == PADDING).all()
    assert np.isfinite(history).all()
    changed = (history != before).any((1, 2))
    assert changed.mean() > 0.8  # a line of one step changes nothing
    goes_on = (future != future_before).any((1, 2))
    assert 0.25 < goes_on.mean() < 0.55  # two of the five kinds
    shift = future[goes_on] - future_before[goes_on]
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1], shift.shape), rtol=1e-3, atol=1e-3)
    last_step = (history - before)[goes_on, length - 1]
    np.testing.assert_allclose(last_step, shift[:, 0], rtol=1e-3, atol=1e-3)
    rows = zip(before[changed, :length, 0], history[changed, :length, 0], goes_on[changed], strict=True)
    assert {kind_of(was, now, goes_on=bool(shifted)) for was, now, shifted in rows} == set(KINDS)


def test_the_share_is_that_of_the_rows_and_too_short_ones_are_left_alone() -> None:
    history, lengths, future = windows(400, 50)
    before = history.copy()
    disturb(history, lengths, future, share=0.25, season_length=4, rng=np.random.default_rng(2))
    assert 0.15 < (history != before).any((1, 2)).mean() < 0.32
    history, lengths, future = windows(50, SHORTEST - 1)
    before = history.copy()
    disturb(history, lengths, future, share=0.999, season_length=4, rng=np.random.default_rng(2))
    assert np.array_equal(history, before)
