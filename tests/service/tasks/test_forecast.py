"""Histories in, forecasts out: what is checked, what the graph is fed, how forecasts are fed back and written."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InferenceFailed, InvalidInput, MalformedRequest, PayloadTooLarge
from service.manifest import Manifest, manifest_type
from service.runtime.tensors import Signature, Tensors, TensorSpec
from service.scheduling.planning import Limits, group_rows
from service.tasks.base import Criterion, advance
from service.tasks.forecast import TASK, ForecastTask
from service.tasks.forecast_request import MAX_HISTORY_VALUES
from service.tasks.forecast_spec import ForecastSpec
from service.tasks.history import NUMBERS_AT_ONCE
from service.wire import write
from tests.fakes import run_task

LENGTHS = TensorSpec("lengths", "INT64", ("batch",))
GROUP = functools.partial(group_rows, limits=Limits())


def forecast(
    *,
    features: Sequence[str] = ("y",),
    targets: Sequence[str] | None = None,
    horizon: int = 3,
    quantiles: Sequence[float] = (),
    context_length: int = 6,
    min_length: int = 2,
    frequencies: Sequence[str] = ("H",),
    max_horizon_multiple: int = 4,
    output: str = "forecast",
    recursive_errors: Literal["independent", "correlated"] = "independent",
) -> ForecastTask:
    targets = targets or features
    spec = ForecastSpec(
        context_length=context_length,
        min_length=min_length,
        horizon=horizon,
        frequencies=list(frequencies),
        quantiles=list(quantiles),
        features=list(features),
        targets=list(targets),
        point="mean",
        recursive_errors=recursive_errors,
    )
    signature = Signature(
        (TensorSpec("history", "FP32", ("batch", "time", len(features))), LENGTHS),
        (TensorSpec(output, "FP32", ("batch", horizon, len(targets))),),
    )
    return ForecastTask(spec, signature, max_horizon_multiple)


def counting_on(task: ForecastTask) -> Callable[[Tensors], Tensors]:
    """A graph that goes on from each row's last true value by ones; quantile q is `q - 0.5` beside the forecast."""
    targets = [task.spec.features.index(target) for target in task.spec.targets]
    output = task.signature.outputs[0].name

    def run(item: Tensors) -> Tensors:
        last = item["history"][np.arange(len(item["lengths"])), item["lengths"] - 1][:, targets]  # (B, targets)
        point = last[:, None] + np.arange(1, task.spec.horizon + 1, dtype=np.float32)[None, :, None]  # (B, H, targets)
        levels = np.array(task.spec.quantiles, np.float32)
        return {output: point, "quantiles": point[..., None] + levels - 0.5}

    return run


def count_on(task: ForecastTask, *instances: object, **parameters: object) -> list[Any]:
    return run_task(task, counting_on(task), instances, None, None, **parameters)


def test_predictions_come_in_the_order_of_the_instances_whatever_their_lengths() -> None:
    histories = [[float(i)] * (2 + i % 5) for i in range(20)]
    task = forecast()
    instances = [{"history": history} for history in histories]
    assert run_task(task, counting_on(task), instances, limits=Limits(max_batch_size=3)) == [
        {"forecast": [i + 1.0, i + 2.0, i + 3.0]} for i in range(20)
    ]


def test_padding_is_zeros_at_the_end() -> None:
    task, seen = forecast(), list[Tensors]()
    run_task(task, counting_on(task), [{"history": [1, 2]}, {"history": [3, 4, 5]}], seen)
    assert seen[0]["history"][..., 0].tolist() == [[1, 2, 0], [3, 4, 5]]
    assert seen[0]["history"].dtype == np.float32


def test_of_a_long_history_the_last_part_is_read() -> None:
    task, seen = forecast(context_length=6), list[Tensors]()
    run_task(task, counting_on(task), [{"history": list(range(100))}], seen)
    assert seen[0]["history"][0, :, 0].tolist() == [94, 95, 96, 97, 98, 99]


def test_a_history_that_is_checked_in_parts_is_whole() -> None:
    num = 2 * NUMBERS_AT_ONCE + 5
    history = [None if i % 7 == 3 else float(i) for i in range(num)]
    task, seen = forecast(context_length=num), list[Tensors]()
    [prediction] = run_task(task, counting_on(task), [{"history": history}], seen)
    assert seen[0]["history"][0, :, 0].tolist() == list(range(num))
    assert prediction["num_interpolated"] == history.count(None)
    with pytest.raises(InvalidInput) as caught:
        count_on(task, {"history": [*history[:-1], "x"]})
    assert caught.value.facts["where"] == f"history[{num - 1}]"


@pytest.mark.parametrize("features", [["a"], ["a", "b", "c"]])
def test_a_history_beyond_the_limit_is_refused(features: list[str]) -> None:
    row = 1 if len(features) == 1 else [1] * len(features)
    longest = MAX_HISTORY_VALUES // len(features)
    task = forecast(features=features)
    assert count_on(task, {"history": [row] * longest})
    with pytest.raises(InvalidInput, match="instance 0: history: expected at most 1000000 values, got 100000") as caught:
        count_on(task, {"history": [row] * (longest + 1)})
    assert caught.value.reason == "length"


@pytest.mark.parametrize(
    ("history", "expected", "num_interpolated"),
    [
        ([1, None, 3], [1, 2, 3], 1),
        ([None, None, 5, 6], [5, 5, 5, 6], 2),
        ([0, None, None, 3, None], [0, 1, 2, 3, 3], 3),
        ([1.5, 2, 3.25], [1.5, 2, 3.25], None),
        # The gap at the beginning of what is read is filled from what stood before it; those before are not counted.
        ([None, 0, None, 2, None, 2, 2, None, 2], [2, 2, 2, 2, 2, 2], 2),
    ],
)
def test_nulls_are_interpolated_and_counted(
    history: list[float | None], expected: list[float], num_interpolated: int | None
) -> None:
    task, seen = forecast(), list[Tensors]()
    [prediction] = run_task(task, counting_on(task), [{"history": history}], seen)
    assert seen[0]["history"][0, :, 0].tolist() == expected
    assert prediction.get("num_interpolated") == num_interpolated


def test_a_shorter_horizon_is_the_first_steps() -> None:
    assert count_on(forecast(horizon=3), {"history": [1, 2], "horizon": 2}) == [{"forecast": [3.0, 4.0]}]


def test_a_longer_horizon_feeds_the_forecast_back() -> None:
    task, seen = forecast(horizon=3, context_length=6), list[Tensors]()
    instances = [{"history": [1, 2], "horizon": 8}, {"history": [10, 20], "horizon": 1}, {"history": [0, 5], "horizon": 4}]
    predictions = run_task(task, counting_on(task), instances, seen)
    assert [prediction["forecast"] for prediction in predictions] == [[3, 4, 5, 6, 7, 8, 9, 10], [21], [6, 7, 8, 9]]
    # The second run holds only those that need it, the third only the longest, which forgets its oldest values.
    assert [item["history"][..., 0].tolist() for item in seen[1:]] == [
        [[1, 2, 3, 4, 5], [0, 5, 6, 7, 8]],
        [[3, 4, 5, 6, 7, 8]],
    ]


@pytest.mark.parametrize(("recursive_errors", "distance"), [("independent", 0.125**0.5), ("correlated", 0.5)])
def test_the_manifest_says_how_the_errors_of_fed_back_forecasts_add_up(
    recursive_errors: Literal["independent", "correlated"], distance: float
) -> None:
    task = forecast(horizon=3, quantiles=[0.25, 0.75], recursive_errors=recursive_errors)
    [prediction] = count_on(task, {"history": [1, 2], "horizon": 4})
    assert prediction["quantiles"]["0.75"] == pytest.approx([3.25, 4.25, 5.25, 6 + distance])
    assert prediction["quantiles"]["0.25"] == pytest.approx([2.75, 3.75, 4.75, 6 - distance])


def test_several_features_are_rows_and_targets_are_fed_back_in_the_order_of_the_features() -> None:
    task, seen = forecast(features=["a", "b"], targets=["b", "a"], horizon=2), list[Tensors]()
    [prediction] = run_task(task, counting_on(task), [{"history": [[1, 10], [2, 20]], "horizon": 3}], seen)
    assert prediction == {"forecast": [[21, 3], [22, 4], [23, 5]]}
    assert seen[1]["history"].tolist() == [[[1, 10], [2, 20], [3, 21], [4, 22]]]


def test_several_targets_have_rows_of_quantiles() -> None:
    task = forecast(features=["a", "b"], horizon=2, quantiles=[0.25, 0.75])
    assert count_on(task, {"history": [[1, 10], [2, 20]]}) == [
        {
            "forecast": [[3, 21], [4, 22]],
            "quantiles": {"0.25": [[2.75, 20.75], [3.75, 21.75]], "0.75": [[3.25, 21.25], [4.25, 22.25]]},
        }
    ]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (None, {"0.1": [2.6], "0.5": [3.0], "0.9": [3.4]}),
        ([0.5], {"0.5": [3.0]}),
        ([0.9, 0.1, 0.9], {"0.9": [3.4], "0.1": [2.6]}),
        ([0.3, 0.6], {"0.3": [2.8], "0.6": [3.1]}),
    ],
)
def test_requested_quantiles_are_answered_or_interpolated(levels: list[float] | None, expected: dict[str, list[float]]) -> None:
    task = forecast(quantiles=[0.1, 0.5, 0.9])
    [prediction] = count_on(task, {"history": [1, 2], "horizon": 1, "quantiles": levels})
    assert prediction == {"forecast": [3.0], "quantiles": expected}


def test_a_request_may_want_no_quantiles() -> None:
    assert count_on(forecast(quantiles=[0.5]), {"history": [1, 2], "quantiles": []}) == [{"forecast": [3, 4, 5]}]


def test_parameters_are_defaults_for_every_instance() -> None:
    task = forecast(quantiles=[0.1, 0.5, 0.9], frequencies=["H", "D"])
    instances = [{"history": [1, 2]}, {"history": [1, 2], "horizon": 2, "start": "2024-01-01", "quantiles": [0.9]}]
    assert count_on(task, *instances, horizon=1, quantiles=[0.5], frequency="daily") == [
        {"forecast": [3], "quantiles": {"0.5": [3]}},
        {"forecast": [3, 4], "quantiles": {"0.9": [3.4, 4.4]}, "timestamps": ["2024-01-03", "2024-01-04"]},
    ]


def test_timestamps_go_on_after_the_whole_history() -> None:
    [prediction] = count_on(forecast(), {"history": [0] * 100, "start": "2024-01-01T00:00:00+02:00", "frequency": "h"})
    assert prediction["timestamps"] == [f"2024-01-05T0{hour}:00:00+02:00" for hour in (4, 5, 6)]


def test_a_start_without_frequency_takes_the_only_one_the_model_has() -> None:
    [prediction] = count_on(forecast(frequencies=["M"]), {"history": [1, 2], "start": "2023-12-31", "horizon": 2})
    assert prediction["timestamps"] == ["2024-02-29", "2024-03-31"]


@pytest.mark.parametrize(
    ("instance", "reason", "message"),
    [
        ({"history": [1, 2, "3"]}, "dtype", 'history[2]: expected a finite number or null, got "3"'),
        ({"history": [1, True, 3]}, "dtype", "history[1]: expected a finite number or null, got true"),
        ({"history": [1, [2], 3]}, "dtype", "history[1]: expected a finite number or null, got a list of 1"),
        (
            {"history": [1, 2, 1e39]},
            "nonfinite",
            "history[2]: expected a finite number or null, got 1e+39 (beyond float32)",
        ),
        ({"history": [None, -1e39, 1]}, "nonfinite", "history[1]: expected a finite number or null, got -1e+39 (bey"),
        ({"history": [1, 10**400]}, "nonfinite", "history[1]: expected a finite number or null, got an integer of more"),
        ({"history": [1, float("nan")]}, "nonfinite", "history[1]: expected a finite number or null, got nan"),
        ({"history": [None, float("nan"), 1]}, "nonfinite", "history[1]: expected a finite number or null, got nan"),
        ({"history": [float("inf"), 1]}, "nonfinite", "history[0]: expected a finite number or null, got inf"),
        ({"history": []}, "length", "history: expected at least 2 steps, got 0"),
        ({"history": [1]}, "length", "history: expected at least 2 steps, got 1"),
        ({"history": [None, None]}, "nonfinite", "history: has no number among the last 2 steps"),
        ({"history": [1] + [None] * 6}, "nonfinite", "history: has no number among the last 6 steps"),
        ({"history": "1,2,3"}, "dtype", 'history: expected a list of numbers, got "1,2,3"'),
        ({"history": {"0": 1}}, "dtype", "history: expected a list of numbers, got an object"),
        ({"history": [[1], [2, 3]]}, "shape", "history[1]: expected a row of 1 numbers, got 2"),
        ({"history": [[1], 2]}, "dtype", "history[1]: expected a row of 1 numbers, got 2"),
        ({}, "shape", "history is missing"),
        ([1, 2, 3], "dtype", "expected an object with a history, got a list of 3"),
        (None, "dtype", "expected an object with a history, got null"),
        (
            {"history": [1, 2], "horizon": 0},
            "length",
            "horizon: expected 1 to 12 steps (one run of this model forecasts 3), got 0",
        ),
        ({"history": [1, 2], "horizon": 13}, "length", "horizon: expected 1 to 12 steps"),
        ({"history": [1, 2], "horizon": 2.0}, "dtype", "horizon: expected a whole number, got 2.0"),
        ({"history": [1, 2], "horizon": True}, "dtype", "horizon: expected a whole number, got true"),
        (
            {"history": [1, 2], "quantiles": [0.05]},
            "shape",
            "quantiles: expected levels from 0.1 to 0.9 (the model's are [0.1, 0.5, 0.9]), got 0.05",
        ),
        ({"history": [1, 2], "quantiles": ["0.5"]}, "dtype", "quantiles: expected a list of numbers between 0 and 1"),
        ({"history": [1, 2], "quantiles": 0.5}, "dtype", "quantiles: expected a list of numbers between 0 and 1, got 0.5"),
        ({"history": [1, 2], "frequency": "weekly"}, "timestamp", "frequency: expected one of ['H', 'D'], got \"weekly\""),
        ({"history": [1, 2], "frequency": "2H"}, "timestamp", "frequency: expected one of ['H', 'D'], got \"2H\""),
        ({"history": [1, 2], "frequency": 1}, "dtype", "frequency: expected a string, got 1"),
        ({"history": [1, 2], "start": "2024-01-01"}, "timestamp", "frequency: expected beside start, one of ['H', 'D']"),
        ({"history": [1, 2], "start": "soon", "frequency": "H"}, "timestamp", "start: expected an ISO 8601 timestamp"),
        ({"history": [1, 2], "start": "9999-12-30", "frequency": "D"}, "timestamp", "start: expected an ISO 8601 timestamp"),
        (
            {"history": [1, 2], "start": 1704067200, "frequency": "H"},
            "timestamp",
            "start: expected an ISO 8601 timestamp as a string, got 1704067200",
        ),
    ],
)
def test_a_bad_instance_is_named_by_its_number_and_place(instance: object, reason: str, message: str) -> None:
    task = forecast(quantiles=[0.1, 0.5, 0.9], frequencies=["H", "D"])
    with pytest.raises(InvalidInput) as caught:
        count_on(task, {"history": [1, 2, 3]}, instance)
    assert caught.value.message.startswith(f"instance 1: {message}")
    assert (caught.value.reason, caught.value.facts["instance"]) == (reason, 1)
    json.dumps(caught.value.facts, allow_nan=False)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([[1, 2], [3]], "instance 0: history[1]: expected a row of 2 numbers, got 1"),
        ([[1, 2], 3], "instance 0: history[1]: expected a row of 2 numbers, got 3"),
        ([[1, 2], None], "instance 0: history[1]: expected a row of 2 numbers, got null"),
        ([[1, 2], [3, "x"]], 'instance 0: history[1][1]: expected a finite number or null, got "x"'),
        ([1, 2, 3], "instance 0: history[0]: expected a row of 2 numbers, got 1"),
        ([[1, None], [2, None]], 'instance 0: history: feature "b" has no number among the last 2 steps'),
    ],
)
def test_rows_of_features_are_checked_place_by_place(history: list[object], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        count_on(forecast(features=["a", "b"]), {"history": history})
    assert caught.value.message.startswith(message)


def test_what_is_not_forecast_cannot_be_fed_back() -> None:
    task = forecast(features=["a", "b"], targets=["a"], horizon=3)
    assert count_on(task, {"history": [[1, 5], [2, 5]], "horizon": 3}) == [{"forecast": [3, 4, 5]}]
    with pytest.raises(InvalidInput, match=r"expected 1 to 3 steps .* cannot be fed back, got 4"):
        count_on(task, {"history": [[1, 5], [2, 5]], "horizon": 4})


def test_a_model_without_quantiles_says_so() -> None:
    with pytest.raises(InvalidInput, match="this model has no quantiles"):
        count_on(forecast(), {"history": [1, 2], "quantiles": [0.5]})


@pytest.mark.parametrize(
    ("instance", "parameters", "message"),
    [
        ({"history": [1, 2], "hostory": [1]}, {}, 'instance 0: unknown field "hostory"; expected'),
        ({"history": [1, 2]}, {"temperature": 1}, 'parameters: unknown "temperature"; this model takes'),
        ({"history": [1, 2]}, {"start": "2024-01-01"}, 'parameters: unknown "start"; this model takes'),
    ],
)
def test_unknown_names_are_refused(instance: object, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        count_on(forecast(), instance, **parameters)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize("parameters", [{"horizon": 0}, {"quantiles": [2]}, {"frequency": "D"}])
def test_bad_parameters_are_named(parameters: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=f"^parameters: {next(iter(parameters))}: expected"):
        count_on(forecast(quantiles=[0.5]), {"history": [1, 2]}, **parameters)


def test_no_instances_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one"):
        count_on(forecast())


@pytest.mark.parametrize("output", ["forecast", "quantiles"])
def test_an_output_that_is_not_finite_is_never_answered(output: str) -> None:
    task = forecast(quantiles=[0.5])

    def run(item: Tensors) -> Tensors:
        outputs = counting_on(task)(item)
        outputs[output][0, -1] = np.nan
        return outputs

    with pytest.raises(InferenceFailed, match=f'output "{output}" is not finite'):
        run_task(task, run, [{"history": [1, 2], "horizon": 1}])


def test_state_is_fed_zeros() -> None:
    signature = Signature(
        (TensorSpec("history", "FP32", ("batch", "time", 1)), LENGTHS, TensorSpec("h", "FP32", ("batch", 5))),
        (TensorSpec("forecast", "FP32", ("batch", 3, 1)), TensorSpec("h_new", "FP32", ("batch", 5))),
        (("h", "h_new"),),
    )
    task, seen = ForecastTask(forecast().spec, signature), list[Tensors]()
    run_task(task, counting_on(task), [{"history": [1, 2]}, {"history": [3, 4]}], seen)
    assert seen[0]["h"].tolist() == [[0] * 5] * 2


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_an_answer_gives_the_float32_of_the_graph_back(value: float) -> None:
    task = forecast(horizon=1)
    (prediction,) = run_task(task, lambda _: {"forecast": np.full((1, 1, 1), value, np.float32)}, [{"history": [1, 2]}])
    assert np.float32(prediction["forecast"][0]) == np.float32(value)


def test_an_answer_has_no_more_digits_than_a_float32() -> None:
    task = forecast(horizon=3)
    values = np.array([[[0.1], [1 / 3], [123456.789]]], np.float32)
    steps = task.run_steps([{"history": [1, 2]}], {}, GROUP)
    advance(steps, None)
    step = advance(steps, [task.prepare({"forecast": values})])
    assert write(step.predictions) == b'[{"forecast":[0.1,0.33333334,123456.79]}]'


def test_a_long_horizon_makes_a_request_heavy() -> None:
    task = forecast(quantiles=[0.1, 0.5, 0.9])
    assert task.is_heavy([{"history": [1, 2]}] * 10, {"horizon": 1000})
    assert task.is_heavy([{"history": [1, 2], "horizon": 1000}] * 10, {})
    assert not task.is_heavy([{"history": [1, 2], "horizon": "1000"}] * 10, {})


def test_an_answer_of_millions_of_numbers_is_refused_before_anything_runs() -> None:
    task = forecast(horizon=100, max_horizon_multiple=10)
    with pytest.raises(PayloadTooLarge, match="the answer would hold 5001000 numbers, at most 5000000"):
        advance(task.run_steps([{"history": [1, 2], "horizon": 1000}] + [{"history": [1, 2]}] * 5000, {}, GROUP), None)


def test_a_large_answer_is_in_order() -> None:
    task = forecast(horizon=1, quantiles=[0.5])
    predictions = count_on(task, *({"history": [0, i], "quantiles": [0.5] if i % 3 else []} for i in range(1000)))
    assert [prediction["forecast"][0] for prediction in predictions] == [i + 1 for i in range(1000)]
    assert [len(prediction) for prediction in predictions] == [2 if i % 3 else 1 for i in range(1000)]


def test_an_output_that_is_not_finite_names_its_instance() -> None:
    def run(item: Tensors) -> Tensors:
        outputs = counting_on(forecast())(item)
        outputs["forecast"][item["history"][:, 0, 0] == 7] = np.inf
        return outputs

    with pytest.raises(InferenceFailed, match=r"^instance 1: ") as caught:
        run_task(forecast(), run, [{"history": [1.0] * 6}, {"history": [7.0] * 5}, {"history": [1.0] * 2}])
    assert caught.value.facts["instance"] == 1


def test_only_large_requests_are_heavy() -> None:
    task, small, large = forecast(), {"history": [1.0] * 336}, {"history": [1.0] * 50_000}
    assert not task.is_heavy([small], {})
    assert task.is_heavy([small] * 100, {})
    assert task.is_heavy([small, large], {})
    assert not task.is_heavy([None, 5, {}], {})


def test_a_graph_of_the_first_release_calls_the_forecast_mean() -> None:
    task = forecast(output="mean", quantiles=[0.5])
    expected = [{"forecast": [3.0, 4.0, 5.0], "quantiles": {"0.5": [3.0, 4.0, 5.0]}}]
    assert count_on(task, {"history": [1, 2]}) == expected
    assert TASK.upgrade_predictions([{"mean": [1.0], "quantiles": {"0.5": [1.0]}}, 5]) == [
        {"forecast": [1.0], "quantiles": {"0.5": [1.0]}},
        5,
    ]


# --------------------------------------------------------------------------------------------- which model is to answer


@pytest.mark.parametrize(
    ("instances", "parameters", "values"),
    [
        ([{"history": [1]}], {}, None),
        ([{"history": [1]}], {"frequency": "H"}, ("H",)),
        ([{"frequency": "D"}], {"frequency": "H"}, ("D",)),
        ([{"frequency": None}, {"frequency": "D"}, {}], {"frequency": "H"}, ("H", "D")),
        ([{"frequency": "D"}, {}], {}, ("D",)),
        (["text", 5, None], {}, None),
    ],
)
def test_the_frequencies_of_a_request_decide_which_model_answers(
    instances: list[object], parameters: dict[str, object], values: tuple[str, ...] | None
) -> None:
    criterion = TASK.criterion(instances, parameters)
    assert criterion == (None if values is None else Criterion("frequency", values, "timestamp"))


@pytest.mark.parametrize(
    ("instances", "parameters", "index"),
    [
        ([{"history": [1]}], {"frequency": 60}, None),
        ([{}, {"frequency": ["H"]}], {"frequency": "H"}, 1),
        ([{"frequency": {}}], {}, 0),
    ],
)
def test_a_frequency_that_is_no_text_is_refused_before_a_model_is_chosen(
    instances: list[object], parameters: dict[str, object], index: int | None
) -> None:
    with pytest.raises(InvalidInput, match="frequency: expected a string") as raised:
        TASK.criterion(instances, parameters)
    assert (raised.value.facts["where"], raised.value.facts.get("instance")) == ("frequency", index)


def stream_task(*features: str, targets: Sequence[str] = ()) -> ForecastTask:
    """A task whose graph reads streams."""
    spec = ForecastSpec(
        context_length=6,
        horizon=2,
        quantiles=[0.1, 0.5, 0.9],
        features=list(features),
        targets=list(targets or features),
        point="median",
        streaming=True,
        warm_up=2,
    )
    num_targets = len(spec.targets)
    outputs = (
        TensorSpec("forecast", "FP32", ("batch", 2, num_targets)),
        TensorSpec("quantiles", "FP32", ("batch", 2, num_targets, 3)),
        TensorSpec("anomaly", "FP32", ("batch", "time", num_targets)),
    )
    return ForecastTask(spec, Signature((TensorSpec("history", "FP32", ("batch", "time", len(features))), LENGTHS), outputs))


def score_on(task: ForecastTask, *instances: object, **parameters: object) -> list[Any]:
    """Answers of a graph that scores each value by itself, and a missing one by 0."""
    targets = [task.spec.features.index(target) for target in task.spec.targets]

    def run(item: Tensors) -> Tensors:
        num_rows = len(item["history"])
        zeros = np.zeros((num_rows, 2, len(targets)), np.float32)
        quantiles = np.zeros((*zeros.shape, 3), np.float32)
        return {"forecast": zeros, "quantiles": quantiles, "anomaly": np.nan_to_num(item["history"][..., targets])}

    return run_task(task, run, instances, None, None, **parameters)


def test_a_model_for_streams_scores_every_value_and_none_that_is_missing() -> None:
    found = score_on(stream_task("y"), {"history": [1.5, None, 2]}, {"history": [None]}, {"history": [3]})
    assert [answer["anomaly"] for answer in found] == [[1.5, None, 2.0], [None], [3.0]]
    assert not any("num_interpolated" in answer for answer in found)
    (alone,) = score_on(stream_task("y"), {"history": list(range(9))})
    assert alone["anomaly"] == [3, 4, 5, 6, 7, 8]  # of the values that are read


def test_a_piece_of_a_stream_may_lack_values_and_is_bounded() -> None:
    task = stream_task("y")
    (checked,) = task.encode([{"history": [None, 2]}], {}, steps_seen=[5])
    assert np.isnan(checked.history[:, 0]).tolist() == [True, False]
    with pytest.raises(InvalidInput, match="expected at most 6 steps of a stream at once, got 7: send them in several pieces"):
        task.encode([{"history": [1] * 7}], {}, steps_seen=[5])
    with pytest.raises(InvalidInput, match="expected at most 6 steps of a stream at once"):
        task.encode_tensors({"history": np.zeros((1, 7, 1), np.float32)}, steps_seen=5)


def test_of_several_targets_each_has_its_scores() -> None:
    history = [[1, 2, 3], [None, 5, 6], [7, 8, None]]
    (found,) = score_on(stream_task("a", "b", "c", targets=("c", "a")), {"history": history})
    assert found["anomaly"] == [[3, 1], [6, None], [None, 7]]


def test_a_forecast_of_a_stream_is_not_fed_back() -> None:
    with pytest.raises(InvalidInput, match=r"horizon: expected 1 to 2 steps"):
        score_on(stream_task("y"), {"history": [1], "horizon": 3})


def test_a_score_that_is_not_finite_is_never_answered() -> None:
    task = stream_task("y")

    def run(item: Tensors) -> Tensors:
        shape = (len(item["history"]), 2, 1)
        anomaly = np.full(item["history"].shape, np.nan, np.float32)
        return {"forecast": np.zeros(shape, np.float32), "quantiles": np.zeros((*shape, 3), np.float32), "anomaly": anomaly}

    with pytest.raises(InferenceFailed, match='the model\'s output "anomaly" is not finite'):
        run_task(task, run, [{"history": [1]}])


@pytest.mark.parametrize(
    ("listed", "values", "fits"),
    [
        (["H"], ("H",), True),
        (["H"], ("hourly", "1h", "60min"), False),
        (["H"], ("hourly", "1h"), True),
        (["H"], ("D",), False),
        (["H", "D"], ("D", "H"), True),
        ([], ("D", "15min"), True),
        ([], ("fortnightly",), False),
        (["H"], ("",), False),
    ],
)
def test_a_model_fits_where_it_lists_every_frequency_or_none(listed: list[str], values: tuple[str, ...], fits: bool) -> None:
    assert TASK.fits(manifest(listed), Criterion("frequency", values)) is fits


def test_the_tensors_that_clients_name_are_called_as_predictions_are() -> None:
    task = forecast(output="mean", quantiles=[0.5])
    tensors = TASK.public_tensors(manifest(["H"]), task.signature)
    assert [spec.name for spec in tensors.inputs] == ["history", "lengths"]
    assert [spec.name for spec in tensors.outputs] == ["forecast"]


def test_the_example_request_is_one_that_the_model_takes() -> None:
    task = forecast(min_length=30, context_length=40, horizon=3)
    [prediction] = count_on(task, TASK.example_instance(manifest(["H"], min_length=30, context_length=40, horizon=3)))
    assert len(prediction["forecast"]) == 3
    assert TASK.example_instance(manifest(["H"], features=["a", "b"], targets=["a"])) is None


def manifest(frequencies: list[str], **spec: object) -> Manifest:
    block = {"context_length": 6, "horizon": 3, "features": ["y"], "targets": ["y"], "frequencies": frequencies, **spec}
    tensor = {"name": "x", "datatype": "FP32", "shape": ["batch"]}
    return manifest_type("forecast", ForecastSpec).model_validate(
        {
            "schema_version": 1,
            "name": "toy",
            "version": "1",
            "task": "forecast",
            "graphs": [{"file": "model.onnx", "sha256": "0" * 64, "opset": 17}],
            "inputs": [tensor],
            "outputs": [tensor],
            "forecast": block,
        }
    )
