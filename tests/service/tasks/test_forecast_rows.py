"""Many instances that are nothing but histories of one length: read and written at once, and as each is alone."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from service.runtime.tensors import Signature, Tensors, TensorSpec
from service.scheduling.planning import Limits, group_rows
from service.tasks.base import advance
from service.tasks.forecast import ForecastTask
from service.tasks.forecast_rows import ForecastRows, find_histories
from service.tasks.forecast_spec import ForecastSpec
from service.tasks.history import NUMBERS_AT_ONCE
from service.wire import read, write

LEVELS = [0.1, 0.5, 0.9]


def build(*, streaming: bool = False, levels: list[float] = LEVELS, has_mape: bool = False) -> ForecastTask:
    spec = ForecastSpec(
        context_length=6,
        min_length=1 if streaming else 2,
        horizon=4,
        frequencies=["H"],
        quantiles=levels,
        features=["y"],
        targets=["y"],
        point="median",
        streaming=streaming,
        points=["median", "mape"] if has_mape else [],
    )
    inputs = (TensorSpec("history", "FP32", ("batch", "time", 1)), TensorSpec("lengths", "INT64", ("batch",)))
    return ForecastTask(spec, Signature(inputs, (TensorSpec("forecast", "FP32", ("batch", 4, 1)),)))


def graph(item: Tensors) -> Tensors:
    """Numbers with many digits that depend on every value of a row."""
    history = np.nan_to_num(item["history"])
    lengths = item.get("lengths", np.full(len(history), history.shape[1]))
    sums = np.array([row[:length].sum() for row, length in zip(history, lengths, strict=True)], np.float32)
    point = np.sin(sums[:, None, None] + np.arange(4, dtype=np.float32)[None, :, None]).astype(np.float32)  # (B, H, 1)
    spread = np.array([-0.3, 0, 0.3], np.float32)
    return {
        "forecast": point,
        "quantiles": point[..., None] + spread,
        "forecast_mape": point / 3,
        "anomaly": np.cos(history).astype(np.float32),
    }


def run(task: ForecastTask, instances: list[Any], **parameters: Any) -> Any:
    steps = task.run_steps(instances, parameters, functools.partial(group_rows, limits=Limits()))
    step = advance(steps, None)
    while step.items is not None:
        step = advance(steps, [task.prepare(graph(item.tensors)) for item in step.items])
    return step.predictions


HISTORIES = [[float(step * number % 7) for step in range(5)] for number in range(1, 150)]
INSTANCES = [{"history": history} for history in HISTORIES]


@pytest.mark.parametrize(
    "parameters", [{}, {"horizon": 1}, {"quantiles": []}, {"quantiles": [0.9, 0.1], "horizon": 2}, {"quantiles": [0.3, 0.5]}]
)
@pytest.mark.parametrize("streaming", [False, True])
def test_instances_together_have_the_predictions_and_the_json_of_each_alone(streaming: bool, parameters: dict[str, Any]) -> None:
    task = build(streaming=streaming)
    together = run(task, INSTANCES, **parameters)
    alone = [run(task, [each], **parameters)[0] for each in INSTANCES]
    assert isinstance(together, ForecastRows)
    assert write(together) == write(alone) == write(list(together)) == write(together[:])
    assert write(together[-1]) == write(alone[-1])
    assert len(together) == len(alone)


@pytest.mark.parametrize("point", ["median", "mape"])
def test_of_two_point_forecasts_the_one_that_is_wanted_answers(point: str) -> None:
    together, alone = [run(build(has_mape=True), each, point=point) for each in (INSTANCES, INSTANCES[:1])]
    assert isinstance(together, ForecastRows)
    assert write(together[:1]) == write(alone)


def test_a_stream_has_no_score_where_it_has_no_value() -> None:
    instances = [{"history": [1.5, None]}, {"history": [None, 2.5]}]
    together = run(build(streaming=True), instances)
    assert isinstance(together, ForecastRows)
    assert [each["anomaly"][0] is None for each in read(write(together))] == [False, True]
    assert write(together) == write([run(build(streaming=True), [each])[0] for each in instances])


def test_a_history_longer_than_the_network_reads_is_cut() -> None:
    long = [{"history": [100.0, 100.0, *history, 1.0]} for history in HISTORIES]
    assert write(run(build(), long)) == write([run(build(), [each])[0] for each in long])


@pytest.mark.parametrize(
    "others",
    [
        [{"history": [1, 2, 3]}],
        [{"history": [1, 2, 3, 4, 5], "horizon": 2}],
        [{"history": [1, None, 3, 4, 5]}],
        [{"history": [1, 2, 3, 4, 5], "start": "2024-01-01T00:00:00"}],
    ],
)
def test_other_instances_are_read_one_by_one_with_the_same_predictions(others: list[Any]) -> None:
    mixed = [*INSTANCES, *others]
    found = run(build(), mixed)
    assert not isinstance(found, ForecastRows)
    assert write(found) == write([run(build(), [each])[0] for each in mixed])


@pytest.mark.parametrize("instances", [[1], ["history"], [None], [[1]], [{}], [{"history": 1}], [{"history": [1], "horizon": 1}]])
def test_only_objects_with_nothing_but_a_list_are_histories(instances: list[Any]) -> None:
    assert find_histories([{"history": [1]}]) == [[1]]
    assert find_histories([{"history": [1]}, *instances]) is None


def test_more_numbers_than_are_converted_at_once_are_read_one_by_one() -> None:
    num = NUMBERS_AT_ONCE // 5 + 1
    found = run(build(), [{"history": [1, 2, 3, 4, 5]}] * num)
    assert not isinstance(found, ForecastRows)
    assert len(found) == num


def test_rows_that_are_cut_into_several_runs_stay_in_order() -> None:
    task = build()
    steps = task.run_steps(INSTANCES, {}, lambda lengths: [list(range(100, len(lengths))), list(range(100))])
    items = advance(steps, None).items
    assert items is not None
    found = advance(steps, [task.prepare(graph(item.tensors)) for item in items]).predictions
    assert write(found) == write([run(task, [each])[0] for each in INSTANCES])


@pytest.mark.parametrize("size", [2, 64, 149])
def test_parts_of_the_rows_are_the_text_of_the_whole(size: int) -> None:
    rows = run(build(streaming=True), INSTANCES)
    parts = [rows.write_rows(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
    assert b"[" + b",".join(parts) + b"]" == write(rows)
