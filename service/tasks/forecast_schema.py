"""What the forecast endpoint accepts and returns, for the OpenAPI document: every field with its description and bounds.

Requests are not parsed with these models: `forecast_request.py` checks them field by field, and tests hold both to the same
verdict.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.tasks.forecast_request import MAX_HISTORY_VALUES, MAX_LEVELS
from service.tasks.forecast_spec import CalendarField
from service.tasks.frequencies import MAX_LENGTH
from service.tasks.history import FLOAT32_MAX
from service.tasks.state_schema import InstanceState, PredictionState, SequenceFields

Number = Annotated[float, Field(ge=-FLOAT32_MAX, le=FLOAT32_MAX)] | None
Values = Annotated[list[Number], Field(min_length=1, max_length=MAX_HISTORY_VALUES)]
Rows = Annotated[list[Annotated[list[Number], Field(min_length=1)]], Field(min_length=1, max_length=MAX_HISTORY_VALUES)]


Horizon = Annotated[
    Annotated[int, Field(ge=1)] | None,
    Field(
        description="Number of steps to forecast; the model's own horizon if absent. Beyond it, forecasts are fed back as "
        "history, up to the `max_horizon` of `GET /models/{name}`.",
        examples=[24],
    ),
]
Quantiles = Annotated[
    Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(max_length=MAX_LEVELS)] | None,
    Field(
        description="Quantile levels to return; all of the model's if absent, none if empty. Levels between two of the model's "
        "are interpolated.",
        examples=[[0.1, 0.5, 0.9]],
    ),
]
Frequency = Annotated[
    Annotated[str, Field(pattern=r"^([1-9][0-9]{0,5})?[A-Za-z]+(-[A-Z]{3})?$", max_length=MAX_LENGTH)] | None,
    Field(
        description="Distance between two steps: S, T, H, D, W, M, Q or Y, or a name such as `min`, `hourly` or `MS`, with a "
        "count in front where it is more than one, such as `15T`.",
        examples=["H"],
    ),
]

Point = Annotated[
    Literal["mean", "median", "mape"] | None,
    Field(
        description="Which point forecast `forecast` is, of those in `forecast.points` of `GET /models/{name}`; the model's own "
        "`forecast.point` if absent. `mape` was trained on the mean absolute percentage error, and lies below the median.",
        examples=["median"],
    ),
]

Columns = Annotated[
    dict[str, list[float | str] | float | str] | None,
    Field(examples=[{"holiday": [0, 0, 1], "weather": ["clear", "rain", "mist"], "station": "north"}]),
]

# A week of hourly values, the shortest history of the bundled model: a daily wave, lower at the weekend, with one gap.
WEEK: list[Any] = [round(300 + 80 * math.sin(math.tau * (hour - 9) / 24) - 60 * (hour >= 120)) for hour in range(168)]
HISTORY: list[Any] = [*WEEK[:30], None, *WEEK[31:]]


class ForecastInstance(SequenceFields):
    """One series to be continued."""

    model_config = ConfigDict(extra="forbid")

    history: Values | Rows = Field(
        description="Past values, oldest first, in their own units: numbers, or one row of numbers per step where the model has "
        "several features. `null` is a gap and is interpolated; beside a `state` there may be none. Of a history longer than the "
        "model reads, the last part counts; at most 1,000,000 values.",
        examples=[HISTORY],
    )
    horizon: Horizon = None
    quantiles: Quantiles = None
    frequency: Frequency = None
    point: Point = None
    start: str | None = Field(
        default=None,
        description="ISO 8601 time of the first value of `history`. With a frequency, the prediction holds timestamps.",
        examples=["2026-01-05T00:00:00"],
    )
    past: Columns = Field(
        default=None,
        description="Of models with covariates (`forecast.covariates` of `GET /models/{name}`): each by its name, with a value "
        "for every step of `history`: finite numbers, or the texts that `forecast.categories` lists. One value in place of the "
        "list is that of every step.",
    )
    future: Columns = Field(
        default=None,
        description="The same covariates for every step of the horizon, as many values as `horizon` says.",
    )
    state: InstanceState = None


class ForecastParameters(SequenceFields):
    """Defaults for every instance of the request."""

    model_config = ConfigDict(extra="forbid")

    horizon: Horizon = None
    quantiles: Quantiles = None
    frequency: Frequency = None
    point: Point = None


class Forecast(BaseModel):
    """The continuation of one series."""

    forecast: list[float] | list[list[float]] = Field(
        description="The point forecast, step by step, in the units of the history; one row per step where the model has several "
        "targets. It is the mean or the median of the model's distribution: `forecast.point` of `GET /models/{name}` says which; "
        "or what the request's `point` names.",
        examples=[[140.2, 138.9, 131.0]],
    )
    quantiles: dict[str, list[float] | list[list[float]]] | None = Field(
        default=None,
        description="Level → values as in `forecast`; absent for models without quantiles. Beyond the model's own horizon they "
        "are widened by what was uncertain of the forecast that was fed back.",
        examples=[{"0.1": [121.0, 119.5, 111.8], "0.9": [158.8, 159.0, 151.3]}],
    )
    timestamps: list[str] | None = Field(
        default=None,
        description="ISO 8601 times of the forecast steps; present if `start` and a frequency were given.",
        examples=[["2026-01-12T00:00:00", "2026-01-12T01:00:00", "2026-01-12T02:00:00"]],
    )
    num_interpolated: int | None = Field(
        default=None,
        description="Number of gaps that were filled, of the steps that the model reads; absent if there were none.",
        examples=[1],
    )
    anomaly: list[float | None] | list[list[float | None]] | None = Field(
        default=None,
        description="Of models that read streams: how surprising each value of `history` was under the forecast before it, "
        "-log10 of its two-sided tail probability, from 0 to 10: 1 is what one value in ten reaches, 3 one in a thousand. "
        "`null` where the value is missing, 0 for the first `warm_up` values of a stream.",
        examples=[[0.3, 0.1, 4.2]],
    )
    state: PredictionState = None


class ForecastDescription(BaseModel):
    """What a forecasting model accepts and returns. Lengths count time steps."""

    model_config = ConfigDict(extra="allow")

    horizon: int = Field(description="Steps forecast in one run; the default `horizon` of a request.", examples=[48])
    max_horizon: int = Field(description="Largest `horizon` of a request.", examples=[480])
    min_length: int = Field(description="Shortest history.", examples=[24])
    context_length: int = Field(description="Longest part of a history that the network reads.", examples=[336])
    frequencies: list[str] = Field(description="Frequencies it was trained for; empty: any.", examples=[["H"]])
    quantiles: list[float] = Field(description="Its own quantile levels, ascending; empty: none.", examples=[[0.1, 0.5, 0.9]])
    point: Literal["mean", "median"] = Field(description="What the point forecast is.", examples=["median"])
    points: list[Literal["mean", "median", "mape"]] = Field(
        description="The point forecasts that a request may choose from, the model's own first.", examples=[["median", "mape"]]
    )
    features: list[str] = Field(description="Names of the values of one step, in the order of a row.", examples=[["value"]])
    targets: list[str] = Field(description="The features that are forecast, in the order of a row.", examples=[["value"]])
    streaming: bool = Field(
        default=False,
        description="Whether it reads streams value by value, and gives `anomaly`; absent where not.",
        examples=[True],
    )
    warm_up: int | None = Field(default=None, description="First values of a stream without an anomaly score.", examples=[48])
    covariates: list[str] | None = Field(
        default=None,
        description="Known ahead: `past` and `future` of an instance hold each by its name; absent where the model has none.",
        examples=[["holiday", "temp"]],
    )
    categories: dict[str, list[str]] | None = Field(
        default=None, description="The covariates that are texts, with those that they may be.", examples=[{"weather": ["clear"]}]
    )
    calendar: list[CalendarField] | None = Field(
        default=None,
        description="What the model takes from the timestamps: an instance needs `start`; absent where that is nothing.",
        examples=[["hour", "day_of_week"]],
    )


EXAMPLES = (
    {"instances": [{"history": HISTORY, "start": "2026-01-05T00:00:00", "frequency": "H", "horizon": 6}]},
    {
        "model": "forecast-hourly",
        "instances": [{"history": WEEK}, {"history": WEEK[::-1], "horizon": 3}],
        "parameters": {"horizon": 6, "quantiles": [0.1, 0.9]},
    },
)
