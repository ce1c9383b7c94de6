"""The point forecasts of a model: a request may choose among those that it has, and only among those."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from service.errors import InvalidInput
from service.manifest import manifest_type
from service.runtime.tensors import Signature, Tensors, TensorSpec
from service.tasks.forecast import TASK, ForecastTask
from service.tasks.forecast_spec import ForecastSpec
from tests.fakes import run_task

LENGTHS = TensorSpec("lengths", "INT64", ("batch",))


def make_task(points: list[str], targets: tuple[str, ...] = ("y",)) -> ForecastTask:
    spec = ForecastSpec.model_validate(
        {
            "context_length": 6,
            "horizon": 2,
            "quantiles": [0.1, 0.5, 0.9],
            "point": "median",
            "points": points,
            "features": list(targets),
            "targets": list(targets),
        }
    )
    point = ("batch", 2, len(targets))
    outputs = [TensorSpec("forecast", "FP32", point), TensorSpec("quantiles", "FP32", (*point, 3))]
    if points:
        outputs.append(TensorSpec("forecast_mape", "FP32", point))
    return ForecastTask(
        spec, Signature((TensorSpec("history", "FP32", ("batch", "time", len(targets))), LENGTHS), tuple(outputs))
    )


BOTH = ["median", "mape"]


def run_graph(item: Tensors) -> Tensors:
    """The median goes up by ones from the last value, the other point forecast down by tens."""
    last = item["history"][np.arange(len(item["lengths"])), item["lengths"] - 1]
    steps = np.arange(1, 3, dtype=np.float32)[None, :, None]
    median = last[:, None] + steps
    quantiles = median[..., None] + np.array([-1, 0, 1], np.float32)
    return {"forecast": median, "quantiles": quantiles, "forecast_mape": last[:, None] - 10 * steps}


def ask(task: ForecastTask, *instances: object, **parameters: object) -> list[Any]:
    return run_task(task, run_graph, instances, None, None, **parameters)


def test_a_request_chooses_the_point_forecast_for_all_or_for_one_instance() -> None:
    history = {"history": [1, 5]}
    predictions = ask(make_task(BOTH), history, {**history, "point": "mape"}, {**history, "point": None})
    assert [list(prediction["forecast"]) for prediction in predictions] == [[6, 7], [-5, -15], [6, 7]]
    assert [list(prediction["quantiles"]["0.9"]) for prediction in predictions] == [[7, 8]] * 3
    predictions = ask(make_task(BOTH), history, {**history, "point": "median"}, point="mape")
    assert [list(prediction["forecast"]) for prediction in predictions] == [[-5, -15], [6, 7]]


def test_levels_between_the_models_are_interpolated_beside_either_point() -> None:
    [prediction] = ask(make_task(BOTH), {"history": [1, 5], "point": "mape", "quantiles": [0.3]})
    assert list(prediction["forecast"]) == [-5, -15]
    assert list(prediction["quantiles"]["0.3"]) == pytest.approx([5.5, 6.5])


def test_the_point_that_was_chosen_is_fed_back_beyond_the_horizon() -> None:
    [mape, median] = ask(make_task(BOTH), {"history": [1, 5], "point": "mape"}, {"history": [1, 5]}, horizon=4)
    assert list(mape["forecast"]) == [-5, -15, -25, -35]
    assert list(median["forecast"]) == [6, 7, 8, 9]


def test_several_targets_have_either_point() -> None:
    [prediction] = ask(make_task(BOTH, ("a", "b")), {"history": [[1, 5], [2, 6]], "point": "mape", "quantiles": []})
    assert np.asarray(prediction["forecast"]).tolist() == [[-8, -4], [-18, -14]]


@pytest.mark.parametrize(
    ("points", "point", "message"),
    [
        ([], "mape", r"point: expected one of \['median'\], the point forecasts of this model, got \"mape\""),
        (BOTH, "mean", r"point: expected one of \['median', 'mape'\], the point forecasts of this model, got \"mean\""),
        (BOTH, 1, "point: expected a string, got 1"),
        (BOTH, "x" * 100_000, "point: expected one of"),
    ],
)
def test_another_point_is_refused_with_those_there_are(points: list[str], point: object, message: str) -> None:
    for instance, parameters in (({"point": point}, {}), ({}, {"point": point})):
        with pytest.raises(InvalidInput, match=message) as caught:
            ask(make_task(points), {"history": [1, 5], **instance}, **parameters)
        assert len(str(caught.value)) < 1000


def test_a_model_with_one_point_takes_its_name() -> None:
    [prediction] = ask(make_task([]), {"history": [1, 5], "point": "median"})
    assert list(prediction["forecast"]) == [6, 7]


def test_the_description_lists_the_points() -> None:
    assert make_task([]).describe()["points"] == ["median"]
    assert make_task(BOTH).describe()["points"] == BOTH


@pytest.mark.parametrize("points", [["mape"], ["mean", "mape"], ["median", "median"]])
def test_points_begin_with_the_models_own(points: list[str]) -> None:
    with pytest.raises(ValidationError, match="points must be"):
        make_task(points)


def test_a_manifest_that_promises_the_second_point_must_have_its_tensor() -> None:
    spec = make_task(BOTH).spec
    tensors = {
        "inputs": [
            {"name": "history", "datatype": "FP32", "shape": ["batch", "time", 1]},
            {"name": "lengths", "datatype": "INT64", "shape": ["batch"]},
        ],
        "outputs": [
            {"name": "forecast", "datatype": "FP32", "shape": ["batch", 2, 1]},
            {"name": "quantiles", "datatype": "FP32", "shape": ["batch", 2, 1, 3]},
        ],
    }
    manifest = manifest_type("forecast", ForecastSpec).model_validate(
        {
            "schema_version": 1,
            "name": "x",
            "version": "1",
            "task": "forecast",
            "graphs": [{"file": "model.onnx", "sha256": "0" * 64, "opset": 17}],
            **tensors,
            "forecast": spec.model_dump(),
        }
    )
    assert any("forecast_mape" in line for line in TASK.mismatches(manifest))
