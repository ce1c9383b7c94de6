"""A graph that reads streams, followed value by value through the test part as a server runs it; and its scores.

Forecasts are scored one step and a whole horizon ahead. Anomaly scores are judged by disturbances put into the test part, since
no series says where it was wrong: how well the score tells a disturbed stretch from the same stretch as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from training.data.series import Array, Float32, Series
from training.recipe import ForecastSettings
from training.scoring.evaluate import Graph, Scores

PIECE_LENGTH = 4096
SHORT_WINDOW = 24
"""Steps over which the plain detectors take their mean and spread, where the season is shorter."""
MAX_DISTURBANCES = 100
SIZES = (0.25, 1.0)
"""Of spikes and level shifts, in standard deviations of the training part: drawn evenly between."""

Disturbance = Literal["spike", "level_shift", "flat_line"]
# The scores (N, targets) of the steps from `start` on, of values (T, F).
Detector = Callable[[Array, int], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class StreamAnswers:
    """Of the test part of one series, per step: what was forecast before its value came, and the score of the value."""

    forecast: Float32  # (N, horizon, targets)
    quantiles: Float32  # (N, horizon, targets, Q)
    anomaly: Float32  # (N, targets)


class StreamRunner:
    """A stream through a graph, piece after piece."""

    def __init__(self, graph: Graph, state: dict[str, npt.NDArray[Any]] | None = None) -> None:
        self._graph = graph
        self._state = dict(state or {})

    def copy(self) -> StreamRunner:
        """Another stream that goes on from here."""
        return StreamRunner(self._graph, self._state)

    def read(self, values: Array) -> dict[str, npt.NDArray[Any]]:
        """The answers after values (T, F), NaN where one is missing; `anomaly` is of all of them."""
        anomalies, outputs = [], {}
        for start in range(0, len(values), PIECE_LENGTH):
            piece = values[np.newaxis, start : start + PIECE_LENGTH].astype(np.float32)
            outputs = self._graph.run({"history": piece, "lengths": np.array([piece.shape[1]]), **self._state})
            self._state = {name.removesuffix("_next"): part for name, part in outputs.items() if name.endswith("_next")}
            anomalies.append(outputs["anomaly"][0])
        return {name: outputs[name][0] for name in ("forecast", "quantiles")} | {"anomaly": np.concatenate(anomalies)}


def follow_test_part(graph: Graph, series: Series, index: int) -> StreamAnswers:
    """Read series `index` up to its test part, then value by value."""
    runner, start = StreamRunner(graph), series.test_start(index)
    answers = [runner.read(series.values[index][:start])]
    answers += [runner.read(value[np.newaxis]) for value in series.values[index][start:]]
    before = answers[:-1]
    return StreamAnswers(
        np.stack([answer["forecast"] for answer in before]),
        np.stack([answer["quantiles"] for answer in before]),
        np.concatenate([answer["anomaly"] for answer in answers[1:]]),
    )


def score_one_step(series: Series, forecast: ForecastSettings, answers: list[StreamAnswers]) -> Scores:
    """Of the next value alone, at every step of the test part: mean absolute error, pinball loss, coverage of each band."""
    levels = np.array(forecast.quantiles)
    truth = np.concatenate(_test_values(series))  # (N, targets)
    median = np.concatenate([answer.forecast[:, 0] for answer in answers])
    quantiles = np.concatenate([answer.quantiles[:, 0] for answer in answers]).astype(np.float64)  # (N, targets, Q)
    error = truth[..., np.newaxis] - quantiles
    scores = {
        "one_step_mae": np.abs(truth - median).mean(),
        "one_step_pinball": np.maximum(levels * error, (levels - 1) * error).mean(),
    }
    for low in range(len(levels) // 2):
        high = len(levels) - 1 - low
        inside = (truth >= quantiles[..., low]) & (truth <= quantiles[..., high])
        scores[f"one_step_coverage_{round(100 * (levels[high] - levels[low]))}"] = inside.mean()
    return {name: float(score) for name, score in scores.items()}


def score_one_step_of(series: Series, forecasts: npt.NDArray[np.float64]) -> Scores:
    """Of a baseline's forecasts (N, 1, targets) of every step of the test parts."""
    return {"one_step_mae": float(np.abs(np.concatenate(_test_values(series)) - forecasts[:, 0]).mean())}


def graph_detector(graph: Graph) -> Detector:
    """The graph's own scores; what is before `start` is read once for all series that begin alike."""
    known: dict[tuple[int, float], StreamRunner] = {}

    def detect(values: Array, start: int) -> npt.NDArray[np.float64]:
        key = (start, float(values[:start].sum()))
        if key not in known:
            known.clear()
            known[key] = StreamRunner(graph)
            known[key].read(values[:start])
        return known[key].copy().read(values[start:])["anomaly"].astype(np.float64)

    return detect


def plain_detectors(targets: list[int], season_length: int) -> dict[str, Detector]:
    """Scores without a network: of the change, of the change over a season, and the distance from a rolling mean."""
    length = max(season_length, SHORT_WINDOW)

    def against(lag: int) -> Detector:
        def detect(values: Array, start: int) -> npt.NDArray[np.float64]:
            change = np.abs(values[lag:, targets] - values[:-lag, targets])
            usual = _rolling(change, length).mean(-1)  # of the steps before each
            usual = np.maximum(usual, 1e-9 * np.abs(values[:, targets]).mean() + 1e-12)
            scores: npt.NDArray[np.float64] = (change[length:] / usual)[start - lag - length :]
            return scores

        return detect

    def z_score(values: Array, start: int) -> npt.NDArray[np.float64]:
        windows = _rolling(values[:, targets], length)
        spread = np.maximum(windows.std(-1), 1e-9 * np.abs(values[:, targets]).mean() + 1e-12)
        scores: npt.NDArray[np.float64] = (np.abs(values[length:, targets] - windows.mean(-1)) / spread)[start - length :]
        return scores

    return {"last_value": against(1), "seasonal_naive": against(season_length), "rolling_z_score": z_score}


def score_anomalies(series: Series, detector: Detector, season_length: int, seed: int) -> Scores:
    """ROC-AUC of a detector for each kind of disturbance: the highest score of a disturbed stretch beside that of the true one.

    Spikes are one value, level shifts last a season and are to be seen in their first quarter, flat lines are a value
    that stays for half a season. They are two seasons apart or more. Series whose test part has no room for ten are left out;
    with none left, there are no scores.
    """
    length = max(season_length, SHORT_WINDOW)
    lengths = {"spike": 1, "level_shift": max(1, length // 4), "flat_line": _flat_length(length)}
    found: dict[str, tuple[list[float], list[float]]] = {kind: ([], []) for kind in get_args(Disturbance)}
    for index, values in enumerate(series.values):
        start = series.test_start(index)
        num_places = min(MAX_DISTURBANCES, (len(values) - start) // (2 * length) - 1)
        if num_places < 10 or start < 3 * length:
            continue
        clean = detector(values, start)
        for kind in get_args(Disturbance):
            rng = np.random.default_rng([seed, index])
            disturbed, places = disturb(series, index, kind, length, num_places, rng)
            scores = detector(disturbed, start)
            for place in places:
                stretch = slice(place - start, place - start + lengths[kind])
                found[kind][0].append(float(clean[stretch].max()))
                found[kind][1].append(float(scores[stretch].max()))
    return {
        f"{kind}_auroc": float(roc_auc_score([0] * len(true) + [1] * len(disturbed), [*true, *disturbed]))
        for kind, (true, disturbed) in found.items()
        if true
    }


def disturb(
    series: Series, index: int, kind: Disturbance, length: int, num_places: int, rng: np.random.Generator
) -> tuple[Array, list[int]]:
    """Series `index` with disturbances of one kind in the targets of its test part, and where they begin."""
    values, start = series.values[index].copy(), series.test_start(index)
    targets = series.target_indices
    unit = values[: series.training_end(index), targets].std(0)
    every = (len(values) - start - length) // num_places
    places = [start + number * every + int(rng.integers(max(1, every - 2 * length + 1))) for number in range(num_places)]
    for place in places:
        size = rng.choice([-1.0, 1.0]) * rng.uniform(*SIZES) * unit
        match kind:
            case "spike":
                values[place, targets] += size
            case "level_shift":
                values[place : place + length, targets] += size
            case "flat_line":
                values[place : place + _flat_length(length), targets] = values[place - 1, targets]
    return values, places


def _flat_length(season_length: int) -> int:
    """Steps for which a value stays."""
    return max(2, season_length // 2)


def _rolling(values: Array, length: int) -> Array:
    """Of (T, targets) the `length` steps before each step from `length` on: (T - length, targets, length)."""
    windows: Array = np.lib.stride_tricks.sliding_window_view(values[:-1], length, axis=0)
    return windows


def _test_values(series: Series) -> list[Array]:
    return [values[series.test_start(i) :, series.target_indices] for i, values in enumerate(series.values)]
