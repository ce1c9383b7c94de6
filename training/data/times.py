"""A column of times: read whatever form its dates have, checked for its order, and counted in steps of the calendar.

Knows no series and no recipe. Times are without zone: those with an offset are universal time, others are as they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from training.errors import TrainingError

Times = npt.NDArray[np.datetime64]
Int64 = npt.NDArray[np.int64]

CLOCK = (
    r"(?:[T ,]+(?P<H>\d{1,2}):(?P<M>\d{2})(?::(?P<S>\d{2})(?:[.,]\d+)?)?"
    r"(?: ?(?P<half>[AaPp])\.?[Mm]\.?)?(?: ?(?P<zone>Z|[+-]\d{2}:?\d{2}))?)?"
)
FORMS = tuple(
    re.compile(f"{day}{CLOCK}$")
    for day in (
        r"(?P<y>\d{4})[-/.](?P<m>\d{1,2})(?:[-/.](?P<d>\d{1,2}))?",
        r"(?P<d>\d{1,2})[-/. ]+(?P<m>\d{1,2})[-/. ]+(?P<y>\d{4}|\d{2})",
        r"(?P<m>\d{1,2})[-/. ]+(?P<d>\d{1,2})[-/. ]+(?P<y>\d{4}|\d{2})",
        r"(?:(?P<d>\d{1,2})[-/. ]+)?(?P<name>[A-Za-z]{3,9})[-/., ]+(?P<y>\d{4}|\d{2})",
        r"(?P<name>[A-Za-z]{3,9})[-/. ]+(?P<d>\d{1,2})[, ]+(?P<y>\d{4})",
        r"(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})",
        r"(?P<m>\d{1,2})[-/.](?P<y>\d{4})",
        r"(?P<y>\d{4})[-/ ]?[Qq](?P<q>[1-4])",
        r"[Qq](?P<q>[1-4])[-/ ]?(?P<y>\d{4})",
        r"(?P<y>\d{4})-?[Ww](?P<w>\d{2})",
        r"(?P<y>\d{4})",
    )
)
"""What texts are dates. Where a column has several of them, as days before months and months before days, the order decides."""
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
LONGEST_CHANGE = timedelta(hours=1)
"""How far clocks are put back in autumn: in local times without an offset an hour comes twice, once in a year."""
REGULAR_SHARE = 0.5
"""Steps of one length that make a series regular, at least: of others no step is known to be missing."""


class TimeError(TrainingError):
    """A column of times cannot be read, or goes back."""


@dataclass(frozen=True)
class Calendar:
    """The steps of a regular series: `places[i]` is row i's, counted from 0, and `name` what a step is, as "2 days"."""

    places: Int64
    name: str

    @property
    def missing(self) -> Int64:
        """How many steps are missing before each row."""
        counts: Int64 = np.maximum(np.diff(self.places, prepend=self.places[:1] - 1) - 1, 0)
        return counts


def read_times(column: pl.Series, form: str = "") -> Times | npt.NDArray[np.float64] | None:
    """The times of all rows, NaT or NaN where there is none; numbers, as of counted steps, stay numbers; None of no value at all.

    `form` is that of `strptime`. Without it the form is found that all values have; of several the first in whose order they
    stand, or the first. Raises TimeError: a value that has no such form.
    """
    if column.dtype.is_numeric():
        return column.cast(pl.Float64).to_numpy() if column.null_count() < len(column) else None
    if column.dtype in (pl.Date, pl.Datetime):
        if column.dtype == pl.Datetime and getattr(column.dtype, "time_zone", None):
            column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return column.cast(pl.Datetime("us")).to_numpy()
    texts = [text.strip() if text is not None else "" for text in column.cast(pl.String).to_list()]
    distinct = [text for text in dict.fromkeys(texts) if text]
    if not distinct:
        return None
    candidates = list(_readings(distinct, form))
    if not candidates:
        raise TimeError(_why_unreadable(column.name, distinct, form))
    found = [np.array([known.get(text, "NaT") for text in texts], "datetime64[us]") for known in candidates]
    return next((times for times in found if find_step_back(times) is None), found[0])


def find_step_back(times: Times | npt.NDArray[np.float64]) -> int | None:
    """The first row whose time lies before that of the row before it; rows without a time do not count.

    Clocks that are put back are none: an hour at most, once in a calendar year.
    """
    rows = np.flatnonzero(~np.isnan(times))
    changes = np.diff(times[rows])
    if not np.issubdtype(times.dtype, np.datetime64):
        back = np.flatnonzero(changes < 0)
        return int(rows[back[0] + 1]) if len(back) else None
    zero = np.timedelta64(0, "us")
    back = np.flatnonzero(changes < zero)
    seen: set[int] = set()
    for step in back:
        row = int(rows[step + 1])
        year = int(times[row].astype("datetime64[Y]").astype(int))
        if -changes[step] > np.timedelta64(LONGEST_CHANGE) or year in seen:
            return row
        seen.add(year)
    return None


def count_steps(times: Times | npt.NDArray[np.float64]) -> Calendar | None:
    """The calendar of rows in order: the most common step between them is the step; None where most steps differ from it.

    Days without any Saturday and Sunday are working days; months, quarters and years count as such. Rows that lie between
    two steps are those of the step before.
    """
    if len(times) < 3 or np.isnan(times).any():
        return None
    if not np.issubdtype(times.dtype, np.datetime64):
        unit = _most_common(np.diff(times))
        return None if unit is None or unit <= 0 else _calendar((times - times[0]) / unit, f"{unit:g}")
    days = times.astype("datetime64[D]")
    months = times.astype("datetime64[M]")
    step: Any = _most_common(np.diff(times))
    if step is not None and step == np.timedelta64(1, "D") and bool(np.is_busday(days).all()):
        return _calendar(np.busday_count(days[0], days).astype(np.float64), "working day")
    # Months and years differ in length: they are counted where each row lies on one day of its month, the first or the last.
    month = _most_common(np.diff(months.astype(np.int64)))
    if month is not None and month > 0 and (step is None or step >= np.timedelta64(28, "D")) and _is_by_month(days, months):
        name = {1: "month", 3: "quarter", 12: "year"}.get(int(month), f"{month:g} months")
        return _calendar((months - months[0]).astype(np.int64) / month, name)
    if step is None or step <= np.timedelta64(0, "us"):
        return None
    return _calendar((times - times[0]) / step, _words(step))


def _readings(texts: Sequence[str], form: str) -> Iterator[dict[str, datetime]]:
    """What the texts are in each form that all of them have."""
    if form:
        try:
            yield {text: _without_zone(datetime.strptime(text, form)) for text in texts}
        except ValueError:
            return
        return
    for pattern in FORMS:
        found = {}
        for text in texts:
            time = _read(pattern, text)
            if time is None:
                break
            found[text] = time
        else:
            yield found


def _read(pattern: re.Pattern[str], text: str) -> datetime | None:
    match = pattern.match(text)
    if match is None:
        return None
    parts = match.groupdict()
    year = int(parts["y"])
    if len(parts["y"]) == 2:
        year += 2000 if year < 69 else 1900  # as strptime takes them
    try:
        if parts.get("w"):
            day = datetime.fromisocalendar(year, int(parts["w"]), 1)
        else:
            month = int(parts.get("m") or 1)
            if name := parts.get("name"):
                month = MONTHS.index(name[:3].lower()) + 1
            if quarter := parts.get("q"):
                month = 3 * int(quarter) - 2
            day = datetime(year, month, int(parts.get("d") or 1))
        hour = int(parts["H"] or 0)
        if half := parts["half"]:
            hour = hour % 12 + (12 if half in "Pp" else 0)
        minute, second = int(parts["M"] or 0), int(parts["S"] or 0)
        if hour > 24 or minute > 59 or second > 60:
            return None
        offset = timedelta()
        if (zone := parts["zone"]) and zone != "Z":
            offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:])) * (1 if zone[0] == "+" else -1)
        return day + timedelta(hours=hour, minutes=minute, seconds=second) - offset
    except (ValueError, OverflowError):
        return None


def _why_unreadable(name: str, texts: Sequence[str], form: str) -> str:
    if form:
        for text in texts:
            try:
                datetime.strptime(text, form)
            except ValueError:
                return f'column "{name}": {text[:40]!r} is no time of the form {form!r}'
    # The form that most values have, and the first value that has another one.
    counts = [(sum(_read(pattern, text) is not None for text in texts), pattern) for pattern in FORMS]
    _, pattern = max(counts, key=lambda entry: entry[0])
    text = next(text for text in texts if _read(pattern, text) is None)
    return f'column "{name}": {text[:40]!r} is no time that is known'


def _without_zone(time: datetime) -> datetime:
    return time if time.tzinfo is None else (time - (time.utcoffset() or timedelta())).replace(tzinfo=None)


def _most_common(steps: npt.NDArray[Any]) -> Any:
    """The value that most of them have, of the array's own type; None where fewer than `REGULAR_SHARE` have one."""
    values, counts = np.unique(steps, return_counts=True)
    most = int(counts.argmax())
    return values[most] if counts[most] >= REGULAR_SHARE * len(steps) else None


def _is_by_month(days: Times, months: Times) -> bool:
    first = (days - months.astype("datetime64[D]")).astype(np.int64)
    last = ((months + 1).astype("datetime64[D]") - days).astype(np.int64)
    return bool((first == first[0]).all() or (last == last[0]).all())


def _calendar(places: npt.NDArray[np.float64], name: str) -> Calendar:
    # An hour that comes twice takes no further step.
    return Calendar(np.maximum.accumulate(np.floor(places + 1e-6).astype(np.int64)), name)


def _words(step: np.timedelta64) -> str:
    seconds = step / np.timedelta64(1, "s")
    for unit, size in (("week", 604_800), ("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds >= size and seconds % size == 0:
            count = round(seconds / size)
            return unit if count == 1 else f"{count} {unit}s"
    return f"{seconds:g} seconds"
