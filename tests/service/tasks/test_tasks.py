from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InferenceFailed, InvalidInput, MalformedRequest, PayloadTooLarge
from service.manifest import Classify as ClassifyFace
from service.manifest import Forecast as ForecastFace
from service.manifest import Truncation
from service.runtime.tensors import Item, Signature, Tensors, TensorSpec, collate, num_steps
from service.tasks.base import ItemLimits, Task, grouped
from service.tasks.classify import MAX_CHARACTERS, Classify
from service.tasks.forecast import MAX_HISTORY_VALUES, Forecast
from service.tasks.history import NUMBERS_AT_ONCE
from service.tasks.tensor import TensorRows
from service.tasks.tokenization import load_tokenizer
from service.wire import read, write
from tests.folders import write_text_folder

LENGTHS = TensorSpec("lengths", "INT64", ("batch",))


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
    limits: ItemLimits | None = None,
) -> Forecast:
    targets = targets or features
    face = ForecastFace(
        context_length=context_length,
        min_length=min_length,
        horizon=horizon,
        frequencies=list(frequencies),
        quantiles=list(quantiles),
        features=list(features),
        targets=list(targets),
        point="mean",
    )
    signature = Signature(
        (TensorSpec("history", "FP32", ("batch", "time", len(features))), LENGTHS),
        (TensorSpec("mean", "FP32", ("batch", horizon, len(targets))),),
    )
    return Forecast(face, signature, max_horizon_multiple, limits or ItemLimits())


def counting_on(task: Forecast) -> Callable[[Tensors], Tensors]:
    """A graph that goes on from each row's last true value by ones; quantile q is `q - 0.5` beside the mean."""
    targets = [task.face.features.index(target) for target in task.face.targets]

    def run(item: Tensors) -> Tensors:
        last = item["history"][np.arange(len(item["lengths"])), item["lengths"] - 1][:, targets]  # (B, targets)
        mean = last[:, None] + np.arange(1, task.face.horizon + 1, dtype=np.float32)[None, :, None]  # (B, H, targets)
        levels = np.array(task.face.quantiles, np.float32)
        return {"mean": mean, "quantiles": mean[..., None] + levels - 0.5}

    return run


def answer(
    task: Task,
    run: Callable[[Tensors], Tensors],
    instances: Sequence[object],
    seen: list[Tensors] | None = None,
    **parameters: object,
) -> list[Any]:
    """Hold the dialogue with a graph; what the graph is fed is put into `seen`."""
    dialogue = task.dialogue(instances, parameters)
    outputs: list[Tensors] | None = None
    while True:
        try:
            items: list[Item] = next(dialogue) if outputs is None else dialogue.send(outputs)
        except StopIteration as stop:
            predictions: list[Any] = read(write(stop.value))
            break
        fed = [collate([item.tensors], task.signature) for item in items]
        for item, tensors in zip(items, fed, strict=True):
            assert (item.rows, item.steps) == (len(tensors[task.signature.first_input]), num_steps(tensors, task.signature))
            assert list(item.lengths) == tensors.get("lengths", np.full(item.rows, item.steps)).tolist()
        if seen is not None:
            seen += fed
        outputs = [task.prepare(run(tensors)) for tensors in fed]
    return predictions


def count_on(task: Forecast, *instances: object, **parameters: object) -> list[Any]:
    return answer(task, counting_on(task), instances, None, **parameters)


# ---------------------------------------------------------------------------------------------------------- forecast


def test_predictions_come_in_the_order_of_the_instances_whatever_their_lengths() -> None:
    histories = [[float(i)] * (2 + i % 5) for i in range(20)]
    task = forecast(limits=ItemLimits(max_rows=3))
    assert count_on(task, *({"history": history} for history in histories)) == [
        {"mean": [i + 1.0, i + 2.0, i + 3.0]} for i in range(20)
    ]


def test_rows_of_similar_length_share_items_within_the_limits() -> None:
    task, seen = forecast(context_length=100, limits=ItemLimits(max_rows=3, max_padded_steps=40)), list[Tensors]()
    lengths = [30, 2, 3, 2, 20, 20, 50, 4]
    answer(task, counting_on(task), [{"history": [1.0] * length} for length in lengths], seen)
    assert [item["lengths"].tolist() for item in seen] == [[2, 2, 3], [4, 20], [20], [30], [50]]
    assert [item["history"].shape for item in seen] == [(3, 3, 1), (2, 20, 1), (1, 20, 1), (1, 30, 1), (1, 50, 1)]


def test_short_rows_are_not_padded_to_a_much_longer_one() -> None:
    assert grouped([300, 4, 5, 310, 40], ItemLimits()) == [[1, 2, 4], [0, 3]]


def test_padding_is_zeros_at_the_end() -> None:
    task, seen = forecast(), list[Tensors]()
    answer(task, counting_on(task), [{"history": [1, 2]}, {"history": [3, 4, 5]}], seen)
    assert seen[0]["history"][..., 0].tolist() == [[1, 2, 0], [3, 4, 5]]
    assert seen[0]["history"].dtype == np.float32


def test_of_a_long_history_the_last_part_is_read() -> None:
    task, seen = forecast(context_length=6), list[Tensors]()
    answer(task, counting_on(task), [{"history": list(range(100))}], seen)
    assert seen[0]["history"][0, :, 0].tolist() == [94, 95, 96, 97, 98, 99]


def test_a_history_that_is_checked_in_parts_is_whole() -> None:
    num = 2 * NUMBERS_AT_ONCE + 5
    history = [None if i % 7 == 3 else float(i) for i in range(num)]
    task, seen = forecast(context_length=num), list[Tensors]()
    [prediction] = answer(task, counting_on(task), [{"history": history}], seen)
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
    [prediction] = answer(task, counting_on(task), [{"history": history}], seen)
    assert seen[0]["history"][0, :, 0].tolist() == expected
    assert prediction.get("num_interpolated") == num_interpolated


def test_a_shorter_horizon_is_the_first_steps() -> None:
    assert count_on(forecast(horizon=3), {"history": [1, 2], "horizon": 2}) == [{"mean": [3.0, 4.0]}]


def test_a_longer_horizon_feeds_the_forecast_back() -> None:
    task, seen = forecast(horizon=3, context_length=6), list[Tensors]()
    instances = [{"history": [1, 2], "horizon": 8}, {"history": [10, 20], "horizon": 1}, {"history": [0, 5], "horizon": 4}]
    predictions = answer(task, counting_on(task), instances, seen)
    assert [prediction["mean"] for prediction in predictions] == [[3, 4, 5, 6, 7, 8, 9, 10], [21], [6, 7, 8, 9]]
    # In the second run only those who need it are asked, in the third only the longest, which forgets its oldest values.
    assert [item["history"][..., 0].tolist() for item in seen[1:]] == [
        [[1, 2, 3, 4, 5], [0, 5, 6, 7, 8]],
        [[3, 4, 5, 6, 7, 8]],
    ]


def test_several_features_are_rows_and_targets_are_fed_back_in_the_order_of_the_features() -> None:
    task, seen = forecast(features=["a", "b"], targets=["b", "a"], horizon=2), list[Tensors]()
    [prediction] = answer(task, counting_on(task), [{"history": [[1, 10], [2, 20]], "horizon": 3}], seen)
    assert prediction == {"mean": [[21, 3], [22, 4], [23, 5]]}
    assert seen[1]["history"].tolist() == [[[1, 10], [2, 20], [3, 21], [4, 22]]]


def test_several_targets_have_rows_of_quantiles() -> None:
    task = forecast(features=["a", "b"], horizon=2, quantiles=[0.25, 0.75])
    assert count_on(task, {"history": [[1, 10], [2, 20]]}) == [
        {
            "mean": [[3, 21], [4, 22]],
            "quantiles": {"0.25": [[2.75, 20.75], [3.75, 21.75]], "0.75": [[3.25, 21.25], [4.25, 22.25]]},
        }
    ]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, {"0.1": [2.6], "0.5": [3.0], "0.9": [3.4]}),
        ([0.5], {"0.5": [3.0]}),
        ([0.9, 0.1, 0.9], {"0.9": [3.4], "0.1": [2.6]}),
        ([0.3, 0.6], {"0.3": [2.8], "0.6": [3.1]}),
    ],
)
def test_asked_quantiles_are_answered_or_interpolated(asked: list[float] | None, expected: dict[str, list[float]]) -> None:
    task = forecast(quantiles=[0.1, 0.5, 0.9])
    [prediction] = count_on(task, {"history": [1, 2], "horizon": 1, "quantiles": asked})
    assert prediction == {"mean": [3.0], "quantiles": expected}


def test_no_quantiles_may_be_asked_for() -> None:
    assert count_on(forecast(quantiles=[0.5]), {"history": [1, 2], "quantiles": []}) == [{"mean": [3, 4, 5]}]


def test_parameters_are_defaults_for_every_instance() -> None:
    task = forecast(quantiles=[0.1, 0.5, 0.9], frequencies=["H", "D"])
    instances = [{"history": [1, 2]}, {"history": [1, 2], "horizon": 2, "start": "2024-01-01", "quantiles": [0.9]}]
    assert count_on(task, *instances, horizon=1, quantiles=[0.5], frequency="daily") == [
        {"mean": [3], "quantiles": {"0.5": [3]}},
        {"mean": [3, 4], "quantiles": {"0.9": [3.4, 4.4]}, "timestamps": ["2024-01-03", "2024-01-04"]},
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
    assert count_on(task, {"history": [[1, 5], [2, 5]], "horizon": 3}) == [{"mean": [3, 4, 5]}]
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


@pytest.mark.parametrize("output", ["mean", "quantiles"])
def test_an_output_that_is_not_finite_is_never_told(output: str) -> None:
    task = forecast(quantiles=[0.5])

    def run(item: Tensors) -> Tensors:
        outputs = counting_on(task)(item)
        outputs[output][0, -1] = np.nan
        return outputs

    with pytest.raises(InferenceFailed, match=f'output "{output}" is not finite'):
        answer(task, run, [{"history": [1, 2], "horizon": 1}])


def test_an_output_that_is_not_finite_names_its_instance(classify: Classify) -> None:
    def forecast_nan(item: Tensors) -> Tensors:
        outputs = counting_on(forecast())(item)
        outputs["mean"][item["history"][:, 0, 0] == 7] = np.inf
        return outputs

    def judge_nan(item: Tensors) -> Tensors:
        return {"probabilities": np.where(item["tokens"][:, :1] == 1, [[np.nan, 1]], [[0.5, 0.5]]).astype(np.float32)}

    def double_nan(item: Tensors) -> Tensors:
        return {name: np.where(array == 14, np.nan, array) for name, array in double(item).items()}

    cases: list[tuple[Task, Any, list[object]]] = [
        (forecast(), forecast_nan, [{"history": [1.0] * 6}, {"history": [7.0] * 5}, {"history": [1.0] * 2}]),
        (classify, judge_nan, ["bad", "not a very", "the plot", "good"]),
        (TensorRows(TENSORS), double_nan, [[[1, 2]], [[3, 4]], [[5, 6], [7, 8]]]),
    ]
    for (task, run, instances), expected in zip(cases, (1, 3, 2), strict=True):
        with pytest.raises(InferenceFailed, match=f"^instance {expected}: ") as caught:
            answer(task, run, instances)
        assert caught.value.facts["instance"] == expected


def test_state_is_fed_zeros() -> None:
    signature = Signature(
        (TensorSpec("history", "FP32", ("batch", "time", 1)), LENGTHS, TensorSpec("h", "FP32", ("batch", 5))),
        (TensorSpec("mean", "FP32", ("batch", 3, 1)), TensorSpec("h_new", "FP32", ("batch", 5))),
        (("h", "h_new"),),
    )
    task, seen = Forecast(forecast().face, signature), list[Tensors]()
    answer(task, counting_on(task), [{"history": [1, 2]}, {"history": [3, 4]}], seen)
    assert seen[0]["h"].tolist() == [[0] * 5] * 2


# ---------------------------------------------------------------------------------------------------------- classify


@pytest.fixture
def classify(tmp_path: Path) -> Classify:
    folder = write_text_folder(tmp_path)
    face = ClassifyFace(labels=["negative", "positive"], max_length=4, truncation=Truncation(head=1, tail=3), language="en")
    signature = Signature(
        (TensorSpec("tokens", "INT64", ("batch", "time")), LENGTHS),
        (TensorSpec("probabilities", "FP32", ("batch", 2)),),
    )
    return Classify(face, signature, load_tokenizer(folder / "tokenizer.json"), ItemLimits(max_rows=2))


def by_first_token(item: Tensors) -> Tensors:
    """Positive if a text begins with `good`, which is token 1."""
    positive = np.where(item["tokens"][:, 0] == 1, 0.75, 0.25).astype(np.float32)
    return {"probabilities": np.stack((1 - positive, positive), axis=1)}


def test_texts_get_labels_in_their_order(classify: Classify) -> None:
    texts = ["good film", "the bad plot", {"text": "good"}, "it was not a very good film"]
    predictions = answer(classify, by_first_token, texts)
    assert predictions == [
        {"label": "positive", "score": 0.75, "probabilities": {"negative": 0.25, "positive": 0.75}},
        {"label": "negative", "score": 0.75, "probabilities": {"negative": 0.75, "positive": 0.25}},
        {"label": "positive", "score": 0.75, "probabilities": {"negative": 0.25, "positive": 0.75}},
        {"label": "negative", "score": 0.75, "probabilities": {"negative": 0.75, "positive": 0.25}, "truncated": True},
    ]


def test_a_long_text_keeps_its_head_and_its_tail(classify: Classify) -> None:
    seen: list[Tensors] = []
    answer(classify, by_first_token, ["good bad film a very not the was"], seen)
    assert seen[0]["tokens"].tolist() == [[1, 6, 7, 8]]
    assert seen[0]["lengths"].tolist() == [4]


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ("", "instance 1: the text is empty"),
        (" \t\n", "instance 1: the text is empty"),
        ({"text": ""}, "instance 1: the text is empty"),
        ({"text": 5}, "instance 1: text: expected a string, got 5"),
        ({"text": None}, "instance 1: text: expected a string, got null"),
        ({}, "instance 1: text is missing"),
        (5, "instance 1: expected a string, got 5"),
        (["good"], "instance 1: expected a string, got a list of 1"),
        ("half \ud800 pair", "instance 1: the text has a lone surrogate"),
    ],
)
def test_a_text_that_cannot_be_read_is_named(classify: Classify, instance: object, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        answer(classify, by_first_token, ["good", instance])
    assert caught.value.message.startswith(message)
    assert caught.value.facts["instance"] == 1


@pytest.mark.parametrize("is_object", [False, True])
def test_a_text_beyond_the_limit_is_refused_before_it_is_split(classify: Classify, is_object: bool) -> None:
    def instance(text: str) -> object:
        return {"text": text} if is_object else text

    assert answer(classify, by_first_token, [instance("good ".ljust(MAX_CHARACTERS, "!"))])[0]["label"] == "positive"
    with pytest.raises(InvalidInput, match="instance 1: the text has 100001 characters, expected at most 100000") as caught:
        answer(classify, by_first_token, ["good", instance("!" * (MAX_CHARACTERS + 1))])
    assert (caught.value.reason, caught.value.facts["instance"]) == ("length", 1)


def test_classification_takes_no_parameters_and_no_other_fields(classify: Classify) -> None:
    with pytest.raises(MalformedRequest, match='parameters: unknown "horizon"; this model takes none'):
        answer(classify, by_first_token, ["good"], horizon=1)
    with pytest.raises(MalformedRequest, match='instance 0: unknown field "txt"'):
        answer(classify, by_first_token, [{"text": "good", "txt": "bad"}])


# ------------------------------------------------------------------------------------------------------------ tensor

TENSORS = Signature(
    (TensorSpec("x", "FP32", ("batch", "time", 2)), LENGTHS, TensorSpec("h", "FP32", ("batch", 3))),
    (TensorSpec("y", "FP32", ("batch", "time", 2)), TensorSpec("h_new", "FP32", ("batch", 3))),
    (("h", "h_new"),),
)


def double(item: Tensors) -> Tensors:
    return {"y": item["x"] * 2, "h_new": item["h"] + 1}


def test_rows_of_one_input_go_in_and_rows_of_one_output_come_out() -> None:
    seen: list[Tensors] = []
    task = TensorRows(TENSORS, ItemLimits(max_rows=2))
    instances = [[[1, 2], [3, 4], [5, 6]], {"x": [[0.1, 0.2]]}, [[7, 8]]]
    assert answer(task, double, instances, seen) == [[[2, 4], [6, 8], [10, 12]], [[0.2, 0.4]], [[14, 16]]]
    assert [item["lengths"].tolist() for item in seen] == [[1, 1], [3]]
    assert seen[0]["h"].tolist() == [[0, 0, 0]] * 2


def test_several_outputs_are_named() -> None:
    signature = Signature(
        (TensorSpec("a", "INT32", ("batch", 2)), TensorSpec("b", "BYTES", ("batch",))),
        (TensorSpec("sum", "INT32", ("batch",)), TensorSpec("big", "BOOL", ("batch", 2)), TensorSpec("b", "BYTES", ("batch",))),
    )

    def run(item: Tensors) -> Tensors:
        return {"sum": item["a"].sum(axis=1), "big": item["a"] > 5, "b": item["b"]}

    assert answer(TensorRows(signature), run, [{"a": [1, 9], "b": "x"}, {"a": [3, 4], "b": "ü"}]) == [
        {"sum": 10, "big": [False, True], "b": "x"},
        {"sum": 7, "big": [False, False], "b": "ü"},
    ]
    with pytest.raises(InvalidInput, match=r"instance 0: expected an object with \['a', 'b'\]"):
        answer(TensorRows(signature), run, [[1, 9]])


def test_rows_of_other_open_axes_do_not_share_an_item() -> None:
    signature = Signature((TensorSpec("x", "FP32", ("batch", "width")),), (TensorSpec("y", "FP32", ("batch", "width")),))
    seen: list[Tensors] = []
    answers = answer(TensorRows(signature), lambda item: {"y": item["x"] + 1}, [[1], [1, 2], [3]], seen)
    assert answers == [[2], [2, 3], [4]]
    assert sorted(item["x"].shape for item in seen) == [(1, 2), (2, 1)]


@pytest.mark.parametrize(
    ("instance", "part"),
    [
        ([[1, 2], [3]], "different lengths"),
        ([1, 2], "axes"),
        ([[1, 2, 3]], "expected FP32 [batch, time, 2]"),
        ([], "axes"),
        ([[]], "expected FP32 [batch, time, 2]"),
        ([["1", "2"]], "strings"),
        ([[1, None]], "null"),
        ([[1, 1e39]], "x[0][1]"),
        ({"x": [[1, 2]], "z": 1}, 'unknown field "z"'),
        ({}, "x is missing"),
    ],
)
def test_a_bad_row_is_named(instance: object, part: str) -> None:
    with pytest.raises((InvalidInput, MalformedRequest)) as caught:
        answer(TensorRows(TENSORS), double, [[[1, 2]], instance])
    assert caught.value.message.startswith("instance 1")
    assert part in caught.value.message
    assert caught.value.facts["instance"] == 1


# --------------------------------------------------------------------------------------------------- what all share


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    max_rows=st.integers(1, 8),
    max_padded_steps=st.integers(1, 100),
)
def test_grouping_keeps_every_row_once_and_the_limits(lengths: list[int], max_rows: int, max_padded_steps: int) -> None:
    groups = grouped(lengths, ItemLimits(max_rows, max_padded_steps))
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        padded_steps = len(group) * max(lengths[row] for row in group)
        assert len(group) == 1 or (len(group) <= max_rows and padded_steps <= max_padded_steps)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_an_answer_gives_the_float32_of_the_graph_back(value: float) -> None:
    task = forecast(horizon=1)
    (prediction,) = answer(task, lambda _: {"mean": np.full((1, 1, 1), value, np.float32)}, [{"history": [1, 2]}])
    assert np.float32(prediction["mean"][0]) == np.float32(value)


def test_an_answer_has_no_more_digits_than_a_float32() -> None:
    task = forecast(horizon=3)
    values = np.array([[[0.1], [1 / 3], [123456.789]]], np.float32)
    dialogue = task.dialogue([{"history": [1, 2]}], {})
    next(dialogue)
    with pytest.raises(StopIteration) as stop:
        dialogue.send([task.prepare({"mean": values})])
    assert write(stop.value.value) == b'[{"mean":[0.1,0.33333334,123456.79]}]'


def test_only_large_requests_are_heavy(classify: Classify) -> None:
    tasks: list[tuple[Task, object, object]] = [
        (forecast(), {"history": [1.0] * 336}, {"history": [1.0] * 50_000}),
        (classify, "good film", {"text": "good " * 10_000}),
        (TensorRows(TENSORS), [[1, 2]] * 10, {"x": [[1, 2]] * 20_000}),
    ]
    for task, small, large in tasks:
        assert not task.is_heavy([small], {})
        assert task.is_heavy([small] * 100, {})
        assert task.is_heavy([small, large], {})
        assert not task.is_heavy([None, 5, {}], {})


def test_a_long_horizon_makes_a_request_heavy() -> None:
    task = forecast(quantiles=[0.1, 0.5, 0.9])
    assert task.is_heavy([{"history": [1, 2]}] * 10, {"horizon": 1000})
    assert task.is_heavy([{"history": [1, 2], "horizon": 1000}] * 10, {})
    assert not task.is_heavy([{"history": [1, 2], "horizon": "1000"}] * 10, {})


def test_an_answer_of_millions_of_numbers_is_refused_before_anything_runs() -> None:
    task = forecast(horizon=100, max_horizon_multiple=10)
    with pytest.raises(PayloadTooLarge, match="the answer would hold 5001000 numbers, at most 5000000"):
        next(task.dialogue([{"history": [1, 2], "horizon": 1000}] + [{"history": [1, 2]}] * 5000, {}))


def test_a_large_answer_is_in_order() -> None:
    task = forecast(horizon=1, quantiles=[0.5])
    predictions = count_on(task, *({"history": [0, i], "quantiles": [0.5] if i % 3 else []} for i in range(1000)))
    assert [prediction["mean"][0] for prediction in predictions] == [i + 1 for i in range(1000)]
    assert [len(prediction) for prediction in predictions] == [2 if i % 3 else 1 for i in range(1000)]
