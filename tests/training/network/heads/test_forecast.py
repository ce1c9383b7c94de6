"""The forecast head: scaling and its inverse, folded steps, the seasonal correction, quantiles, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.training.network.networks import DENSE, LSTM, forecast, histories, run
from training.layers.bases import BaseConfig
from training.layers.registry import LayerError, Signal
from training.layers.theta import theta
from training.network.heads.forecast import ForecastHead, ForecastSpec
from training.network.network import Network
from training.network.spec import NetworkError

SCALINGS: list[dict[str, Any]] = [
    {"kind": "none"},
    {"kind": "minmax"},
    {"kind": "standard"},
    {"kind": "window"},
    {"kind": "window", "length": 4},
    {"kind": "window", "length": 4, "transform": "log"},
    {"kind": "window", "transform": "asinh"},
    {"kind": "standard", "centre": "last"},
    {"kind": "standard", "centre": "level"},
    {"kind": "window", "transform": "log", "centre": "last"},
]


BASES = (BaseConfig(lag=1), BaseConfig(lag=4), BaseConfig(lag=12))
OWN: dict[str, Any] = {
    "bases": BASES,
    "scaling": {"kind": "seasonal"},
    "season_length": 4,
    "context_length": 24,
    "read_length": 12,
    "horizon": 6,
}


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
        ({"labels": ("a", "b")}, "Extra inputs are not permitted"),
        ({"targets": (1,)}, r"targets must be different features below 1, got \[1\]"),
        ({"num_features": 2, "targets": (1, 1)}, "targets must be different features below 2"),
        ({"quantiles": (0.5, 0.1)}, "quantiles must ascend"),
        ({"quantiles": (0.1, 0.9)}, "quantiles must hold 0.5"),
        ({"horizon": 0}, "greater than 0"),
        ({"scaling": {"kind": "minmax", "length": 3}}, 'option "length" belongs to kind "window", not "minmax"'),
        ({"scaling": {"kind": "log"}}, "Input should be 'none', 'minmax', 'standard', 'window', 'running' or 'seasonal'"),
        ({"scaling": {"kind": "window", "window": 3}}, "Extra inputs are not permitted"),
        ({"decomposition": "classical"}, "needs a season_length of 2 or more, got 1"),
        ({"mape_point": True}, "it needs quantiles"),
        ({"independent": True, **OWN}, "independent goes without covariates, streaming and bases"),
        ({"bases": BASES}, 'bases and scaling of kind "seasonal" need each other'),
        ({"scaling": {"kind": "seasonal"}}, 'bases and scaling of kind "seasonal" need each other'),
        ({**OWN, "seasonal_lag": 4}, "bases go without covariates, seasonal_lag"),
        ({**OWN, "theta_share": 0.5}, "bases go without covariates, seasonal_lag, theta_share"),
        ({"theta_share": 1.0}, "less than 1"),
        ({**OWN, "season_length": 1}, "bases need a season_length of 2 or more, got 1"),
        ({**OWN, "read_length": 13}, "need a context_length of 25 or more, got 24"),
    ],
)
def test_a_spec_whose_parts_do_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ForecastSpec(**{"layers": [LSTM, DENSE], **options})


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
        (
            lambda: forecast({"type": "repeat_vector", "n": 2}, DENSE),
            r"layers\[0\] \(repeat_vector\): needs one vector per row, got \(batch, time, 1\)",
        ),
        (
            lambda: forecast(LSTM, {"type": "dense", "units": 1}, horizon=2),
            r'layers\[1\] \(dense\): option "units": the forecast needs 2 units, got 1',
        ),
        (
            lambda: forecast(LSTM, {"type": "parallel_decoder", "n": 3}, DENSE, horizon=4),
            r"layers\[2\] \(dense\): the forecast needs \(batch, 4, 1\): steps, and targets × quantiles; got \(batch, 3, 1\)",
        ),
        (
            lambda: forecast(LSTM, {"type": "parallel_decoder", "n": 2}, {"type": "dense", "units": 1}, horizon=4),
            r"layers\[2\] \(dense\): the forecast needs \(batch, 2, 2\): steps, and targets × quantiles; got \(batch, 2, 1\)",
        ),
    ],
)
def test_layers_that_do_not_end_in_the_forecast_are_refused_by_place(build: Any, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        build()


def test_the_last_layers_units_follow_from_the_task() -> None:
    network = forecast(num_features=3, targets=(0, 2), horizon=4, quantiles=(0.1, 0.5, 0.9))
    outputs = run(network, histories([5, 3], 3))
    assert {name: tuple(values.shape) for name, values in outputs.items()} == {"forecast": (2, 4, 2), "quantiles": (2, 4, 2, 3)}
    assert network.num_parameters == 4 * 5 * (3 + 5 + 1) + (5 + 1) * 24


def test_quantiles_ascend_and_the_point_is_the_median() -> None:
    network = forecast(horizon=6, quantiles=(0.1, 0.5, 0.9))
    inputs = histories([8, 3])
    outputs = run(network, inputs)
    prediction = network.predict(inputs)
    unsorted = prediction.values
    assert (unsorted.diff(dim=-1) < 0).any()
    assert (outputs["quantiles"].diff(dim=-1) >= 0).all()
    assert outputs["forecast"].equal(outputs["quantiles"][..., 1])
    torch.testing.assert_close(network.head.unscale(unsorted, prediction).sort(-1).values, outputs["quantiles"])
    assert ForecastSpec(layers=(LSTM, DENSE), quantiles=(0.5,)).point == "median"
    assert ForecastSpec(layers=(LSTM, DENSE)).point == "mean"


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("quantiles", [(), (0.5, 0.9)])
@pytest.mark.parametrize("season", [{}, {"decomposition": "classical", "season_length": 3}], ids=str)
def test_targets_scale_and_unscale_without_loss(
    scaling: dict[str, Any], quantiles: tuple[float, ...], season: dict[str, Any]
) -> None:
    network = forecast(num_features=3, targets=(2, 0), horizon=4, scaling=scaling, quantiles=quantiles, **season)
    prediction = network.predict(histories([5, 9], 3))
    target = 1 + 20 * torch.rand(2, 4, 2)
    scaled = network.head.scale_target(target, prediction)
    assert scaled.shape == prediction.values.shape[:3]
    torch.testing.assert_close(network.head.unscale(scaled, prediction), target)


def test_a_silent_network_goes_on_with_the_last_value_and_the_season() -> None:
    steps = torch.arange(24)
    season = torch.tensor([2.0, 0.5, 1.0, 1.0])
    history = (100 * season[steps % 4]).view(1, -1, 1)
    network = silence(
        forecast(
            horizon=6,
            scaling={"kind": "window", "transform": "log", "floor": 1e-6, "centre": "last"},
            decomposition="classical",
            season_length=4,
        )
    )
    torch.nn.init.constant_(network.head.decomposition.gate_out.bias, 50.0)  # type: ignore[union-attr, arg-type]
    found = run(network, {"history": history, "lengths": torch.tensor([24])})["forecast"].flatten()
    torch.testing.assert_close(found, 100 * season[(24 + torch.arange(6)) % 4], rtol=1e-4, atol=0)


def test_a_silent_network_with_bases_takes_over_the_one_that_is_exact() -> None:
    weeks = torch.tensor([2.0, 0.5, 1.0, 3.0, 2.5, 0.5, 1.0, 4.0, 2.0, 0.5, 1.0, 1.5]).repeat(4)
    days = torch.tensor([2.0, 0.5, 1.0, 3.0]).repeat(12)
    network = silence(forecast(**OWN, quantiles=(0.1, 0.5, 0.9)))
    torch.nn.init.constant_(network.head.base_forecasts.sharpness, 2.0)  # type: ignore[union-attr, arg-type]
    history = torch.stack([weeks[:24], days[:24]]).unsqueeze(2)
    outputs = run(network, {"history": history, "lengths": torch.tensor([24, 9])})
    torch.testing.assert_close(outputs["forecast"][0, :, 0], weeks[24:30])
    torch.testing.assert_close(outputs["forecast"][1, :, 0], days[9:15])
    torch.testing.assert_close(outputs["quantiles"], outputs["forecast"].unsqueeze(3).expand(2, 6, 1, 3))


def test_with_bases_no_forecast_is_below_zero_where_no_value_is() -> None:
    network = forecast(**OWN, quantiles=(0.1, 0.5, 0.9))
    with torch.no_grad():
        for parameter in network.layers[-1].parameters():
            parameter.fill_(-3.0)
    inputs = histories([20, 9])
    assert run(network, inputs)["quantiles"].min() == 0
    inputs["history"][0, 3] = -1e-3
    lowest = run(network, inputs)["quantiles"].amin((1, 2, 3))
    assert lowest[0] < 0 <= lowest[1]


def test_what_follows_a_constant_history_does_not_decide_a_loss() -> None:
    network = forecast(**OWN)
    prediction = network.predict({"history": torch.zeros(1, 24, 1), "lengths": torch.tensor([24])})
    assert network.head.scale_target(torch.full((1, 6, 1), 5.0), prediction).tolist() == [[[1000.0]] * 6]


def test_layers_that_need_more_than_they_are_given_to_read_are_refused() -> None:
    assert forecast(**OWN, step=4).min_length == 5
    network = forecast(LSTM, {"type": "recent", "n": 13}, DENSE, **OWN)
    with pytest.raises(NetworkError, match="these layers need 13 steps, and read_length gives them 12"):
        _ = network.min_length


@pytest.mark.parametrize("options", [{}, {"quantiles": (0.1, 0.5)}, {"seasonal_lag": 3, "step": 2}], ids=str)
def test_independent_features_are_forecast_as_one_alone(options: dict[str, Any]) -> None:
    several = forecast(independent=True, num_features=3, targets=(2, 0), horizon=4, **options)
    alone = forecast(horizon=4, **options)
    alone.load_state_dict({**several.state_dict(), "head.scaler.offset": torch.zeros(1), "head.scaler.scale": torch.ones(1)})
    inputs = histories([9, 5], 3)
    outputs = run(several, inputs)
    for column, feature in enumerate((2, 0)):
        expected = run(alone, {**inputs, "history": inputs["history"][..., feature : feature + 1]})
        for name, values in expected.items():
            torch.testing.assert_close(outputs[name][:, :, column], values[:, :, 0])
    assert several.num_parameters == alone.num_parameters
    assert "reads each feature as a row of its own" in forecast(independent=True, num_features=2).why_not_streaming


def test_parts_of_the_horizon_follow_one_another() -> None:
    network = forecast(LSTM, {"type": "parallel_decoder", "n": 2}, DENSE, horizon=6, num_features=3, targets=(2, 0))
    assert network.stack[-1].output.axes == (2, 6), "three steps of two targets"
    inputs = histories([9, 5], 3)
    prediction = network.predict(inputs)
    assert prediction.values.shape == (2, 6, 2)
    before = run(network, inputs)["forecast"]
    with torch.no_grad():
        network.stack[1].get_parameter("parts")[1] += 1
    after = run(network, inputs)["forecast"]
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3:] != before[:, 3:]).all()


def test_features_that_one_network_reads_by_themselves_may_be_told_apart() -> None:
    layers = (LSTM, {"type": "parallel_decoder", "n": 2}, DENSE)
    network = forecast(*layers, horizon=4, independent=True, num_features=3, targets=(0, 1, 2))
    network.set_statistics(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    same = {**histories([9, 5]), "history": histories([9, 5])["history"].expand(-1, -1, 3)}
    first, second, third = run(network, same)["forecast"].unbind(2)
    assert not torch.isclose(first, second).any()
    assert not torch.isclose(second, third).any()


def test_members_of_an_ensemble_know_the_features_of_their_own_rows() -> None:
    network = forecast(
        LSTM,
        {"type": "parallel_decoder", "n": 2},
        DENSE,
        horizon=4,
        independent=True,
        num_features=3,
        targets=(0, 1, 2),
        members=2,
    )
    inputs = histories([9, 5], 3)
    whole = network.train().predict(inputs).values
    first, second = network.members
    for layer, other in zip(first, second, strict=True):
        other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(network.train().predict(inputs).values, network.eval().predict(inputs).values)
    assert whole.shape == (2, 4, 3)


def test_the_second_point_forecast_is_an_answer_of_its_own() -> None:
    network = forecast(horizon=2, quantiles=(0.1, 0.5, 0.9), mape_point=True)
    inputs = histories([8, 3])
    outputs, prediction = run(network, inputs), network.predict(inputs)
    assert {name: tuple(values.shape) for name, values in outputs.items()} == {
        "forecast": (2, 2, 1),
        "quantiles": (2, 2, 1, 3),
        "forecast_mape": (2, 2, 1),
    }
    raw = network.head.unscale(prediction.values, prediction)
    torch.testing.assert_close(outputs["forecast_mape"], raw[..., 3])
    torch.testing.assert_close(outputs["quantiles"], raw[..., :3].sort(-1).values)


def test_an_error_of_a_history_of_zeros_is_relative_to_the_floor_of_its_logs() -> None:
    inputs = {"history": np.array([[[0.0], [0.0]], [[1e-6], [0.0]]]), "lengths": np.array([2, 2])}
    expected = np.full((2, 1, 1), 1e-9)
    logs = forecast(scaling={"kind": "window", "transform": "log", "floor": 0.01}).head
    assert logs.error_scale("forecast", expected, inputs).tolist() == [0.01, 1e-6]
    assert forecast(scaling={"kind": "window"}).head.error_scale("forecast", expected, inputs).tolist() == [1e-9, 1e-6]


def test_no_forecast_of_logs_is_below_zero() -> None:
    network = forecast(horizon=2, scaling={"kind": "window", "transform": "log", "floor": 0.5})
    with torch.no_grad():
        for parameter in network.layers[-1].parameters():
            parameter.fill_(-3.0)
    inputs = histories([8, 3])
    assert (network.predict(inputs).values.exp() < 0.5).any()
    assert run(network, inputs)["forecast"].min() == 0


def test_scaling_reads_as_it_is_documented() -> None:
    history = torch.tensor([[[0.0], [4.0], [-8.0], [99.0]], [[0.0], [0.0], [99.0], [99.0]]])
    inputs = {"history": history, "lengths": torch.tensor([3, 2])}
    target = torch.tensor([[[12.0]], [[12.0]]])

    def scaled(**scaling: Any) -> list[float]:
        network = forecast(scaling=scaling)
        network.set_statistics(torch.tensor([[2.0], [6.0], [10.0]]))
        found = network.head.scale_target(target, network.predict(inputs))
        return [round(value, 4) for value in found.flatten().tolist()]

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
    assert run(network, {"history": torch.full((1, 4, 1), 7.0), "lengths": torch.tensor([4])})["forecast"].isfinite().all()
    large = {"history": torch.full((1, 400, 1), 1e37), "lengths": torch.tensor([400])}
    assert run(forecast(scaling={"kind": "window", "transform": "log"}), large)["forecast"].isfinite().all()


def test_the_logarithm_takes_targets_below_zero_as_zero() -> None:
    network = forecast(scaling={"kind": "window", "transform": "log", "floor": 0.5})
    prediction = network.predict({"history": torch.ones(1, 3, 1), "lengths": torch.tensor([3])})
    target = torch.tensor([[[-4.0]], [[0.0]], [[0.5]]])
    scaled = network.head.scale_target(target, prediction)
    torch.testing.assert_close(scaled, torch.tensor([0.5, 0.5, 1.0]).log().view(3, 1, 1))


def test_the_logarithm_forecasts_a_negative_history_as_the_same_history_lifted_above_zero() -> None:
    network = forecast(LSTM, DENSE, scaling={"kind": "window", "transform": "log"})
    negative = torch.tensor([[[-3.0], [-2.0], [-3.0], [-1.0]]])  # lifted by 6
    lengths = torch.tensor([4])
    shifted = run(network, {"history": negative + 6, "lengths": lengths})["forecast"] - 6
    torch.testing.assert_close(run(network, {"history": negative, "lengths": lengths})["forecast"], shifted)


def test_steps_are_folded_from_each_rows_own_end() -> None:
    folded = forecast(LSTM, DENSE, step=3, num_features=2)
    plain = forecast(LSTM, DENSE, num_features=6)
    plain.load_state_dict({**folded.state_dict(), "head.scaler.offset": torch.zeros(6), "head.scaler.scale": torch.ones(6)})
    inputs = histories([10, 3, 8], 2)
    for row, length in enumerate([10, 3, 8]):
        steps = inputs["history"][row, length % 3 : length].reshape(1, length // 3, 6)
        expected = run(plain, {"history": steps, "lengths": torch.tensor([length // 3])})["forecast"]
        torch.testing.assert_close(run(folded, inputs)["forecast"][row : row + 1], expected)


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_a_silent_network_with_a_seasonal_lag_is_the_seasonal_naive_forecast(scaling: dict[str, Any]) -> None:
    network = silence(forecast(num_features=2, targets=(1,), horizon=7, seasonal_lag=3, scaling=scaling, quantiles=(0.1, 0.5)))
    inputs = histories([9, 3, 5], 2)
    outputs = run(network, inputs)
    for row, length in enumerate([9, 3, 5]):
        season = inputs["history"][row, length - 3 : length, 1]
        expected = torch.cat([season, season, season[:1]])
        torch.testing.assert_close(outputs["forecast"][row, :, 0], expected)
        torch.testing.assert_close(outputs["quantiles"][row, :, 0], expected.unsqueeze(1).expand(7, 2))


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("independent", [False, True])
def test_a_silent_network_with_a_share_of_theta_forecasts_that(scaling: dict[str, Any], independent: bool) -> None:
    options = {"scaling": scaling, "quantiles": (0.1, 0.5), "independent": independent}
    network = silence(forecast(num_features=2, targets=(1,), horizon=4, theta_share=0.25, **options))
    inputs = histories([9, 3, 5], 2)
    outputs = run(network, inputs)
    whole = silence(forecast(num_features=2, targets=(1,), horizon=4, scaling=scaling))
    assert isinstance(whole.head, ForecastHead)
    base = 0.25 * theta(whole.head.read(inputs).source, 4)[..., 1:]
    expected = whole.head.unscale(base, whole.predict(inputs))
    torch.testing.assert_close(outputs["forecast"], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs["quantiles"], outputs["forecast"].unsqueeze(3).expand(3, 4, 1, 2))


def test_a_share_of_theta_moves_the_quantiles_together_and_leaves_the_second_point_forecast() -> None:
    options: dict[str, Any] = {"quantiles": (0.1, 0.5, 0.9), "mape_point": True, "horizon": 4}
    plain, mixed = forecast(**options), forecast(theta_share=0.25, **options)
    mixed.load_state_dict(plain.state_dict())
    inputs = histories([9, 3, 5], 1)
    before, after = run(plain, inputs), run(mixed, inputs)
    moves = after["quantiles"] - before["quantiles"]
    torch.testing.assert_close(moves, moves[..., :1].expand_as(moves), atol=1e-4, rtol=1e-4)
    own = theta(Signal(inputs["history"], inputs["lengths"]), 4)
    torch.testing.assert_close(after["forecast"], before["forecast"] + 0.25 * (own - before["forecast"]), atol=1e-3, rtol=1e-4)
    assert after["forecast_mape"].equal(before["forecast_mape"])


def test_what_is_learned_does_not_know_the_share_of_theta() -> None:
    plain, mixed = forecast(), forecast(theta_share=0.25)
    mixed.load_state_dict(plain.state_dict())
    inputs = histories([9, 3, 5], 1)
    for network in (plain, mixed):
        network.train()
    assert mixed.predict(inputs).values.equal(plain.predict(inputs).values)


def test_statistics_are_per_feature_and_travel_with_the_weights() -> None:
    network = forecast(num_features=2, scaling={"kind": "minmax"})
    network.set_statistics(torch.tensor([[0.0, 5.0], [10.0, 9.0]]))
    restored = Network(network.spec).eval()
    restored.load_state_dict(network.state_dict())
    assert restored.state_dict()["head.scaler.offset"].tolist() == [0.0, 5.0]
    assert restored.state_dict()["head.scaler.scale"].tolist() == [10.0, 4.0]
    inputs = histories([4], 2)
    assert run(restored, inputs)["forecast"].equal(run(network, inputs)["forecast"])
    with pytest.raises(NetworkError, match=r"statistics need values \(N, 2\), got \(5, 3\)"):
        network.set_statistics(torch.zeros(5, 3))


def test_a_forecast_may_be_a_sequence_of_its_own() -> None:
    one_to_many: list[dict[str, Any]] = [
        LSTM,
        {"type": "repeat_vector", "n": 3},
        {"type": "gru", "units": 4, "return_sequences": True},
    ]
    head = {"type": "time_distributed", "layer": {"type": "dense", "units": 2}}
    for last in (head, {"type": "dense", "units": 2}):
        network = forecast(*one_to_many, last, horizon=3, num_features=2, targets=(0, 1))
        assert run(network, histories([4, 2], 2))["forecast"].shape == (2, 3, 2)
        # The layer behind the repeated vector starts anew with every answer.
        assert [part.input for part in network.state] == ["lstm_0_hidden", "lstm_0_cell"]
        assert network.can_stream
    with pytest.raises(LayerError, match=r"layers\[3\] \(time_distributed\): the forecast needs \(batch, 5, 2\): steps, and"):
        forecast(*one_to_many, head, horizon=5, num_features=2, targets=(0, 1))
