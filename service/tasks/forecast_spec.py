"""What forecasting models say of themselves in the manifest, and what OpenAPI says of their requests and predictions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.manifest import Spec

Number = float | None


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
    features: Annotated[list[str], Field(min_length=1)]
    targets: Annotated[list[str], Field(min_length=1, description="features that are forecast, in the order of the outputs")]

    @model_validator(mode="after")
    def _lengths_and_quantiles_are_ordered(self) -> ForecastSpec:
        if self.min_length > self.context_length:
            raise ValueError(f"min_length {self.min_length} is above context_length {self.context_length}")
        if self.quantiles != sorted(set(self.quantiles)):
            raise ValueError(f"quantiles must ascend without repetition, got {self.quantiles}")
        unknown = [target for target in self.targets if target not in self.features]
        if unknown:
            raise ValueError(f"targets {unknown} are not among the features {self.features}")
        return self


# ------------------------------------------------------------------------------------------------------- for OpenAPI


Horizon = Annotated[
    int | None,
    Field(
        ge=1,
        description="Steps to forecast; the model's own horizon if absent. Beyond it, forecasts are fed back as history, up "
        "to SLUICE_MAX_HORIZON_MULTIPLE horizons.",
        examples=[24],
    ),
]
Quantiles = Annotated[
    list[float] | None,
    Field(
        description="Levels to answer; all of the model's if absent. Levels between two of the model's are interpolated.",
        examples=[[0.1, 0.5, 0.9]],
    ),
]
Frequency = Annotated[
    str | None,
    Field(
        description="Distance between two steps: S T H D W M Q Y, with a count such as 15T. Where the request names no model, "
        "the one for this frequency answers.",
        examples=["H"],
    ),
]


class ForecastParameters(BaseModel):
    """Defaults for every instance of the request."""

    model_config = ConfigDict(extra="forbid")

    horizon: Horizon = None
    quantiles: Quantiles = None
    frequency: Frequency = None


class ForecastInput(BaseModel):
    """One series to be continued."""

    model_config = ConfigDict(extra="forbid")

    history: list[Number] | list[list[Number]] = Field(
        min_length=1,
        description="Past values, oldest first, in their own units: numbers, or rows where the model has several features. "
        "`null` is a gap and is interpolated. Of a history longer than the model reads, the last part counts; at most 1,000,000 "
        "values.",
        examples=[[112, 118, 132, 129, None, 135, 148, 148, 136, 119, 104, 118]],
    )
    horizon: Horizon = None
    quantiles: Quantiles = None
    frequency: Frequency = None
    start: str | None = Field(
        default=None,
        description="ISO 8601 time of the first value of `history`; with a frequency, the answer holds timestamps.",
        examples=["2026-01-01T00:00:00"],
    )


class ForecastPrediction(BaseModel):
    """The continuation of one series."""

    forecast: list[float] | list[list[float]] = Field(
        description="The point forecast, step by step, in the units of the history; rows where the model has several targets. "
        "`GET /models/{name}` says under `forecast.point` whether it is the mean or the median.",
        examples=[[140.2, 138.9, 131.0]],
    )
    quantiles: dict[str, list[float] | list[list[float]]] = Field(
        default_factory=dict,
        description="Level → values as in `forecast`; absent for models without quantiles. Beyond the model's own horizon they "
        "do not widen with the uncertainty of what was fed back.",
        examples=[{"0.1": [121.0, 119.5, 111.8], "0.9": [158.8, 159.0, 151.3]}],
    )
    timestamps: list[str] | None = Field(
        default=None,
        description="Times of the forecast steps; present if `start` and a frequency were given.",
        examples=[["2026-01-01T12:00:00", "2026-01-01T13:00:00", "2026-01-01T14:00:00"]],
    )
    num_interpolated: int | None = Field(
        default=None, description="Gaps that were filled; absent if there were none.", examples=[1]
    )
