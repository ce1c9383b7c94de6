"""The wire format of Nixtla's client: `NixtlaClient(base_url=...).forecast(df, h=24, freq="h", level=[80])` gets our forecasts.

As the package nixtla 0.7 sends it: all series in one flat list, answered in one flat list.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from service.api.adapters.base import (
    Described,
    PredictionRequest,
    error_shape,
    expect_list,
    expect_no_sequence,
    expect_object,
    optional,
)
from service.api.adapters.schemas import NixtlaDetail, NixtlaRequest, NixtlaResponse
from service.api.parsing import expect_no_more_than
from service.api.predict import ServedModel
from service.errors import InvalidInput, MalformedRequest
from service.wire import join_arrays

PATH = "/v2/forecast"
PARAMETERS_PATH, KEY_PATH = "/model_params", "/validate_api_key"
OTHERS_MODELS = ("timegpt", "azureai")
"""What the names of the models begin with that the client sends where its user names none: any of ours may answer."""
MAX_LEVELS = 49

describe_error = error_shape(lambda status, code, message: {"detail": message})

# What changes the forecast and is not offered: field → the value that means "not wanted".
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "finetune_steps": (0, None),
    "finetuned_model_id": (None,),
    "feature_contributions": (False, None),
    "multivariate": (False, None),
    "model_parameters": (None,),
}


class Nixtla:
    """Flat series in, flat forecasts and intervals out."""

    api = "nixtla"
    described = Described(
        "nixtla_forecast",
        "Forecast as Nixtla's client does",
        "Forecasts of the model for the frequency, whatever the client calls it.",
        NixtlaRequest,
        NixtlaResponse,
        NixtlaDetail,
    )
    paths = (PATH,)

    def read(self, content: Any, path: str, max_instances: int) -> PredictionRequest:
        """One instance per series. Raises MalformedRequest, for options that are not offered too."""
        content = expect_object(content)
        expect_no_sequence(content)
        for field, unwanted in _UNSUPPORTED.items():
            if content.get(field) not in unwanted:
                raise MalformedRequest(f'"{field}" is not offered by this server', where=field)
        series = expect_object(content.get("series"), '"series"')
        expect_no_sequence(series)
        if series.get("categorical_exog") is not None:
            raise MalformedRequest('"series.categorical_exog" is not offered by this server', where="categorical_exog")
        values, sizes = expect_list(series, "y"), expect_list(series, "sizes")
        expect_no_more_than(max_instances, len(sizes))
        if set(map(type, sizes)) - {int} or any(size < 1 for size in sizes) or sum(sizes) != len(values):
            raise MalformedRequest(f'"series.sizes": expected whole numbers that add up to {len(values)}', where="sizes")
        ends = list(itertools.accumulate(sizes))
        histories = [values[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        levels = read_levels(content.get("level"))
        parameters: dict[str, Any] = {"quantiles": sorted({q for level in levels for q in _quantiles(level)})}
        for field, name in (("h", "horizon"), ("freq", "frequency")):
            if content.get(field) is not None:
                parameters[name] = content[field]
        model = optional(content, "model", str, "a string")
        if model is not None and model.startswith(OTHERS_MODELS):
            model = None
        instances = [{"history": history} for history in histories]
        complete = None
        if series.get("X") or series.get("X_future"):
            columns = _read_columns(series, len(values), len(sizes), content.get("h"))
            complete = partial(_with_covariates, instances, sizes, *columns)
        return PredictionRequest(instances, parameters, model, None, "forecast", levels, complete)

    def write(self, parsed: PredictionRequest, model: ServedModel, predictions: Sequence[Any]) -> Any:
        """The forecasts of all series one behind the other, and the bounds of each level likewise."""
        intervals = None
        if parsed.context:
            intervals = {
                f"{side}-{_show(level)}": join_arrays([prediction["quantiles"][_key(quantile)] for prediction in predictions])
                for level in parsed.context
                for side, quantile in zip(("lo", "hi"), _quantiles(level), strict=True)
            }
        return {
            "mean": join_arrays([prediction["forecast"] for prediction in predictions]),
            "intervals": intervals,
            "weights_x": None,
            "feature_contributions": None,
        }


def _read_columns(series: dict[str, Any], num_values: int, num_series: int, horizon: object) -> tuple[list[Any], list[Any]]:
    """The exogenous columns of all series' histories, and of what is forecast. Raises MalformedRequest.

    A column is as long as there are values, so that there are no more parts of columns to cut than values in the body.
    """
    if type(horizon) is not int or horizon < 1:
        raise MalformedRequest('"h": expected a whole number above 0 beside "series.X_future"', where="h")
    past, future = [expect_list(series, name) for name in ("X", "X_future")]
    if len(past) != len(future):
        message = (
            f"{len(past)} columns, and {len(future)} of X_future: features that are known of the history alone are not offered"
        )
        raise MalformedRequest(f'"series.X": {message} by this server', where="X")
    for name, columns, expected in (("X", past, num_values), ("X_future", future, horizon * num_series)):
        if any(type(column) is not list or len(column) != expected for column in columns):
            raise MalformedRequest(f'"series.{name}": expected columns of {expected} values each', where=name)
    return past, future


def _with_covariates(
    instances: list[dict[str, Any]], sizes: list[int], past: list[list[Any]], future: list[list[Any]], model: ServedModel
) -> list[Any]:
    """The instances with the model's covariates. The client sends no names: columns are in the order of the manifest.

    Raises InvalidInput for more or fewer columns than the model has covariates.
    """
    names = model.describe_task().get("covariates", [])
    if len(names) != len(past):
        message = f'"series.X": model "{model.name}" has the covariates {names}, in this order; found {len(past)} columns'
        raise InvalidInput(message, where="X", found=len(past), expected=names)
    horizon = len(future[0]) // len(sizes)
    found, end = [], 0
    for number, (instance, size) in enumerate(zip(instances, sizes, strict=True)):
        start, end = end, end + size
        steps, ahead = slice(start, end), slice(number * horizon, (number + 1) * horizon)
        known = {
            "past": {name: column[steps] for name, column in zip(names, past, strict=True)},
            "future": {name: column[ahead] for name, column in zip(names, future, strict=True)},
        }
        found.append(instance | known)
    return found


def read_levels(levels: object) -> list[float]:
    """Levels of intervals in percent. Raises MalformedRequest."""
    if levels is None:
        return []
    if type(levels) is not list or len(levels) > MAX_LEVELS:
        raise MalformedRequest(f'"level": expected a list of at most {MAX_LEVELS} numbers', where="level")
    for level in levels:
        if type(level) not in (int, float) or not 0 <= level < 100:
            raise MalformedRequest('"level": expected numbers from 0 up to 100', where="level")
    return levels


def _quantiles(level: float) -> tuple[float, float]:
    half = round(level / 200, 12)
    return round(0.5 - half, 12), round(0.5 + half, 12)


def _key(quantile: float) -> str:
    return f"{quantile:.12g}"


def _show(level: float) -> str:
    """As the client names its columns: 80 of 80, 80.0 of 80.0."""
    return str(level)
