"""Frequencies of time series by their many names, and the timestamps that they step to.

Reads names and adds steps; which frequencies a model takes is decided in `forecast_request.py`. Time zones stay as given: a step
of a day is 24 hours at the same offset, daylight saving is not looked up.

    code   pandas              words, in any case                         one step
    S      s                   sec, second(s), secondly                   1 second
    T      min                 minute(s), minutely                        1 minute
    H      h                   hour(s), hourly                            1 hour
    D                          day(s), daily                              1 day
    W      W-SUN … W-SAT       week(s), weekly                            7 days
    M      MS; ME: at the end  mo, month(s), monthly                      1 month
    Q      QS; QE: at the end  quarter(s), quarterly                      3 months
    Y      YS, A, AS; YE       year(s), yearly, annual(ly)                12 months

A month's step keeps the day of `start`, clamped to the month's end: 31 January, 28 February, 31 March. The names that
end in E put every timestamp on the last day of its month.

The codes are those of KServe's time series protocol. A whole number in front multiplies the step: `15min`, `2H`.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Times = NDArray[Any]
"""Moments, numbers of steps, or truths about them."""
SECONDS = {"S": 1, "T": 60, "H": 3600, "D": 86400, "W": 7 * 86400}
MONTHS = {"M": 1, "Q": 3, "Y": 12}

# Written exactly so: in pandas `ms` is a millisecond, and a lone `m` is a minute to some and a month to others.
_EXACT = {code: (code, False) for code in (*SECONDS, *MONTHS)} | {
    "MS": ("M", False),
    "ME": ("M", True),
    "QS": ("Q", False),
    "QE": ("Q", True),
    "YS": ("Y", False),
    "YE": ("Y", True),
    "A": ("Y", False),
    "AS": ("Y", False),
}
# In any case of letters.
_WORDS = {
    "S": "s sec second seconds secondly",
    "T": "min minute minutes minutely",
    "H": "h hour hours hourly",
    "D": "d day days daily",
    "W": "w week weeks weekly",
    "M": "mo month months monthly",
    "Q": "q quarter quarters quarterly",
    "Y": "y year years yearly annual annually",
}
_CODES = {word: code for code, words in _WORDS.items() for word in words.split()}
_PATTERN = re.compile(r"(?P<count>[1-9][0-9]{0,5})?(?P<name>[A-Za-z]+)(?P<anchor>-[A-Z]{3})?")
_ANCHORED = ("W", "Q", "Y")
MAX_LENGTH = 20
"""The longest name: six digits, `annually` or `secondly`, an anchor, and some to spare."""


@dataclass(frozen=True)
class Frequency:
    """A step of `count` units of `code`; `is_at_end` puts each timestamp on the last day of its month."""

    code: str
    count: int = 1
    is_at_end: bool = False

    def __str__(self) -> str:
        return self.code if self.count == 1 else f"{self.count}{self.code}"

    @property
    def is_whole_days(self) -> bool:
        return self.code not in ("S", "T", "H")


def read_frequency(text: str) -> Frequency | None:
    """The frequency that a name means, or None if it means none."""
    # Before the cache, which would keep what requests send: 256 names of eight megabytes.
    return _read(text) if len(text) <= MAX_LENGTH else None


@lru_cache(maxsize=256)
def _read(text: str) -> Frequency | None:
    match = _PATTERN.fullmatch(text)
    if match is None:
        return None
    code, is_at_end = _EXACT.get(match["name"]) or (_CODES.get(match["name"].lower()), False)
    if code is None or (match["anchor"] and code not in _ANCHORED):
        return None
    return Frequency(code, int(match["count"] or 1), is_at_end)


def timestamps(start: str, frequency: Frequency, steps: Iterable[int]) -> list[str]:
    """ISO 8601 timestamps that lie `steps` steps after `start`, in the form of `start`: its offset, `Z`, or a bare date.

    Raises ValueError when `start` is no ISO 8601 timestamp or a step leaves the years 1 to 9999.
    """
    is_date = len(start) == len("2024-01-31") and frequency.is_whole_days
    is_zulu = start[-1:] in ("Z", "z")
    found = moments(start, frequency, steps)
    if is_date:
        return [moment.date().isoformat() for moment in found]
    if is_zulu:
        return [moment.replace(tzinfo=None).isoformat() + "Z" for moment in found]
    return [moment.isoformat() for moment in found]


def moments(start: str, frequency: Frequency, steps: Iterable[int]) -> list[datetime]:
    """The moments that lie `steps` steps after `start`. Raises ValueError as `timestamps` does."""
    moment = datetime.fromisoformat(start)
    try:
        return [_add(moment, frequency, step) for step in steps]
    except (OverflowError, ValueError) as exc:
        raise ValueError(f"the timestamps leave the years 1 to 9999, which start at {start}") from exc


def step_times(starts: Times, frequency: Frequency, steps: Times) -> Times:
    """`timestamps` of many series at once: datetime64[us] (N, S) for the starts (N) and the numbers of steps (N, S)."""
    if frequency.code in SECONDS:
        times: Times = steps * (frequency.count * SECONDS[frequency.code] * 1_000_000)
        times += starts.view(np.int64)[:, np.newaxis]
        return times.view("M8[us]")
    num_units = steps * frequency.count
    first_months, first_days = starts.astype("M8[M]"), starts.astype("M8[D]")
    months = first_months[:, np.newaxis] + (num_units * MONTHS[frequency.code]).astype("m8[M]")
    last_days = ((months + 1).astype("M8[D]") - months.astype("M8[D]")).astype(np.int64) - 1
    days = (first_days - first_months.astype("M8[D]")).astype(np.int64)[:, np.newaxis]
    days = last_days if frequency.is_at_end else np.minimum(days, last_days)
    times_of_day = (starts - first_days)[:, np.newaxis]
    found: Times = months.astype("M8[D]") + days.astype("m8[D]") + times_of_day
    return found


def is_one_step(before: Times, after: Times, frequency: Frequency) -> Times:
    """Where two moments, datetime64[us] (N) both, lie one step apart, BOOL (N); 31 January and 28 February do."""
    if frequency.code in SECONDS:
        is_so: Times = after.view(np.int64) - before.view(np.int64) == frequency.count * SECONDS[frequency.code] * 1_000_000
        return is_so
    months, next_months = before.astype("M8[M]"), after.astype("M8[M]")
    days, next_days = before.astype("M8[D]"), after.astype("M8[D]")
    is_next_month = (next_months - months).astype(np.int64) == frequency.count * MONTHS[frequency.code]
    is_same_day = days - months.astype("M8[D]") == next_days - next_months.astype("M8[D]")
    is_at_end = ((days + 1).astype("M8[M]") > months) | ((next_days + 1).astype("M8[M]") > next_months)
    same_time: Times = (before - days) == (after - next_days)
    follows: Times = is_next_month & same_time & (is_same_day | is_at_end)
    return follows


def _add(moment: datetime, frequency: Frequency, steps: int) -> datetime:
    num_units = steps * frequency.count
    if frequency.code in SECONDS:
        return moment + timedelta(seconds=num_units * SECONDS[frequency.code])
    year, month0 = divmod(moment.year * 12 + moment.month - 1 + num_units * MONTHS[frequency.code], 12)
    if not 1 <= year <= 9999:
        raise OverflowError(f"year {year}")
    last_day = calendar.monthrange(year, month0 + 1)[1]
    return moment.replace(year=year, month=month0 + 1, day=last_day if frequency.is_at_end else min(moment.day, last_day))
