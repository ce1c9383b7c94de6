"""Disturbances of training windows: what real histories have now and then, and a network should bear.

One of a value far off, a level shift, an outage, a gap that was filled by a line, and a distance from zero. What goes on behind
the history, a shift and the distance, is in the future too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
KINDS = ("outlier", "shift", "outage", "line", "offset")
FAR = 100.0
"""What an outlier is multiplied by."""
SHORTEST = 8
"""Steps of a history that is disturbed, at least."""


def disturb(
    history: Float32,
    lengths: NDArray[np.int64],
    future: Float32,
    *,
    share: float,
    season_length: int,
    rng: np.random.Generator,
) -> None:
    """Change a share of the rows of (B, T, F) and (B, horizon, F) in place; nothing behind `lengths` is read or written."""
    for row in np.flatnonzero(rng.random(len(lengths)) < share):
        length = int(lengths[row])
        if length >= SHORTEST:
            _disturb_row(history[row, :length], future[row], KINDS[rng.integers(len(KINDS))], season_length, rng)


def _disturb_row(history: Float32, future: Float32, kind: str, season_length: int, rng: np.random.Generator) -> None:
    length = len(history)
    spread = np.abs(history - history.mean(0)).mean(0)
    sign = rng.choice([-1.0, 1.0])
    if kind == "outlier":
        history[rng.integers(length)] *= FAR
    elif kind == "shift":
        begin = length - int(rng.integers(SHORTEST // 2, min(5 * season_length, length)))
        history[begin:] += (step := sign * rng.uniform(1, 8) * spread)
        future += step
    elif kind == "offset":
        history += (step := sign * 10 ** rng.uniform(0, 3) * spread)
        future += step
    else:
        longest = max(2, min(2 * season_length, length // 2))
        begin = int(rng.integers(0, length - longest))
        end = begin + int(rng.integers(1, longest + 1))
        if kind == "outage":
            history[begin:end] = 0.0 if rng.random() < 0.7 else history[begin].copy()
        else:
            weights = np.linspace(0, 1, end - begin, dtype=np.float32)[:, None]
            history[begin:end] = (1 - weights) * history[begin] + weights * history[min(end, length - 1)]
