"""Covariates of a forecast: what the layers read of them, that no step depends on later ones, and which layers are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.training.network.networks import DENSE, LSTM, forecast, histories, run
from training.layers.covariates import CovariateConfig, CovariateEncoder
from training.layers.registry import LayerError
from training.layers.scaling import ScalingConfig
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network
from training.network.spec import NetworkError

SEQUENCES = {**LSTM, "return_sequences": True}
DECODER: dict[str, Any] = {"type": "decoder_input"}
COVARIATES = (CovariateConfig(), CovariateConfig(kind="category", size=3), CovariateConfig(kind="cycle", size=4, first=1))


def decoder(*layers: dict[str, Any], **options: Any) -> Network:
    torch.manual_seed(3)
    network = Network(ForecastSpec(layers=layers, horizon=6, covariates=COVARIATES, **options)).eval()
    network.set_statistics(torch.rand(50, network.spec.num_features + 3))  # type: ignore[attr-defined]
    return network


def inputs(lengths: list[int]) -> dict[str, torch.Tensor]:
    given = histories(lengths)
    steps = given["history"].shape[1]
    columns = {name: torch.randint(1, 3, (len(lengths), count, 3)).float() for name, count in (("past", steps), ("future", 6))}
    return given | {f"{name}_covariates": values for name, values in columns.items()}


def test_numbers_are_standardised_categories_one_hot_and_cycles_on_a_circle() -> None:
    encoder = CovariateEncoder(COVARIATES)
    encoder.fit(torch.tensor([[10.0, 0, 1], [20.0, 2, 3]]))
    found = encoder(torch.tensor([[[20.0, 2, 1], [15.0, 7, 2]]]))
    expected = torch.tensor([[[1.0, 0, 0, 1, 0, 1], [0.0, 0, 0, 0, 1, 0]]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_constant_covariate_is_not_divided_by_zero() -> None:
    encoder = CovariateEncoder([CovariateConfig()])
    encoder.fit(torch.full((4, 1), 3.0))
    assert encoder(torch.tensor([[[4.0]]])).tolist() == [[[1.0]]]


@pytest.mark.parametrize("lags", [[], [2, 7]])
def test_a_step_depends_on_the_covariates_until_then_alone(lags: list[int]) -> None:
    network = decoder(LSTM, {**DECODER, "lags": lags}, SEQUENCES, DENSE, quantiles=(0.1, 0.5, 0.9))
    given = inputs([9, 8])
    changed = {**given, "future_covariates": given["future_covariates"].clone()}
    changed["future_covariates"][:, 2:] += 1
    before, after = run(network, given)["quantiles"], run(network, changed)["quantiles"]
    assert before[:, :2].equal(after[:, :2])
    assert (before[:, 2:] != after[:, 2:]).all()


def test_the_past_covariates_count_within_the_history_alone() -> None:
    network = decoder(LSTM, DECODER, SEQUENCES, DENSE)
    given = inputs([9, 5])
    changed = {**given, "past_covariates": given["past_covariates"].clone()}
    changed["past_covariates"][1, 5:] = 1e6
    assert run(network, given)["forecast"].equal(run(network, changed)["forecast"])
    changed["past_covariates"][1, 4] += 1
    assert not run(network, given)["forecast"][1].equal(run(network, changed)["forecast"][1])


def test_a_lag_shorter_than_the_distance_is_taken_twice() -> None:
    network = forecast(LSTM, {**DECODER, "lags": [4]}, DENSE, horizon=6, scaling={"kind": "none"})
    layer = network.stack[1]
    given = network.head.read(histories([8]))
    found = layer(given.signal.with_values(torch.zeros(1, 5)), given.source)[0].values[0, :, -1]
    history = histories([8])["history"][0, :8, 0]
    assert found.tolist() == history[[4, 5, 6, 7, 4, 5]].tolist()


def test_without_covariates_a_decoder_reads_the_vector_and_the_lags() -> None:
    network = forecast(LSTM, {**DECODER, "lags": [2]}, SEQUENCES, DENSE, horizon=3, quantiles=(0.5,))
    assert network.stack[1].output.axes == (3, 6)
    assert tuple(run(network, histories([4, 7]))["quantiles"].shape) == (2, 3, 1, 1)
    assert network.min_length == 2


def test_a_decoder_without_lags_goes_on_from_a_state() -> None:
    assert decoder(LSTM, DECODER, SEQUENCES, DENSE).can_stream
    assert "decoder_input" in decoder(LSTM, {**DECODER, "lags": [2]}, SEQUENCES, DENSE).why_not_streaming


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([LSTM, DENSE], r"layers\[1\] \(dense\): covariates need a layer decoder_input"),
        (
            [LSTM, DECODER, {"type": "bidirectional", "layer": SEQUENCES}, DENSE],
            r"layers\[2\] \(bidirectional\): behind decoder_input a layer reads each step and those before it",
        ),
        ([LSTM, DECODER, {"type": "flatten"}, DENSE], r"layers\[2\] \(flatten\): behind decoder_input"),
        ([LSTM, DECODER, LSTM, DENSE], r"layers\[2\] \(lstm\): behind decoder_input"),
        ([SEQUENCES, DECODER, DENSE], r"layers\[1\] \(decoder_input\): needs one vector per row"),
    ],
)
def test_layers_that_read_later_steps_are_refused_by_place(layers: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        decoder(*layers)


def test_a_stream_has_no_covariates() -> None:
    running = ScalingConfig(kind="running", span=4)
    with pytest.raises(ValidationError, match="streaming goes without covariates"):
        ForecastSpec(layers=(LSTM, DENSE), streaming=True, scaling=running, quantiles=(0.1, 0.5, 0.9), covariates=COVARIATES)


def test_statistics_are_of_features_and_covariates() -> None:
    network = decoder(LSTM, DECODER, SEQUENCES, DENSE)
    with pytest.raises(NetworkError, match=r"statistics need values \(N, 4\), got \(9, 1\)"):
        network.set_statistics(torch.rand(9, 1))
