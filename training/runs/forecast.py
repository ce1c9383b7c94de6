"""A forecasting run, from the recipe to the published folder, as one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from training.data.series import (
    Series,
    Windows,
    evaluation_windows,
    num_windows,
    read_series,
    sample_windows,
    windows_in_order,
)
from training.export.answers import format_forecast
from training.export.graph import graph_tensors, write_graph
from training.export.publish import Publication, describe_data, example_instances
from training.export.quantize import TRIAL_BATCHES, TRIAL_ROWS, Trial, require_quantizable, second_graph
from training.export.verify import verify
from training.fitting.checkpoints import begin
from training.fitting.fit import FitResult, fit
from training.fitting.losses import Batch, forecast_loss
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network
from training.recipe import Recipe, RecipeError, Scaling
from training.reporting.report import Report, counted
from training.scoring import baselines
from training.scoring.evaluate import Graph, Scores, score_forecast


def run(recipe: Recipe, *, data: Path | None, folder: Path, resume: bool, console: Console) -> tuple[Publication, Report]:
    """Load → split → fit the scaling on the training part → build → fit → score beside baselines → verify.

    Checkpoints go to `folder`; nothing is published yet.
    """
    forecast, settings = recipe.forecast, recipe.fit
    assert forecast is not None

    series = read_series(recipe.data, forecast, data)
    console.print(f"data        {_describe(series)}", highlight=False)

    torch.manual_seed(recipe.seed)
    spec = network_spec(recipe, series)
    network = Network(spec)
    if network.min_length > forecast.shortest:
        raise RecipeError(f"forecast.min_length: these layers need {network.min_length} steps at least, got {forecast.shortest}")
    network.set_statistics(torch.from_numpy(series.training_values()).float())
    console.print(f"network     {network.num_parameters:,} parameters", highlight=False)
    if recipe.quantize is not None:
        require_quantizable(network)

    def batches(epoch: int) -> Iterator[Batch]:
        if network.is_stateful:
            in_order = windows_in_order(series, forecast, batch_size=settings.batch_size)
            return map(_tensors, islice(in_order, num_batches))
        windows = sample_windows(
            series,
            forecast,
            batch_size=settings.batch_size,
            num_batches=settings.steps_per_epoch,
            short_share=settings.short_share,
            rng=np.random.default_rng([recipe.seed, epoch]),
        )
        return map(_tensors, windows)

    loss = forecast_loss(settings.loss, forecast.quantiles)
    validation = evaluation_windows(series, forecast, "validation", recipe.evaluate.stride)

    def validate(network: Network) -> float:
        return _mean_loss(network, loss, validation, recipe.evaluate.batch_size)

    whole = -(-num_windows(series, forecast) // settings.batch_size)
    num_batches = settings.steps_per_epoch or whole
    if network.is_stateful:
        num_batches = min(num_batches, whole)
        network.check_batches(min(num_windows(series, forecast), num_batches * settings.batch_size), settings.batch_size)
    begin(recipe, folder, resume=resume)
    fitted = fit(
        network,
        loss,
        batches,
        num_batches,
        validate,
        settings,
        seed=recipe.seed,
        folder=folder,
        resume=resume,
        console=console,
        score_name="validation loss",
    )

    payload = write_graph(network).SerializeToString()
    verification = verify(network, payload, recipe.seed)

    graph = Graph(payload)
    test = evaluation_windows(series, forecast, "test", recipe.evaluate.stride)
    answers = graph.forecast(test, recipe.evaluate.batch_size)
    metrics = score_forecast(series, forecast, recipe.evaluate, test, answers["forecast"], answers.get("quantiles"))
    compared = _score_baselines(recipe, series, test, folder, console)

    instances = _example(test, forecast.shortest)
    trial = _trial(recipe, series, network, instances)
    predictions = trial.answer(graph)
    second = None
    if recipe.quantize is not None:
        second = second_graph(payload, trial, metrics, predictions, recipe.quantize, recipe.seed)
    publication = Publication(
        recipe=recipe,
        graph=payload,
        tensors=graph_tensors(network),
        spec={
            "context_length": forecast.context_length,
            "min_length": forecast.shortest,
            "horizon": forecast.horizon,
            "frequencies": list(forecast.frequencies),
            "season_length": forecast.season_length,
            "quantiles": list(forecast.quantiles),
            "point": spec.point,
            "features": list(series.features),
            "targets": list(series.targets),
        },
        instances=instances,
        predictions=predictions,
        metrics=metrics,
        baselines=compared,
        data=describe_data([*recipe.data.train, *recipe.data.test], series.contents),
        facts={"epochs": len(fitted.epochs), "best_epoch": fitted.best.number, "num_parameters": network.num_parameters},
        pictures=_pictures(recipe, series, fitted, answers),
        second=second,
    )
    return publication, Report(fitted, metrics, compared, verification, second)


def open_trial(recipe: Recipe, folder: Path, data: Path | None) -> Trial:
    """What a further graph of a published folder is measured with."""
    assert recipe.forecast is not None
    series = read_series(recipe.data, recipe.forecast, data)
    network = Network(network_spec(recipe, series))
    network.set_statistics(torch.from_numpy(series.training_values()).float())
    return _trial(recipe, series, network, example_instances(folder))


def _trial(recipe: Recipe, series: Series, network: Network, instances: Sequence[Any]) -> Trial:
    forecast, evaluate = recipe.forecast, recipe.evaluate
    assert forecast is not None
    test = evaluation_windows(series, forecast, "test", evaluate.stride)
    rng = np.random.default_rng(recipe.seed)
    windows = sample_windows(
        series, forecast, batch_size=TRIAL_ROWS, num_batches=TRIAL_BATCHES, short_share=recipe.fit.short_share, rng=rng
    )

    def score(graph: Graph) -> Scores:
        answers = graph.forecast(test, evaluate.batch_size)
        return score_forecast(series, forecast, evaluate, test, answers["forecast"], answers.get("quantiles"))

    def answer(graph: Graph) -> list[Any]:
        histories = [np.array(instance["history"], np.float64) for instance in instances]
        rows = [history[:, None] if history.ndim == 1 else history for history in histories]
        inputs = [{"history": row[None].astype(np.float32), "lengths": np.array([len(row)])} for row in rows]
        return [format_forecast(graph.run(given), forecast.quantiles) for given in inputs]

    return Trial(network, [{"history": part.history, "lengths": part.lengths} for part in windows], score, answer)


def network_spec(recipe: Recipe, series: Series) -> ForecastSpec:
    """What the recipe's network is for these series."""
    return network_spec_of(recipe, len(series.features), tuple(series.target_indices))


def network_spec_of(recipe: Recipe, num_features: int, targets: tuple[int, ...]) -> ForecastSpec:
    """What the recipe's network is for so many features, of which `targets` are forecast."""
    forecast = recipe.forecast
    assert forecast is not None
    scaling = (recipe.scaling or Scaling()).model_dump(exclude_none=True)
    return ForecastSpec(
        layers=tuple(recipe.layers),
        num_features=num_features,
        targets=targets,
        horizon=forecast.horizon,
        quantiles=tuple(forecast.quantiles),
        scaling=scaling,  # type: ignore[arg-type]  # pydantic reads the table
        step=forecast.step,
        seasonal_lag=forecast.seasonal_lag or None,
    )


def _tensors(windows: Windows) -> Batch:
    return {
        "history": torch.from_numpy(windows.history),
        "lengths": torch.from_numpy(windows.lengths),
        "future": torch.from_numpy(windows.future),
    }


def _mean_loss(network: Network, loss: Any, windows: Windows, batch_size: int) -> float:
    device = next(network.parameters()).device
    total = 0.0
    for start in range(0, len(windows), batch_size):
        part = windows.rows(slice(start, start + batch_size))
        batch = {name: tensor.to(device) for name, tensor in _tensors(part).items()}
        total += float(loss(network, network.predict(batch), batch)) * len(part)
    return total / len(windows)


def _score_baselines(recipe: Recipe, series: Series, test: Windows, folder: Path, console: Console) -> dict[str, Scores]:
    forecast, stride = recipe.forecast, recipe.evaluate.stride
    assert forecast is not None

    def score(name: str) -> Scores | None:
        with counted(console, f"baseline {name}", len(test)) as advance:
            answer = baselines.forecast_baseline(name, series, forecast, stride, advance)
        return None if answer is None else score_forecast(series, forecast, recipe.evaluate, test, answer)

    facts = [
        recipe.data.model_dump(mode="json"),
        recipe.evaluate.model_dump(mode="json"),
        [forecast.horizon, forecast.season_length, list(series.ids)],
        [content.sha256 for content in series.contents],
    ]
    compared: dict[str, Scores] = {}
    for name in recipe.evaluate.baselines or baselines.FORECASTERS:
        scores = baselines.remembered(folder / "baselines.json", name, facts, partial(score, name))
        if scores is None:
            console.print(f"baseline {name} left out: {len(test):,} windows are too many to fit one by one", highlight=False)
        else:
            compared[name] = dict(scores)
    return compared


def _pictures(recipe: Recipe, series: Series, fitted: FitResult, answers: Mapping[str, Any]) -> dict[str, bytes]:
    from training.reporting import plots

    forecast = recipe.forecast
    assert forecast is not None
    pictures = {"loss.png": plots.loss_picture(recipe.name, recipe.fit.loss, fitted)}
    per_series = len(answers["forecast"]) // len(series.ids)
    # Windows that follow one another without a gap; of those that overlap, and never meet, the first alone.
    stride = recipe.evaluate.stride or forecast.horizon
    every = forecast.horizon // stride if forecast.horizon % stride == 0 else per_series
    places = [(index, column) for index in range(len(series.ids)) for column in range(len(series.targets))]
    chosen = [places[round(at)] for at in np.linspace(0, len(places) - 1, min(3, len(places)))]
    panels = []
    for index, column in chosen:
        rows = np.arange(index * per_series, (index + 1) * per_series, max(1, every))
        mean = answers["forecast"][rows, :, column].reshape(-1)
        quantiles = answers["quantiles"][rows, :, column].reshape(len(mean), -1) if forecast.quantiles else None
        start = series.test_start(index)
        shown = max(3 * forecast.season_length, len(mean) // 4, min(forecast.context_length, 4 * forecast.horizon))
        first = max(0, start - shown)
        values = series.values[index][first : start + len(mean), series.target_indices[column]]
        times = None if series.times is None else series.times[first : start + len(mean)]
        names = [series.ids[index]] * (len(series.ids) > 1) + [series.targets[column]] * (len(series.targets) > 1)
        past, truth = values[: start - first], values[start - first :]
        bands = _bands(quantiles, forecast.quantiles)
        panels.append(plots.Panel(", ".join(names), past, truth, mean, bands, times))
        if len(mean) > 200 and len(chosen) == 1:
            panels.append(panels[0].last(100))
    steps = {
        "S": "seconds",
        "T": "minutes",
        "H": "hours",
        "D": "days",
        "W": "weeks",
        "M": "months",
        "Q": "quarters",
        "Y": "years",
    }
    step = steps[forecast.frequencies[0]] if len(forecast.frequencies) == 1 else "steps"
    ahead = f"{forecast.horizon} {step if forecast.horizon > 1 else step[:-1]} ahead"
    # "y" is what a series without a name is called.
    names = (
        [name for name in (*series.targets[:2], recipe.data.unit) if name not in ("", "y")] if len(series.targets) == 1 else []
    )
    ylabel = ", ".join(names) or recipe.data.unit or "value"
    title = f"{recipe.name}: the test part, forecast {ahead}"
    pictures["forecast.png"] = plots.forecasts(panels, title, ylabel, f"{step} from the start of the test part")
    return pictures


def _bands(quantiles: Any, levels: list[float]) -> list[tuple[str, Any, Any]]:
    """The widest band, and one about half as wide where there are levels for it."""
    if len(levels) < 3:
        return []
    pairs = [(0, len(levels) - 1)] + ([(len(levels) // 4, len(levels) - 1 - len(levels) // 4)] if len(levels) > 4 else [])
    return [
        (f"{100 * levels[low]:.3g} to {100 * levels[high]:.3g} %", quantiles[:, low], quantiles[:, high]) for low, high in pairs
    ]


def _example(test: Windows, shortest: int) -> list[Any]:
    """A history as long as there is, and a short one."""
    whole = test.history[0, : test.lengths[0]]
    histories = [whole, whole[-max(shortest, len(whole) // 2) :]]
    if len(histories[1]) == len(whole) and len(whole) > shortest:
        histories[1] = whole[1:]
    instances = []
    for history in histories:
        # Short decimals, which JSON gives back exactly; the graph then answers those.
        values = np.array([[float(f"{value:.6g}") for value in row] for row in history])
        rows = values[:, 0] if values.shape[1] == 1 else values
        instances.append({"history": [_whole(value) for value in rows.tolist()]})
    return instances


def _whole(value: Any) -> Any:
    """119.0 as 119, for people."""
    if isinstance(value, list):
        return [_whole(entry) for entry in value]
    return int(value) if value == int(value) else value


def _describe(series: Series) -> str:
    steps = sum(series.training_end(i) for i in range(len(series.ids)))
    notes = [
        f"{len(series.ids):,} series, {len(series.features)} features"
        if len(series.ids) > 1 or len(series.features) > 1
        else "1 series",
        f"{steps:,} steps to learn from, {series.validation_length} each to validate, {series.test_length} to test",
    ]
    if series.num_interpolated:
        notes.append(f"{series.num_interpolated:,} missing values interpolated")
    if series.num_left_out:
        notes.append(f"{series.num_left_out:,} series too short, left out")
    return "; ".join(notes)
