"""Hires of bicycles a day ahead, forecast by the service with what is known of that day: holidays, weather, calendar.

The weather of the day ahead is the one that was observed, as a perfect weather forecast would have it, for the baselines too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingRegressor

from training.data.covariates import Moments
from training.evaluation.benchmark import Benchmark, Evaluation, File, Row
from training.evaluation.client import NotServed, Service
from training.evaluation.naive import Floats

NAME = "bike-sharing"
CALENDAR_ALONE = "bike-sharing-calendar"
"""What the same network without covariates has to be called, to be scored beside it."""
FILE = File(
    "bike-sharing/hourly.csv",
    "b2252681fd3f41eacbbd7242b1184e6aa364c4c01267db2b4b7d706aea184d36",
    origin="https://archive.ics.uci.edu/dataset/275",
)
NUMBERS = ("holiday", "workingday", "temp", "atemp", "hum", "windspeed")
WEATHER = ("clear", "mist", "rain")
HORIZON, CONTEXT, TEST_HOURS = 24, 336, 3504
LAGS = (24, 168)
NUM_LEARNED = 4000
"""Origins that the baselines are fitted on: one hour in three."""
LEVELS = [0.1, 0.5, 0.9]


@dataclass(frozen=True)
class Hires:
    """The hours of the set: when, how many hires, and what was known of each."""

    moments: Moments
    users: Floats
    columns: Mapping[str, list[Any]]
    numbers: Floats  # (hours, numbers and a column for every weather)

    @property
    def test_origins(self) -> range:
        """The first hours of the days that are forecast."""
        return range(len(self.users) - TEST_HOURS, len(self.users) - HORIZON + 1, HORIZON)

    def truth(self) -> Floats:
        """(days, hours)"""
        return np.stack([self.users[origin : origin + HORIZON] for origin in self.test_origins])

    def instance(self, origin: int, *, with_covariates: bool) -> dict[str, Any]:
        """The two weeks before an origin as an instance of a request."""
        start = origin - CONTEXT
        first: str = self.moments[start].astype("datetime64[s]").item().isoformat()
        found: dict[str, Any] = {"history": self.users[start:origin].tolist(), "start": first}
        if not with_covariates:
            return found
        parts = {"past": slice(start, origin), "future": slice(origin, origin + HORIZON)}
        named = {field: {name: values[part] for name, values in self.columns.items()} for field, part in parts.items()}
        return {**found, **named}

    def level(self, origin: int) -> float:
        return float(self.users[origin - CONTEXT : origin].mean())

    def lagged(self, origin: int, *, with_covariates: bool) -> Floats:
        """(hours, features) of the day behind an origin: what was a day and a week before it, and what is known of it."""
        steps, level = origin + np.arange(HORIZON), self.level(origin)
        recent = [self.users[origin - 1], self.users[origin - 24 : origin].mean(), self.users[origin - 168 : origin].mean()]
        hour = (self.moments[steps] - self.moments[steps].astype("datetime64[D]")).astype("timedelta64[h]").astype(float)
        weekday = (self.moments[steps].astype("datetime64[D]").astype(int) + 3.0) % 7
        columns: list[Floats] = [self.users[steps - lag] / level for lag in LAGS]
        columns += [np.full(HORIZON, value / level) for value in recent]
        columns += [np.arange(HORIZON, dtype=float), hour, weekday]
        if with_covariates:
            columns += [*self.numbers[steps].T, *(column for lag in LAGS for column in self.numbers[steps - lag].T)]
        return np.stack(columns, axis=1)


def read_hires(folder: Path | None) -> Hires:
    """The set. Raises DataError."""
    table = pl.read_csv(FILE.read(folder).payload)
    weather = np.stack([(table["weather"] == kind).to_numpy() for kind in WEATHER], axis=1)
    return Hires(
        table["date_time"].str.to_datetime(time_unit="us").to_numpy(),
        table["users"].to_numpy().astype(float),
        {name: table[name].to_list() for name in ("weather", *NUMBERS)},
        np.concatenate([table.select(NUMBERS).to_numpy(), weather], axis=1).astype(float),
    )


def baselines(hires: Hires, num_learned: int = NUM_LEARNED) -> dict[str, Floats]:
    """Forecasts of the test days, (days, hours): naive ones, and boosted trees on lags, fitted on so many origins."""
    origins = hires.test_origins
    found = {
        "day before": np.stack([hires.users[origin - 24 : origin] for origin in origins]),
        "week before": np.stack([hires.users[origin - 168 : origin - 168 + HORIZON] for origin in origins]),
    }
    random = np.random.default_rng(0)
    learned = random.choice(np.arange(CONTEXT, origins.start - HORIZON + 1), num_learned, replace=False)
    relative = np.concatenate([hires.users[origin : origin + HORIZON] / hires.level(origin) for origin in learned])
    for name, with_covariates in (("boosting on lags", False), ("boosting on lags and covariates", True)):
        rows = np.concatenate([hires.lagged(origin, with_covariates=with_covariates) for origin in learned])
        trees = HistGradientBoostingRegressor(max_iter=400, learning_rate=0.06, random_state=0)
        trees.fit(rows, relative)
        days = [trees.predict(hires.lagged(origin, with_covariates=with_covariates)) * hires.level(origin) for origin in origins]
        found[name] = np.maximum(np.stack(days), 0.0)
    return found


def score(service: Service, folder: Path | None) -> Evaluation:
    """`score_hires` of the set itself. Raises DataError too."""
    return score_hires(service, read_hires(folder))


def score_hires(service: Service, hires: Hires, num_learned: int = NUM_LEARNED) -> Evaluation:
    """The mean absolute error of the days of the test part, with covariates and with the calendar alone."""
    truth = hires.truth()
    beside = {name: float(np.abs(days - truth).mean()) for name, days in baselines(hires, num_learned).items()}
    rows: list[Row] = []
    for part, model in (("with covariates", NAME), ("calendar alone", CALENDAR_ALONE)):
        instances = [hires.instance(origin, with_covariates=model == NAME) for origin in hires.test_origins]
        try:
            answers = service.predict("/predict/forecast", instances, {"horizon": HORIZON, "quantiles": LEVELS}, model=model)
        except NotServed as exc:
            rows.append(Row(part, "MAE", None, beside, note=str(exc)))
            continue
        found = np.array([answer["forecast"] for answer in answers], float)
        rows.append(Row(part, "MAE", float(np.abs(found - truth).mean()), beside))
        low, high = (np.array([answer["quantiles"][level] for answer in answers], float) for level in ("0.1", "0.9"))
        rows.append(Row(part, "coverage of the 80 % band", 100 * float(((truth >= low) & (truth <= high)).mean())))
    return Evaluation(NAME, rows, list(service.models), service.rows, service.seconds)


BENCHMARKS = (Benchmark(NAME, "bicycles hired per hour in Washington, a day ahead with what is known of it; MAE", score),)
