"""The head of streams: one forecast per step, from running statistics; anomaly scores; and state that makes pieces a whole."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from pydantic import ValidationError

from training.export.graph import write_graph
from training.layers.registry import LayerError
from training.layers.scaling import ScalingConfig
from training.network.heads.forecast import ForecastSpec
from training.network.heads.stream import MAX_ANOMALY, StreamHead
from training.network.network import Network

LSTM: dict[str, Any] = {"type": "lstm", "units": 5, "return_sequences": True}
RECENT: dict[str, Any] = {"type": "recent", "n": 1}
DENSE: dict[str, Any] = {"type": "dense"}
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def stream(*layers: dict[str, Any], **options: Any) -> Network:
    torch.manual_seed(3)
    given: dict[str, Any] = {"horizon": 3, "quantiles": LEVELS, "scaling": {"kind": "running", "span": 20}, "warm_up": 4}
    spec = ForecastSpec(layers=layers or (LSTM, RECENT, DENSE), streaming=True, **{**given, **options})
    return Network(spec).eval()


def graph_of(network: Network) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(write_graph(network).SerializeToString(), providers=["CPUExecutionProvider"])


def zeros(network: Network, num_rows: int = 1) -> dict[str, Any]:
    return {name: part.numpy() for name, part in network.initial_state(num_rows).items()}


def run(session: onnxruntime.InferenceSession, history: Any, state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answers for one row of (T, F), and the state behind it."""
    history = np.asarray(history, np.float32).reshape(1, len(history), -1)
    names = [output.name for output in session.get_outputs()]
    found = dict(
        zip(names, session.run(None, {"history": history, "lengths": np.array([history.shape[1]]), **state}), strict=True)
    )
    after = {name: found[f"{name}_next"] for name in state}
    return {name: found[name][0] for name in ("forecast", "quantiles", "anomaly")}, after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": {"kind": "window"}}, 'streaming and scaling of kind "running" need each other'),
        ({"scaling": {"kind": "running"}}, 'option "span" and kind "running" need each other'),
        ({"quantiles": (0.5,)}, "streaming needs three quantiles or more"),
        ({"step": 2}, "streaming needs three quantiles or more, and step = 1"),
    ],
)
def test_a_spec_that_cannot_stream_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        stream(**options)


def test_running_scaling_is_for_streams_alone() -> None:
    with pytest.raises(ValidationError, match="need each other"):
        ForecastSpec(layers=(LSTM, DENSE), scaling=ScalingConfig(kind="running", span=3))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (({"type": "lstm", "units": 5}, DENSE), r"layers\[1\] \(dense\): a stream has a forecast at every step"),
        (({"type": "bidirectional", "layer": LSTM}, DENSE), r"layers\[0\] \(bidirectional\): cannot read a stream"),
        ((LSTM, {"type": "recent", "n": 2}, DENSE), r"layers\[1\] \(recent\): needs one vector per row, or n = 1"),
        (({**LSTM, "stateful": True}, DENSE), r'layers\[0\] \(lstm\): option "stateful": the state of a stream is its own'),
        ((LSTM, {"type": "dense", "units": 4}), r'layers\[1\] \(dense\): option "units": the forecast needs .* = 15, got 4'),
    ],
)
def test_layers_that_cannot_read_a_stream_are_refused_by_their_place(layers: Any, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        stream(*layers)


@pytest.mark.parametrize("options", [{}, {"seasonal_lag": 6}, {"num_features": 3, "targets": (2, 0), "seasonal_lag": 2}])
def test_a_stream_in_pieces_of_any_sizes_answers_as_the_whole_to_the_bit(options: dict[str, Any]) -> None:
    network = stream(**options)
    session = graph_of(network)
    random = np.random.default_rng(0)
    history = (50 + 10 * random.standard_normal((40, network.head.source.features))).astype(np.float32)
    history[random.random(history.shape) < 0.1] = np.nan
    whole, end = run(session, history, zeros(network))
    for cuts in ([*range(1, 40)], [7, 8, 30], [39]):
        state, scores = zeros(network), []
        for piece in np.split(history, cuts):
            answers, state = run(session, piece, state)
            scores.append(answers["anomaly"])
        # onnxruntime's logarithm rounds the last numbers of a tensor in another way than the first.
        np.testing.assert_allclose(np.concatenate(scores), whole["anomaly"], rtol=0, atol=1e-6)
        assert np.array_equal(answers["forecast"], whole["forecast"])
        assert np.array_equal(answers["quantiles"], whole["quantiles"])
        assert all(np.array_equal(state[name], end[name]) for name in end)


def test_all_that_a_stream_must_know_is_state() -> None:
    names = [part.input for part in stream(seasonal_lag=6).state]
    assert names[:4] == ["level_sum", "level_weight", "spread_sum", "spread_weight"]
    assert names[4:] == ["num_values", "season_values", "season_known", "next_quantiles", "lstm_0_hidden", "lstm_0_cell"]


def test_a_forecast_follows_the_level_and_the_spread_of_its_stream() -> None:
    network = stream()
    session = graph_of(network)
    history = np.random.default_rng(0).standard_normal(60)
    plain, _ = run(session, history, zeros(network))
    raised, _ = run(session, 500 + 20 * history, zeros(network))
    np.testing.assert_allclose(raised["quantiles"], 500 + 20 * plain["quantiles"], atol=0.1)
    np.testing.assert_allclose(raised["anomaly"], plain["anomaly"], atol=0.02)


def test_without_weights_the_forecast_is_the_value_of_last_season() -> None:
    network = stream(seasonal_lag=4, horizon=6)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    season = np.array([10.0, 30.0, 20.0, 40.0])
    answers, _ = run(graph_of(network), np.tile(season, 20), zeros(network))
    np.testing.assert_allclose(answers["forecast"][:, 0], np.resize(season, 6), rtol=1e-4)
    missing = np.tile(season, 20)
    missing[-4] = np.nan
    answers, _ = run(graph_of(network), missing, zeros(network))
    assert abs(answers["forecast"][0, 0] - missing[:-4].mean()) < 3  # without last season's value the level
    np.testing.assert_allclose(answers["forecast"][1:4, 0], season[1:], rtol=1e-4)


def test_of_a_step_away_from_last_season_what_is_learned_stays() -> None:
    network = stream(seasonal_lag=4, horizon=4, scaling={"kind": "running", "span": 200})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        assert isinstance(network.head, StreamHead)
        network.head.persistence.copy_(torch.tensor([1.0, 0.5, 0.25, 0.0]))
    history = np.tile([10.0, 30.0, 20.0, 40.0], 20)
    history[-1] += 8
    answers, _ = run(graph_of(network), history, zeros(network))
    np.testing.assert_allclose(answers["forecast"][:, 0], [10 + 8, 30 + 4, 20 + 2, 48], rtol=1e-4)


def test_quantiles_ascend_and_the_forecast_is_the_median() -> None:
    network = stream()
    answers, _ = run(graph_of(network), np.arange(30.0), zeros(network))
    assert (np.diff(answers["quantiles"], axis=-1) >= 0).all()
    assert np.array_equal(answers["forecast"], answers["quantiles"][..., LEVELS.index(0.5)])


@pytest.mark.parametrize(
    ("value", "probability"),
    [(0.0, 1.0), (1.0, 0.5), (-1.0, 0.5), (0.5, 0.75), (3.0, 0.1), (2.0, 0.3), (-3.0, 0.1)],
)
def test_within_the_quantiles_the_score_is_the_two_sided_tail_probability(value: float, probability: float) -> None:
    head = stream().head
    assert isinstance(head, StreamHead)
    quantiles = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])
    score = head._score(torch.tensor(value), quantiles)
    assert float(score) == pytest.approx(-math.log10(probability), abs=1e-6)


def test_beyond_the_quantiles_tails_are_exponential_and_the_score_is_bounded() -> None:
    head = stream().head
    assert isinstance(head, StreamHead)
    quantiles = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])
    # From 0.25 at 1 to 0.05 at 3 the tail falls by five, so by five again at 5.
    assert float(head._score(torch.tensor(5.0), quantiles)) == pytest.approx(-math.log10(2 * 0.01), abs=1e-5)
    assert float(head._score(torch.tensor(-5.0), quantiles)) == pytest.approx(-math.log10(2 * 0.01), abs=1e-5)
    for value in (1e3, -1e3, 1e30, math.inf, -math.inf):
        assert float(head._score(torch.tensor(value), quantiles)) == MAX_ANOMALY
    same = torch.zeros(5)
    assert float(head._score(torch.tensor(0.0), same)) < 1.4
    assert float(head._score(torch.tensor(1.0), same)) == MAX_ANOMALY


def test_the_first_values_and_missing_ones_have_no_score() -> None:
    network = stream()
    history = np.random.default_rng(0).standard_normal(20)
    history[[2, 9]] = np.nan
    answers, state = run(graph_of(network), history, zeros(network))
    scores = answers["anomaly"][:, 0]
    assert np.flatnonzero(scores == 0).tolist() == [0, 1, 2, 3, 4, 9]  # four known values, and what is missing
    answers, _ = run(graph_of(network), [1e6], state)
    assert answers["anomaly"][0, 0] == MAX_ANOMALY


def test_hostile_values_are_answered_with_finite_numbers() -> None:
    network = stream(seasonal_lag=3)
    session = graph_of(network)
    for history in ([np.nan] * 9, [3e38, -3e38] * 9, [0.0] * 9, [5.0] * 30 + [5.1], [0.0] * 30 + [1e38], [1e-40] * 9):
        state = zeros(network)
        for value in history:
            answers, state = run(session, [value], state)
            assert all(np.isfinite(part).all() for part in (*answers.values(), *state.values())), history


def test_a_step_learns_from_every_forecast_of_a_window() -> None:
    network = stream(seasonal_lag=3).train()
    generator = torch.Generator().manual_seed(0)
    inputs = {"history": torch.rand(2, 12, 1, generator=generator), "lengths": torch.tensor([12, 12])}
    prediction = network.predict(inputs)
    assert prediction.values.shape == (2, 12, 3, 1, len(LEVELS))
    future = torch.rand(2, 12, 3, 1, generator=generator)
    scaled = network.head.scale_target(future, prediction)
    torch.testing.assert_close(network.head.unscale(scaled, prediction), future)
    prediction.values.sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
