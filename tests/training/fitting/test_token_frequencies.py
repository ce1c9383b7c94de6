"""How often tokens occur, are drawn and are learned from."""

from __future__ import annotations

import numpy as np
import pytest

from training.fitting.token_frequencies import count_tokens, sampling_probabilities, shares_kept, shares_of

ROWS = [np.array([1, 1, 2]), np.array([1, 0, 0, 3])]


def test_padding_and_ids_that_never_occur_have_no_share_and_are_never_drawn() -> None:
    counts = count_tokens(ROWS, 6)
    assert counts.tolist() == [0, 3, 1, 1, 0, 0]
    assert shares_of(counts).tolist() == pytest.approx([0, 0.6, 0.2, 0.2, 0, 0])
    assert (sampling_probabilities(counts) > 0).tolist() == [False, True, True, True, False, False]


def test_of_no_texts_nothing_has_a_share() -> None:
    assert shares_of(count_tokens([], 3)).tolist() == [0, 0, 0]


def test_rare_tokens_are_drawn_more_often_than_they_occur() -> None:
    counts = np.array([0.0, 81, 16])
    assert sampling_probabilities(counts).tolist() == pytest.approx([0, 27 / 35, 8 / 35])


def test_frequent_tokens_are_seldom_learned_from_and_rare_ones_always() -> None:
    kept = shares_kept(np.array([0.0, 1e-4, 0.01, 0.25]), threshold=1e-3)
    assert kept.tolist() == pytest.approx([1, 1, 0.1**0.5 + 0.1, 0.004**0.5 + 0.004])
