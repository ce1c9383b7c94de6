"""What a forecasting model says of itself in the manifest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from service.manifest import Spec

CalendarField = Literal["hour", "day_of_week", "month", "day_of_year"]


class ForecastSpec(Spec):
    """What a forecasting model reads and predicts. Lengths count time steps of the series."""

    context_length: Annotated[int, Field(ge=1, description="the longest part of a history that the network reads")]
    min_length: Annotated[int, Field(ge=1, description="the shortest history that it takes")] = 1
    horizon: Annotated[int, Field(ge=1, description="steps forecast in one run")]
    frequencies: list[str] = Field(default_factory=list, description="S T H D W M Q Y; empty: any")
    season_length: Annotated[int, Field(ge=1)] = 1
    quantiles: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=list, description="ascending; last axis of output `quantiles`"
    )
    point: Literal["mean", "median"] = Field("mean", description="what the output `forecast` holds: the loss decides it")
    points: list[Literal["mean", "median", "mape"]] = Field(
        default_factory=list,
        description="the point forecasts that a request may choose from, `point` first; `mape`, trained on that error, is the "
        "output `forecast_mape`. Left out: `point` alone",
    )
    features: Annotated[list[str], Field(min_length=1)]
    targets: Annotated[list[str], Field(min_length=1, description="features that are forecast, in the order of the outputs")]
    recursive_errors: Literal["independent", "correlated"] = Field(
        default="independent",
        description="how errors add up where forecasts are fed back as history, beyond the horizon: `independent`, their squares "
        "do; `correlated`, as of a trend that every run gets wrong in the same direction, they themselves do",
    )
    streaming: bool = Field(
        default=False, description="reads a stream value by value, gaps included, and has the output `anomaly`"
    )
    warm_up: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="first values of a stream without an anomaly score"
    )

    covariates: list[str] = Field(
        default_factory=list,
        description="known ahead, in the order of the columns of `past_covariates` and `future_covariates`; a request gives "
        "those of its history and of its horizon",
    )
    categories: dict[str, list[str]] = Field(
        default_factory=dict, description="covariates that are texts: the number of a text is its place in the list, from 0 on"
    )
    calendar: list[CalendarField] = Field(
        default_factory=list,
        description="columns behind the covariates, taken from the timestamps: hour 0 to 23, day of the week 0 to 6 from Monday "
        "on, month 1 to 12, day of the year 1 to 366",
    )

    @model_validator(mode="after")
    def _covariates_are_told_apart(self) -> ForecastSpec:
        for option, names in (("covariates", [*self.features, *self.covariates]), ("calendar", self.calendar)):
            if len(set(names)) < len(names):
                raise ValueError(f"{option}: names repeat: {names}")
        if not self.categories.keys() <= set(self.covariates):
            raise ValueError(f"categories {list(self.categories)} are not all among the covariates {self.covariates}")
        if any(len(set(texts)) < len(texts) or not texts for texts in self.categories.values()):
            raise ValueError("categories must be different texts, one at least")
        if self.streaming and self.num_known:
            raise ValueError("a model that reads streams has no covariates")
        return self

    @model_validator(mode="after")
    def _lengths_and_quantiles_are_ordered(self) -> ForecastSpec:
        if self.min_length > self.context_length:
            raise ValueError(f"min_length {self.min_length} is above context_length {self.context_length}")
        if self.points and self.points not in ([self.point], [self.point, "mape"]):
            raise ValueError(f'points must be ["{self.point}"] or ["{self.point}", "mape"], got {self.points}')
        if self.quantiles != sorted(set(self.quantiles)):
            raise ValueError(f"quantiles must ascend without repetition, got {self.quantiles}")
        unknown = [target for target in self.targets if target not in self.features]
        if unknown:
            raise ValueError(f"targets {unknown} are not among the features {self.features}")
        return self

    @property
    def point_names(self) -> list[str]:
        """The point forecasts that a request may choose from, the model's own first."""
        return list(self.points) or [self.point]

    @property
    def num_known(self) -> int:
        """Columns that are known of a step ahead."""
        return len(self.covariates) + len(self.calendar)

    @property
    def has_mape(self) -> bool:
        """Whether the graph gives a second point forecast."""
        return "mape" in self.points
