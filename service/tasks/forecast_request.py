"""What a request for forecasts holds, checked field by field: histories without gaps, horizons, levels, timestamps. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np

from service.errors import InvalidInput
from service.runtime.tensors import Array
from service.tasks.covariates import FUTURE, PAST, CovariateReader
from service.tasks.forecast_spec import ForecastSpec
from service.tasks.frequencies import Frequency, read_frequency, timestamps
from service.tasks.history import read_numbers
from service.tasks.refusals import locate, refuse_fields, refuse_length, refuse_missing, refuse_parameters, refuse_type, show

MAX_LEVELS = 99
"""Quantile levels of one instance: every percentile."""
MAX_HISTORY_VALUES = 1_000_000
"""The longest history, in steps times features: hourly values of a century."""


class CheckedInstance(NamedTuple):
    """One instance, checked: raw values FP32 (T, F), without gaps unless the model reads streams, and what is to be forecast."""

    history: Array
    horizon: int
    levels: tuple[float, ...]
    num_interpolated: int = 0
    start: str | None = None
    frequency: Frequency | None = None
    num_given: int = 0
    """Steps of the history as it was sent, of which `history` is the last part."""
    is_mape: bool = False
    """Whether the second point forecast answers."""
    known: Array | None = None
    """FP32 (T + horizon, columns): what is known of the steps of `history` and of those that are forecast."""


class RequestDefaults:
    """The parameters of a request, which hold for each instance that does not say otherwise; checks both."""

    PARAMETERS: ClassVar = ("horizon", "quantiles", "frequency", "point")
    FIELDS: ClassVar = frozenset(("history", "start", *PARAMETERS))
    KNOWN_FIELDS: ClassVar = frozenset((PAST, FUTURE))
    """Of models that have covariates."""

    def __init__(self, spec: ForecastSpec, max_horizon: int, can_feed_back: bool, parameters: Mapping[str, object]) -> None:
        """Raises MalformedRequest for unknown parameters and InvalidInput for what they may not be."""
        unknown = [name for name in parameters if name not in self.PARAMETERS]
        if unknown:
            raise refuse_parameters(unknown, self.PARAMETERS)
        self.spec, self.can_feed_back, self.max_horizon = spec, can_feed_back, max_horizon
        self._covariates = CovariateReader(spec) if spec.num_known else None
        self._fields = self.FIELDS | self.KNOWN_FIELDS if spec.covariates else self.FIELDS
        self._levels: dict[tuple[object, ...], tuple[float, ...]] = {}
        self._frequencies = [(name, read_frequency(name)) for name in spec.frequencies]
        given = {name: value for name, value in parameters.items() if value is not None}
        self.horizon = self._check_horizon(given["horizon"]) if "horizon" in given else spec.horizon
        self.levels = self._check_levels(given["quantiles"]) if "quantiles" in given else tuple(spec.quantiles)
        self.frequency = self._check_frequency(given["frequency"]) if "frequency" in given else None
        self.is_mape = "point" in given and self._check_point(given["point"]) == "mape"

    def read_instance(self, instance: object, index: int, is_plain: bool, steps_seen: int | None = None) -> CheckedInstance:
        """Check one instance; fill gaps and cut the history to what the network reads.

        With `steps_seen`, the history is the next piece of a series that had so many steps before: it is read whole, has no gaps,
        which would be filled from values that are not there yet, and together with those steps is as long as the network needs.
        Raises MalformedRequest for unknown fields and InvalidInput that names the place of what cannot be used.
        """
        spec = self.spec
        if not isinstance(instance, dict):
            raise refuse_type(index, "", "an object with a history", instance)
        if not instance.keys() <= self._fields:
            self._check_fields(instance, index)
        given = instance.get("history")
        if not isinstance(given, list):
            raise (
                refuse_type(index, "history", "a list of numbers", given)
                if "history" in instance
                else refuse_missing(index, "history")
            )
        num_values = len(given) * len(spec.features)
        if len(given) + (steps_seen or 0) < spec.min_length or not given or num_values > MAX_HISTORY_VALUES:
            raise self._refuse_length(len(given), index, steps_seen or 0)
        if spec.streaming and steps_seen is not None and len(given) > spec.context_length:
            raise refuse_long_piece(spec, index, len(given))
        values, has_gaps = read_numbers(given, len(spec.features), index, is_plain=is_plain)
        num_interpolated = 0
        if has_gaps and not spec.streaming:  # whose graph knows what to do without a value
            if steps_seen is not None:
                raise self._refuse_gap(values, index)
            values, num_interpolated = self._interpolate(values, index)
        # A null is a field left out: clients with optional fields send it so.
        value = instance.get("horizon")
        horizon = self.horizon if value is None else self._check_horizon(value, index)
        value = instance.get("quantiles")
        levels = self.levels if value is None else self._check_levels(value, index)
        value = instance.get("frequency")
        frequency = self.frequency if value is None else self._check_frequency(value, index)
        value = instance.get("point")
        is_mape = self.is_mape if value is None else self._check_point(value, index) == "mape"
        start = instance.get("start")
        if start is not None:
            frequency = frequency or self._only_frequency(index)
            _check_start(start, frequency, len(given) + horizon, index)
        history = values[-spec.context_length :] if steps_seen is None else values
        known = None
        if self._covariates is not None:
            known = self._covariates.read(instance, index, len(given), len(history), horizon, start, frequency)
        return CheckedInstance(history, horizon, levels, num_interpolated, start, frequency, len(given), is_mape, known)

    def _check_fields(self, instance: Mapping[str, object], index: int) -> None:
        """Refuse the fields that the model does not take; a null is a field left out where other models take it."""
        unknown = set(instance) - self._fields
        if not unknown <= self.KNOWN_FIELDS:
            raise refuse_fields(index, unknown - self.KNOWN_FIELDS, self._fields)
        given = sorted(field for field in unknown if instance[field] is not None)
        if given:
            raise InvalidInput(
                f'instance {index}: {given[0]}: the model has no covariates; "forecast.covariates" of GET /models says which has',
                instance=index,
                where=given[0],
                expected=[],
            )

    def read_array(self, values: Array, index: int, *, has_gaps: bool) -> CheckedInstance:
        """`read_instance` of a history FP32 (T, F) that is an array already: all of it is finite but the gaps, which are NaN.

        What is to be forecast is what the parameters say.
        """
        spec, num = self.spec, len(values)
        if num < spec.min_length or not num or num * len(spec.features) > MAX_HISTORY_VALUES:
            raise self._refuse_length(num, index)
        num_interpolated = 0
        if has_gaps and not spec.streaming:
            values, num_interpolated = self._interpolate(values, index)
        history = values[-spec.context_length :]
        return CheckedInstance(history, self.horizon, self.levels, num_interpolated, None, self.frequency, num, self.is_mape)

    def _refuse_length(self, num_steps: int, index: int, steps_seen: int = 0) -> InvalidInput:
        """A history has too few steps, or too many values."""
        num_values = num_steps * len(self.spec.features)
        if num_values > MAX_HISTORY_VALUES:
            advice = f"; the model reads the last {self.spec.context_length} steps"
            return refuse_length(index, "history", f"at most {MAX_HISTORY_VALUES}", "values", num_values, advice)
        least = max(1, self.spec.min_length - steps_seen)
        return refuse_length(index, "history", f"at least {least}", "steps", num_steps)

    def _refuse_gap(self, values: Array, index: int) -> InvalidInput:
        """A piece of a series has a gap (NaN)."""
        step = int(np.argwhere(np.isnan(values))[0, 0])
        return InvalidInput(
            f"instance {index}: history[{step}]: expected a number, got null: with a state, gaps are not filled",
            reason="nonfinite",
            instance=index,
            where=f"history[{step}]",
            found="null",
            expected="a number",
        )

    def _interpolate(self, values: Array, index: int) -> tuple[Array, int]:
        """Fill the gaps (NaN) of every feature; count those among the steps that the network reads."""
        values = values.copy()
        is_missing = np.isnan(values)
        read = is_missing[-self.spec.context_length :]
        for feature, name in enumerate(self.spec.features):
            if read[:, feature].all():
                which = f'feature "{name}" ' if len(self.spec.features) > 1 else ""
                raise InvalidInput(
                    f"instance {index}: history: {which}has no number among the last {len(read)} steps, expected at least one",
                    reason="nonfinite",
                    instance=index,
                    where="history",
                    found="null only",
                    expected="at least one number",
                )
            gaps = is_missing[:, feature]
            if gaps.any():
                places = np.arange(len(values))
                values[gaps, feature] = np.interp(places[gaps], places[~gaps], values[~gaps, feature])
        return values, int(read.sum())

    def _check_horizon(self, value: object, index: int | None = None) -> int:
        if type(value) is not int:
            raise refuse_type(index, "horizon", "a whole number", value)
        if not 1 <= value <= self.max_horizon:
            why = "" if self.can_feed_back else ", for some of its features are not forecast and cannot be fed back"
            raise InvalidInput(
                f"{locate(index, 'horizon')}: expected 1 to {self.max_horizon} steps (one run of this model forecasts "
                f"{self.spec.horizon}){why}, got {show(value)}",
                reason="length",
                instance=index,
                where="horizon",
                found=show(value),
                expected=f"1 to {self.max_horizon}",
            )
        return value

    def _check_levels(self, value: object, index: int | None = None) -> tuple[float, ...]:
        """The levels of a request, once each, in its order."""
        if not isinstance(value, list) or not all(type(level) in (int, float) for level in value):
            raise refuse_type(index, "quantiles", "a list of numbers between 0 and 1", value)
        if len(value) > MAX_LEVELS:
            raise refuse_length(index, "quantiles", f"at most {MAX_LEVELS}", "levels", len(value))
        key = tuple(value)
        known = self._levels.get(key)
        if known is not None:
            return known
        own = self.spec.quantiles
        outside = [level for level in value if not (own and own[0] <= level <= own[-1])]
        if outside:
            expected = (
                f"levels from {own[0]:g} to {own[-1]:g} (the model's are {own})" if own else "none: this model has no quantiles"
            )
            raise InvalidInput(
                f"{locate(index, 'quantiles')}: expected {expected}, got {show(outside[0])}",
                instance=index,
                where="quantiles",
                found=show(outside[0]),
                expected=own,
            )
        if len(self._levels) > 100:
            self._levels.clear()  # a request may hold any levels, and these defaults may serve all requests
        self._levels[key] = tuple(dict.fromkeys(float(level) for level in value))
        return self._levels[key]

    def _check_frequency(self, value: object, index: int | None = None) -> Frequency | None:
        if not isinstance(value, str):
            raise refuse_type(index, "frequency", "a string", value)
        found = read_frequency(value)
        if found is None or not takes_frequency(self.spec, found):
            expected = self.spec.frequencies or ["S", "T", "H", "D", "W", "M", "Q", "Y"]
            raise InvalidInput(
                f"{locate(index, 'frequency')}: expected one of {expected}, got {show(value)}",
                reason="timestamp",
                instance=index,
                where="frequency",
                found=show(value),
                expected=expected,
            )
        return found

    def _check_point(self, value: object, index: int | None = None) -> str:
        if not isinstance(value, str):
            raise refuse_type(index, "point", "a string", value)
        names = self.spec.point_names
        if value not in names:
            raise InvalidInput(
                f"{locate(index, 'point')}: expected one of {names}, the point forecasts of this model, got {show(value)}",
                instance=index,
                where="point",
                found=show(value),
                expected=names,
            )
        return value

    @property
    def usual_frequency(self) -> Frequency | None:
        """That of the parameters, else the model's where it has just one."""
        if self.frequency is None and len(self._frequencies) == 1:
            return self._frequencies[0][1]
        return self.frequency

    def _only_frequency(self, index: int) -> Frequency:
        """The frequency of a model that has just one; raises InvalidInput for the others."""
        if len(self._frequencies) == 1 and self._frequencies[0][1] is not None:
            return self._frequencies[0][1]
        listed = self.spec.frequencies
        raise InvalidInput(
            f"instance {index}: frequency: expected beside start, " + (f"one of {listed}" if listed else "such as H or D"),
            reason="timestamp",
            instance=index,
            where="frequency",
            expected=listed or None,
        )


def refuse_long_piece(spec: ForecastSpec, index: int, num_steps: int) -> InvalidInput:
    """A piece of a stream is longer than its graph reads at once: a history would be cut, but a stream has no part to lose."""
    bound, advice = f"at most {spec.context_length}", ": send them in several pieces"
    return refuse_length(index, "history", bound, "steps of a stream at once", num_steps, advice)


def takes_frequency(spec: ForecastSpec, frequency: Frequency) -> bool:
    """Whether the model lists this frequency, by whatever name, or lists none, which means any."""
    if not spec.frequencies:
        return True
    listed = map(read_frequency, spec.frequencies)
    return any(own is not None and (own.code, own.count) == (frequency.code, frequency.count) for own in listed)


def _check_start(start: object, frequency: Frequency, num_steps: int, index: int) -> None:
    if not isinstance(start, str):
        raise refuse_type(index, "start", "an ISO 8601 timestamp as a string", start, reason="timestamp")
    try:
        timestamps(start, frequency, (0, num_steps))
    except ValueError as exc:
        raise InvalidInput(
            f"instance {index}: start: expected an ISO 8601 timestamp such as 2024-01-31T00:00:00+01:00, whose forecast "
            f"ends before the year 10000, got {show(start)}",
            reason="timestamp",
            instance=index,
            where="start",
            found=show(start),
            expected="an ISO 8601 timestamp",
        ) from exc
