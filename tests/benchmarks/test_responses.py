"""A response is verified by its numbers, whatever its keys are called, and a wrong prediction is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.responses import Prediction, ResponseMismatch, parse_sluice_predictions, verify

EXPECTED = [{"point": np.array([[100.0], [200.0]]), "quantiles": np.zeros((2, 1, 3))}]
POINT, QUANTILES = np.array([100.0, 200.01]), np.zeros((2, 3))


@pytest.mark.parametrize("key", ["mean", "forecast"])
def test_the_numbers_of_a_forecast_are_read_whatever_its_key_is_called(key: str) -> None:
    prediction = {
        key: [1.0, 2.0],
        "quantiles": {"0.1": [0.5, 1.5], "0.5": [1.0, 2.0], "0.9": [1.5, 2.5]},
        "timestamps": ["2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"],
        "num_interpolated": 3,
    }
    ((point, quantiles),) = parse_sluice_predictions(json.dumps({"predictions": [prediction]}).encode())
    np.testing.assert_array_equal(point, [1, 2])
    np.testing.assert_array_equal(quantiles, [[0.5, 1, 1.5], [1.5, 2, 2.5]])


def test_the_numbers_of_a_classification_are_its_probabilities() -> None:
    prediction = {"label": "good", "score": 0.75, "probabilities": {"bad": 0.25, "good": 0.75}}
    ((probabilities,),) = parse_sluice_predictions(json.dumps({"predictions": [prediction]}).encode())
    np.testing.assert_array_equal(probabilities, [0.25, 0.75])


def test_a_forecast_without_quantiles_has_one_output() -> None:
    for prediction in ({"forecast": [1.0]}, {"forecast": [1.0], "quantiles": {}}):
        ((point,),) = parse_sluice_predictions(json.dumps({"predictions": [prediction]}).encode())
        np.testing.assert_array_equal(point, [1])


def test_predictions_within_the_tolerance_pass() -> None:
    verify([[POINT, QUANTILES]], EXPECTED)


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ([np.array([100.0, 200.1]), QUANTILES], r'instance 0: "point" differs from the graph\'s output by 0.0005'),
        ([np.array([100.0, np.nan]), QUANTILES], "differs"),
        ([POINT, np.zeros((3, 2))], r'"quantiles" has the shape \(3, 2\), expected \(2, 3\)'),
        ([POINT], "1 outputs, expected point, quantiles"),
    ],
)
def test_a_wrong_prediction_is_named(prediction: Prediction, message: str) -> None:
    with pytest.raises(ResponseMismatch, match=message):
        verify([prediction], EXPECTED)


def test_the_number_of_predictions_is_that_of_the_instances() -> None:
    with pytest.raises(ResponseMismatch, match="2 predictions for 1 instances"):
        verify([[POINT, QUANTILES], [POINT, QUANTILES]], EXPECTED)
