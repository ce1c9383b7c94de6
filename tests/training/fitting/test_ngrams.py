"""N-gram weights: learned from rows, also from ones that are neither of one label nor of the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from training.fitting.ngrams import count_ngrams, fit_logistic, fit_ngrams
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
SHARES = np.stack([np.where(LABELS < 0, 0.5, label == LABELS) for label in (0, 1)], 1)


def make_table(num_logits: int = 1, buckets: int = 4096) -> NgramTable:
    return NgramTable(NgramSpec(order=2, buckets=buckets), num_logits)


def answer(table: NgramTable, *ids: int) -> torch.Tensor:
    answers: torch.Tensor = table(torch.tensor([ids]), torch.tensor([len(ids)]))
    return answers[0]


def test_pairs_are_weighed_where_single_tokens_say_nothing() -> None:
    table = make_table()
    fit_ngrams(table, ROWS, SHARES, NgramSettings(strength=10.0))
    for ids, is_positive in (((GOOD, FILM), True), ((BAD, FILM), False), ((NOT, GOOD), False), ((NOT, BAD), True)):
        assert (float(answer(table, *ids)) > 0.2) == is_positive, ids
        assert (float(answer(table, *ids)) < -0.2) != is_positive, ids


def test_a_neutral_row_is_answered_with_even_odds() -> None:
    table = make_table()
    fit_ngrams(table, ROWS, SHARES, NgramSettings(strength=10.0))
    assert float(answer(table, FILM)) == pytest.approx(0.0, abs=0.2)


def test_a_row_counts_for_each_label_by_its_share() -> None:
    rows = [np.array([GOOD, FILM]), np.array([BAD, FILM]), np.array([FILM])] * 40
    table = make_table()
    fit_ngrams(table, rows, np.array([[0.1, 0.9], [0.7, 0.3], [0.4, 0.6]] * 40), NgramSettings(strength=100.0))
    found = [float(answer(table, *ids).sigmoid()) for ids in ((GOOD, FILM), (BAD, FILM), (FILM,))]
    assert found == pytest.approx([0.9, 0.3, 0.6], abs=0.03)


def test_the_regression_is_scikit_learns_where_a_row_is_of_one_label() -> None:
    random = np.random.default_rng(0)
    features = sparse.random(200, 12, 0.4, format="csr", dtype=np.float32, random_state=0)
    labels = features @ random.normal(size=12) + random.normal(size=200) > 0.2
    expected = LogisticRegression(C=3.0, tol=1e-8, max_iter=1000).fit(features, labels)
    weights, shift = fit_logistic(features, labels.astype(np.float64), 3.0)
    np.testing.assert_allclose(weights, expected.coef_[0], atol=2e-3)
    assert shift == pytest.approx(expected.intercept_[0], abs=2e-3)


def test_several_labels_have_a_logit_each() -> None:
    rows = [np.array([token, FILM]) for token in (2, 3, 4)] * 10
    table = make_table(num_logits=3)
    fit_ngrams(table, rows, np.eye(3)[[0, 1, 2] * 10], NgramSettings())
    assert [int(answer(table, token, FILM).argmax()) for token in (2, 3, 4)] == [0, 1, 2]


def test_the_features_are_the_tables_own_sums() -> None:
    table = make_table(buckets=64)
    table.set_weights(torch.from_numpy(np.random.default_rng(0).normal(size=(64, 1)).astype(np.float32)), torch.zeros(1))
    rows = [np.random.default_rng(number).integers(0, 30, 1 + number % 7) for number in range(30)]
    features = count_ngrams(table, rows)
    weights = table.codes.double() * table.scale.double()
    expected = torch.cat([answer(table, *row.tolist()) for row in rows])
    torch.testing.assert_close(torch.from_numpy(features @ weights.numpy())[:, 0].float(), expected, rtol=1e-5, atol=1e-5)
