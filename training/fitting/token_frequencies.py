"""How often tokens occur in texts, how often they are drawn, and how seldom frequent ones are learned from, as word2vec does.

The method is that of Mikolov et al. (2013, arXiv:1310.4546). Reads rows of token ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

PADDING_ID = 0
SAMPLING_POWER = 0.75
TINY = 1e-8


def count_tokens(rows: Sequence[Int64], num_ids: int) -> Float64:
    """How often each id is in the rows (num_ids,); padding never."""
    counts = np.bincount(np.concatenate([*rows, np.empty(0, np.int64)]), minlength=num_ids).astype(np.float64)
    counts[PADDING_ID] = 0
    return counts


def shares_of(counts: Float64) -> Float64:
    """The share of each id; zeros where there are no tokens."""
    return np.asarray(counts / max(1.0, counts.sum()))


def sampling_probabilities(counts: Float64) -> Float64:
    """By which probability each id is drawn: rare ones more often than they occur."""
    drawn = counts**SAMPLING_POWER
    return np.asarray(drawn / drawn.sum())


def shares_kept(shares: Float64, threshold: float) -> Float64:
    """With which probability a token of each id is learned from; those rarer than about `threshold` always."""
    ratio = threshold / np.maximum(shares, TINY * threshold)
    return np.minimum(1.0, np.sqrt(ratio) + ratio)
