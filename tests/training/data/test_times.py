"""Columns of times: whatever form they have they are read, found in order or not, and counted in steps of the calendar."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from training.data.times import TimeError, count_steps, find_step_back, read_times

DAYS = [date(2019, 11, 20) + timedelta(days=step) for step in range(80)]
HOURS = [datetime(2019, 12, 30) + timedelta(hours=step) for step in range(80)]
MONTHS = [date(2018 + step // 12, step % 12 + 1, 1) for step in range(40)]

DAY_FORMS: dict[str, Callable[[date], str]] = {
    "iso": lambda day: f"{day:%Y-%m-%d}",
    "slashes": lambda day: f"{day:%Y/%m/%d}",
    "german": lambda day: f"{day:%d.%m.%Y}",
    "german, no zeros": lambda day: f"{day.day}.{day.month}.{day.year}",
    "british": lambda day: f"{day:%d/%m/%Y}",
    "american": lambda day: f"{day:%m/%d/%Y}",
    "two digits": lambda day: f"{day:%d-%m-%y}",
    "names": lambda day: f"{day:%d %b %Y}",
    "long names": lambda day: f"{day:%d-%B-%Y}",
    "american names": lambda day: f"{day:%B} {day.day}, {day.year}",
}
HOUR_FORMS: dict[str, Callable[[datetime], str]] = {
    "iso": lambda time: f"{time:%Y-%m-%dT%H:%M:%S}",
    "iso, minutes": lambda time: f"{time:%Y-%m-%d %H:%M}",
    "universal": lambda time: f"{time:%Y-%m-%dT%H:%M:%SZ}",
    "offset": lambda time: f"{time + timedelta(hours=2):%Y-%m-%dT%H:%M:%S.000+02:00}",
    "german": lambda time: f"{time:%d.%m.%Y %H:%M}",
    "american": lambda time: f"{time:%m/%d/%Y %I:%M %p}",
}
MONTH_FORMS: dict[str, Callable[[date], str]] = {
    "iso": lambda day: f"{day:%Y-%m}",
    "slash": lambda day: f"{day:%m/%Y}",
    "names": lambda day: f"{day:%b %Y}",
    "short names": lambda day: f"{day:%b-%y}",
}
ALL = [
    *((f"day, {name}", [form(day) for day in DAYS], DAYS) for name, form in DAY_FORMS.items()),
    *((f"hour, {name}", [form(time) for time in HOURS], HOURS) for name, form in HOUR_FORMS.items()),
    *((f"month, {name}", [form(day) for day in MONTHS], MONTHS) for name, form in MONTH_FORMS.items()),
    ("quarter", [f"{2010 + step // 4}Q{step % 4 + 1}" for step in range(20)], None),
    ("quarter first", [f"Q{step % 4 + 1} {2010 + step // 4}" for step in range(20)], None),
    ("week", [f"{datetime(2019, 11, 20) + timedelta(weeks=step):%G-W%V}" for step in range(60)], None),
    ("year", [str(1950 + step) for step in range(40)], None),
]


@pytest.mark.parametrize(("texts", "expected"), [entry[1:] for entry in ALL], ids=[entry[0] for entry in ALL])
def test_times_of_every_form_are_read_and_a_shuffled_column_is_not_in_order(
    texts: list[str], expected: list[date] | list[datetime] | None
) -> None:
    times = read_times(pl.Series("when", texts))
    assert times is not None
    assert find_step_back(times) is None
    assert (np.diff(times) > np.timedelta64(0, "us")).all()
    if expected is not None:
        assert times.tolist() == [datetime(*day.timetuple()[:6]) for day in expected]
    calendar = count_steps(times)
    assert calendar is not None
    assert int(calendar.missing.sum()) == 0
    shuffled = list(texts)
    random.Random(7).shuffle(shuffled)
    found = read_times(pl.Series("when", shuffled))
    assert found is not None
    assert find_step_back(found) is not None


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1.2.2020", "2.2.2020", "soon"], "soon"),
        (["30.01.2020", "30.02.2020"], "30.02.2020"),
        (["2020-01-01 23:00", "2020-01-01 25:00"], "2020-01-01 25:00"),
        (["12:30", "12:40"], "12:30"),
        (["a", "b"], "a"),
    ],
)
def test_a_text_that_is_no_time_is_named(texts: list[str], expected: str) -> None:
    with pytest.raises(TimeError, match=f'"when": {expected!r} is no time that is known'):
        read_times(pl.Series("when", texts))


def test_a_form_that_is_given_is_the_one_that_is_read() -> None:
    column = pl.Series("when", ["05 in 03 of 2020", "04 in 04 of 2020"])
    times = read_times(column, "%d in %m of %Y")
    assert times is not None
    assert times.tolist() == [datetime(2020, 3, 5), datetime(2020, 4, 4)]
    with pytest.raises(TimeError, match=r"'05 in 03 of 2020' is no time of the form '%Y'"):
        read_times(column, "%Y")


def test_numbers_and_dates_need_no_form_and_a_column_without_a_value_has_no_times() -> None:
    numbers = read_times(pl.Series("when", [3, 4, 1]))
    assert numbers is not None
    assert find_step_back(numbers) == 2
    dates = read_times(pl.Series("when", DAYS))
    assert dates is not None
    assert dates.tolist() == [datetime(day.year, day.month, day.day) for day in DAYS]
    zoned = pl.Series("when", [datetime(2020, 1, 1, 12)]).dt.replace_time_zone("Europe/Berlin")
    universal = read_times(zoned)
    assert universal is not None
    assert universal.tolist() == [datetime(2020, 1, 1, 11)]
    assert read_times(pl.Series("when", [None, None], dtype=pl.String)) is None
    assert read_times(pl.Series("when", ["", " "])) is None


def test_rows_without_a_time_do_not_hide_a_step_back() -> None:
    times = read_times(pl.Series("when", ["2020-01-02", "", "2020-01-03", None, "2020-01-01"]))
    assert times is not None
    assert find_step_back(times) == 4
    assert count_steps(times) is None


def test_clocks_may_be_put_back_by_an_hour_once_a_year() -> None:
    def step_back(*texts: str) -> int | None:
        times = read_times(pl.Series("when", list(texts)))
        assert times is not None
        return find_step_back(times)

    autumn = ["2024-10-27T01:30", "2024-10-27T02:30", "2024-10-27T02:00", "2024-10-27T02:30", "2024-10-27T03:00"]
    assert step_back(*autumn) is None
    assert step_back(*autumn, "2025-10-26T02:30", "2025-10-26T02:00") is None
    assert step_back(*autumn, "2024-10-27T02:30") == 5  # twice in a year
    assert step_back("2024-10-27T03:30", "2024-10-27T02:00") == 1  # more than an hour


@pytest.mark.parametrize(
    ("times", "name", "missing"),
    [
        (DAYS, "day", 2),
        (HOURS, "hour", 2),
        (MONTHS, "month", 2),
        ([day for day in MONTHS if day.month % 3 == 1], "quarter", 2),
        ([date(year, 12, 31) for year in range(1990, 2020)], "year", 2),
        ([day + timedelta(days=40 - day.day - (day + timedelta(days=40 - day.day)).day) for day in MONTHS], "month", 2),
        ([day for day in DAYS if day.weekday() < 5], "working day", 2),
        ([DAYS[0] + timedelta(weeks=step) for step in range(30)], "week", 2),
        ([HOURS[0] + timedelta(minutes=15 * step) for step in range(30)], "15 minutes", 2),
    ],
)
def test_missing_steps_are_counted_in_steps_of_the_calendar(times: list[date] | list[datetime], name: str, missing: int) -> None:
    kept = [time for row, time in enumerate(times) if row not in (4, 5)]
    read = read_times(pl.Series("when", kept))
    assert read is not None
    calendar = count_steps(read)
    assert calendar is not None
    assert calendar.name == name
    assert int(calendar.missing.sum()) == missing
    assert int(calendar.missing[4]) == missing
    assert calendar.places.tolist() == [row for row in range(len(times)) if row not in (4, 5)]


def test_of_irregular_times_no_step_is_known_to_be_missing() -> None:
    rng = np.random.default_rng(1)
    times = read_times(
        pl.Series("when", [HOURS[0] + timedelta(seconds=int(second)) for second in np.cumsum(rng.integers(1, 9999, 50))])
    )
    assert times is not None
    assert count_steps(times) is None


def test_counted_steps_have_a_calendar_too() -> None:
    times = read_times(pl.Series("when", [2, 4, 6, 12, 14]))
    assert times is not None
    calendar = count_steps(times)
    assert calendar is not None
    assert calendar.missing.tolist() == [0, 0, 0, 2, 0]
    assert calendar.name == "2"
