"""The head of text classes: logits and probabilities, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.training.network.networks import DENSE, EMBEDDING, LSTM, classify, run, tokens
from training.layers.registry import LayerError
from training.network.heads.classify import ClassifySpec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 3}, "Extra inputs are not permitted"),
        ({"vocabulary_size": None}, "Input should be a valid integer"),
        ({"labels": ("a",)}, "two or more different labels"),
        ({"labels": ("a", "b", "a")}, "two or more different labels"),
    ],
)
def test_a_spec_whose_parts_do_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ClassifySpec(**{"layers": [EMBEDDING, LSTM, DENSE], "vocabulary_size": 5, "labels": ("a", "b"), **options})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: classify(EMBEDDING, LSTM, {"type": "dense", "units": 3}),
            r'layers\[2\] \(dense\): option "units": 2 labels need 2 units, got 3',
        ),
        (
            lambda: classify(EMBEDDING, LSTM, {"type": "dense", "units": 1, "activation": "softmax"}),
            r"option \"activation\": with 1 units the answer is a sigmoid, got 'softmax'",
        ),
        (
            lambda: classify(EMBEDDING, LSTM, {"type": "dense", "activation": "sigmoid"}, labels=("a", "b", "c")),
            r'option "units": 3 labels need 3 units, got 1',
        ),
        (lambda: classify(EMBEDDING, LSTM), r"layers\[1\] \(lstm\): the last layer must be dense: it gives the answer"),
        (lambda: classify(EMBEDDING, DENSE), r"layers\[1\] \(dense\): needs one vector per row"),
    ],
)
def test_layers_that_do_not_end_in_logits_are_refused_by_place(build: Any, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        build()


def test_the_last_layers_units_follow_from_the_labels() -> None:
    assert classify(labels=("a", "b", "c")).predict(tokens([2, 1])).values.shape == (2, 3)
    assert classify(EMBEDDING, LSTM, {**DENSE, "activation": "sigmoid"}).predict(tokens([2, 1])).values.shape == (2, 1)


@pytest.mark.parametrize("units", [1, 2])
def test_probabilities_are_those_of_the_logits_and_sum_to_one(units: int) -> None:
    network = classify(EMBEDDING, LSTM, {"type": "dense", "units": units})
    inputs = tokens([4, 1, 6])
    logits = network.predict(inputs).values.detach()
    probabilities = run(network, inputs)["probabilities"]
    second = torch.sigmoid(logits[:, 0]) if units == 1 else torch.softmax(logits, 1)[:, 1]
    torch.testing.assert_close(probabilities[:, 1], second)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))
