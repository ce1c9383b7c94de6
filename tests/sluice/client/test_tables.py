"""What is handed to the client comes back as the same kind. The predictions here are made up: their values are their places."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from service.tasks.frequencies import read_frequency, timestamps
from sluice.client.tables import read_series, read_texts

HORIZON = 3
DAYS = [date(2024, 1, day) for day in range(1, 6)]


def predict(instances: list[Any], frequency: str) -> list[Any]:
    """What a server would answer, by its own arithmetic of times."""
    step = read_frequency(frequency)
    assert step is not None
    found = []
    for number, instance in enumerate(instances):
        prediction: dict[str, Any] = {"forecast": [number + 0.5] * HORIZON, "quantiles": {"0.1": [0.0] * HORIZON}}
        if "start" in instance:
            num = len(instance["history"])
            prediction["timestamps"] = timestamps(instance["start"], step, range(num, num + HORIZON))
        found.append(prediction)
    return found


def long_form(times: list[Any]) -> dict[str, list[Any]]:
    return {"unique_id": ["a"] * 4 + ["b"] * 3, "ds": times + times[:3], "y": [1.0, float("nan"), 3.0, 4.0, 5.0, 6.0, 7.0]}


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize(
    ("frequency", "times", "following"),
    [
        ("D", [date(2024, 1, day) for day in range(1, 5)], [date(2024, 1, day) for day in (5, 6, 7)]),
        ("H", [datetime(2024, 1, 1, hour) for hour in range(4)], [datetime(2024, 1, 1, hour) for hour in (4, 5, 6)]),
        ("M", [datetime(2024, month, 1) for month in range(1, 5)], [datetime(2024, month, 1) for month in (5, 6, 7)]),
        ("D", [7, 8, 9, 10], [11, 12, 13]),
        ("D", [f"2024-01-0{day}" for day in range(1, 5)], [f"2024-01-0{day}" for day in (5, 6, 7)]),
    ],
    ids=["dates", "hours", "months", "integers", "texts"],
)
def test_a_frame_in_the_long_form_gives_one(library: str, frequency: str, times: list[Any], following: list[Any]) -> None:
    given = long_form(times)
    frame: Any = pd.DataFrame(given) if library == "pandas" else pl.DataFrame(given)
    table = read_series(frame)
    assert [instance["history"] for instance in table.instances] == [[1.0, None, 3.0, 4.0], [5.0, 6.0, 7.0]]
    found = table.write(predict(table.instances, frequency))
    assert type(found) is type(frame)
    assert list(found.columns) == ["unique_id", "ds", "forecast", "q0.1"]
    assert found["unique_id"].to_list() == ["a"] * 3 + ["b"] * 3
    assert found["forecast"].to_list() == [0.5] * 3 + [1.5] * 3
    assert found["ds"].to_list()[:3] == following
    assert found["ds"].dtype == frame["ds"].dtype


def test_times_with_a_zone_keep_it() -> None:
    times = pd.date_range("2024-01-01", periods=4, freq="h", tz="UTC")
    table = read_series(pd.Series([1.0, 2.0, 3.0, 4.0], index=times))
    found = table.write(predict(table.instances, "H"))
    assert found.index.dtype == times.dtype
    assert list(found.index) == list(pd.date_range("2024-01-01 04:00", periods=3, freq="h", tz="UTC"))


def test_a_series_gives_a_frame_whose_index_goes_on() -> None:
    for index, frequency in ((pd.date_range("2024-01-31", periods=3, freq="ME"), "ME"), (pd.RangeIndex(3), "D")):
        series = pd.Series([1.0, None, 3.0], index=index)
        table = read_series(series)
        assert table.instances[0]["history"] == [1.0, None, 3.0]
        found = table.write(predict(table.instances, frequency))
        assert list(found.columns) == ["forecast", "q0.1"]
        assert type(found.index) is type(index)
        assert found.index[0] > index[-1]
    table = read_series(pl.Series([1.0, None, 3.0]))
    found = table.write(predict(table.instances, "D"))
    assert isinstance(found, pl.DataFrame)
    assert found["forecast"].to_list() == [0.5] * 3


def test_numbers_give_a_prediction_and_lists_of_them_a_list() -> None:
    for one in ([1, 2, 3], (1.0, 2.0, float("nan")), np.array([1.0, np.nan, 2.0])):
        table = read_series(one)
        assert len(table.instances) == 1
        assert table.write([{"forecast": [1.0]}]) == {"forecast": [1.0]}
    for several in ([[1, 2], [3]], np.ones((2, 5)), [np.ones(2), [1.0, None]]):
        assert len(read_series(several).instances) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (pd.DataFrame({"unique_id": ["a"], "y": [1.0]}), 'there is no column "ds"'),
        (pd.DataFrame(long_form([1, 2, 2, 3])), "2 comes after 2"),
        (pl.DataFrame(long_form([1, 2, 1, 3])), "1 comes after 2"),
        (
            pl.DataFrame(long_form([date(2024, 1, day) for day in (1, 2, 4, 5)])),
            "a row missing between 2024-01-02 and 2024-01-04",
        ),
        (pd.DataFrame(long_form([date(2024, 1, 1), None, date(2024, 1, 3), date(2024, 1, 4)])), "expected a time in each row"),
        (
            pl.DataFrame({"unique_id": ["a", "b", "a"], "ds": [1, 1, 2], "y": [1.0, 1.0, 1.0]}),
            "rows of a series are not together",
        ),
        ("text", "expected numbers"),
        ({"y": [1]}, "expected numbers"),
        (7, "expected numbers"),
    ],
)
def test_what_is_no_series_is_refused(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_series(given)


def test_texts_give_the_same_kind() -> None:
    predictions = [{"label": "good", "score": 0.75, "probabilities": {"bad": 0.25, "good": 0.75}}] * 2
    assert read_texts(["x", "y"]).write(predictions) == predictions
    found = read_texts(pd.Series(["x", "y"], index=[7, 9])).write(predictions)
    assert list(found.index) == [7, 9]
    assert list(found.columns) == ["label", "score", "p(bad)", "p(good)"]
    frame = read_texts(pl.Series(["x", "y"])).write(predictions)
    assert isinstance(frame, pl.DataFrame)
    assert frame["label"].to_list() == ["good", "good"]
    for wrong in ("one text", pd.DataFrame({"text": ["x"]})):
        with pytest.raises(ValueError, match="expected a list"):
            read_texts(wrong)
