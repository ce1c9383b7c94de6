"""Measurements of a transformer: which windows are scored, and how the answers are beside the baselines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.training.evaluation.answering import Answer, answering
from training.evaluation.client import Service
from training.evaluation.long_horizon import HISTORY, HORIZON, MODEL, Measurements, baselines, score_measurements

NUM_WINDOWS = 40


@pytest.fixture(scope="module")
def measurements() -> Measurements:
    """Two features that a day before shows exactly, with forty windows in the test part."""
    num_test = NUM_WINDOWS + HORIZON - 1
    hours = np.arange(1000 + num_test)
    values = np.stack([10 + 3 * np.sin(2 * np.pi * hours / 24), 5 * np.cos(2 * np.pi * hours / 24) - 100], axis=1)
    return Measurements(values, num_training=900, num_test=num_test)


def test_every_window_of_the_test_part_is_scored_in_deviations_of_the_training_part(measurements: Measurements) -> None:
    assert measurements.truth.shape == (NUM_WINDOWS, HORIZON, 2)
    assert measurements.origins.start == 1000
    np.testing.assert_allclose(measurements.standardized(measurements.values[:900]).std(0), 1)
    np.testing.assert_allclose(measurements.truth[3, 5], measurements.standardized(measurements.values[1008]))


def test_baselines_know_what_is_before_each_origin(measurements: Measurements) -> None:
    found = baselines(measurements)
    np.testing.assert_allclose(found["day before"], measurements.truth, atol=1e-9)
    np.testing.assert_allclose(found["linear"], measurements.truth, atol=1e-2)
    np.testing.assert_allclose(found["last value"][4, 50], measurements.standardized(measurements.values[1003]))


def test_scores_are_of_the_answers_in_raw_units(measurements: Measurements) -> None:
    def respond(path: str, body: Any) -> Answer:
        assert body["model"] == MODEL
        assert all(np.shape(instance["history"]) == (HISTORY, 2) for instance in body["instances"])
        forecasts = [{"forecast": [[10.0, -100.0]] * HORIZON} for _ in body["instances"]]
        return 200, {"model": MODEL, "version": "1", "predictions": forecasts}

    with answering(respond) as url, Service(url) as service:
        evaluation = score_measurements(service, measurements)
    level = measurements.standardized(np.array([10.0, -100.0]))
    square, magnitude = evaluation.rows
    assert square.score == pytest.approx(((measurements.truth - level) ** 2).mean())
    assert magnitude.score == pytest.approx(np.abs(measurements.truth - level).mean())
    assert square.baselines["day before"] == pytest.approx(0, abs=1e-9)
    assert evaluation.num_rows == NUM_WINDOWS


def test_a_service_without_the_model_is_said(measurements: Measurements) -> None:
    with answering(lambda path, body: (404, {"detail": "no such model"})) as url, Service(url) as service:
        evaluation = score_measurements(service, measurements)
    assert [row.score for row in evaluation.rows] == [None, None]
    assert "no such model" in evaluation.rows[0].note
