"""Token vectors: what stands in the same places is similar, and texts do not reach into one another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.fitting.word_vectors import learn_vectors
from training.recipe import VectorSettings

SETTINGS = VectorSettings(epochs=8, window=2, negatives=8, block=64, subsample=1.0, scale=0.5)


def texts(num_texts: int = 400) -> list[np.ndarray]:
    """Two languages of four words each, ids 2 to 5 and 6 to 9; no text has words of both. Id 10 never occurs."""
    random = np.random.default_rng(0)
    return [random.integers(2, 6, 12) + 4 * (number % 2) for number in range(num_texts)]


def test_words_with_the_same_neighbours_get_similar_vectors() -> None:
    losses: list[float] = []
    vectors = learn_vectors(texts(), 11, 8, SETTINGS, 0, progress=lambda epoch, loss: losses.append(loss))
    direction = torch.nn.functional.normalize(vectors[2:10], dim=1)
    similarity = direction @ direction.T
    within = torch.cat([similarity[:4, :4].flatten(), similarity[4:, 4:].flatten()])
    assert within.mean() > similarity[:4, 4:].mean() + 0.5
    assert len(losses) == SETTINGS.epochs
    assert losses[-1] < losses[0]


def test_ids_without_an_occurrence_get_zeros_and_all_together_the_scale() -> None:
    vectors = learn_vectors(texts(), 11, 8, SETTINGS, 0)
    assert vectors.shape == (11, 8)
    assert not vectors[[0, 1, 10]].any()
    assert float(vectors.square().mean().sqrt()) == pytest.approx(SETTINGS.scale, rel=1e-4)


def test_the_same_seed_gives_the_same_vectors() -> None:
    first, again, other = (learn_vectors(texts(40), 11, 4, SETTINGS, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_texts_of_one_token_teach_nothing_and_break_nothing() -> None:
    vectors = learn_vectors([np.array([2]), np.array([3])], 4, 4, SETTINGS, 0)
    assert torch.isfinite(vectors).all()


def test_frequent_tokens_may_be_thinned_out() -> None:
    rare = [np.array([2] * 50 + [3, 4]) for _ in range(50)]
    vectors = learn_vectors(rare, 5, 4, SETTINGS.model_copy(update={"subsample": 0.01}), 0)
    assert torch.isfinite(vectors).all()
