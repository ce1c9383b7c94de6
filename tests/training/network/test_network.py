"""The network as a whole: what its spec may hold, scaling and its inverse, folding, seasonal correction, state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from training.layers.registry import LayerError
from training.network.network import Network, NetworkError, NetworkSpec

LSTM: dict[str, Any] = {"type": "lstm", "units": 5}
DENSE: dict[str, Any] = {"type": "dense"}
EMBEDDING: dict[str, Any] = {"type": "embedding", "output_dim": 4}
SCALINGS: list[dict[str, Any]] = [
    {"kind": "none"},
    {"kind": "minmax"},
    {"kind": "standard"},
    {"kind": "window"},
    {"kind": "window", "length": 4},
    {"kind": "window", "length": 4, "transform": "log"},
    {"kind": "window", "transform": "asinh"},
]


def forecast(*layers: dict[str, Any], **options: Any) -> Network:
    torch.manual_seed(3)
    network = Network(NetworkSpec(task="forecast", layers=layers or (LSTM, DENSE), **options)).eval()
    generator = torch.Generator().manual_seed(1)
    network.set_statistics(5 + 10 * torch.rand(50, network.spec.num_features, generator=generator))
    return network


def classify(*layers: dict[str, Any], labels: tuple[str, ...] = ("no", "yes"), **options: Any) -> Network:
    torch.manual_seed(3)
    layers = layers or (EMBEDDING, LSTM, DENSE)
    return Network(NetworkSpec(task="classify", layers=layers, labels=labels, vocabulary_size=9, **options)).eval()


def histories(lengths: list[int], num_features: int = 1) -> dict[str, Tensor]:
    """Positive values; garbage in the padding."""
    generator = torch.Generator().manual_seed(sum(lengths))
    history = 1 + 20 * torch.rand(len(lengths), max(lengths) + 2, num_features, generator=generator)
    for row, length in enumerate(lengths):
        history[row, length:] = -1e5
    return {"history": history, "lengths": torch.tensor(lengths)}


@torch.no_grad()
def run(network: Network, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = network(inputs)
    return outputs


def silence(network: Network) -> Network:
    """All weights zero: what is left is what happens around the layers."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    return network


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": []}, "at least 1 item"),
        ({"unit": 3}, "Extra inputs are not permitted"),
        ({"targets": (1,)}, r"targets must be different features below 1, got \[1\]"),
        ({"num_features": 2, "targets": (1, 1)}, "targets must be different features below 2"),
        ({"quantiles": (0.5, 0.1)}, "quantiles must ascend"),
        ({"quantiles": (0.1, 0.9)}, "quantiles must hold 0.5"),
        ({"horizon": 0}, "greater than 0"),
        ({"labels": ("a", "b")}, 'option "labels" belongs to task "classify", not "forecast"'),
        ({"task": "classify", "horizon": 3}, 'option "horizon" belongs to task "forecast", not "classify"'),
        ({"task": "classify", "labels": ("a", "b")}, "classify needs vocabulary_size"),
        ({"task": "classify", "vocabulary_size": 5, "labels": ("a",)}, "two or more different labels"),
        ({"task": "classify", "vocabulary_size": 5, "labels": ("a", "b", "a")}, "two or more different labels"),
        ({"scaling": {"kind": "minmax", "length": 3}}, 'option "length" belongs to kind "window", not "minmax"'),
        ({"scaling": {"kind": "log"}}, "Input should be 'none', 'minmax', 'standard' or 'window'"),
        ({"scaling": {"kind": "window", "window": 3}}, "Extra inputs are not permitted"),
    ],
)
def test_a_spec_whose_parts_do_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NetworkSpec(**{"task": "forecast", "layers": [LSTM, DENSE], **options})


def test_a_spec_survives_being_written_down() -> None:
    spec = forecast(scaling={"kind": "window", "length": 7}, horizon=2, quantiles=(0.1, 0.5)).spec
    assert NetworkSpec(**spec.model_dump()) == spec
    assert NetworkSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: forecast(LSTM), r"layers\[0\] \(lstm\): the last layer must be dense: it gives the answer"),
        (
            lambda: forecast(LSTM, {"type": "dense", "units": 5}, horizon=2, quantiles=(0.1, 0.5)),
            r'layers\[1\] \(dense\): option "units": the forecast needs 2 steps × 1 targets × 2 quantiles = 4, got 5',
        ),
        (
            lambda: forecast({**LSTM, "return_sequences": True}, DENSE),
            r"layers\[1\] \(dense\): needs one vector per row, got \(batch, time, 5\)",
        ),
        (lambda: forecast(LSTM, DENSE, DENSE), r'layers\[1\] \(dense\): option "units": may be left out in the last layer'),
        (lambda: forecast({"type": "lstm"}, DENSE), r'layers\[0\] \(lstm\): option "units": is missing'),
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
    ],
)
def test_layers_that_do_not_fit_the_task_are_refused_by_place(build: Any, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        build()


def test_the_last_layers_units_follow_from_the_task() -> None:
    network = forecast(num_features=3, targets=(0, 2), horizon=4, quantiles=(0.1, 0.5, 0.9))
    outputs = run(network, histories([5, 3], 3))
    assert {name: tuple(values.shape) for name, values in outputs.items()} == {"mean": (2, 4, 2), "quantiles": (2, 4, 2, 3)}
    assert network.num_parameters == 4 * 5 * (3 + 5 + 1) + (5 + 1) * 24
    assert tuple(classify(labels=("a", "b", "c")).logits(tokens([2, 1])).shape) == (2, 3)


def tokens(lengths: list[int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(0, 9, (len(lengths), max(lengths) + 2), generator=generator)
    return {"tokens": values, "lengths": torch.tensor(lengths)}


def test_quantiles_ascend_and_the_point_is_the_median() -> None:
    network = forecast(horizon=6, quantiles=(0.1, 0.5, 0.9))
    inputs = histories([8, 3])
    outputs = run(network, inputs)
    unsorted, context = network.predict_scaled(inputs)
    assert (unsorted.diff(dim=-1) < 0).any()
    assert (outputs["quantiles"].diff(dim=-1) >= 0).all()
    assert outputs["mean"].equal(outputs["quantiles"][..., 1])
    torch.testing.assert_close(network.unscale(unsorted, context).sort(-1).values, outputs["quantiles"])
    assert network.point == "median"
    assert forecast().point == "mean"


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("quantiles", [(), (0.5, 0.9)])
def test_targets_scale_and_unscale_without_loss(scaling: dict[str, Any], quantiles: tuple[float, ...]) -> None:
    network = forecast(num_features=3, targets=(2, 0), horizon=4, scaling=scaling, quantiles=quantiles)
    prediction, context = network.predict_scaled(histories([5, 9], 3))
    target = 1 + 20 * torch.rand(2, 4, 2)
    scaled = network.scale_target(target, context)
    assert scaled.shape == prediction.shape[:3]
    torch.testing.assert_close(network.unscale(scaled, context), target)


def test_scaling_reads_as_it_is_documented() -> None:
    history = torch.tensor([[[0.0], [4.0], [-8.0], [99.0]], [[0.0], [0.0], [99.0], [99.0]]])
    inputs = {"history": history, "lengths": torch.tensor([3, 2])}
    target = torch.tensor([[[12.0]], [[12.0]]])

    def scaled(**scaling: Any) -> list[float]:
        network = forecast(scaling=scaling)
        network.set_statistics(torch.tensor([[2.0], [6.0], [10.0]]))
        return [round(value, 4) for value in network.scale_target(target, network.predict_scaled(inputs)[1]).flatten().tolist()]

    assert scaled(kind="none") == [12, 12]
    assert scaled(kind="minmax") == [1.25, 1.25]
    assert scaled(kind="standard") == [1.8371, 1.8371]  # (12 - 6) / sqrt(32 / 3)
    assert scaled(kind="window") == [3, 12]  # mean of 0, 4, 8; the second row is all zero: divided by 1
    assert scaled(kind="window", length=2) == [2, 12]
    log = scaled(kind="window", length=2, transform="log", floor=0.5)
    assert log == [0.9163, 2.5257]  # the first row is lifted by 16: log(28 / 14 + 0.5); log(12 + 0.5)
    assert scaled(kind="window", length=2, transform="asinh") == [1.4436, 3.1798]


def test_a_constant_feature_and_values_near_the_largest_float_stay_finite() -> None:
    network = forecast(scaling={"kind": "standard"})
    network.set_statistics(torch.full((5, 1), 7.0))
    assert run(network, {"history": torch.full((1, 4, 1), 7.0), "lengths": torch.tensor([4])})["mean"].isfinite().all()
    large = {"history": torch.full((1, 400, 1), 1e37), "lengths": torch.tensor([400])}
    assert run(forecast(scaling={"kind": "window", "transform": "log"}), large)["mean"].isfinite().all()


def test_the_logarithm_takes_targets_below_zero_as_zero() -> None:
    network = forecast(scaling={"kind": "window", "transform": "log", "floor": 0.5})
    _, context = network.predict_scaled({"history": torch.ones(1, 3, 1), "lengths": torch.tensor([3])})
    target = torch.tensor([[[-4.0]], [[0.0]], [[0.5]]])
    torch.testing.assert_close(network.scale_target(target, context), torch.tensor([0.5, 0.5, 1.0]).log().view(3, 1, 1))


def test_the_logarithm_forecasts_a_negative_history_as_the_same_history_lifted_above_zero() -> None:
    network = forecast(LSTM, DENSE, scaling={"kind": "window", "transform": "log"})
    negative = torch.tensor([[[-3.0], [-2.0], [-3.0], [-1.0]]])  # lifted by 6
    lengths = torch.tensor([4])
    shifted = run(network, {"history": negative + 6, "lengths": lengths})["mean"] - 6
    torch.testing.assert_close(run(network, {"history": negative, "lengths": lengths})["mean"], shifted)


def test_steps_are_folded_from_each_rows_own_end() -> None:
    folded = forecast(LSTM, DENSE, step=3, num_features=2)
    plain = forecast(LSTM, DENSE, num_features=6)
    plain.load_state_dict({**folded.state_dict(), "scaling.offset": torch.zeros(6), "scaling.scale": torch.ones(6)})
    inputs = histories([10, 3, 8], 2)
    for row, length in enumerate([10, 3, 8]):
        steps = inputs["history"][row, length % 3 : length].reshape(1, length // 3, 6)
        expected = run(plain, {"history": steps, "lengths": torch.tensor([length // 3])})["mean"]
        torch.testing.assert_close(run(folded, inputs)["mean"][row : row + 1], expected)


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_a_silent_network_with_a_seasonal_lag_is_the_seasonal_naive_forecast(scaling: dict[str, Any]) -> None:
    network = silence(forecast(num_features=2, targets=(1,), horizon=7, seasonal_lag=3, scaling=scaling, quantiles=(0.1, 0.5)))
    inputs = histories([9, 3, 5], 2)
    outputs = run(network, inputs)
    for row, length in enumerate([9, 3, 5]):
        season = inputs["history"][row, length - 3 : length, 1]
        expected = torch.cat([season, season, season[:1]])
        torch.testing.assert_close(outputs["mean"][row, :, 0], expected)
        torch.testing.assert_close(outputs["quantiles"][row, :, 0], expected.unsqueeze(1).expand(7, 2))


def test_the_answer_does_not_depend_on_the_padding_or_the_other_rows() -> None:
    network = forecast(
        {"type": "bidirectional", "layer": {**LSTM, "return_sequences": True}},
        {"type": "concat_pooling"},
        {"type": "recent", "n": 4},
        DENSE,
        scaling={"kind": "window", "length": 6, "transform": "log"},
        step=2,
        seasonal_lag=4,
        horizon=5,
        quantiles=(0.1, 0.5, 0.9),
    )
    inputs = histories([11, 4, 8])
    together = run(network, inputs)
    for row, length in enumerate([11, 4, 8]):
        alone = {"history": inputs["history"][row : row + 1, :length], "lengths": torch.tensor([length])}
        for name, values in run(network, alone).items():
            torch.testing.assert_close(together[name][row : row + 1], values)


def test_the_shortest_history_follows_from_what_is_read_of_it() -> None:
    assert forecast().min_length == 1
    assert forecast(step=4).min_length == 4
    assert forecast(step=4, seasonal_lag=6).min_length == 6
    assert forecast(LSTM, {"type": "recent", "n": 9}, DENSE, step=4, seasonal_lag=6).min_length == 9
    assert forecast(scaling={"kind": "window", "length": 50}).min_length == 1
    assert classify().min_length == 1


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (lambda: forecast(), True),
        (lambda: forecast(scaling={"kind": "minmax"}), True),
        (lambda: forecast({**LSTM, "return_sequences": True}, {"type": "gru", "units": 3}, DENSE), True),
        (lambda: classify(), True),
        (lambda: forecast(scaling={"kind": "window"}), False),
        (lambda: forecast(seasonal_lag=2), False),
        (lambda: forecast(step=2), False),
        (lambda: forecast(LSTM, {"type": "recent", "n": 2}, DENSE), False),
        (lambda: forecast({**LSTM, "go_backwards": True}, DENSE), False),
        (lambda: forecast({"type": "bidirectional", "layer": LSTM}, DENSE), False),
        (lambda: forecast({**LSTM, "return_sequences": True}, {"type": "global_max_pooling"}, DENSE), False),
        (lambda: classify({**EMBEDDING, "mask_zero": True}, LSTM, DENSE), False),
    ],
)
def test_only_a_network_that_reads_forward_step_by_step_can_stream(network: Any, expected: bool) -> None:
    built: Network = network()
    assert built.can_stream is expected
    assert bool(built.state) is expected


def test_a_sequence_in_pieces_gives_what_it_gives_whole() -> None:
    network = forecast(
        {**LSTM, "return_sequences": True}, {"type": "gru", "units": 3}, DENSE, scaling={"kind": "standard"}, horizon=2
    )
    names = ["lstm_0_hidden", "lstm_0_cell", "gru_1_hidden"]
    assert [(part.input, part.output) for part in network.state] == [(name, f"{name}_next") for name in names]
    whole = histories([7, 7])
    state = {part.input: torch.zeros(2, part.units) for part in network.state}
    outputs = run(network, {**whole, **state})
    for start, end in ((0, 3), (3, 4), (4, 7)):
        piece = {"history": whole["history"][:, start:end], "lengths": torch.full((2,), end - start)}
        streamed = run(network, {**piece, **state})
        state = {part.input: streamed[part.output] for part in network.state}
    assert streamed.keys() == outputs.keys() == {"mean", *(f"{name}_next" for name in names)}
    for name, values in outputs.items():
        torch.testing.assert_close(streamed[name], values)
    torch.testing.assert_close(run(network, whole)["mean"], outputs["mean"])


def test_half_a_state_is_refused() -> None:
    inputs = {**histories([3]), "lstm_0_hidden": torch.zeros(1, 5)}
    with pytest.raises(NetworkError, match=r"state comes whole or not at all: \['lstm_0_cell'\] missing"):
        forecast()(inputs)


def test_statistics_are_per_feature_and_travel_with_the_weights() -> None:
    network = forecast(num_features=2, scaling={"kind": "minmax"})
    network.set_statistics(torch.tensor([[0.0, 5.0], [10.0, 9.0]]))
    restored = Network(network.spec).eval()
    restored.load_state_dict(network.state_dict())
    assert restored.scaling.offset.tolist() == [0.0, 5.0]
    assert restored.scaling.scale.tolist() == [10.0, 4.0]
    inputs = histories([4], 2)
    assert run(restored, inputs)["mean"].equal(run(network, inputs)["mean"])
    with pytest.raises(NetworkError, match=r"statistics need values \(N, 2\), got \(5, 3\)"):
        network.set_statistics(torch.zeros(5, 3))


@pytest.mark.parametrize("units", [1, 2])
def test_probabilities_are_those_of_the_logits_and_sum_to_one(units: int) -> None:
    network = classify(EMBEDDING, LSTM, {"type": "dense", "units": units})
    inputs = tokens([4, 1, 6])
    logits = network.logits(inputs).detach()
    probabilities = run(network, inputs)["probabilities"]
    second = torch.sigmoid(logits[:, 0]) if units == 1 else torch.softmax(logits, 1)[:, 1]
    torch.testing.assert_close(probabilities[:, 1], second)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))


def test_a_network_learns_through_all_of_its_parts() -> None:
    network = forecast(
        {"type": "bidirectional", "layer": {**LSTM, "return_sequences": True, "dropout": 0.1}},
        {"type": "spatial_dropout", "rate": 0.1},
        {"type": "gru", "units": 4},
        {"type": "recent", "n": 2},
        DENSE,
        step=2,
        seasonal_lag=2,
        horizon=2,
        scaling={"kind": "window"},
    ).train()
    inputs = histories([9, 4, 12, 7])
    prediction, context = network.predict_scaled(inputs)
    target = network.scale_target(torch.ones(4, 2, 1), context)
    torch.nn.functional.mse_loss(prediction, target).backward()  # type: ignore[no-untyped-call]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("layer", [LSTM, {"type": "gru", "units": 3}, {"type": "simple_rnn", "units": 3}], ids=str)
def test_a_copy_or_another_precision_has_weights_of_its_own(layer: dict[str, Any]) -> None:
    network = forecast(layer, DENSE)
    inputs = histories([4, 2])
    before = run(network, inputs)["mean"]
    duplicate = copy.deepcopy(network)
    assert run(duplicate, inputs)["mean"].equal(before)
    silence(duplicate)
    assert not run(duplicate, inputs)["mean"].any()
    assert run(network, inputs)["mean"].equal(before)
    doubled = run(network.double(), {**inputs, "history": inputs["history"].double()})["mean"]
    torch.testing.assert_close(doubled.float(), before)


def test_a_forecast_may_be_a_sequence_of_its_own() -> None:
    one_to_many: list[dict[str, Any]] = [
        LSTM,
        {"type": "repeat_vector", "n": 3},
        {"type": "gru", "units": 4, "return_sequences": True},
    ]
    head = {"type": "time_distributed", "layer": {"type": "dense", "units": 2}}
    for last in (head, {"type": "dense", "units": 2}):
        network = forecast(*one_to_many, last, horizon=3, num_features=2, targets=(0, 1))
        assert run(network, histories([4, 2], 2))["mean"].shape == (2, 3, 2)
        # The layer behind the repeated vector starts anew with every answer.
        assert [part.input for part in network.state] == ["lstm_0_hidden", "lstm_0_cell"]
        assert network.can_stream
    with pytest.raises(LayerError, match=r"layers\[3\] \(time_distributed\): the forecast needs \(batch, 5, 2\): steps, and"):
        forecast(*one_to_many, head, horizon=5, num_features=2, targets=(0, 1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "tensor needs input"),
        ({"shape": ()}, "at least 1 item"),
        ({"shape": (3, "time")}, 'only the first axis may be "time"'),
        ({"shape": ("time",)}, "floats with a time axis need features"),
        ({"shape": (3, 2), "kind": "tokens"}, "token ids have one axis"),
        ({"shape": (3, 2), "vocabulary_size": 4}, 'option "vocabulary_size" belongs to kind "tokens"'),
    ],
)
def test_the_input_of_task_tensor_is_checked(given: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NetworkSpec(task="tensor", layers=[LSTM], input=given)  # type: ignore[arg-type]


def test_task_tensor_names_its_inputs_and_outputs() -> None:
    layers = [{**LSTM, "return_state": True, "name": "reader"}]
    network = Network(NetworkSpec(task="tensor", layers=layers, input={"name": "x", "shape": ("time", 2)}, output="y"))  # type: ignore[arg-type]
    outputs = network({"x": torch.randn(3, 4, 2), "lengths": torch.tensor([4, 1, 2])})
    assert {name: tuple(values.shape) for name, values in outputs.items()} == {"y": (3, 5), "y_hidden": (3, 5), "y_cell": (3, 5)}
    assert [part.input for part in network.state] == ["reader_hidden", "reader_cell"]
    assert NetworkSpec(**network.spec.model_dump()) == network.spec
    with pytest.raises(LayerError, match=r'layers\[0\] \(embedding\): option "input_dim": is missing: how many ids'):
        Network(NetworkSpec(task="tensor", layers=[EMBEDDING], input={"kind": "tokens", "shape": (4,)}))  # type: ignore[arg-type]
