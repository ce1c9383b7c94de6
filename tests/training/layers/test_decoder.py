"""The layer `parallel_decoder`: each part is one step of a GRU from the same state, by what is learned of part and feature."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from training.layers.decoder import ParallelDecoder
from training.layers.registry import LayerError, Shape, Signal, build_layer

SOURCE = Shape(("time", 1))
ROWS = 6


def decoder(source: Shape = SOURCE, n: int = 3) -> ParallelDecoder:
    torch.manual_seed(2)
    layer = build_layer({"type": "parallel_decoder", "n": n}, Shape((4,)), source, "layers[0]")
    assert isinstance(layer, ParallelDecoder)
    return layer


@torch.no_grad()
def run(layer: ParallelDecoder, hidden: torch.Tensor, feature: torch.Tensor | None = None) -> torch.Tensor:
    lengths = torch.full((len(hidden),), 5)
    signal, _ = layer(Signal(hidden, lengths), Signal(torch.zeros(len(hidden), 5, 1), lengths, feature=feature))
    assert signal.lengths.tolist() == [layer.config.n] * len(hidden)
    values: torch.Tensor = signal.values
    return values


@torch.no_grad()
def gru_cell_of(layer: ParallelDecoder, inputs: torch.Tensor) -> torch.nn.GRUCell:
    """Torch's cell with the layer's weights, which adds `inputs` (3 · H,) to its gates whatever it reads."""
    cell = torch.nn.GRUCell(1, layer.units)
    cell.weight_ih.zero_()
    cell.bias_ih.copy_(inputs)
    cell.weight_hh.copy_(layer.recurrent_kernel.t())
    cell.bias_hh.copy_(layer.recurrent_bias)
    return cell


def test_each_part_is_a_step_of_torchs_gru_from_the_same_state() -> None:
    layer, hidden = decoder(), torch.randn(ROWS, 4)
    torch.nn.init.normal_(layer.recurrent_bias)
    found = run(layer, hidden)
    assert layer.output == Shape((3, 4))
    for part in range(3):
        expected = gru_cell_of(layer, layer.parts[part])(torch.zeros(ROWS, 1), hidden)
        torch.testing.assert_close(found[:, part], expected)


def test_of_a_network_that_reads_features_by_themselves_each_adds_its_own_inputs() -> None:
    layer, hidden = decoder(Shape(("time", 1), one_of=2)), torch.randn(ROWS, 4)
    assert layer.features is not None
    feature = torch.arange(2).repeat(3)
    found = run(layer, hidden, feature)
    for row in range(ROWS):
        expected = gru_cell_of(layer, layer.parts[1] + layer.features[feature[row]])(torch.zeros(ROWS, 1), hidden)
        torch.testing.assert_close(found[row, 1], expected[row])


def test_its_weights_are_all_counted() -> None:
    layer = decoder(Shape(("time", 1), one_of=2))
    assert [(weight.name, weight.shape) for weight in layer.weights] == [
        ("recurrent_kernel", (4, 12)),
        ("recurrent_bias", (12,)),
        ("parts", (3, 12)),
        ("features", (2, 12)),
    ]
    assert (layer.num_parameters, layer.num_fixed_parameters) == (48 + 12 + 36 + 24, 0)
    assert [weight.name for weight in decoder().weights] == ["recurrent_kernel", "recurrent_bias", "parts"]


def test_some_rows_of_a_signal_keep_their_features() -> None:
    signal = Signal(torch.zeros(4, 2), torch.ones(4), feature=torch.arange(4))
    feature = signal.rows(slice(1, None, 2)).feature
    assert feature is not None
    assert feature.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"n": 2}, SOURCE, r"\(parallel_decoder\): needs one vector per row"),
        ({}, Shape((2,)), 'option "n": is missing'),
        ({"n": 0}, Shape((2,)), 'option "n"'),
    ],
)
def test_a_parallel_decoder_that_cannot_be_is_refused(options: dict[str, Any], shape: Shape, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        build_layer({"type": "parallel_decoder", **options}, shape, SOURCE, "layers[0]")
