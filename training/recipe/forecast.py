"""The recipe of a forecasting model: series cut by time, lengths in time steps, and the scaling of raw values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from training.recipe.base import Count, Data, Evaluation, FileOrBuiltin, Fit, Recipe, RecipeTable, Share, Source

SyntheticKind = Literal["weather", "bursts", "seasonal", "noise", "walk", "counts", "switch", "daily", "day_types"]
Frequency = Literal["S", "T", "H", "D", "W", "M", "Q", "Y"]
CalendarField = Literal["hour", "day_of_week", "month", "day_of_year"]


class SeriesSource(FileOrBuiltin):
    """One file of time series, or a set that a library ships."""

    builtin: Literal["air-passengers"] | None = Field(default=None, description="a set that needs no file, instead of `path`")
    format: Literal["auto", "wide", "long", "table"] = Field(
        default="auto",
        description="`wide`: one series per row; `long`: one row per series and time; `table`: one series",
    )
    id: str = Field(default="unique_id", description="long: the column that names the series")
    name: str = Field(
        default="", description="names the scores of this file's series, as in `m3_smape`; empty: none of their own"
    )
    exclude: list[str] = Field(default_factory=list, description="ids of series that are left out")
    time: str = Field(
        default="ds",
        description="long, table: the column of time; rows must be in its order. Left out: `ds`, or else the first column of "
        "dates; empty: none, the rows are in order",
    )
    time_format: str = Field(
        default="", description="long, table: the form of the times as Python's `strptime` takes it; empty: it is found"
    )
    values: list[str] = Field(
        default_factory=list, description="the columns of features; left out: `y`, or all columns of numbers of a table"
    )


class FurtherSource(SeriesSource):
    """One file of series to learn from besides: of one feature each, the columns of a table one by one."""

    rows: Count | None = Field(
        default=None, description="rows that are read, from the first, as the training part; left out: all"
    )
    mean_of: Count = Field(default=1, description="rows of which one value is made, their mean, as 2 of half hours for hours")
    weight: Annotated[float, Field(gt=0)] = Field(default=1.0, description="how often a series is drawn, those of `data.train` 1")


class SyntheticSource(RecipeTable):
    """Synthetic series to learn from besides, the same for the same seed."""

    kind: SyntheticKind = Field(
        description="`weather`: days on slow changes; `bursts`; `seasonal`: the same seven seasons again, half of them exactly; "
        "`noise`; `walk`; `counts`; `switch`: on and off; `daily`: one season again and again; `day_types`: five days of one "
        "kind, two of another"
    )
    count: Count = Field(description="series")
    weight: Annotated[float, Field(gt=0)] = Field(default=1.0, description="how often a series is drawn, those of `data.train` 1")


class SeriesData(Data):
    """The series of a run. The last steps of each are the test part, those before them the validation part."""

    train: Annotated[Sequence[SeriesSource], Field(min_length=1)] = Field(description="files to learn from")
    test: Sequence[SeriesSource] = Field(
        default=(), description="files that continue the training files' series; left out: the last steps are the test part"
    )
    further: Sequence[FurtherSource] = Field(
        default=(), description="files to learn from whole, without validation and test parts; where `train` has one feature"
    )
    synthetic: Sequence[SyntheticSource] = Field(
        default=(), description="series that are made up, to learn from like those of `further`"
    )
    targets: list[str] = Field(default_factory=list, description="features that are forecast; left out: all")
    rows: int | None = Field(default=None, ge=1, description="rows read of each file, from the first; left out: all")
    unit: str = Field(default="", description="unit of the targets, for the pictures")
    validation_length: int | None = Field(default=None, ge=1, description="steps before the test part; left out: one horizon")
    test_length: int | None = Field(
        default=None, ge=1, description="last steps, where no test file is given; left out: one horizon"
    )
    train_on_validation: bool = Field(
        default=False,
        description='learn from the validation part too, once the options are chosen by it; needs `fit.keep = "last"`',
    )
    missing_steps: Literal["report", "fill", "refuse"] = Field(
        default="report",
        description="long, table: what becomes of steps of the calendar that have no row. `report`: the run says how many there "
        "are, and reads the rows as if they followed one another; `fill`: rows are added and interpolated; `refuse`: an error",
    )
    min_future: int | None = Field(
        default=None,
        ge=1,
        description="fewest steps of future in a training window, and in validation and test parts; what is missing of a horizon "
        "does not count. Left out: the horizon",
    )

    @property
    def sources(self) -> list[Source]:
        return [*self.train, *self.further, *self.test]

    @property
    def is_validation_apart(self) -> bool:
        return not self.train_on_validation

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets must differ, got {self.targets}")
        return self


class BaseSettings(RecipeTable):
    """A simple forecast by past values: those `lag` steps earlier, over and over; `lag` = 1 is the last value."""

    lag: Count = Field(description="steps back")
    cycles: Count = Field(
        default=1, description="the mean of the same places in so many cycles of `lag` steps, as far as there are"
    )


class ForecastSettings(RecipeTable):
    """Lengths in time steps of the series, and what is forecast."""

    context_length: Count = Field(description="steps of history that the model reads at most")
    min_length: Count | None = Field(
        default=None, description="fewest steps of history; left out: one season (or step); with bases, the least that they need"
    )
    horizon: Count = Field(description="steps that are forecast")
    season_length: Count = Field(default=1, description="steps in a season, for MASE and the seasonal baselines")
    frequencies: list[Frequency] = Field(
        default_factory=list, description="frequencies of the series that the model takes; left out: any"
    )
    quantiles: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=list, description="levels, ascending, with 0.5; left out: the mean alone. They need the loss `quantile`"
    )
    step: Count = Field(default=1, description="values per recurrent step, as 24 hours make one step of a day")
    seasonal_lag: int = Field(default=0, ge=0, description="the forecast corrects the value this many steps earlier; 0: none")
    theta_share: Share = Field(
        default=0.0,
        description="share of the Theta method's forecast in the answer, of the values that the layers read (scaled, without "
        "their season): all quantiles are moved by it as the median is. What is learned does not change",
    )
    streaming: bool = Field(
        default=False,
        description='the series comes value by value: forecasts and anomaly scores go on from state; needs scaling "running"',
    )
    warm_up: Count | None = Field(
        default=None, description="streaming: first values of a stream that have no anomaly score; left out: one season (or 16)"
    )
    decomposition: Literal["none", "classical"] = Field(
        default="none",
        description="`classical`: each history's own season, shrunk by a learned gate, is taken off it and added to the forecast",
    )
    bases: list[BaseSettings] = Field(
        default_factory=list,
        description="simple forecasts that the network weighs and corrects, in units of their own errors at earlier origins of "
        'the same history, as `[{ lag = 24 }, { lag = 168, cycles = 4 }]`; they need scaling "seasonal"',
    )
    base_origins: Count = Field(
        default=7, description="bases: earlier origins of a history, one season apart, at which they are tried"
    )
    read_length: Count | None = Field(
        default=None,
        description="bases: last steps of a history that the layers read, what is missing as zeros; all of it serves the bases. "
        "Left out: as many as leave room for the longest lag",
    )
    independent: bool = Field(
        default=False,
        description="each feature is forecast by itself, by the same network, from its own history alone; what the network "
        "learns of one it knows of all. A layer `parallel_decoder` tells them apart",
    )
    mape_point: bool = Field(
        default=False, description="a second point forecast, trained on the mean absolute percentage error; beside quantiles"
    )

    recursive_errors: Literal["independent", "correlated"] = Field(
        default="independent",
        description="how the errors of forecasts beyond the horizon add up, which are fed back as history: `independent` or, of "
        "series with trends that every run gets wrong in the same direction, `correlated`, which gives wider bands",
    )
    covariates: list[str] = Field(
        default_factory=list,
        description="columns that are known ahead, such as holidays: a request gives those of its history and of its horizon. A "
        "layer `decoder_input` gives them to the layers behind it",
    )
    categories: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(
        default_factory=dict, description="covariates that are texts, each with the texts that it may be"
    )
    calendar: list[CalendarField] = Field(
        default_factory=list, description="known from the timestamps, beside the covariates; needs one entry in `frequencies`"
    )

    @model_validator(mode="after")
    def _check_covariates(self) -> Self:
        for option, names in (("covariates", self.covariates), ("calendar", self.calendar)):
            if len(set(names)) < len(names):
                raise ValueError(f"{option} must differ, got {names}")
        unknown = [name for name in self.categories if name not in self.covariates]
        if unknown:
            raise ValueError(f"categories are of covariates, {unknown[0]!r} is none of {self.covariates}")
        for name, texts in self.categories.items():
            if len(set(texts)) < len(texts):
                raise ValueError(f"the categories of {name!r} must differ, got {texts}")
        if self.calendar and len(self.frequencies) != 1:
            raise ValueError(f"calendar needs one entry in frequencies, got {self.frequencies}: it says how long a step is")
        if self.streaming and self.has_known_future:
            raise ValueError("covariates and calendar are not for streaming")
        return self

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.quantiles != sorted(set(self.quantiles)):
            raise ValueError(f"quantiles must ascend without repetition, got {self.quantiles}")
        if self.quantiles and 0.5 not in self.quantiles:
            raise ValueError(f"quantiles must hold 0.5, the point forecast, got {self.quantiles}")
        if self.shortest > self.context_length:
            raise ValueError(f"min_length {self.shortest} is above context_length {self.context_length}")
        if self.streaming:
            if self.min_length is not None or self.step > 1:
                raise ValueError("a stream begins with one value: min_length and step are not for streaming")
            if self.decomposition != "none" or self.mape_point:
                raise ValueError("a stream has no end to be decomposed from: decomposition and mape_point are not for streaming")
            if len(self.quantiles) < 3:
                raise ValueError("streaming needs three quantiles or more: anomaly scores are taken under them")
        elif self.warm_up is not None:
            raise ValueError("warm_up is for streaming = true")
        if self.decomposition != "none" and self.season_length < 2:
            raise ValueError(f'decomposition "{self.decomposition}" needs a season_length of 2 or more, got {self.season_length}')
        if self.mape_point and not self.quantiles:
            raise ValueError("mape_point is a second point forecast, beside the median: it needs quantiles")
        if self.recursive_errors == "correlated" and (self.streaming or not self.quantiles):
            raise ValueError("recursive_errors is for quantiles of forecasts that are fed back, which streams are not")
        if self.theta_share and self.streaming:
            raise ValueError("theta_share needs a whole history: it is not for streaming")
        if self.independent and (self.streaming or self.has_known_future or self.bases):
            raise ValueError("independent goes without streaming, covariates, calendar and bases")
        return self

    @model_validator(mode="after")
    def _check_bases(self) -> Self:
        if not self.bases:
            if self.read_length is not None or "base_origins" in self.model_fields_set:
                raise ValueError("read_length and base_origins are for bases")
            return self
        if len({(base.lag, base.cycles) for base in self.bases}) < len(self.bases):
            raise ValueError("bases must differ")
        if self.streaming or self.has_known_future or self.seasonal_lag or self.theta_share or self.decomposition != "none":
            raise ValueError("bases go without streaming, covariates, calendar, seasonal_lag, theta_share and decomposition")
        longest = max(base.lag for base in self.bases)
        if self.layers_length < 1 or self.layers_length + longest > self.context_length:
            raise ValueError(
                f"context_length {self.context_length} is too short for bases of lag {longest}"
                + (f" and read_length {self.read_length}" if self.read_length is not None else "")
            )
        needed = self.season_length + min(base.lag for base in self.bases)
        if self.season_length < 2 or self.shortest < needed:
            raise ValueError(f"bases need a season_length, and a min_length of {needed} or more: one season to be tried on")
        return self

    @property
    def layers_length(self) -> int:
        """With bases, the last steps of a history that the layers read."""
        return self.read_length or self.context_length - max(base.lag for base in self.bases)

    @property
    def has_known_future(self) -> bool:
        """Whether something is known of the steps that are forecast."""
        return bool(self.covariates or self.calendar)

    @property
    def shortest(self) -> int:
        """The fewest steps of history that the model takes."""
        if self.streaming:
            return 1
        if self.min_length is not None:
            return self.min_length
        if self.bases:
            return self.season_length + min(base.lag for base in self.bases)
        return max(self.season_length, self.step, self.seasonal_lag, 1)

    @property
    def num_unscored(self) -> int:
        """Of a stream, the first values without an anomaly score."""
        return self.warm_up if self.warm_up is not None else max(self.season_length, 16)


class ScalingSettings(RecipeTable):
    """What the graph does to raw values before the layers read them, and undoes at the end."""

    kind: Literal["none", "minmax", "standard", "window", "running", "seasonal"] = Field(
        default="standard",
        description="`minmax`, `standard`: fitted on the training part; `window`: each history by its own last part; `running`: "
        "each value of a stream by the level and spread until then; `seasonal`: each history by its own mean and its mean "
        "absolute change over a season, with `forecast.bases`",
    )
    length: Count | None = Field(default=None, description="window: last steps whose mean divides the history; left out: all")
    transform: Literal["none", "log", "asinh"] | None = Field(
        default=None, description="window: applied after the division; left out: none"
    )
    floor: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="window with log: added to the scaled values, so that zero has a logarithm; left out: 0.01"
    )
    span: Count | None = Field(
        default=None, description="running: steps over which level and spread are taken, as in pandas' `ewm`; needed there"
    )

    centre: Literal["none", "last", "level"] = Field(
        default="none",
        description="`last`: behind the rest, each history is relative to its last value, in units of its mean absolute step; "
        "`level`: the same without the unit, so that the loss counts all histories alike",
    )

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        for option in ("length", "transform", "floor"):
            if self.kind != "window" and getattr(self, option) is not None:
                raise ValueError(f'{option} is for kind "window", not "{self.kind}"')
        if (self.kind == "running") != (self.span is not None):
            raise ValueError(f'span and kind "running" need each other, got kind "{self.kind}"')
        return self


class ForecastFit(Fit):
    """The training loop of a forecasting model."""

    loss: Literal["mse", "mae", "huber", "quantile", "smape"] = Field(
        description="the loss, of scaled values; `quantile` with quantiles. `smape`: of the symmetric relative error of raw "
        "values, with quantiles their quantile loss"
    )
    denominator_gradient: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="smape: share of the gradient through the forecast in the error's denominator. 0 takes it for a constant; "
        "with 1 a forecast that is too high is moved less, one that is too low more",
    )
    relative_weight: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="quantile, with bases: weight of a second term, the quantile loss of errors relative to the median forecast, "
        "beside that in units of the change over a season. OWA weighs sMAPE over MASE by 100 × `naive2_mase` / `naive2_smape`",
    )
    short_share: Share = Field(default=0.2, description="share of the training windows that are cut to a random shorter history")
    short_lengths: Literal["uniform", "log"] = Field(
        default="uniform",
        description="how their lengths are drawn: `uniform`, or `log`, as many between 48 and 96 steps as between 96 and 192",
    )
    disturbed_share: Share = Field(
        default=0.0,
        description="share of the training windows whose history has an outlier, a level shift, an outage, a gap filled by a "
        "line, or stands far from zero, to learn to bear it",
    )
    window_length: Count | None = Field(
        default=None, description="streaming: steps of a training window, from zeros on; left out: `forecast.context_length`"
    )
    missing_share: Share = Field(
        default=0.0,
        description="streaming: share of a training window's values that are left out, in gaps, to learn from the rest",
    )


class ForecastEvaluation(Evaluation):
    """Which windows of the test part are scored, and beside what."""

    baselines: Sequence[Literal["last_value", "seasonal_naive", "linear", "theta", "auto_ets"]] | None = Field(
        default=None, description="baselines beside the model; left out: `seasonal_naive` and `theta`"
    )
    stride: int | None = Field(default=None, ge=1, description="steps between two forecasts; left out: one horizon")
    windows: int | None = Field(
        default=None,
        ge=2,
        description="backtest: forecasts from so many origins, `stride` apart, make up the test part, and the scores of each are "
        "shown and published; not with test files or `data.test_length`",
    )
    naive2_smape: float | None = Field(
        default=None, gt=0, description="sMAPE of the M4 competition's Naive2; with `naive2_mase`, OWA is scored too"
    )
    naive2_mase: float | None = Field(default=None, gt=0, description="MASE of the M4 competition's Naive2")
    standardized: bool = Field(
        default=False,
        description="MSE and MAE of values standardised by the training part too, over all windows and features, as papers on "
        "long horizons give them",
    )


class ForecastRecipe(Recipe):
    """A run of task `forecast`: the next steps of a series from its history."""

    default_baselines: ClassVar[tuple[str, ...]] = ("seasonal_naive", "theta")

    task: Literal["forecast"] = Field(description="the task")
    data: SeriesData
    forecast: ForecastSettings
    scaling: ScalingSettings = ScalingSettings()
    fit: ForecastFit
    evaluate: ForecastEvaluation = ForecastEvaluation()

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if self.forecast.has_known_future and (self.data.further or self.data.synthetic):
            raise ValueError("data.further and data.synthetic have no covariates and no calendar")
        for source in self.data.sources:
            assert isinstance(source, SeriesSource)
            both = [name for name in self.forecast.covariates if name in source.values]
            if both:
                raise ValueError(f"{both[0]!r} is among the values of {source} and among the covariates: it is one or the other")
            if source.format == "wide" and self.forecast.has_known_future:
                raise ValueError(f"{source} is wide: it has no columns for covariates and times, long and table have")
        return self

    @model_validator(mode="after")
    def _check_loss(self) -> Self:
        if self.fit.loss != "smape" and (self.fit.loss == "quantile") != bool(self.forecast.quantiles):
            raise ValueError('loss "quantile" and forecast.quantiles need each other')
        if self.fit.denominator_gradient and self.fit.loss != "smape":
            raise ValueError(f'fit.denominator_gradient is for loss "smape", not "{self.fit.loss}"')
        if self.fit.relative_weight and (self.fit.loss != "quantile" or not self.forecast.bases):
            raise ValueError('fit.relative_weight is for loss "quantile" and forecast.bases')
        return self

    @model_validator(mode="after")
    def _check_scaling(self) -> Self:
        if self.forecast.streaming != (self.scaling.kind == "running"):
            raise ValueError('forecast.streaming and scaling of kind "running" need each other')
        if bool(self.forecast.bases) != (self.scaling.kind == "seasonal"):
            raise ValueError('forecast.bases and scaling of kind "seasonal" need each other')
        if self.forecast.bases and self.scaling.centre != "none":
            raise ValueError("bases go without scaling.centre")
        return self

    @model_validator(mode="after")
    def _check_streaming(self) -> Self:
        if not self.forecast.streaming:
            if self.fit.window_length is not None or self.fit.missing_share:
                raise ValueError("fit.window_length and fit.missing_share are for forecast.streaming = true")
            return self
        if self.fit.loss != "quantile":
            raise ValueError(f'streaming needs loss "quantile", got "{self.fit.loss}"')
        if self.forecast.decomposition != "none" or self.forecast.mape_point or self.scaling.centre != "none":
            raise ValueError("streaming goes without decomposition, mape_point and scaling.centre, which need a whole history")
        if (self.fit.window_length or self.forecast.context_length) <= self.forecast.num_unscored:
            raise ValueError(f"fit.window_length must be above forecast.warm_up, {self.forecast.num_unscored} steps")
        if self.data.further or self.data.synthetic or self.fit.disturbed_share:
            raise ValueError("data.further, data.synthetic and fit.disturbed_share are not for streaming")
        return self

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if self.evaluate.windows is not None and (self.data.test or self.data.test_length is not None or self.forecast.streaming):
            raise ValueError("evaluate.windows makes the test part: not with data.test, data.test_length or forecast.streaming")
        if self.data.train_on_validation and self.fit.keep != "last":
            raise ValueError('data.train_on_validation leaves nothing to choose an epoch by: it needs fit.keep = "last"')
        return self

    @property
    def series_data(self) -> SeriesData:
        """`data`, with the test part that `evaluate.windows` needs."""
        if self.evaluate.windows is None:
            return self.data
        stride = self.evaluate.stride or self.forecast.horizon
        return self.data.model_copy(update={"test_length": self.forecast.horizon + (self.evaluate.windows - 1) * stride})
