"""Forecasts are scored by the field's measures, in any batch; baselines answer from the same past, and never fail a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from training.data.series import Series, evaluation_windows
from training.export.graph import write_graph
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network
from training.recipe import ForecastEvaluation, ForecastSettings
from training.scoring.evaluate import Graph
from training.scoring.forecast import forecast_baseline, forecast_windows, score_forecast

FORECAST = ForecastSettings(context_length=8, horizon=2, season_length=2, quantiles=[0.1, 0.5, 0.9])
SEASONAL = ForecastSettings(context_length=24, horizon=6, season_length=6)


def make_series(*, num_features: int = 1) -> Series:
    rng = np.random.default_rng(0)
    values = tuple(5 + rng.random((20, num_features)) * 10**i for i in range(3))
    names = tuple("abc"[:num_features])
    return Series(("x", "y", "z"), values, names, names, validation_length=2, test_length=4)


def test_measures_are_those_of_the_m4_competition() -> None:
    series = make_series()
    truth = evaluation_windows(series, FORECAST, "test")
    forecasts = truth.future * 1.1
    scores = score_forecast(series, FORECAST, ForecastEvaluation(naive2_smape=10.0, naive2_mase=2.0), truth, forecasts)

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
    scores = score_forecast(series, FORECAST, ForecastEvaluation(), truth, quantiles[..., 1], quantiles)
    error = truth.future[..., None] - quantiles
    levels = np.array(FORECAST.quantiles)
    assert scores["pinball"] == pytest.approx(np.maximum(levels * error, (levels - 1) * error).mean(), rel=1e-5)
    assert scores["coverage_80"] == pytest.approx(5 / 6)


def test_standardised_errors_are_in_deviations_of_the_training_part_over_all_windows() -> None:
    series = make_series(num_features=2)
    truth = evaluation_windows(series, FORECAST, "test")
    forecasts = truth.future + np.array([1.0, -2.0], np.float32)
    scores = score_forecast(series, FORECAST, ForecastEvaluation(standardized=True), truth, forecasts)
    deviation = np.concatenate([values[:14] for values in series.values]).std(0)
    relative = np.array([1.0, 2.0]) / deviation
    assert scores["mse_standardized"] == pytest.approx((relative**2).mean(), rel=1e-5)
    assert scores["mae_standardized"] == pytest.approx(relative.mean(), rel=1e-5)


def test_series_of_a_named_file_have_scores_of_their_own_and_unknown_steps_do_not_count() -> None:
    whole = make_series()
    values = (whole.values[0][:17], *whole.values[1:])
    series = replace(whole, values=values, test_lengths=(1, 2, 2), min_future=1, sets=("short", "long", "long"))
    truth = evaluation_windows(series, FORECAST, "test")
    forecasts = np.nan_to_num(truth.future, nan=1e9) * np.array([1.1, 1.2, 1.3])[:, None, None]
    scores = score_forecast(series, FORECAST, ForecastEvaluation(), truth, forecasts)
    assert scores["short_mape"] == pytest.approx(10, rel=1e-4)
    assert scores["long_mape"] == pytest.approx(25, rel=1e-4)
    assert scores["short_smape"] == pytest.approx(200 * 0.1 / 2.1, rel=1e-4)
    assert scores["long_smape"] == pytest.approx(100 * (0.2 / 2.2 + 0.3 / 2.3), rel=1e-4)
    assert scores["smape"] == pytest.approx(200 / 3 * (0.1 / 2.1 + 0.2 / 2.2 + 0.3 / 2.3), rel=1e-4)


def test_a_measure_that_is_undefined_is_left_out() -> None:
    values = (np.full((20, 1), 7.0),)
    series = Series(("x",), values, ("y",), ("y",), validation_length=2, test_length=2)
    truth = evaluation_windows(series, FORECAST, "test")
    scores = score_forecast(series, FORECAST, ForecastEvaluation(), truth, truth.future + 1)
    assert scores == pytest.approx({"smape": 200 / 15, "mae": 1.0, "rmse": 1.0})


def test_several_targets_and_overlapping_windows_are_averaged() -> None:
    series = make_series(num_features=2)
    truth = evaluation_windows(series, FORECAST, "test", 1)
    assert len(truth) == 9
    shifted = truth.future + np.array([1.0, 3.0])
    assert score_forecast(series, FORECAST, ForecastEvaluation(stride=1), truth, shifted)["mae"] == pytest.approx(2.0, rel=1e-4)


def write_payload(spec: ForecastSpec) -> tuple[Network, bytes]:
    torch.manual_seed(0)
    network = Network(spec).eval()
    return network, write_graph(network).SerializeToString()


def test_the_graph_forecasts_all_windows_in_their_order() -> None:
    layers = ({"type": "lstm", "units": 3}, {"type": "dense"})
    network, graph = write_payload(ForecastSpec(layers=layers, horizon=2, quantiles=(0.1, 0.5, 0.9)))
    windows = evaluation_windows(make_series(), FORECAST, "test")
    whole = forecast_windows(Graph(graph), windows, 100)
    assert whole["forecast"].shape == (6, 2, 1)
    assert whole["quantiles"].shape == (6, 2, 1, 3)
    np.testing.assert_allclose(forecast_windows(Graph(graph), windows, 4)["forecast"], whole["forecast"], rtol=1e-5)
    with torch.no_grad():
        inputs = {"history": torch.from_numpy(windows.history), "lengths": torch.from_numpy(windows.lengths)}
        np.testing.assert_allclose(whole["forecast"], network(inputs)["forecast"].numpy(), rtol=1e-4)


def test_a_network_that_streams_is_scored_from_a_state_of_zeros() -> None:
    layers = ({"type": "gru", "units": 3}, {"type": "dense"})
    network, graph = write_payload(ForecastSpec(layers=layers, horizon=2))
    assert network.can_stream
    assert forecast_windows(Graph(graph), evaluation_windows(make_series(), FORECAST, "test"), 4)["forecast"].shape == (6, 2, 1)


def seasonal_series(values: npt.NDArray[np.float64]) -> Series:
    return Series(("a",), (values,), ("y",), ("y",), validation_length=6, test_length=12)


def seasonal_values(length: int = 72) -> npt.NDArray[np.float64]:
    steps = np.arange(length)
    values: npt.NDArray[np.float64] = 10 + np.sin(2 * np.pi * steps / 6) + 0.05 * steps
    return values[:, None]


def test_seasonal_naive_repeats_the_last_season_before_each_window() -> None:
    series = seasonal_series(seasonal_values())
    forecasts = forecast_baseline("seasonal_naive", series, SEASONAL)
    assert forecasts is not None
    assert forecasts.shape == (2, 6, 1)
    np.testing.assert_allclose(forecasts[0, :, 0], series.values[0][54:60, 0])
    np.testing.assert_allclose(forecasts[1, :, 0], series.values[0][60:66, 0])


def test_last_value_repeats_what_came_before_each_window() -> None:
    series = seasonal_series(seasonal_values())
    forecasts = forecast_baseline("last_value", series, SEASONAL)
    assert forecasts is not None
    np.testing.assert_allclose(forecasts[:, :, 0], np.repeat(series.values[0][[59, 65], 0][:, None], 6, 1))


def test_linear_learns_any_fixed_pattern_from_the_training_part_alone() -> None:
    values = seasonal_values()
    forecasts = forecast_baseline("linear", seasonal_series(values), SEASONAL)
    assert forecasts is not None
    np.testing.assert_allclose(forecasts[..., 0].reshape(-1), values[60:, 0], atol=1e-6)
    changed = values.copy()
    changed[60:] = 0  # what comes after the first window's past is not seen
    again = forecast_baseline("linear", seasonal_series(changed), SEASONAL)
    assert again is not None
    np.testing.assert_allclose(again[0], forecasts[0])


def test_linear_takes_histories_shorter_than_its_window() -> None:
    series = seasonal_series(seasonal_values(40))
    short = ForecastSettings(context_length=36, horizon=6, season_length=6)
    forecasts = forecast_baseline("linear", series, short)
    assert forecasts is not None
    assert np.isfinite(forecasts).all()


def test_linear_of_independent_features_is_one_regression_that_reads_each_by_itself() -> None:
    pattern, noise = seasonal_values()[:, 0], np.random.default_rng(1).normal(size=len(seasonal_values()))
    alone = SEASONAL.model_copy(update={"independent": True})

    def forecasts(*columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        series = replace(seasonal_series(np.stack(columns, 1)), features=("a", "b"), targets=("a", "b"))
        found = forecast_baseline("linear", series, alone)
        assert found is not None
        return found

    both = forecasts(pattern, 1000 * pattern)
    np.testing.assert_allclose(both[..., 0].reshape(-1), pattern[60:], atol=1e-6)
    np.testing.assert_allclose(both[..., 1], 1000 * both[..., 0])
    disturbed = forecasts(pattern, 1000 * noise)
    assert not np.allclose(disturbed[..., 0], both[..., 0]), "what is fitted is fitted to all features"
    np.testing.assert_allclose(forecasts(1000 * noise, pattern)[..., ::-1], disturbed, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(forecasts(np.ones(len(pattern)), pattern)[..., 0], 1)


@pytest.mark.parametrize("name", ["theta", "auto_ets"])
def test_strong_baselines_follow_season_and_trend(name: str) -> None:
    series = seasonal_series(seasonal_values())
    truth = evaluation_windows(series, SEASONAL, "test").future
    naive, strong = (forecast_baseline(each, series, SEASONAL) for each in ("seasonal_naive", name))
    assert naive is not None
    assert strong is not None
    assert np.abs(strong - truth).mean() < 0.7 * np.abs(naive - truth).mean()


def test_each_series_and_target_gets_its_own_forecast_and_progress() -> None:
    values = np.concatenate([seasonal_values(), 100 * seasonal_values()], axis=1)
    series = Series(("a", "b"), (values, values + 5), ("x", "y"), ("y",), validation_length=6, test_length=12)
    steps: list[int] = []
    forecasts = forecast_baseline("seasonal_naive", series, SEASONAL, 3, lambda: steps.append(1))
    assert forecasts is not None
    assert forecasts.shape == (2 * 3, 6, 1)
    assert len(steps) == 6
    np.testing.assert_allclose(forecasts[3, :, 0], series.values[1][54:60, 1])


def test_a_series_that_a_model_cannot_fit_falls_back_to_the_naive_forecast() -> None:
    constant = seasonal_series(np.full((30, 1), 3.0))
    for name in ("seasonal_naive", "theta"):
        forecasts = forecast_baseline(name, constant, SEASONAL)
        assert forecasts is not None
        np.testing.assert_allclose(forecasts, 3.0, rtol=1e-3)


def test_a_strong_baseline_is_left_out_where_it_would_take_hours() -> None:
    series = seasonal_series(seasonal_values(72))
    many = Series(tuple(map(str, range(1001))), series.values * 1001, ("y",), ("y",), validation_length=6, test_length=12)
    assert forecast_baseline("theta", many, SEASONAL) is None
