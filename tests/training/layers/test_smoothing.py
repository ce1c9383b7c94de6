"""The layer `smoothing`: weighted means of the network's input, within each row's length."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from training.layers.registry import LayerError, Shape, Signal, build_layer

SOURCE = Shape(("time", 1))


def test_means_are_weighted_by_age_within_each_row() -> None:
    layer = build_layer({"type": "smoothing", "rates": [0.0, 0.5]}, Shape((2,)), SOURCE, "layers[0]")
    source = Signal(torch.tensor([[[4.0], [1.0], [99.0]], [[1.0], [2.0], [6.0]]]), torch.tensor([2, 3]))
    vector = Signal(torch.tensor([[7.0, 8.0], [7.0, 8.0]]), source.lengths)
    found = layer(vector, source)[0].values
    halves = [(1 * 1 + 4 * 0.5) / 1.5, (6 + 2 * 0.5 + 1 * 0.25) / 1.75]
    assert found.tolist() == [pytest.approx([7, 8, 2.5, halves[0]]), pytest.approx([7, 8, 3, halves[1]])]
    assert layer.output == Shape((4,))


def test_changes_are_those_from_step_to_step() -> None:
    layer = build_layer({"type": "smoothing", "of": "changes", "rates": [0.0, 0.5]}, Shape((1,)), SOURCE, "layers[0]")
    source = Signal(torch.tensor([[[4.0], [1.0], [99.0]], [[1.0], [2.0], [6.0]]]), torch.tensor([2, 3]))
    found = layer(Signal(torch.zeros(2, 1), source.lengths), source)[0].values[:, 1:]
    assert found.tolist() == [pytest.approx([-1.5, -2.0]), pytest.approx([5 / 3, (4 + 0.5) / 1.75])]


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, SOURCE, r"\(smoothing\): needs one vector per row"),
        ({"rates": []}, Shape((2,)), '"rates"'),
        ({"rates": [1.0]}, Shape((2,)), '"rates"'),
    ],
)
def test_a_smoothing_that_cannot_be_is_refused(options: dict[str, Any], shape: Shape, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        build_layer({"type": "smoothing", **options}, shape, SOURCE, "layers[0]")
