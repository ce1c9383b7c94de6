"""A forecasting run, from the recipe to the published folder, as one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from training.data.series import (
    Series,
    Windows,
    describe_calendar,
    evaluation_windows,
    num_windows,
    read_series,
    sample_windows,
    windows_in_order,
)
from training.export.answers import format_forecast
from training.export.publish import Publication, read_example_instances
from training.export.quantize import TRIAL_BATCHES, TRIAL_ROWS, Trial
from training.fitting.losses import Batch, LossFunction, forecast_loss
from training.network.heads.forecast import ForecastHead, ForecastSpec
from training.network.network import Network
from training.network.spec import NetworkSpec
from training.recipe import ForecastRecipe, RecipeError
from training.reporting.forecast import forecast_pictures
from training.reporting.progress import progress_line
from training.reporting.report import Report
from training.runs.forecast_stream import run_stream, stream_trial
from training.runs.steps import (
    Outcome,
    check_network,
    fit_network,
    on_device_of,
    prepare_publication,
    write_verified_graph,
)
from training.runs.task import LayerTables, Task
from training.scoring.baselines import score_baselines
from training.scoring.evaluate import Graph, Scores
from training.scoring.forecast import forecast_baseline, forecast_windows, score_forecast, score_windows


def run(recipe: ForecastRecipe, *, data: Path | None, folder: Path, resume: bool, console: Console) -> tuple[Publication, Report]:
    """Load → split → fit the scaling on the training part → build → fit → verify → score beside baselines.

    Checkpoints go to `folder`; nothing is published yet.
    """
    forecast, settings = recipe.forecast, recipe.fit

    series = read_series(recipe.series_data, forecast, data)
    if forecast.streaming:
        spec = network_spec(recipe, len(series.features), series.target_indices)
        return run_stream(recipe, spec, series, folder=folder, resume=resume, console=console)
    console.print(f"data        {_describe(series, recipe)}", highlight=False)

    torch.manual_seed(recipe.seed)
    spec = network_spec(recipe, len(series.features), series.target_indices)
    network = Network(spec)
    if network.min_length > forecast.shortest:
        raise RecipeError(f"forecast.min_length: these layers need {network.min_length} steps at least, got {forecast.shortest}")
    network.set_statistics(torch.from_numpy(series.training_values()).float())
    check_network(network, recipe, console)

    def batches(epoch: int) -> Iterator[Batch]:
        if network.is_stateful:
            in_order = windows_in_order(series, forecast, batch_size=recipe.rows_per_batch)
            return map(_tensors, islice(in_order, num_batches))
        windows = sample_windows(
            series,
            forecast,
            batch_size=recipe.rows_per_batch,
            num_batches=settings.steps_per_epoch,
            short_share=settings.short_share,
            rng=np.random.default_rng([recipe.seed, epoch]),
        )
        return map(_tensors, windows)

    loss = forecast_loss(settings.loss, forecast.quantiles, mape_point=forecast.mape_point)
    validation = evaluation_windows(series, forecast, "validation", recipe.evaluate.stride)

    def validate(network: Network) -> float:
        return _mean_loss(network, loss, validation, recipe.evaluate.batch_size)

    num_rows = num_windows(series, forecast)
    one_pass = -(-num_rows // recipe.rows_per_batch)
    num_batches = settings.steps_per_epoch or one_pass
    if network.is_stateful:
        num_batches = min(num_batches, one_pass)
    fitted = fit_network(
        network,
        recipe,
        loss,
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

    test = evaluation_windows(series, forecast, "test", recipe.evaluate.stride)
    answers = forecast_windows(graph.session, test, recipe.evaluate.batch_size)
    instances = _example(test, forecast.shortest)
    outcome = Outcome(
        metrics=score_forecast(series, forecast, recipe.evaluate, test, answers["forecast"], answers.get("quantiles")),
        baselines=_score_baselines(recipe, series, test, folder, console),
        contents=series.contents,
        instances=instances,
        block={
            "context_length": forecast.context_length,
            "min_length": forecast.shortest,
            "horizon": forecast.horizon,
            "frequencies": list(forecast.frequencies),
            "season_length": forecast.season_length,
            "quantiles": list(forecast.quantiles),
            "point": spec.point,
            **({"points": spec.points} if len(spec.points) > 1 else {}),
            "features": list(series.features),
            "targets": list(series.targets),
        },
        pictures=forecast_pictures(recipe, series, fitted, answers),
        facts=_score_windows(recipe, series, answers["forecast"]),
    )
    return prepare_publication(recipe, network, graph, fitted, _trial(recipe, series, network, instances), outcome)


def open_trial(recipe: ForecastRecipe, folder: Path, data: Path | None) -> Trial:
    """What a further graph of a published folder is measured with."""
    series = read_series(recipe.series_data, recipe.forecast, data)
    network = Network(network_spec(recipe, len(series.features), series.target_indices))
    if recipe.forecast.streaming:
        return stream_trial(recipe, series, network, read_example_instances(folder))
    network.set_statistics(torch.from_numpy(series.training_values()).float())
    return _trial(recipe, series, network, read_example_instances(folder))


def network_spec(recipe: ForecastRecipe, num_features: int, targets: Sequence[int]) -> ForecastSpec:
    """The recipe's network for so many features, of which those at `targets` are forecast."""
    forecast = recipe.forecast
    return ForecastSpec(
        layers=tuple(recipe.layers),
        members=recipe.ensemble.members,
        combine=recipe.ensemble.combine,
        num_features=num_features,
        targets=tuple(targets),
        horizon=forecast.horizon,
        quantiles=tuple(forecast.quantiles),
        scaling=recipe.scaling.model_dump(exclude_none=True),  # type: ignore[arg-type]  # pydantic reads the table
        step=forecast.step,
        seasonal_lag=forecast.seasonal_lag or None,
        streaming=forecast.streaming,
        warm_up=forecast.num_unscored if forecast.streaming else 1,
        decomposition=forecast.decomposition,
        season_length=forecast.season_length,
        mape_point=forecast.mape_point,
    )


def spec_of_recipe(recipe: ForecastRecipe, data: Path | None) -> tuple[NetworkSpec, tuple[str, ...]]:
    """The network of a recipe. Reads the data only where the recipe does not name the features."""
    source = recipe.data.train[0]
    features = source.values or (["y"] if source.builtin or source.format in ("wide", "long") else [])
    if features:
        targets = [features.index(target) for target in recipe.data.targets or features if target in features]
        return network_spec(recipe, len(features), targets), ()
    series = read_series(recipe.series_data, recipe.forecast, data)
    return network_spec(recipe, len(series.features), series.target_indices), ()


def spec_of_manifest(recipe: ForecastRecipe, manifest: Mapping[str, Any], folder: Path) -> ForecastSpec:
    """The network of a published folder."""
    block = manifest["forecast"]
    return network_spec(recipe, len(block["features"]), [block["features"].index(target) for target in block["targets"]])


def layers_without_steps(recipe: ForecastRecipe) -> LayerTables:
    """The last `min_length` steps beside the mean of all."""
    # The mean comes first because `recent` appends to a vector.
    return [{"type": "global_average_pooling1d"}, {"type": "recent", "n": recipe.forecast.shortest}]


def _trial(recipe: ForecastRecipe, series: Series, network: Network, instances: Sequence[Any]) -> Trial:
    forecast, evaluate = recipe.forecast, recipe.evaluate
    test = evaluation_windows(series, forecast, "test", evaluate.stride)
    rng = np.random.default_rng(recipe.seed)

    def draw(short_share: float) -> list[Mapping[str, Any]]:
        windows = sample_windows(
            series, forecast, batch_size=TRIAL_ROWS, num_batches=TRIAL_BATCHES, short_share=short_share, rng=rng
        )
        return [{"history": part.history, "lengths": part.lengths} for part in windows]

    def score(graph: Graph) -> Scores:
        answers = forecast_windows(graph, test, evaluate.batch_size)
        return score_forecast(series, forecast, evaluate, test, answers["forecast"], answers.get("quantiles"))

    def answer(graph: Graph) -> list[Any]:
        histories = [np.array(instance["history"], np.float64) for instance in instances]
        rows = [history[:, None] if history.ndim == 1 else history for history in histories]
        inputs = [{"history": row[None].astype(np.float32), "lengths": np.array([len(row)])} for row in rows]
        return [format_forecast(graph.run(given), forecast.quantiles) for given in inputs]

    # Short histories are a means to train: requests hold what there is.
    return Trial(network, draw(recipe.fit.short_share), score, answer, samples=draw(0.0))


def _tensors(windows: Windows) -> Batch:
    return {
        "history": torch.from_numpy(windows.history),
        "lengths": torch.from_numpy(windows.lengths),
        "future": torch.from_numpy(windows.future),
    }


def _mean_loss(network: Network, loss: LossFunction, windows: Windows, batch_size: int) -> float:
    total, count = 0.0, 0
    for start in range(0, len(windows), batch_size):
        part = windows.rows(slice(start, start + batch_size))
        batch = on_device_of(network, _tensors(part))
        weight = int(np.isfinite(part.future).sum())
        total += float(loss(network, network.predict(batch), batch)) * weight
        count += weight
    return total / count


def _score_baselines(recipe: ForecastRecipe, series: Series, test: Windows, folder: Path, console: Console) -> dict[str, Scores]:
    forecast, stride = recipe.forecast, recipe.evaluate.stride

    def score(name: str) -> Scores | None:
        with progress_line(console, f"baseline {name}", len(test)) as advance:
            answer = forecast_baseline(name, series, forecast, stride, advance)
        if answer is None:
            console.print(f"baseline {name} left out: {len(test):,} windows are too many to fit one by one", highlight=False)
            return None
        return score_forecast(series, forecast, recipe.evaluate, test, answer)

    facts = [
        recipe.data.model_dump(mode="json"),
        recipe.evaluate.model_dump(mode="json"),
        [forecast.horizon, forecast.season_length, list(series.ids)],
        [content.sha256 for content in series.contents],
    ]
    return score_baselines(recipe.baselines, score, folder / "baselines.json", facts)


def _score_windows(recipe: ForecastRecipe, series: Series, answers: npt.NDArray[Any]) -> dict[str, Any]:
    """Of a backtest, for the manifest: MASE at each origin, beside that of the baselines that learn nothing."""
    if recipe.evaluate.windows is None:
        return {}
    forecast, stride = recipe.forecast, recipe.evaluate.stride
    naive = {name: forecast_baseline(name, series, forecast, stride) for name in recipe.baselines if name in TASK.naive}
    forecasts = {recipe.name: answers, **{name: found for name, found in naive.items() if found is not None}}
    return {"windows": score_windows(series, forecast, stride, forecasts)}


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
        instances.append({"history": [_without_zeros(value) for value in rows.tolist()]})
    return instances


def _without_zeros(value: Any) -> Any:
    """119.0 as 119, which is easier to read."""
    if isinstance(value, list):
        return [_without_zeros(entry) for entry in value]
    return int(value) if value == int(value) else value


def _describe(series: Series, recipe: ForecastRecipe) -> str:
    steps = sum(series.learning_end(i) for i in range(len(series.ids)))
    notes = [
        f"{len(series.ids):,} series, {len(series.features)} features"
        if len(series.ids) > 1 or len(series.features) > 1
        else "1 series",
        f"{steps:,} steps to learn from, {series.validation_length} each to validate, {series.test_length} to test",
    ]
    if series.num_interpolated:
        notes.append(f"{series.num_interpolated:,} missing values interpolated")
    notes += describe_calendar(series, recipe.data.missing_steps)
    if series.num_left_out:
        notes.append(f"{series.num_left_out:,} series too short, left out")
    return "; ".join(notes)


TASK = Task(
    recipe_type=ForecastRecipe,
    head=ForecastHead,
    run=run,
    open_trial=open_trial,
    spec_of_recipe=spec_of_recipe,
    spec_of_manifest=spec_of_manifest,
    layers_without_steps=layers_without_steps,
    naive=("seasonal_naive", "last_value"),
    decisive=("owa", "mase", "mae"),
    larger_is_better=("auroc",),
)
