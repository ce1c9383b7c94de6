"""N-gram weights: learned from rows, also from ones that are neither of one label nor of the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.fitting.ngrams import count_ngrams, fit_ngrams
from training.network.heads.ngrams import NgramSpec, NgramTable
from training.recipe import NgramSettings

GOOD, BAD, NOT, FILM = 2, 3, 4, 5
KINDS = [
    ([GOOD, FILM], 1),
    ([GOOD, FILM], 1),
    ([BAD, FILM], 0),
    ([BAD, FILM], 0),
    ([NOT, GOOD, FILM], 0),
    ([NOT, BAD, FILM], 1),
    ([FILM], -1),
]
ROWS = [np.array(row) for row, _ in KINDS] * 20
LABELS = np.array([label for _, label in KINDS] * 20)


def make_table(num_logits: int = 1, buckets: int = 4096) -> NgramTable:
    return NgramTable(NgramSpec(order=2, buckets=buckets), num_logits)


def answer(table: NgramTable, *ids: int) -> torch.Tensor:
    answers: torch.Tensor = table(torch.tensor([ids]), torch.tensor([len(ids)]))
    return answers[0]


def test_pairs_are_weighed_where_single_tokens_say_nothing() -> None:
    table = make_table()
    fit_ngrams(table, ROWS, LABELS, NgramSettings(strength=10.0))
    for ids, is_positive in (((GOOD, FILM), True), ((BAD, FILM), False), ((NOT, GOOD), False), ((NOT, BAD), True)):
        assert (float(answer(table, *ids)) > 0.2) == is_positive, ids
        assert (float(answer(table, *ids)) < -0.2) != is_positive, ids


def test_a_neutral_row_is_answered_with_even_odds() -> None:
    table = make_table()
    fit_ngrams(table, ROWS, LABELS, NgramSettings(strength=10.0))
    assert float(answer(table, FILM)) == pytest.approx(0.0, abs=0.2)


def test_several_labels_have_a_logit_each() -> None:
    rows = [np.array([token, FILM]) for token in (2, 3, 4)] * 10
    labels = np.array([0, 1, 2] * 10)
    table = make_table(num_logits=3)
    fit_ngrams(table, rows, labels, NgramSettings())
    assert [int(answer(table, token, FILM).argmax()) for token in (2, 3, 4)] == [0, 1, 2]


def test_the_features_are_the_tables_own_sums() -> None:
    table = make_table(buckets=64)
    table.set_weights(torch.from_numpy(np.random.default_rng(0).normal(size=(64, 1)).astype(np.float32)), torch.zeros(1))
    rows = [np.random.default_rng(number).integers(0, 30, 1 + number % 7) for number in range(30)]
    features = count_ngrams(table, rows)
    weights = table.codes.double() * table.scale.double()
    expected = torch.cat([answer(table, *row.tolist()) for row in rows])
    torch.testing.assert_close(torch.from_numpy(features @ weights.numpy())[:, 0].float(), expected, rtol=1e-5, atol=1e-5)
