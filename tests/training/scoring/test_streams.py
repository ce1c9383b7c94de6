"""A stream is followed as a server would run it; anomaly scores are judged by disturbances that are known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from training.data.series import Array, Series
from training.export.graph import write_graph
from training.layers.scaling import ScalingConfig
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network
from training.recipe import ForecastSettings
from training.scoring.evaluate import Graph
from training.scoring.streams import (
    StreamAnswers,
    StreamRunner,
    disturb,
    follow_test_part,
    graph_detector,
    plain_detectors,
    score_anomalies,
    score_one_step,
)

LEVELS = [0.1, 0.5, 0.9]
FORECAST = ForecastSettings(context_length=50, horizon=2, streaming=True, quantiles=LEVELS, warm_up=4, season_length=24)


def make_series(num_steps: int, test_length: int) -> Series:
    steps = np.arange(num_steps)
    noise = np.random.default_rng(0).standard_normal((num_steps, 1))
    values = 100 + 20 * np.sin(2 * np.pi * steps / 24)[:, None] + noise
    return Series(("x",), (values,), ("y",), ("y",), validation_length=2, test_length=test_length)


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    layers = ({"type": "gru", "units": 3, "return_sequences": True}, {"type": "dense"})
    running = ScalingConfig(kind="running", span=20)
    spec = ForecastSpec(layers=layers, horizon=2, quantiles=tuple(LEVELS), streaming=True, scaling=running, warm_up=4)
    return Graph(write_graph(Network(spec)).SerializeToString())


def test_a_forecast_of_the_test_part_has_seen_what_came_before_and_nothing_else(graph: Graph) -> None:
    series = make_series(60, 8)
    answers = follow_test_part(graph, series, 0)
    assert (answers.forecast.shape, answers.quantiles.shape, answers.anomaly.shape) == ((8, 2, 1), (8, 2, 1, 3), (8, 1))
    for step in (0, 3, 7):
        before = StreamRunner(graph).read(series.values[0][: 52 + step])
        assert np.array_equal(answers.forecast[step], before["forecast"])
    whole = StreamRunner(graph).read(series.values[0])["anomaly"]
    np.testing.assert_allclose(whole[52:], answers.anomaly, rtol=0, atol=1e-6)


def test_a_copy_of_a_stream_goes_on_by_itself(graph: Graph) -> None:
    first = StreamRunner(graph)
    first.read(np.ones((9, 1)))
    second = first.copy()
    second.read(np.full((9, 1), 50.0))
    third = first.copy()
    assert np.array_equal(third.read(np.ones((1, 1)))["forecast"], first.read(np.ones((1, 1)))["forecast"])


def test_the_next_value_is_scored_by_error_pinball_and_coverage() -> None:
    series = make_series(60, 4)
    truth = series.values[0][56:]
    quantiles = np.stack([truth - 1, truth, truth + 1], -1)[:, None].astype(np.float32)
    answers = StreamAnswers(truth[:, None].astype(np.float32), quantiles, np.zeros((4, 1), np.float32))
    scores = score_one_step(series, FORECAST, [answers])
    assert scores == pytest.approx({"one_step_mae": 0.0, "one_step_pinball": 0.2 / 3, "one_step_coverage_80": 1.0}, abs=1e-4)


@pytest.mark.parametrize(("kind", "length", "changed"), [("spike", 24, 1), ("level_shift", 24, 24), ("flat_line", 24, 12)])
def test_disturbances_begin_where_they_are_said_to_and_end(kind: str, length: int, changed: int) -> None:
    series = make_series(2000, 1500)
    found, places = disturb(series, 0, kind, length, 20, np.random.default_rng(1))  # type: ignore[arg-type]
    is_changed = (found != series.values[0])[:, 0]
    assert not is_changed[:500].any()
    assert len(places) == 20
    expected = np.zeros(2000, bool)
    for place in places:
        expected[place : place + changed] = True
    assert np.array_equal(is_changed, expected)
    assert all(later - earlier >= 2 * length for earlier, later in pairwise(places))


def test_plain_detectors_see_no_step_but_those_before() -> None:
    values = make_series(200, 10).values[0]
    for name, detect in plain_detectors([0], 24).items():
        scores = detect(values, 100)
        assert scores.shape == (100, 1), name
        changed = values.copy()
        changed[150] += 500
        disturbed = detect(changed, 100)
        assert np.array_equal(disturbed[:50], scores[:50]), name
        assert disturbed[50, 0] > 5 * scores[:, 0].max(), name


def test_a_detector_that_knows_is_perfect_and_one_that_knows_nothing_is_not() -> None:
    series = make_series(2000, 1500)

    def know(values: Array, start: int) -> Array:
        return np.abs(values - series.values[0])[start:]

    def guess(values: Array, start: int) -> Array:
        return np.random.default_rng(int(values.sum())).random((len(values) - start, 1))

    assert set(score_anomalies(series, know, 24, 0).values()) == {1.0}
    for name, score in score_anomalies(series, guess, 24, 0).items():
        assert 0.2 < score < 0.8, name
    assert score_anomalies(make_series(300, 200), know, 24, 0) == {}  # no room


def test_the_graphs_own_scores_find_a_spike(graph: Graph) -> None:
    series = make_series(400, 50)
    detect = graph_detector(graph)
    clean = detect(series.values[0], 350)
    changed = series.values[0].copy()
    changed[380] += 1000
    disturbed = detect(changed, 350)
    assert clean.shape == (50, 1)
    assert np.array_equal(clean[:30], disturbed[:30])
    assert disturbed[30, 0] == 10.0 > clean[30, 0]
