"""What is known ahead: how `past` and `future` are read and refused, which runs read which part, and the calendar."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.errors import InvalidInput, MalformedRequest
from service.runtime.tensors import Signature, Tensors, TensorSpec
from service.scheduling.planning import Limits, group_rows
from service.tasks.base import advance
from service.tasks.covariates import CovariateReader, calendar_numbers
from service.tasks.forecast import ForecastTask
from service.tasks.forecast_spec import CalendarField, ForecastSpec
from service.tasks.frequencies import Frequency
from service.tasks.history import NUMBERS_AT_ONCE
from service.tasks.tables import TableError, TableOptions
from tests.fakes import run_task

GROUP = functools.partial(group_rows, limits=Limits())
BLOCK: dict[str, Any] = {
    "context_length": 6,
    "min_length": 2,
    "horizon": 3,
    "features": ["y"],
    "targets": ["y"],
    "frequencies": ["H"],
}


def forecast(**options: Any) -> ForecastTask:
    spec = ForecastSpec(**BLOCK | {"covariates": ["warm", "sky"], "categories": {"sky": ["clear", "rain"]}} | options)
    inputs = (
        TensorSpec("history", "FP32", ("batch", "time", 1)),
        TensorSpec("lengths", "INT64", ("batch",)),
        TensorSpec("past_covariates", "FP32", ("batch", "time", spec.num_known)),
        TensorSpec("future_covariates", "FP32", ("batch", 3, spec.num_known)),
    )
    return ForecastTask(spec, Signature(inputs, (TensorSpec("forecast", "FP32", ("batch", 3, 1)),)), 4)


def instance(num_steps: int = 4, horizon: int = 3, **fields: Any) -> dict[str, Any]:
    """Of step `n`, counted from the history's first, the covariate `warm` is n, and the sky is clear every second step."""

    def columns(start: int, count: int) -> dict[str, list[Any]]:
        steps = range(start, start + count)
        return {"warm": list(steps), "sky": ["rain" if step % 2 else "clear" for step in steps]}

    found = {"history": [100.0 + step for step in range(num_steps)], "horizon": horizon}
    return found | {"past": columns(0, num_steps), "future": columns(num_steps, horizon)} | fields


class Graph:
    """Answers each run with the first covariate of the steps that are forecast, and keeps what it was fed."""

    def __init__(self) -> None:
        self.fed: list[Tensors] = []

    def __call__(self, tensors: Tensors) -> Tensors:
        self.fed.append(tensors)
        return {"forecast": tensors["future_covariates"][:, :, :1]}


def run(task: ForecastTask, *instances: Any) -> tuple[list[Any], Graph]:
    graph = Graph()
    return run_task(task, graph, instances), graph


def test_columns_are_fed_in_the_order_of_the_manifest_with_texts_as_places() -> None:
    _, graph = run(forecast(), instance())
    assert graph.fed[0]["past_covariates"].tolist() == [[[0, 0], [1, 1], [2, 0], [3, 1]]]
    assert graph.fed[0]["future_covariates"].tolist() == [[[4, 0], [5, 1], [6, 0]]]


def test_one_value_is_that_of_every_step() -> None:
    known = {"warm": 2.5, "sky": "rain"}
    (alone,), graph = run(forecast(), instance(9, 5, past=known, future=known))
    assert graph.fed[0]["past_covariates"].tolist() == [[[2.5, 1]] * 6]
    listed = [{"warm": [2.5] * count, "sky": ["rain"] * count} for count in (9, 5)]
    (other,), again = run(forecast(), instance(9, 5, past=listed[0], future=listed[1]))
    assert alone == other
    for one, two in zip(graph.fed, again.fed, strict=True):
        assert {name: tensor.tolist() for name, tensor in one.items()} == {name: tensor.tolist() for name, tensor in two.items()}


def test_past_covariates_are_cut_with_the_history() -> None:
    _, graph = run(forecast(), instance(9))
    assert graph.fed[0]["history"][0, :, 0].tolist() == [103, 104, 105, 106, 107, 108]
    assert graph.fed[0]["past_covariates"][0, :, 0].tolist() == [3, 4, 5, 6, 7, 8]
    assert graph.fed[0]["future_covariates"][0, :, 0].tolist() == [9, 10, 11]


def test_a_short_horizon_repeats_its_last_step() -> None:
    (prediction,), graph = run(forecast(), instance(horizon=1))
    assert graph.fed[0]["future_covariates"][0, :, 0].tolist() == [4, 4, 4]
    assert prediction["forecast"] == [4]


def test_a_long_horizon_feeds_each_run_what_is_known_of_its_own_steps() -> None:
    (prediction,), graph = run(forecast(), instance(4, 8))
    assert prediction["forecast"] == [4, 5, 6, 7, 8, 9, 10, 11]
    assert [fed["past_covariates"][0, :, 0].tolist() for fed in graph.fed] == [
        [0, 1, 2, 3],
        [1, 2, 3, 4, 5, 6],
        [4, 5, 6, 7, 8, 9],
    ]
    assert [fed["future_covariates"][0, :, 0].tolist() for fed in graph.fed] == [[4, 5, 6], [7, 8, 9], [10, 11, 11]]


def test_instances_of_different_lengths_and_horizons_share_runs() -> None:
    task = forecast()
    instances = [instance(4, 7), instance(2, 3), instance(6, 2)]
    together, _ = run(task, *instances)
    alone = [run(task, one)[0][0] for one in instances]
    assert [prediction["forecast"] for prediction in together] == [one["forecast"] for one in alone]


def test_a_piece_of_a_sequence_is_fed_its_own_covariates() -> None:
    task = forecast()
    fed: list[Tensors] = []
    steps = task.run_steps([instance(1, 5)], {}, GROUP, steps_seen=[4])
    step = advance(steps, None)
    while step.items is not None:
        fed += [item.tensors for item in step.items]
        step = advance(steps, [task.prepare({"forecast": fed[-1]["future_covariates"][:, :, :1]})])
    assert [tensors["past_covariates"][0, :, 0].tolist() for tensors in fed] == [[0], [1, 2, 3]]
    assert [tensors["future_covariates"][0, :, 0].tolist() for tensors in fed] == [[1, 2, 3], [4, 5, 5]]


def changed(change: Callable[[dict[str, Any]], object], **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(instance(**options)))
    change(found)
    return found


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str, str]] = {
    "no future": (lambda one: one.pop("future"), "future", r"future is missing: expected .* \['warm', 'sky'\]"),
    "null past": (lambda one: one.update(past=None), "past", "past is missing"),
    "a list": (lambda one: one.update(past=[1, 2]), "past", "expected an object with the covariates .*, got a list of 2"),
    "one is missing": (lambda one: one["future"].pop("sky"), "future.sky", "future.sky is missing"),
    "one too many": (lambda one: one["past"].update(wind=[1] * 4), "past.wind", "past.wind is no covariate of the model"),
    "misspelt": (
        lambda one: one["past"].update(wram=one["past"].pop("warm")),
        "past.warm",
        'past.warm is missing: .* found "wram" instead',
    ),
    "a long name": (lambda one: one["past"].update({"x" * 9999: []}), f"past.{'x' * 60}", "is no covariate"),
    "an object": (
        lambda one: one["past"].update(warm={}),
        "past.warm",
        "expected a finite number, or a list of them, got an object",
    ),
    "null for all steps": (lambda one: one["past"].update(warm=None), "past.warm", "or a list of them, got null"),
    "NaN for all steps": (lambda one: one["future"].update(warm=float("nan")), "future.warm", "got nan"),
    "400 digits for all steps": (lambda one: one["future"].update(warm=10**400), "future.warm", "more than 20 digits"),
    "a truth value for all steps": (lambda one: one["future"].update(warm=True), "future.warm", "got true"),
    "a text for numbers": (lambda one: one["future"].update(warm="1"), "future.warm", 'got "1"'),
    "an unknown text for all steps": (lambda one: one["past"].update(sky="snow"), "past.sky", r"one of \['clear', 'rain'\], or"),
    "a number for texts": (lambda one: one["past"].update(sky=0), "past.sky", "got 0"),
    "too short": (lambda one: one["future"]["warm"].pop(), "future.warm", "expected 3 values, the horizon, got 2"),
    "too long": (lambda one: one["past"]["sky"].append("rain"), "past.sky", "expected 4 values, as many as history, got 5"),
    "empty": (lambda one: one["past"].update(warm=[]), "past.warm", "expected 4 values, as many as history, got 0"),
    "null": (lambda one: one["past"].update(warm=[1, 2, None, 3]), r"past.warm[2]", "expected a finite number, got null"),
    "NaN": (lambda one: one["future"].update(warm=[1, float("nan"), 3]), "future.warm[1]", "expected a finite number, got nan"),
    "beyond float32": (lambda one: one["future"].update(warm=[1, 2, 1e39]), "future.warm[2]", r"got 1e\+39"),
    "400 digits": (lambda one: one["future"].update(warm=[10**400, 2, 3]), "future.warm[0]", "more than 20 digits"),
    "a truth value": (lambda one: one["future"].update(warm=[True, 2, 3]), "future.warm[0]", "got true"),
    "a text for a number": (lambda one: one["future"].update(warm=["1", 2, 3]), "future.warm[0]", 'got "1"'),
    "an unknown text": (lambda one: one["past"]["sky"].__setitem__(3, "snow"), "past.sky[3]", r"one of \['clear', 'rain'\]"),
    "a number for a text": (lambda one: one["past"]["sky"].__setitem__(0, 0), "past.sky[0]", "got 0"),
    "a list for a text": (lambda one: one["past"]["sky"].__setitem__(0, []), "past.sky[0]", "got a list of 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_place(name: str) -> None:
    change, where, message = REFUSED[name]
    with pytest.raises(InvalidInput, match=message) as caught:
        run(forecast(), instance(), changed(change))
    assert (caught.value.facts["instance"], caught.value.facts["where"]) == (1, where)


def test_a_place_is_found_in_parts_that_are_read_one_after_the_other() -> None:
    size = NUMBERS_AT_ONCE + 50
    given = instance(size)
    given["past"]["warm"][-1] = "x"
    with pytest.raises(InvalidInput, match=rf"past.warm\[{size - 1}\]"):
        run(forecast(), given)
    given["past"]["warm"][-1] = 7
    assert run(forecast(), given)[1].fed[0]["past_covariates"][0, -1, 0] == 7


@pytest.mark.parametrize("field", ["past", "future"])
def test_a_model_without_covariates_refuses_them_but_no_null(field: str) -> None:
    task = forecast(covariates=[], categories={}, calendar=["hour"])
    plain: dict[str, Any] = {"history": [1.0, 2.0], "start": "2024-01-01"}
    with pytest.raises(InvalidInput, match=f"{field}: the model has no covariates") as caught:
        task.encode([{**plain, field: {"warm": [1]}}], {})
    assert caught.value.facts["where"] == field
    with pytest.raises(MalformedRequest, match='unknown field "wind"'):
        task.encode([{**plain, field: None, "wind": 1}], {})
    assert len(task.encode([{**plain, field: None}], {})) == 1


def test_the_calendar_is_behind_the_covariates_and_needs_a_start() -> None:
    task = forecast(calendar=["hour", "day_of_week"])
    _, graph = run(task, instance(8, start="2024-02-29T20:00:00+09:00"))
    assert graph.fed[0]["past_covariates"][0].tolist()[:3] == [[2, 0, 22, 3], [3, 1, 23, 3], [4, 0, 0, 4]]
    assert graph.fed[0]["future_covariates"][0].tolist()[0] == [8, 0, 4, 4]
    with pytest.raises(InvalidInput, match=r"start is missing: the model reads the calendar \(hour, day_of_week\)") as caught:
        run(task, instance())
    assert caught.value.facts["where"] == "start"


FIELDS: tuple[CalendarField, ...] = ("hour", "day_of_week", "month", "day_of_year")


@given(
    st.datetimes(datetime(1, 2, 1), datetime(9990, 1, 1)),
    st.sampled_from([("S", 1, 1), ("T", 15, 900), ("H", 1, 3600), ("D", 3, 3 * 86400), ("W", 1, 7 * 86400)]),
    st.integers(0, 400),
)
def test_calendar_numbers_are_those_of_each_moment(start: datetime, step: tuple[str, int, int], first: int) -> None:
    code, count, seconds = step
    start = start.replace(microsecond=0)
    found = calendar_numbers(start.isoformat(), Frequency(code, count), range(first, first + 3), FIELDS)
    moments = [start + timedelta(seconds=seconds * number) for number in range(first, first + 3)]
    expected = [[moment.hour, moment.weekday(), moment.month, moment.timetuple().tm_yday] for moment in moments]
    assert found.tolist() == expected


@pytest.mark.parametrize(("code", "expected"), [("M", [1, 2, 3]), ("Q", [1, 4, 7]), ("Y", [1, 1, 1])])
def test_steps_of_months_have_a_calendar_too(code: str, expected: list[int]) -> None:
    found = calendar_numbers("2024-01-31", Frequency(code), range(3), FIELDS)
    assert found[:, 2].tolist() == expected


def test_tensors_of_the_protocols_are_cut_together() -> None:
    task = forecast()
    steps = np.arange(9, dtype=np.float32).reshape(1, 9, 1)
    tensors = {
        "history": np.concatenate([steps, steps]),
        "past_covariates": np.repeat(np.concatenate([steps, steps]), 2, axis=2),
        "future_covariates": np.zeros((2, 3, 2), np.float32),
    }
    whole = task.encode_tensors(tensors)
    assert whole["history"][0, :, 0].tolist() == whole["past_covariates"][0, :, 1].tolist() == [3, 4, 5, 6, 7, 8]
    ragged = task.encode_tensors({**tensors, "lengths": np.array([9, 4])})
    assert ragged["past_covariates"][:, :, 0].tolist() == [[3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 0, 0]]
    short = {**tensors, "past_covariates": tensors["past_covariates"][:, :3]}
    assert task.encode_tensors(short) is short


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariates": ["y"]}, "covariates: names repeat"),
        ({"covariates": ["a", "a"]}, "covariates: names repeat"),
        ({"calendar": ["hour", "hour"]}, "calendar: names repeat"),
        ({"categories": {"warm": ["a"]}}, "are not all among the covariates"),
        ({"covariates": ["warm"], "categories": {"warm": ["a", "a"]}}, "must be different texts"),
        ({"covariates": ["warm"], "categories": {"warm": []}}, "must be different texts, one at least"),
        ({"covariates": ["warm"], "streaming": True}, "a model that reads streams has no covariates"),
    ],
)
def test_a_manifest_whose_covariates_do_not_fit_is_refused(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ForecastSpec(**BLOCK, **options)


@pytest.mark.parametrize(
    ("options", "known"),
    [({}, "warm, sky"), ({"covariates": [], "categories": {}, "calendar": ["hour"]}, "hour")],
    ids=["covariates", "calendar"],
)
def test_a_file_of_series_is_refused_for_it_has_no_place_for_what_is_known_ahead(options: Mapping[str, Any], known: str) -> None:
    with pytest.raises(TableError, match=rf"reads what is known ahead \({known}\)"):
        forecast(**options).open_table(TableOptions())


def test_a_model_says_what_it_needs_and_others_say_nothing() -> None:
    about = forecast(calendar=["month"]).describe()
    assert (about["covariates"], about["categories"], about["calendar"]) == (
        ["warm", "sky"],
        {"sky": ["clear", "rain"]},
        ["month"],
    )
    assert not {"covariates", "categories", "calendar"} & forecast(covariates=[], categories={}).describe().keys()


def test_reading_is_the_same_for_a_request_of_many_and_of_one() -> None:
    reader = CovariateReader(forecast().spec)
    found = reader.read(instance(5, 2), 0, 5, 3, 2, None, None)
    assert found.dtype == np.float32
    assert found.tolist() == [[2, 0], [3, 1], [4, 0], [5, 1], [6, 0]]
