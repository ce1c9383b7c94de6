"""Histories ↔ forecasts: checks and encodes the questions, feeds forecasts back beyond the model's horizon, decodes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import ClassVar

import numpy as np

from service.errors import InvalidInput, PayloadTooLarge
from service.manifest import Forecast as ForecastFace
from service.runtime.tensors import LENGTHS, Array, Item, Signature, Tensors
from service.tasks.base import (
    HEAVY_NUM_INSTANCES,
    HEAVY_SIZE,
    IS_FINITE,
    Dialogue,
    ItemLimits,
    Prediction,
    expect_finite,
    expect_instances,
    finite_rows,
    grouped,
    missing,
    place,
    shown,
    unknown_fields,
    unknown_parameters,
    wrong_type,
)
from service.tasks.frequencies import Frequency, read_frequency, timestamps
from service.tasks.history import numbers

HISTORY = "history"
FORECAST = "forecast"
"""What `prepare` makes of the outputs."""

MAX_NUMBERS = 5_000_000
"""The largest answer: 10,000 forecasts of 48 steps and nine quantiles are some 40 MB of JSON."""
MAX_LEVELS = 99
"""Quantile levels of one instance: every percentile."""
MAX_HISTORY_VALUES = 1_000_000
"""The longest history, in steps times features: hourly values of a century."""


@dataclass(frozen=True)
class Question:
    """One forecasting instance, checked: raw values FP32 (T, F) without gaps, and what is asked about them."""

    history: Array
    horizon: int
    levels: tuple[float, ...]
    num_interpolated: int = 0
    start: str | None = None
    frequency: Frequency | None = None
    num_given: int = 0


@dataclass(frozen=True)
class Forecast:
    """Histories of a series in, its next steps out.

    A horizon beyond the model's is reached by feeding `mean` back as history. The quantiles of those later steps are the
    model's given the fed-back values: they do not widen with the uncertainty of what was fed back.
    """

    face: ForecastFace
    signature: Signature
    max_horizon_multiple: int = 10
    limits: ItemLimits = field(default_factory=ItemLimits)

    PARAMETERS: ClassVar = ("horizon", "quantiles", "frequency")
    FIELDS: ClassVar = frozenset(("history", "start", *PARAMETERS))

    @cached_property
    def can_feed_back(self) -> bool:
        """Whether a forecast holds all that the next run must know."""
        return set(self.face.features) == set(self.face.targets)

    @cached_property
    def max_horizon(self) -> int:
        """The longest forecast, in steps."""
        return self.face.horizon * (self.max_horizon_multiple if self.can_feed_back else 1)

    @cached_property
    def _asked_nothing(self) -> _Asked:
        return _Asked(self, {})

    @cached_property
    def _own_levels(self) -> tuple[float, ...]:
        return tuple(self.face.quantiles)

    def is_heavy(self, instances: Sequence[object], parameters: Mapping[str, object]) -> bool:
        if len(instances) > HEAVY_NUM_INSTANCES:
            return True
        size = 0
        for instance in instances:
            if isinstance(instance, dict):
                history = instance.get("history")
                horizon = instance.get("horizon") or parameters.get("horizon") or self.face.horizon
                size += len(history) * len(self.face.features) if isinstance(history, list) else 0
                size += horizon * self._numbers_per_step if isinstance(horizon, int) else 0
        return size > HEAVY_SIZE

    @cached_property
    def _numbers_per_step(self) -> int:
        return len(self.face.targets) * (1 + len(self.face.quantiles))

    def dialogue(self, instances: Sequence[object], parameters: Mapping[str, object], *, is_plain: bool = False) -> Dialogue:
        questions = self.encode(instances, parameters, is_plain=is_plain)
        step = self.face.horizon
        num_runs = -(-max([question.horizon for question in questions]) // step)
        num_numbers = len(questions) * num_runs * step * self._numbers_per_step
        if num_numbers > MAX_NUMBERS:
            raise PayloadTooLarge(
                f"the answer would hold {num_numbers} numbers, at most {MAX_NUMBERS} are given: ask for fewer instances "
                "or a shorter horizon",
                found=num_numbers,
                limit=MAX_NUMBERS,
            )
        forecasts: list[list[Array]] = [[] for _ in questions]  # per question and run: (1 + Q, H) or (1 + Q, H, targets)
        histories = [question.history for question in questions]
        for start in range(0, num_runs * step, step):
            asking = [index for index, question in enumerate(questions) if question.horizon > start]
            if start > 0:
                for index in asking:
                    histories[index] = self._fed_back(histories[index], forecasts[index][-1][0])
            groups = grouped([len(histories[index]) for index in asking], self.limits)
            rows = [[asking[number] for number in group] for group in groups]
            outputs = yield [self._item([histories[index] for index in group]) for group in rows]
            for group, output in zip(rows, outputs, strict=True):
                expect_finite(output, group)
                for index, forecast in zip(group, output[FORECAST], strict=True):
                    forecasts[index].append(forecast)
        return [
            self.decode(question, runs[0] if len(runs) == 1 else np.concatenate(runs, axis=1))
            for question, runs in zip(questions, forecasts, strict=True)
        ]

    def prepare(self, outputs: Tensors) -> Tensors:
        """Mean and quantiles as one FP32 tensor: (B, 1 + Q, H), with several targets (B, 1 + Q, H, targets); the mean first."""
        mean = outputs["mean"]  # (B, H, targets)
        forecast = np.empty((len(mean), 1 + len(self.face.quantiles), *mean.shape[1:]), np.float32)
        forecast[:, 0] = mean
        if self.face.quantiles:
            forecast[:, 1:] = np.moveaxis(outputs["quantiles"], 3, 1)
        prepared: Tensors = {FORECAST: forecast[..., 0] if len(self.face.targets) == 1 else forecast}
        is_finite = finite_rows([forecast])
        return prepared if is_finite is None else {**outputs, **prepared, IS_FINITE: is_finite}

    def encode(self, instances: Sequence[object], parameters: Mapping[str, object], *, is_plain: bool = False) -> list[Question]:
        """Check every instance; fill gaps and cut histories to what the network reads."""
        expect_instances(instances)
        unknown = [name for name in parameters if name not in self.PARAMETERS]
        if unknown:
            raise unknown_parameters(unknown, self.PARAMETERS)
        ask = _Asked(self, parameters) if parameters else self._asked_nothing
        return [self._question(instance, index, ask, is_plain) for index, instance in enumerate(instances)]

    def decode(self, question: Question, forecast: Array) -> Prediction:
        """The prediction for one question from (1 + Q, ≥ h) or (1 + Q, ≥ h, targets): the mean and behind it the quantiles."""
        levels, horizon = question.levels, question.horizon
        if levels != self._own_levels:
            selection = _selection(self._own_levels, levels)
            forecast = np.tensordot(selection, forecast, axes=1).astype(np.float32)
        mean, *at_levels = forecast[:, :horizon]
        prediction: dict[str, object] = {"mean": mean}
        if levels:
            prediction["quantiles"] = dict(zip(_keys(levels), at_levels, strict=True))
        if question.start is not None and question.frequency is not None:
            steps = range(question.num_given, question.num_given + horizon)
            prediction["timestamps"] = timestamps(question.start, question.frequency, steps)
        if question.num_interpolated:
            prediction["num_interpolated"] = question.num_interpolated
        return prediction

    def _question(self, instance: object, index: int, ask: _Asked, is_plain: bool) -> Question:
        if not isinstance(instance, dict):
            raise wrong_type(index, "", "an object with a history", instance)
        if not instance.keys() <= self.FIELDS:
            raise unknown_fields(index, set(instance) - self.FIELDS, self.FIELDS)
        given = instance.get("history")
        if not isinstance(given, list):
            raise (
                wrong_type(index, "history", "a list of numbers", given) if "history" in instance else missing(index, "history")
            )
        if len(given) < self.face.min_length:
            raise InvalidInput(
                f"instance {index}: history: expected at least {self.face.min_length} steps, got {len(given)}",
                reason="length",
                instance=index,
                where="history",
                found=len(given),
                expected=f"at least {self.face.min_length}",
            )
        num_values = len(given) * len(self.face.features)
        if num_values > MAX_HISTORY_VALUES:
            raise InvalidInput(
                f"instance {index}: history: expected at most {MAX_HISTORY_VALUES} values, got {num_values}; the model reads "
                f"the last {self.face.context_length} steps",
                reason="length",
                instance=index,
                where="history",
                found=num_values,
                expected=f"at most {MAX_HISTORY_VALUES}",
            )
        values, has_gaps = numbers(given, len(self.face.features), index, is_plain=is_plain)
        num_interpolated = 0
        if has_gaps:
            values, num_interpolated = self._filled(values, index)
        # A null is a field left out: clients with optional fields send it so.
        asked = instance.get("horizon")
        horizon = ask.default_horizon if asked is None else ask.horizon(asked, index)
        asked = instance.get("quantiles")
        levels = ask.default_levels if asked is None else ask.levels(asked, index)
        asked = instance.get("frequency")
        frequency = ask.default_frequency if asked is None else ask.frequency(asked, index)
        start = instance.get("start")
        if start is not None:
            frequency = frequency or ask.only_frequency(index)
            _check_start(start, frequency, len(given) + horizon, index)
        history = values[-self.face.context_length :]
        return Question(history, horizon, levels, num_interpolated, start, frequency, len(given))

    def _filled(self, values: Array, index: int) -> tuple[Array, int]:
        """Interpolate the gaps (NaN) of every feature; count those among the steps that the network reads."""
        values = values.copy()
        is_missing = np.isnan(values)
        read = is_missing[-self.face.context_length :]
        for feature, name in enumerate(self.face.features):
            if read[:, feature].all():
                which = f'feature "{name}" ' if len(self.face.features) > 1 else ""
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

    def _fed_back(self, history: Array, mean: Array) -> Array:
        """The history (T, F) for the next run; `mean` is (H,) or (H, targets)."""
        mean = mean.reshape(len(mean), -1)
        columns = [self.face.targets.index(feature) for feature in self.face.features]
        return np.concatenate((history, mean[:, columns]))[-self.face.context_length :]

    def _item(self, histories: Sequence[Array]) -> Item:
        if len(histories) == 1:
            (history,) = histories
            return Item({HISTORY: history[np.newaxis]}, 1, len(history), (len(history),))
        lengths = [len(history) for history in histories]
        longest = max(lengths)
        padded = np.zeros((len(histories), longest, len(self.face.features)), np.float32)  # (B, T, F)
        for row, history in zip(padded, histories, strict=True):
            row[: len(history)] = history
        return Item({HISTORY: padded, LENGTHS: np.array(lengths, np.int64)}, len(histories), longest, lengths)


class _Asked:
    """What a request asks of all its instances, and the checks of what one instance asks for itself."""

    def __init__(self, task: Forecast, parameters: Mapping[str, object]) -> None:
        self.face, self.can_feed_back, self.max_horizon = task.face, task.can_feed_back, task.max_horizon
        self._levels: dict[tuple[object, ...], tuple[float, ...]] = {}
        self._listed = [(name, read_frequency(name)) for name in self.face.frequencies]
        given = {name: value for name, value in parameters.items() if value is not None}
        self.default_horizon = self.horizon(given["horizon"]) if "horizon" in given else self.face.horizon
        self.default_levels = self.levels(given["quantiles"]) if "quantiles" in given else tuple(self.face.quantiles)
        self.default_frequency = self.frequency(given["frequency"]) if "frequency" in given else None

    def horizon(self, value: object, index: int | None = None) -> int:
        if type(value) is not int:
            raise wrong_type(index, "horizon", "a whole number", value)
        if not 1 <= value <= self.max_horizon:
            why = "" if self.can_feed_back else ", for some of its features are not forecast and cannot be fed back"
            raise InvalidInput(
                f"{place(index, 'horizon')}: expected 1 to {self.max_horizon} steps (one run of this model forecasts "
                f"{self.face.horizon}){why}, got {shown(value)}",
                reason="length",
                instance=index,
                where="horizon",
                found=shown(value),
                expected=f"1 to {self.max_horizon}",
            )
        return value

    def levels(self, value: object, index: int | None = None) -> tuple[float, ...]:
        """The asked levels, once each, in the order asked."""
        if not isinstance(value, list) or not all(type(level) in (int, float) for level in value):
            raise wrong_type(index, "quantiles", "a list of numbers between 0 and 1", value)
        if len(value) > MAX_LEVELS:
            raise InvalidInput(
                f"{place(index, 'quantiles')}: expected at most {MAX_LEVELS} levels, got {len(value)}",
                reason="length",
                instance=index,
                where="quantiles",
                found=len(value),
                expected=f"at most {MAX_LEVELS}",
            )
        key = tuple(value)
        known = self._levels.get(key)
        if known is not None:
            return known
        own = self.face.quantiles
        outside = [level for level in value if not (own and own[0] <= level <= own[-1])]
        if outside:
            expected = (
                f"levels from {own[0]:g} to {own[-1]:g} (the model's are {own})" if own else "none: this model has no quantiles"
            )
            raise InvalidInput(
                f"{place(index, 'quantiles')}: expected {expected}, got {shown(outside[0])}",
                instance=index,
                where="quantiles",
                found=shown(outside[0]),
                expected=own,
            )
        if len(self._levels) > 100:
            self._levels.clear()  # one request may ask anything, and this one may serve all requests
        self._levels[key] = tuple(dict.fromkeys(float(level) for level in value))
        return self._levels[key]

    def frequency(self, value: object, index: int | None = None) -> Frequency | None:
        if not isinstance(value, str):
            raise wrong_type(index, "frequency", "a string", value)
        found = read_frequency(value)
        known = [frequency for _, frequency in self._listed]
        if found is None or (known and not any(f and (f.code, f.count) == (found.code, found.count) for f in known)):
            expected = self.face.frequencies or ["S", "T", "H", "D", "W", "M", "Q", "Y"]
            raise InvalidInput(
                f"{place(index, 'frequency')}: expected one of {expected}, got {shown(value)}",
                reason="timestamp",
                instance=index,
                where="frequency",
                found=shown(value),
                expected=expected,
            )
        return found

    def only_frequency(self, index: int) -> Frequency:
        """The frequency of a model that has just one; raises InvalidInput for the others."""
        if len(self._listed) == 1 and self._listed[0][1] is not None:
            return self._listed[0][1]
        listed = self.face.frequencies
        raise InvalidInput(
            f"instance {index}: frequency: expected beside start, " + (f"one of {listed}" if listed else "such as H or D"),
            reason="timestamp",
            instance=index,
            where="frequency",
            expected=listed or None,
        )


def _check_start(start: object, frequency: Frequency, num_steps: int, index: int) -> None:
    if not isinstance(start, str):
        raise wrong_type(index, "start", "an ISO 8601 timestamp as a string", start, reason="timestamp")
    try:
        timestamps(start, frequency, (0, num_steps))
    except ValueError as exc:
        raise InvalidInput(
            f"instance {index}: start: expected an ISO 8601 timestamp such as 2024-01-31T00:00:00+01:00, whose forecast "
            f"ends before the year 10000, got {shown(start)}",
            reason="timestamp",
            instance=index,
            where="start",
            found=shown(start),
            expected="an ISO 8601 timestamp",
        ) from exc


@lru_cache(maxsize=64)
def _selection(own: tuple[float, ...], levels: tuple[float, ...]) -> Array:
    """The matrix (1 + L, 1 + Q) that keeps the mean and takes the model's quantiles to the asked levels, linear in between."""
    matrix = np.zeros((1 + len(levels), 1 + len(own)))
    matrix[0, 0] = 1
    for column, unit in enumerate(np.eye(len(own)), 1):
        matrix[1:, column] = np.interp(levels, own, unit)
    return matrix


@lru_cache(maxsize=64)
def _keys(levels: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(f"{level:.12g}" for level in levels)
