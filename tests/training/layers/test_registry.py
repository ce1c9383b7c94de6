"""Layers are found by their names, and a further one is one file and one line."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from rich.console import Console
from torch import nn

from training.export.graph import write_graph
from training.export.verify import verify
from training.fitting.fit import fit
from training.fitting.losses import forecast_loss
from training.graph.builder import GraphBuilder
from training.layers.activations import ActivationOption, read_activation
from training.layers.base import Layer, LayerConfig, LayerState, Shape, Signal, Symbol, require_sequence
from training.layers.registry import LAYERS, LayerError, build_layer, options_of, register_layer
from training.layers.weights import ConstraintOption, RegularizerOption, Weight, weight_of
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network
from training.recipe import Fit


class GainConfig(LayerConfig):
    """A factor per feature."""

    type: Literal["gain", "feature_gain"]
    start: float = 1.0
    activation: ActivationOption = read_activation("linear")
    regularizer: RegularizerOption = None
    constraint: ConstraintOption = None
    activity_regularizer: RegularizerOption = None


class Gain(Layer):
    """activation(values · gain)."""

    Config: ClassVar[type[LayerConfig]] = GainConfig
    config: GainConfig
    acts_on_last_axis = True
    hands_mask_on = True

    def __init__(self, config: GainConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_sequence(shape)
        self.gain = nn.Parameter(torch.full((shape.features,), config.start))

    @property
    def weights(self) -> tuple[Weight, ...]:
        return (weight_of("gain", self.gain, self.config.regularizer, self.config.constraint),)

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        result = signal.with_values(self.config.activation(signal.values * self.gain))
        return self.with_activity(self.config.activity_regularizer, result), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        values = graph.add("Mul", symbol.values, graph.constant(self.gain.detach().cpu().numpy(), "gain"), named=True)
        return symbol.with_values(self.config.activation.write(graph, values)), ()


@pytest.fixture
def gain() -> Iterator[type[Gain]]:
    register_layer(Gain)
    yield Gain
    for name in Gain.names():
        del LAYERS[name]


def test_a_further_layer_is_trained_written_and_verified_without_another_file(gain: type[Gain], tmp_path: Path) -> None:
    torch.manual_seed(0)
    table = {"type": "gain", "start": 0.1, "activation": "tanh", "regularizer": "l2", "activity_regularizer": "l1"}
    layers = (table, {"type": "lstm", "units": 3}, {"type": "dense"})
    network = Network(ForecastSpec(layers=layers))
    steps = torch.linspace(0, 1, 7).repeat(8, 1) + torch.rand(8, 1)
    batch = {"history": steps[:, :6, None], "lengths": torch.full((8,), 6), "future": steps[:, 6:, None]}
    loss = forecast_loss("mse", ())

    def validate(network: Network) -> float:
        return float(loss(network, network.predict(batch), batch))

    settings, console = Fit(loss="mse", epochs=4, learning_rate=0.05), Console(file=io.StringIO())
    fitted = fit(
        network, loss, lambda _: [batch] * 5, 5, validate, settings,
        seed=0, folder=tmp_path, console=console, accelerator="cpu",
    )  # fmt: skip
    assert fitted.epochs[-1].loss < fitted.epochs[0].loss
    (trained,) = network.stack[0].keras_weights()
    assert trained[0] != pytest.approx(0.1)
    assert isinstance(network.penalty(network.train().predict(batch)), torch.Tensor)
    model = write_graph(network.eval())
    assert "gain_0" in [node.name for node in model.graph.node]
    verified = verify(network, model.SerializeToString(), seed=1)
    assert verified.streamed_vs_whole is not None
    assert max(verified.graph_vs_torch, verified.row_vs_batch, verified.streamed_vs_whole) < 1e-5


def test_a_further_layer_has_the_options_and_the_errors_of_any_other(gain: type[Gain]) -> None:
    assert options_of("feature_gain") == [
        "start", "activation", "regularizer", "constraint", "activity_regularizer", "name", "trainable",
    ]  # fmt: skip
    shape = Shape(("time", 2))
    with pytest.raises(LayerError, match=r'layers\[0\] \(gain\): option "begin": unknown; there are start, activation'):
        build_layer({"type": "gain", "begin": 2}, shape, shape, "layers[0]")
    with pytest.raises(LayerError, match=r"layers\[0\] \(gain\): needs a sequence"):
        build_layer({"type": "gain"}, Shape((2,)), shape, "layers[0]")


def test_a_name_is_of_one_layer(gain: type[Gain]) -> None:
    assert register_layer(gain) is gain
    with pytest.raises(ValueError, match='there is a layer "gain" already: Gain'):
        register_layer(type("OtherGain", (Gain,), {}))


@pytest.mark.parametrize("kind", ["lstn", None, 3, ["lstm"], {"name": "lstm"}])
@pytest.mark.parametrize("outer", [None, "time_distributed", "bidirectional"])
def test_what_is_no_name_of_a_layer_is_refused(kind: Any, outer: str | None) -> None:
    shape = Shape(("time", 2))
    table = {"type": kind, "units": 2}
    with pytest.raises(LayerError, match=r"layers\[0\].*type"):
        build_layer({"type": outer, "layer": table} if outer else table, shape, shape, "layers[0]")


@pytest.mark.parametrize(("inner", "message"), [
    ({"type": "recent", "n": 2}, "recent reads the network's input, which no single step has"),
    ({"type": "lstm", "units": 2, "stateful": True}, "a stateful layer inside is not supported"),
    ({"type": "lstm", "units": 2, "return_state": True}, "a layer with more than one result inside is not supported"),
])  # fmt: skip
def test_a_layer_that_no_single_step_can_have_is_refused_by_option(inner: dict[str, Any], message: str) -> None:
    shape = Shape((3,)) if inner["type"] == "recent" else Shape((4, 3))
    with pytest.raises(LayerError, match=message):
        build_layer({"type": "time_distributed", "layer": inner}, Shape((5, *shape.axes)), Shape(("time", 1)), "layers[0]")
