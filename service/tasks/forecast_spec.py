"""What a forecasting model says of itself in the manifest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from service.manifest import Spec


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
    streaming: bool = Field(
        default=False, description="reads a stream value by value, gaps included, and has the output `anomaly`"
    )
    warm_up: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="first values of a stream without an anomaly score"
    )

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
