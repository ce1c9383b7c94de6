"""The run of a forecast that reads streams, as one page: a forecast at every step of a window, and scores along a stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from training.data.series import Series, describe_calendar, evaluation_windows
from training.data.streams import Streams, num_streams, sample_streams, validation_stream, window_length
from training.export.answers import format_stream
from training.export.publish import Publication
from training.export.quantize import TRIAL_BATCHES, TRIAL_ROWS, Trial
from training.fitting.losses import Batch, stream_loss
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network
from training.recipe import ForecastRecipe, ForecastSettings
from training.reporting.forecast import forecast_pictures
from training.reporting.progress import progress_line
from training.reporting.report import Report
from training.runs.forecast_block import forecast_block
from training.runs.steps import Outcome, check_network, fit_network, on_device_of, prepare_publication, write_verified_graph
from training.scoring.baselines import score_baselines
from training.scoring.evaluate import Graph, Scores
from training.scoring.forecast import forecast_baseline, score_forecast
from training.scoring.streams import (
    Detector,
    StreamAnswers,
    follow_test_part,
    graph_detector,
    plain_detectors,
    score_anomalies,
    score_one_step,
    score_one_step_of,
)

EXAMPLE_LENGTHS = (60, 7)
QUICK_BASELINES = ("last_value", "seasonal_naive", "linear")
"""Those that are scored at every step, too."""


def run_stream(
    recipe: ForecastRecipe, spec: ForecastSpec, series: Series, *, folder: Path, resume: bool, console: Console
) -> tuple[Publication, Report]:
    """Build → fit → verify → follow the test part beside baselines. Nothing is published yet."""
    forecast, settings = recipe.forecast, recipe.fit
    length = window_length(series, forecast, settings.window_length or forecast.context_length)
    console.print(f"data        {_describe(series, recipe, length)}", highlight=False)

    torch.manual_seed(recipe.seed)
    network = Network(spec)
    check_network(network, recipe, console)
    num_rows = num_streams(series, forecast, length)
    num_batches = settings.steps_per_epoch or -(-num_rows // (recipe.rows_per_batch * length))

    def batches(epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng([recipe.seed, epoch])
        drawn = sample_streams(
            series,
            forecast,
            length=length,
            batch_size=recipe.rows_per_batch,
            num_batches=num_batches,
            missing_share=settings.missing_share,
            rng=rng,
        )
        return map(_tensors, drawn)

    def validate(network: Network) -> float:
        """The mean loss of the steps of the validation parts."""
        losses = [
            _validation_loss(network, recipe, validation_stream(series, forecast, i, length)) for i in range(len(series.ids))
        ]
        return float(np.mean(losses))

    fitted = fit_network(
        network,
        recipe,
        stream_loss(forecast.quantiles, forecast.num_unscored),
        batches,
        num_rows,
        num_batches,
        validate,
        "validation loss",
        folder=folder,
        resume=resume,
        console=console,
    )

    graph = write_verified_graph(network, recipe.seed)

    answers = _follow(graph.session, series)
    instances = _example(series)
    outcome = Outcome(
        metrics=_score(recipe, series, graph.session, answers),
        baselines=_score_baselines(recipe, series, folder, console),
        contents=series.contents,
        instances=instances,
        block=forecast_block(forecast, series, spec),
        pictures=forecast_pictures(recipe, series, fitted, _at_origins(recipe, answers)),
    )
    return prepare_publication(recipe, network, graph, fitted, stream_trial(recipe, series, network, instances), outcome)


def stream_trial(recipe: ForecastRecipe, series: Series, network: Network, instances: list[Any]) -> Trial:
    """What a further graph of the same network is measured with."""
    forecast, settings = recipe.forecast, recipe.fit
    length = window_length(series, forecast, settings.window_length or forecast.context_length)
    drawn = sample_streams(
        series,
        forecast,
        length=length,
        batch_size=TRIAL_ROWS,
        num_batches=TRIAL_BATCHES,
        missing_share=0.0,
        rng=np.random.default_rng(recipe.seed),
    )

    def score(graph: Graph) -> Scores:
        return _score(recipe, series, graph, _follow(graph, series))

    def answer(graph: Graph) -> list[Any]:
        predictions = []
        for instance in instances:
            history = np.array(instance["history"], np.float64)  # None becomes NaN
            history = (history[:, None] if history.ndim == 1 else history).astype(np.float32)
            found = graph.run({"history": history[None], "lengths": np.array([len(history)])})
            predictions.append(format_stream(found, forecast.quantiles, np.isnan(history[:, series.target_indices])))
        return predictions

    rows: list[dict[str, Any]] = [{"history": part.history, "lengths": part.lengths} for part in drawn]
    return Trial(network, rows, score, answer)


def _tensors(streams: Streams) -> Batch:
    return {
        "history": torch.from_numpy(streams.history),
        "lengths": torch.from_numpy(streams.lengths),
        "future": torch.from_numpy(np.ascontiguousarray(streams.future)),
    }


def _validation_loss(network: Network, recipe: ForecastRecipe, stream: tuple[Streams, int]) -> float:
    streams, first = stream
    batch = on_device_of(network, _tensors(streams))
    return float(stream_loss(recipe.forecast.quantiles, first)(network, network.predict(batch), batch))


def _follow(graph: Graph, series: Series) -> list[StreamAnswers]:
    return [follow_test_part(graph, series, index) for index in range(len(series.ids))]


def _at_origins(recipe: ForecastRecipe, answers: list[StreamAnswers]) -> dict[str, Any]:
    """Forecasts and quantiles of the test windows, in the order of `evaluation_windows`."""
    horizon, stride = recipe.forecast.horizon, recipe.evaluate.stride or recipe.forecast.horizon
    places = [slice(0, len(answer.forecast) - horizon + 1, stride) for answer in answers]
    return {
        "forecast": np.concatenate([answer.forecast[place] for answer, place in zip(answers, places, strict=True)]),
        "quantiles": np.concatenate([answer.quantiles[place] for answer, place in zip(answers, places, strict=True)]),
    }


def _score(recipe: ForecastRecipe, series: Series, graph: Graph, answers: list[StreamAnswers]) -> Scores:
    forecast, evaluate = recipe.forecast, recipe.evaluate
    truth = evaluation_windows(series, _short(forecast), "test", evaluate.stride)
    found = _at_origins(recipe, answers)
    return {
        **score_forecast(series, forecast, evaluate, truth, found["forecast"], found["quantiles"]),
        **score_one_step(series, forecast, answers),
        **_score_anomalies(recipe, series, graph_detector(graph)),
    }


def _score_anomalies(recipe: ForecastRecipe, series: Series, detector: Detector) -> Scores:
    return score_anomalies(series, detector, recipe.forecast.season_length, recipe.seed)


def _score_baselines(recipe: ForecastRecipe, series: Series, folder: Path, console: Console) -> dict[str, Scores]:
    """The recipe's baselines a horizon ahead, the quick ones of them one step ahead too; and plain anomaly scores."""
    forecast, evaluate = recipe.forecast, recipe.evaluate
    truth = evaluation_windows(series, _short(forecast), "test", evaluate.stride)
    # `linear` reads a season, or what the seasonal correction reads, not all that a stream may send at once.
    read = max(forecast.season_length, forecast.seasonal_lag, 2 * forecast.horizon) + 1
    settings = forecast.model_copy(update={"context_length": min(read, forecast.context_length)})
    detectors = plain_detectors(series.target_indices, forecast.season_length)

    def score(name: str) -> Scores | None:
        scores: Scores = {}
        with progress_line(console, f"baseline {name}"):
            if name in recipe.baselines:
                answer = forecast_baseline(name, series, settings, evaluate.stride)
                if answer is None:
                    console.print(f"baseline {name} left out: {len(truth):,} windows are too many to fit one by one")
                    return None
                scores |= score_forecast(series, forecast, evaluate, truth, answer)
            if name in recipe.baselines and name in QUICK_BASELINES:
                one = forecast_baseline(name, series, settings.model_copy(update={"horizon": 1}), 1)
                assert one is not None
                scores |= score_one_step_of(series, one)
            if name in detectors:
                scores |= _score_anomalies(recipe, series, detectors[name])
        return scores

    facts = [
        recipe.data.model_dump(mode="json"),
        recipe.evaluate.model_dump(mode="json"),
        [forecast.horizon, forecast.season_length, read, recipe.seed, list(series.ids)],
        [content.sha256 for content in series.contents],
    ]
    names = dict.fromkeys((*recipe.baselines, *detectors))
    return {name: found for name, found in score_baselines(list(names), score, folder / "baselines.json", facts).items() if found}


def _short(forecast: ForecastSettings) -> ForecastSettings:
    """For windows of which the future alone is read."""
    return forecast.model_copy(update={"context_length": 1})


def _example(series: Series) -> list[Any]:
    """The end of a series with a gap, and a few values."""
    instances = []
    for length in EXAMPLE_LENGTHS:
        values = series.values[0][-min(length, len(series.values[0])) :]
        rows: list[list[float | None]] = [[float(f"{value:.6g}") for value in row] for row in values]
        if length == EXAMPLE_LENGTHS[0]:
            rows[len(rows) // 2] = [None] * len(series.features)
        instances.append({"history": [row[0] for row in rows] if len(series.features) == 1 else rows})
    return instances


def _describe(series: Series, recipe: ForecastRecipe, length: int) -> str:
    steps = sum(series.learning_end(i) for i in range(len(series.ids)))
    parts = [
        f"{len(series.ids):,} series, {len(series.features)} features",
        f"{steps:,} steps to learn from, {length:,} at a time",
        f"{series.validation_length:,} each to validate, {series.test_length:,} to test",
        *describe_calendar(series, recipe.data.missing_steps),
    ]
    return "; ".join(parts)
