"""Token vectors from texts without labels: CBOW with negative sampling (Mikolov et al. 2013, arXiv:1301.3781, 1310.4546).

Each token is predicted from the mean of its neighbours' vectors. Whole blocks of text are learned at once, with matrix products
in place of word2vec's loop over tokens: all tokens of a block share the tokens drawn against them, and their window. Reads no
files, and knows no network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.fitting.token_frequencies import PADDING_ID, count_tokens, sampling_probabilities, shares_kept, shares_of
from training.recipe import VectorSettings

Int64 = npt.NDArray[np.int64]

NEGATIVES_PER_TOKEN = 5
"""As many drawn tokens weigh what a true one does; word2vec's default."""
TINY = 1e-8

Progress = Callable[[int, float], None]
"""Called with the number of an epoch, from 1, and its mean loss per token."""


def learn_vectors(
    rows: Sequence[Int64],
    num_ids: int,
    dimensions: int,
    settings: VectorSettings,
    seed: int,
    *,
    progress: Progress = lambda epoch, loss: None,
) -> Tensor:
    """Vectors (num_ids, dimensions), FP32, of the ids in `rows`; ids that never occur, and id 0, get zeros.

    The same seed gives the same vectors on the same number of threads.
    """
    random = np.random.default_rng([seed, 7])
    counts = count_tokens(rows, num_ids)
    kept = shares_kept(shares_of(counts), settings.subsample)
    drawn = sampling_probabilities(counts)
    table = _Tables(num_ids, dimensions, settings, random)
    num_blocks = max(1, int((counts * kept).sum() + settings.window * len(rows)) // settings.block)
    num_steps, step = num_blocks * settings.epochs, 0
    for epoch in range(settings.epochs):
        stream = _stream(rows, kept, settings.window, random)
        negatives = random.choice(num_ids, (len(stream) // settings.block + 1, settings.negatives), p=drawn)
        losses = []
        for number, start in enumerate(range(0, len(stream), settings.block)):
            rate = settings.learning_rate * max(0.0, 1 - step / num_steps)
            window = int(random.integers(1, settings.window + 1))
            block = torch.from_numpy(stream[start : start + settings.block])
            losses.append(table.learn(block, torch.from_numpy(negatives[number]), window, rate))
            step += 1
        progress(epoch + 1, float(np.mean(losses)) if losses else 0.0)
    vectors = table.inputs
    vectors[torch.from_numpy(counts == 0)] = 0
    size = vectors.square().mean().sqrt()
    return vectors * (settings.scale / max(float(size), TINY))


def _stream(rows: Sequence[Int64], kept: npt.NDArray[np.float64], window: int, random: np.random.Generator) -> Int64:
    """The texts in random order, one after the other, frequent tokens thinned out, with `window` paddings between them.

    So no window reaches from one into the next.
    """
    gap = np.zeros(window, np.int64)
    parts = [part for index in random.permutation(len(rows)) for part in (rows[index], gap)]
    stream = np.concatenate(parts)
    kept_stream: Int64 = stream[(stream == PADDING_ID) | (random.random(len(stream)) < kept[stream])]
    return kept_stream


class _Tables:
    """The vectors of tokens as neighbours and as targets, each with Adagrad's sum of squares: one number per token."""

    def __init__(self, num_ids: int, dimensions: int, settings: VectorSettings, random: np.random.Generator) -> None:
        start = (random.random((num_ids, dimensions), np.float32) - 0.5) / dimensions
        self.inputs = torch.from_numpy(start)
        self.targets = torch.zeros(num_ids, dimensions)
        self._sums = (torch.zeros(num_ids), torch.zeros(num_ids))
        self._negative_weight = NEGATIVES_PER_TOKEN / settings.negatives

    @torch.no_grad()
    def learn(self, ids: Tensor, negatives: Tensor, window: int, rate: float) -> float:
        """One step on a block of ids (N,) against the drawn ids (K,); returns the mean loss of its tokens."""
        is_token = (ids != PADDING_ID).to(torch.float32).unsqueeze(1)  # (N, 1)
        num_neighbours = _sum_of_neighbours(is_token, window)
        shares = is_token / num_neighbours.clamp(min=1)  # no padding is a target
        contexts = _sum_of_neighbours(self.inputs[ids] * is_token, window) * shares  # (N, D)
        is_target = is_token * (num_neighbours > 0)
        targets, others = self.targets[ids], self.targets[negatives]  # (N, D), (K, D)
        true = torch.sigmoid((contexts * targets).sum(1, keepdim=True))  # (N, 1)
        drawn = torch.sigmoid(contexts @ others.T)  # (N, K)
        drawn.masked_fill_(ids.unsqueeze(1) == negatives, 0.0)  # the token itself was drawn
        loss = -((true + TINY).log() + self._negative_weight * (1 - drawn + TINY).log().sum(1, keepdim=True))
        # Gradients of the loss by the scores.
        true_error = (true - 1) * is_target
        drawn_error = drawn * (self._negative_weight * is_target)
        by_context = true_error * targets + drawn_error @ others
        self._move(
            self.targets,
            self._sums[1],
            torch.cat([ids, negatives]),
            torch.cat([true_error * contexts, drawn_error.T @ contexts]),
            rate,
        )
        by_input = _sum_of_neighbours(by_context * shares, window) * is_token
        self._move(self.inputs, self._sums[0], ids, by_input, rate)
        return float((loss * is_target).sum() / is_target.sum().clamp(min=1))

    def _move(self, table: Tensor, sums: Tensor, ids: Tensor, gradients: Tensor, rate: float) -> None:
        """Adagrad (Duchi et al. 2011) with one step size per row, as large tables are usually learned."""
        rows, places = torch.unique(ids, return_inverse=True)
        gradient = torch.zeros(len(rows), table.shape[1]).index_add_(0, places, gradients)
        sums.index_add_(0, rows, gradient.square().mean(1))
        table.index_add_(0, rows, gradient * (-rate * (sums[rows] + TINY).rsqrt()).unsqueeze(1))


def _sum_of_neighbours(values: Tensor, window: int) -> Tensor:
    """Of values (N, D) the sum of the `window` rows before and behind each, without itself."""
    padded = torch.nn.functional.pad(values, (0, 0, window, window))
    total = torch.zeros_like(values)
    for offset in range(2 * window + 1):
        if offset != window:
            total += padded[offset : offset + len(values)]
    return total
