"""A response is verified against the graph's outputs, and a wrong prediction is named."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.responses import ResponseMismatch, verify

EXPECTED = [{"mean": np.array([[100.0], [200.0]]), "quantiles": np.zeros((2, 1, 3))}]
GOOD = {"mean": [100.0, 200.01], "quantiles": np.zeros((2, 3))}


def test_predictions_within_the_tolerance_pass() -> None:
    verify([GOOD], EXPECTED)


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ({**GOOD, "mean": [100.0, 200.1]}, r'instance 0: "mean" differs from the graph\'s output by 0.0005'),
        ({**GOOD, "mean": [100.0, float("nan")]}, "differs"),
        ({**GOOD, "quantiles": np.zeros((3, 2))}, r'"quantiles" has the shape \(3, 2\), expected \(2, 3\)'),
        ({"mean": GOOD["mean"]}, 'no "quantiles"'),
    ],
)
def test_a_wrong_prediction_is_named(prediction: dict[str, object], message: str) -> None:
    with pytest.raises(ResponseMismatch, match=message):
        verify([prediction], EXPECTED)


def test_the_number_of_predictions_is_that_of_the_instances() -> None:
    with pytest.raises(ResponseMismatch, match="2 predictions for 1 instances"):
        verify([GOOD, GOOD], EXPECTED)
