"""Scores are the field's measures, and the graph answers in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.data.series import Series, evaluation_windows
from training.export.graph import write_graph
from training.network.heads.classify import ClassifySpec
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network
from training.network.spec import NetworkSpec
from training.recipe import Evaluate, Forecast
from training.scoring.evaluate import Graph, score_classify, score_forecast

FORECAST = Forecast(context_length=8, horizon=2, season_length=2, quantiles=[0.1, 0.5, 0.9])


def make_series(*, num_features: int = 1) -> Series:
    rng = np.random.default_rng(0)
    values = tuple(5 + rng.random((20, num_features)) * 10**i for i in range(3))
    names = tuple("abc"[:num_features])
    return Series(("x", "y", "z"), values, names, names, validation_length=2, test_length=4)


def test_measures_are_those_of_the_m4_competition() -> None:
    series = make_series()
    truth = evaluation_windows(series, FORECAST, "test")
    forecasts = truth.future * 1.1
    scores = score_forecast(series, FORECAST, Evaluate(naive2_smape=10.0, naive2_mase=2.0), truth, forecasts)

    smape, mase, mae, rmse = [], [], [], []
    for i, values in enumerate(series.values):
        y, f = values[16:, 0], forecasts[2 * i : 2 * i + 2, :, 0].reshape(-1)
        past = values[:16, 0]
        smape.append(np.mean(200 * np.abs(y - f) / (np.abs(y) + np.abs(f))))
        mase.append(np.mean(np.abs(y - f)) / np.mean(np.abs(past[2:] - past[:-2])))
        mae.append(np.mean(np.abs(y - f)))
        rmse.append(np.sqrt(np.mean((y - f) ** 2)))
    expected = {"smape": np.mean(smape), "mase": np.mean(mase), "mae": np.mean(mae), "rmse": np.mean(rmse)}
    expected["owa"] = (expected["smape"] / 10 + expected["mase"] / 2) / 2
    assert scores == pytest.approx(expected, rel=1e-6)


def test_quantiles_are_scored_by_pinball_and_coverage() -> None:
    series = make_series()
    truth = evaluation_windows(series, FORECAST, "test")
    quantiles = np.stack([truth.future - 1, truth.future, truth.future + 1], axis=-1)
    quantiles[0] += 100
    scores = score_forecast(series, FORECAST, Evaluate(), truth, quantiles[..., 1], quantiles)
    error = truth.future[..., None] - quantiles
    levels = np.array(FORECAST.quantiles)
    assert scores["pinball"] == pytest.approx(np.maximum(levels * error, (levels - 1) * error).mean(), rel=1e-5)
    assert scores["coverage_80"] == pytest.approx(5 / 6)


def test_a_measure_that_is_undefined_is_left_out() -> None:
    values = (np.full((20, 1), 7.0),)
    series = Series(("x",), values, ("y",), ("y",), validation_length=2, test_length=2)
    truth = evaluation_windows(series, FORECAST, "test")
    scores = score_forecast(series, FORECAST, Evaluate(), truth, truth.future + 1)
    assert scores == pytest.approx({"smape": 200 / 15, "mae": 1.0, "rmse": 1.0})


def test_several_targets_and_overlapping_windows_are_averaged() -> None:
    series = make_series(num_features=2)
    truth = evaluation_windows(series, FORECAST, "test", 1)
    assert len(truth) == 9
    shifted = truth.future + np.array([1.0, 3.0])
    assert score_forecast(series, FORECAST, Evaluate(stride=1), truth, shifted)["mae"] == pytest.approx(2.0, rel=1e-4)


def test_classification_measures() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
    scores = score_classify(np.array([0, 0, 1, 1]), probabilities)
    assert scores == pytest.approx({"accuracy": 0.75, "f1": (2 / 3 + 0.8) / 2, "auroc": 1.0})
    assert "auroc" not in score_classify(np.array([1, 1]), probabilities[:2])


def payload(spec: NetworkSpec) -> tuple[Network, bytes]:
    torch.manual_seed(0)
    network = Network(spec).eval()
    return network, write_graph(network).SerializeToString()


def test_the_graph_forecasts_all_windows_in_their_order() -> None:
    layers = ({"type": "lstm", "units": 3}, {"type": "dense"})
    network, graph = payload(ForecastSpec(layers=layers, horizon=2, quantiles=(0.1, 0.5, 0.9)))
    windows = evaluation_windows(make_series(), FORECAST, "test")
    whole = Graph(graph).forecast(windows, 100)
    assert whole["forecast"].shape == (6, 2, 1)
    assert whole["quantiles"].shape == (6, 2, 1, 3)
    np.testing.assert_allclose(Graph(graph).forecast(windows, 4)["forecast"], whole["forecast"], rtol=1e-5)
    with torch.no_grad():
        inputs = {"history": torch.from_numpy(windows.history), "lengths": torch.from_numpy(windows.lengths)}
        np.testing.assert_allclose(whole["forecast"], network(inputs)["forecast"].numpy(), rtol=1e-4)


def test_a_network_that_streams_is_scored_from_a_state_of_zeros() -> None:
    layers = ({"type": "gru", "units": 3}, {"type": "dense"})
    network, graph = payload(ForecastSpec(layers=layers, horizon=2))
    assert network.can_stream
    assert Graph(graph).forecast(evaluation_windows(make_series(), FORECAST, "test"), 4)["forecast"].shape == (6, 2, 1)


def test_the_graph_classifies_rows_in_their_order_whatever_their_length() -> None:
    layers = ({"type": "embedding", "output_dim": 4}, {"type": "lstm", "units": 3}, {"type": "dense"})
    _, graph = payload(ClassifySpec(layers=layers, vocabulary_size=20, labels=("a", "b", "c")))
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 20, n) for n in (5, 1, 9, 3, 7)]
    together = Graph(graph).classify(rows, 2)
    alone = np.concatenate([Graph(graph).classify([row], 1) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-6)
