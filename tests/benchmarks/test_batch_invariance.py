"""Batch invariance is measured: a server whose predictions depend on the other rows in flight is found out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.batch_invariance import NUM_ROWS, TOLERANCE, relative_difference, worst_difference
from benchmarks.responses import Prediction, ResponseMismatch
from benchmarks.workloads import Instance

ROWS: list[Instance] = [{"history": [float(row + step + 1) for step in range(1 + row % 7)]} for row in range(NUM_ROWS)]


def history(row: Instance) -> list[float]:
    assert isinstance(row, dict)
    return row["history"]


def sums(requests: Sequence[Sequence[Instance]]) -> list[list[Prediction]]:
    """A server that predicts each row's sum, whatever the other rows are."""
    return [[[np.array([sum(history(row)), 0.0])] for row in request] for request in requests]


def padded_means(requests: Sequence[Sequence[Instance]]) -> list[list[Prediction]]:
    """A server that pads all rows in flight to the longest, and counts the padding."""
    longest = max(len(history(row)) for request in requests for row in request)
    return [[[np.array([sum(history(row)) / longest])] for row in request] for request in requests]


def swapped(requests: Sequence[Sequence[Instance]]) -> list[list[Prediction]]:
    """A server that mixes up the rows of a request."""
    return [list(reversed(predictions)) for predictions in sums(requests)]


def test_a_server_whose_rows_are_independent_does_not_differ() -> None:
    assert worst_difference(ROWS, sums) == 0


@pytest.mark.parametrize("predict", [padded_means, swapped])
def test_a_server_whose_rows_depend_on_one_another_differs(predict: object) -> None:
    assert worst_difference(ROWS, predict) > TOLERANCE  # type: ignore[arg-type]


def test_every_row_is_sent_alone_and_then_together_with_all_others() -> None:
    sent: list[list[int]] = []

    def predict(requests: Sequence[Sequence[Instance]]) -> list[list[Prediction]]:
        sent.append([len(request) for request in requests])
        return sums(requests)

    worst_difference(ROWS, predict)
    assert sent[:NUM_ROWS] == [[1]] * NUM_ROWS
    assert all(sum(sizes) == NUM_ROWS for sizes in sent[NUM_ROWS:])
    assert {size for sizes in sent[NUM_ROWS:] for size in sizes} == {1, 5}


def test_a_difference_is_relative_to_the_largest_value_of_its_output() -> None:
    alone = [np.array([200.0, 0.001]), np.array([0.5, 0.25])]
    assert relative_difference([np.array([200.0, 0.003]), np.array([0.5, 0.25])], alone) == pytest.approx(1e-5)
    assert relative_difference([np.array([200.0, 0.001]), np.array([0.5, 0.3])], alone) == pytest.approx(0.1)


@pytest.mark.parametrize("found", [[np.array([1.0])], [np.array([1.0, np.nan])], [np.zeros(2), np.zeros(2)]])
def test_a_prediction_of_another_form_is_a_mismatch(found: Prediction) -> None:
    with pytest.raises(ResponseMismatch):
        relative_difference(found, [np.array([1.0, 2.0])])


def test_fewer_predictions_than_rows_are_a_mismatch() -> None:
    with pytest.raises(ResponseMismatch, match="4 predictions for 5 instances"):
        worst_difference(ROWS, lambda requests: [rows[:4] for rows in sums(requests)])
