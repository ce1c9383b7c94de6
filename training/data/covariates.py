"""Columns that are known ahead: the covariates of a table, and what a calendar says of its times, as numbers."""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
import polars as pl

from training.data.columns import expect_columns
from training.data.sources import DataError
from training.recipe import CalendarField
from training.recipe.forecast import Frequency

SECONDS = {"S": 1, "T": 60, "H": 3600, "D": 86400, "W": 7 * 86400}
MONTHS = {"M": 1, "Q": 3, "Y": 12}
Array = npt.NDArray[np.float64]
Moments = npt.NDArray[np.datetime64]


def read_covariates(
    table: pl.DataFrame, names: Sequence[str], categories: Mapping[str, Sequence[str]], place: str
) -> list[pl.Series]:
    """The columns called `names`; a text becomes its place in the list of its categories.

    Raises DataError for a missing column, and for a text that is no category.
    """
    expect_columns(table, names, place, "covariates")
    columns = []
    for name in names:
        column = table[name]
        if name in categories:
            texts = column.cast(pl.String)
            codes = {text: float(code) for code, text in enumerate(categories[name])}
            column = texts.replace_strict(codes, default=None, return_dtype=pl.Float64)
            unknown = texts.filter(column.is_null())
            if len(unknown):
                raise DataError(f'{place}: column "{name}": {unknown[0]!r} is none of its categories {list(categories[name])}')
        columns.append(column)
    return columns


def moments_from(start: str, frequency: Frequency, count: int) -> Moments:
    """The moments of `count` steps from `start` on (ISO 8601, no offset). A month's step keeps the day, or takes its last one."""
    begin = datetime.fromisoformat(start)
    if frequency in SECONDS:
        return np.datetime64(begin, "us") + np.arange(count) * np.timedelta64(SECONDS[frequency], "s")
    months = begin.year * 12 + begin.month - 1 + MONTHS[frequency] * np.arange(count)
    found = []
    for year, month in zip((months // 12).tolist(), (months % 12 + 1).tolist(), strict=True):
        found.append(begin.replace(year=year, month=month, day=min(begin.day, monthrange(year, month)[1])))
    return np.array(found, "datetime64[us]")


def calendar_columns(moments: Moments, fields: Sequence[CalendarField]) -> Array:
    """Of each moment the numbers (N, fields): hour 0–23, day of the week 0–6 from Monday on, month 1–12, day of the year 1–366.

    As the service takes them from the timestamps of a request.
    """
    found = {
        "hour": lambda moment: moment.hour,
        "day_of_week": lambda moment: moment.weekday(),
        "month": lambda moment: moment.month,
        "day_of_year": lambda moment: moment.timetuple().tm_yday,
    }
    times: list[datetime] = moments.astype("datetime64[us]").tolist()
    rows = [[float(found[field](moment)) for field in fields] for moment in times]
    return np.array(rows, np.float64).reshape(len(times), len(fields))
