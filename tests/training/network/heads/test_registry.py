"""Tasks are found by their name, and a further one is its head alone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from rich.console import Console
from torch import Tensor

from tests.training.network.networks import DENSE, LSTM, classify, forecast
from training.export.graph import describe_tensors, write_graph
from training.export.verify import verify
from training.fitting.fit import fit
from training.graph.builder import GraphBuilder
from training.layers.registry import Layer, Shape, Symbol
from training.network.heads.head import Head, LayerInputSymbol, Prediction
from training.network.heads.registry import HEADS, make_head, read_spec, register_head
from training.network.heads.tensor import TensorInput, TensorSpec
from training.network.network import Network
from training.network.spec import NetworkError, NetworkSpec
from training.recipe import Fit


class RateSpec(NetworkSpec):
    """How often something happens: a positive number per row."""

    task: Literal["rate"] = "rate"
    num_features: int = 1
    unit_s: float = 1.0


class RateHead(Head):
    """`events` (B, T, F) and `lengths` → `rate` (B, 1), the exponential of what the layers give."""

    Spec: ClassVar[type[NetworkSpec]] = RateSpec
    spec: RateSpec

    @classmethod
    def from_spec(cls, spec: RateSpec) -> RateHead:
        return cls(spec, "events", Shape(("time", spec.num_features)))

    def complete(self, tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [*tables[:-1], {**tables[-1], "units": 1}]

    def outputs(self, last: Layer) -> dict[str, Shape]:
        return {"rate": last.output}

    def answer(self, prediction: Prediction) -> tuple[Tensor, ...]:
        return (self.unscale(prediction.values, prediction),)

    def scale_target(self, target: Tensor, prediction: Prediction) -> Tensor:
        return (target / self.spec.unit_s).log()

    def unscale(self, values: Tensor, prediction: Prediction) -> Tensor:
        return values.exp() * self.spec.unit_s

    def write_answer(self, graph: GraphBuilder, output: Symbol, given: LayerInputSymbol) -> tuple[str, ...]:
        with graph.scope("answer"):
            return (graph.add("Mul", graph.add("Exp", output.values), graph.constant(self.spec.unit_s)),)


@pytest.fixture
def rate() -> Iterator[type[RateHead]]:
    register_head(RateHead)
    yield RateHead
    del HEADS["rate"]


def test_a_further_task_is_built_trained_written_and_verified_by_its_head_alone(rate: type[RateHead], tmp_path: Path) -> None:
    spec = RateSpec(layers=(LSTM, DENSE), num_features=2, unit_s=0.5)
    assert read_spec(spec.model_dump(mode="json", exclude_defaults=True)) == spec
    torch.manual_seed(0)
    network = Network(spec)
    batch = {"events": torch.rand(6, 5, 2), "lengths": torch.tensor([5, 1, 3, 5, 2, 4]), "rates": torch.full((6, 1), 3.0)}

    def loss(network: Network, prediction: Prediction, batch: Mapping[str, Tensor]) -> Tensor:
        return (prediction.values - network.head.scale_target(batch["rates"], prediction)).square().mean()

    def validate(network: Network) -> float:
        return float((network(batch)["rate"].detach() - 3).abs().mean())

    before = validate(network)
    settings, console = Fit(loss="mse", epochs=3, learning_rate=0.05), Console(file=io.StringIO())
    fit(network, loss, lambda _: [batch] * 4, 4, validate, settings, seed=0, folder=tmp_path, console=console, accelerator="cpu")
    assert validate(network) < before / 2

    tensors = describe_tensors(network)
    assert [tensor["name"] for tensor in tensors["inputs"]] == ["events", "lengths", "lstm_0_hidden", "lstm_0_cell"]
    assert tensors["outputs"][0] == {"name": "rate", "datatype": "FP32", "shape": ["batch", 1]}
    verified = verify(network, write_graph(network).SerializeToString(), seed=1)
    assert verified.streamed_vs_whole is not None


def test_a_task_has_one_head(rate: type[RateHead]) -> None:
    assert register_head(rate) is rate
    with pytest.raises(ValueError, match='task "rate" has a head already: RateHead'):
        register_head(type("OtherHead", (RateHead,), {}))


@pytest.mark.parametrize("spec", [
    forecast(scaling={"kind": "window", "length": 7}, horizon=2, quantiles=(0.1, 0.5)).spec,
    classify(labels=("a", "b", "c")).spec,
    TensorSpec(layers=(LSTM,), input=TensorInput(name="x", shape=("time", 2)), output="y"),
], ids=lambda spec: spec.task)  # fmt: skip
def test_a_spec_survives_being_written_down(spec: NetworkSpec) -> None:
    assert read_spec(spec.model_dump()) == spec
    assert read_spec(spec.model_dump(mode="json", exclude_defaults=True)) == spec
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("task", ["rank", None, 3, ["forecast"]])
def test_an_unknown_task_is_refused_with_those_there_are(task: Any) -> None:
    with pytest.raises(NetworkError, match=r"unknown task .*; there are forecast, classify, tensor"):
        read_spec({"task": task, "layers": [DENSE]})


def test_a_spec_that_is_not_its_tasks_own_is_refused() -> None:
    with pytest.raises(NetworkError, match='task "forecast" needs a ForecastSpec, got a NetworkSpec'):
        make_head(NetworkSpec(task="forecast", layers=(LSTM, DENSE)))


def test_statistics_are_refused_where_nothing_is_scaled() -> None:
    with pytest.raises(NetworkError, match='task "classify" has no scaling to fit'):
        classify().set_statistics(torch.zeros(3, 1))
