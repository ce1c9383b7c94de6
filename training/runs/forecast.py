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

from training.data.covariates import calendar_columns, moments_from
from training.data.series import (
    Series,
    Windows,
    describe_calendar,
    evaluation_origins,
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
from training.layers.bases import BaseConfig
from training.layers.covariates import CovariateConfig
from training.network.heads.forecast import ForecastHead, ForecastSpec
from training.network.network import Network
from training.network.spec import NetworkSpec
from training.recipe import CalendarField, ForecastRecipe, ForecastSettings, RecipeError
from training.reporting.forecast import forecast_pictures
from training.reporting.progress import progress_line
from training.reporting.report import Report
from training.runs.forecast_block import forecast_block
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

CALENDAR: Mapping[CalendarField, CovariateConfig] = {
    "hour": CovariateConfig(kind="category", size=24),
    "day_of_week": CovariateConfig(kind="category", size=7),
    "month": CovariateConfig(kind="category", size=12, first=1),
    "day_of_year": CovariateConfig(kind="cycle", size=366, first=1),
}
"""How a network reads what the calendar says."""


def run(recipe: ForecastRecipe, *, data: Path | None, folder: Path, resume: bool, console: Console) -> tuple[Publication, Report]:
    """Load → split → fit the scaling on the training part → build → fit → verify → score beside baselines.

    Checkpoints go to `folder`; nothing is published yet.
    """
    forecast, settings = recipe.forecast, recipe.fit

    series = read_series(recipe.series_data, forecast, data, seed=recipe.seed)
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
            short_lengths=settings.short_lengths,
            disturbed_share=settings.disturbed_share,
        )
        return map(_tensors, windows)

    loss = forecast_loss(
        settings.loss,
        forecast.quantiles,
        mape_point=forecast.mape_point,
        denominator_gradient=settings.denominator_gradient,
        relative_weight=settings.relative_weight,
    )
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
    instances = _example(series, forecast, recipe.evaluate.stride, test)
    outcome = Outcome(
        metrics=score_forecast(series, forecast, recipe.evaluate, test, answers["forecast"], answers.get("quantiles")),
        baselines=_score_baselines(recipe, series, test, folder, console),
        contents=series.contents,
        instances=instances,
        block=forecast_block(forecast, series, spec),
        pictures=forecast_pictures(recipe, series, fitted, answers),
        facts=_score_windows(recipe, series, answers["forecast"]),
    )
    return prepare_publication(recipe, network, graph, fitted, _trial(recipe, series, network, instances), outcome)


def open_trial(recipe: ForecastRecipe, folder: Path, data: Path | None) -> Trial:
    """What a further graph of a published folder is measured with."""
    series = read_series(recipe.series_data, recipe.forecast, data, seed=recipe.seed)
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
        theta_share=forecast.theta_share,
        streaming=forecast.streaming,
        warm_up=forecast.num_unscored if forecast.streaming else 1,
        decomposition=forecast.decomposition,
        season_length=forecast.season_length,
        mape_point=forecast.mape_point,
        covariates=covariate_configs(forecast),
        independent=forecast.independent,
        **_base_options(forecast),
    )


def _base_options(forecast: ForecastSettings) -> dict[str, Any]:
    if not forecast.bases:
        return {}
    return {
        "bases": tuple(BaseConfig(lag=base.lag, cycles=base.cycles) for base in forecast.bases),
        "base_origins": forecast.base_origins,
        "context_length": forecast.context_length,
        "read_length": forecast.layers_length,
    }


def covariate_configs(forecast: ForecastSettings) -> tuple[CovariateConfig, ...]:
    """What is known of a step, column by column: the covariates, behind them the calendar."""
    categories = forecast.categories
    given = (
        CovariateConfig(kind="category", size=len(categories[name])) if name in categories else CovariateConfig()
        for name in forecast.covariates
    )
    return (*given, *(CALENDAR[field] for field in forecast.calendar))


def spec_of_recipe(recipe: ForecastRecipe, data: Path | None) -> tuple[NetworkSpec, tuple[str, ...]]:
    """The network of a recipe. Reads the data only where the recipe does not name the features."""
    source = recipe.data.train[0]
    features = source.values or (["y"] if source.builtin or source.format in ("wide", "long") else [])
    if features:
        targets = [features.index(target) for target in recipe.data.targets or features if target in features]
        return network_spec(recipe, len(features), targets), ()
    series = read_series(recipe.series_data, recipe.forecast, data, seed=recipe.seed)
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
        return [part.inputs for part in windows]

    def score(graph: Graph) -> Scores:
        answers = forecast_windows(graph, test, evaluate.batch_size)
        return score_forecast(series, forecast, evaluate, test, answers["forecast"], answers.get("quantiles"))

    def answer(graph: Graph) -> list[Any]:
        return [_answer(forecast, graph, instance) for instance in instances]

    # Short histories are a means to train: requests hold what there is.
    return Trial(network, draw(recipe.fit.short_share), score, answer, samples=draw(0.0))


def _answer(forecast: ForecastSettings, graph: Graph, instance: Mapping[str, Any]) -> dict[str, Any]:
    """The prediction of the service for an instance of the example."""
    history = np.array(instance["history"], np.float32)
    length, inputs = len(history), {"history": history.reshape(1, len(history), -1), "lengths": np.array([len(history)])}
    times: list[Any] = []
    if forecast.has_known_future:
        known = [_numbers(forecast, name, instance["past"][name] + instance["future"][name]) for name in forecast.covariates]
        if forecast.calendar:
            moments = moments_from(instance["start"], forecast.frequencies[0], length + forecast.horizon)
            known += list(calendar_columns(moments, forecast.calendar).T)
            times = [moment.isoformat() for moment in moments[length:].tolist()]
        columns = np.stack(known, axis=1).astype(np.float32)[None]
        inputs |= {"past_covariates": columns[:, :length], "future_covariates": columns[:, length:]}
    prediction = format_forecast(graph.run(inputs), forecast.quantiles)
    return {**prediction, "timestamps": times} if times else prediction


def _numbers(forecast: ForecastSettings, name: str, values: Sequence[Any]) -> list[float]:
    texts = forecast.categories.get(name)
    return [float(texts.index(value)) for value in values] if texts else [float(value) for value in values]


def _tensors(windows: Windows) -> Batch:
    inputs = {name: torch.from_numpy(values) for name, values in windows.inputs.items()}
    return {**inputs, "future": torch.from_numpy(windows.future)}


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
        [forecast.context_length, forecast.horizon, forecast.season_length, forecast.independent, list(series.ids)],
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


def _example(series: Series, forecast: ForecastSettings, stride: int | None, test: Windows) -> list[Any]:
    """A history as long as there is, and a short one, with what is known of their steps and of the horizon's."""
    shortest = forecast.shortest
    whole = test.history[0, : test.lengths[0]]
    histories = [whole, whole[-max(shortest, len(whole) // 2) :]]
    if len(histories[1]) == len(whole) and len(whole) > shortest:
        histories[1] = whole[1:]
    instances: list[dict[str, Any]] = []
    for history in histories:
        # Short decimals, which JSON gives back exactly; the graph then answers those.
        values = np.array([[float(f"{value:.6g}") for value in row] for row in history])
        rows = values[:, 0] if values.shape[1] == 1 else values
        instances.append({"history": [_without_zeros(value) for value in rows.tolist()]})
        if test.past_covariates is not None and test.future_covariates is not None:
            end = int(test.lengths[0])
            past = test.past_covariates[0, end - len(history) : end]
            if forecast.covariates:
                instances[-1] |= {"past": _named(forecast, past), "future": _named(forecast, test.future_covariates[0])}
        if series.moments:
            index, origin = evaluation_origins(series, forecast, stride)[0]
            instances[-1]["start"] = series.moments[index][origin - len(history)].tolist().isoformat()
    return instances


def _named(forecast: ForecastSettings, columns: npt.NDArray[Any]) -> dict[str, list[Any]]:
    """The covariates of some steps (N, C) by their names, as a request has them."""
    found: dict[str, list[Any]] = {}
    for name, column in zip(forecast.covariates, columns.T, strict=False):
        texts = forecast.categories.get(name)
        found[name] = [texts[int(code)] if texts else _without_zeros(float(f"{code:.6g}")) for code in column]
    return found


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
    if series.further:
        notes.append(f"{len(series.further):,} further series with {sum(map(len, series.further)):,} steps")
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
