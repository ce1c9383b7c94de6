"""Probabilities are scored by the field's measures."""

from __future__ import annotations

import numpy as np
import pytest

from training.scoring.labels import calibration_error, confusion_counts, score_labels


def test_classification_measures() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
    scores = score_labels(np.array([0, 0, 1, 1]), probabilities)
    assert scores == pytest.approx({"accuracy": 0.75, "f1": (2 / 3 + 0.8) / 2, "auroc": 1.0, "ece": 0.3})
    assert "auroc" not in score_labels(np.array([1, 1]), probabilities[:2])


def test_a_confusion_counts_true_labels_in_rows_and_predicted_ones_in_columns() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    assert confusion_counts(np.array([0, 0, 1]), probabilities).tolist() == [[1, 1], [0, 1]]


def test_probabilities_that_are_frequencies_have_no_calibration_error() -> None:
    probabilities = np.array([[0.3, 0.7]] * 10)
    labels = np.array([1] * 7 + [0] * 3)
    assert calibration_error(labels, probabilities) == pytest.approx(0.0, abs=1e-9)
    assert calibration_error(1 - labels, probabilities) == pytest.approx(0.4)
    assert calibration_error(np.array([1]), np.array([[0.0, 1.0]])) == 0.0
