"""Instances as JSON values ↔ named tensors, for each task: encode before the graph runs, decode after.

Pure: no clock, no disk, no threads. A task never runs a graph; it yields what should be run and is sent the outputs, so
that a forecast beyond the model's horizon, which needs several runs, reads from top to bottom and is tested without one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Protocol

import numpy as np

from service.errors import InferenceFailed, InvalidInput, MalformedRequest, PayloadTooLarge
from service.frequencies import Frequency, read_frequency, timestamps
from service.manifest import Classify as ClassifyFace
from service.manifest import Forecast as ForecastFace
from service.tensors import (
    LENGTHS,
    Array,
    Signature,
    Tensors,
    TensorSpec,
    batch_key,
    check,
    collate,
    num_steps,
    parse_row,
    with_zero_state,
)

Prediction = Any
"""A JSON value, as POST /predict answers it."""

Dialogue = Generator[list[Tensors], list[Tensors], list[Prediction]]
"""Yields items to run, is sent their outputs in the same order, perhaps several times; returns the predictions in order."""

FLOAT32_MAX = float(np.finfo(np.float32).max)
NUM_DIGITS = 7
"""Significant digits of an answer: what a float32 holds, short enough for a person and for the wire."""

STEPS_PER_RUN = 64
"""What a run costs as such, in time steps: rows whose lengths differ by less are not worth a run of their own."""

# Above these, encoding takes milliseconds and belongs on a thread: 64 histories of 336 values need about 1.5 ms.
HEAVY_NUM_INSTANCES = 64
HEAVY_SIZE = 20_000
MAX_NUMBERS = 5_000_000
"""The largest answer: 10,000 forecasts of 48 steps and nine quantiles are some 40 MB of JSON."""
MAX_HISTORY_VALUES = 1_000_000
"""The longest history, in steps times features: hourly values of a century."""
NUMBERS_AT_ONCE = 20_000
"""Numbers of a history that are converted by one call, which keeps the GIL: 1 ms; a million in one call took 43."""
MAX_CHARACTERS = 100_000
"""The longest text. Only its head and tail are read, but all of it is split into tokens first: 60 ms and 10 MB."""
ROWS_AT_ONCE = 256
"""Predictions that are rounded together, so that a large answer is not held in memory several times over."""


@dataclass(frozen=True)
class ItemLimits:
    """How large one item may be: the rows of a request are cut into items that fit into a batch."""

    max_rows: int = 32
    max_padded_steps: int = 1 << 16


class Task(Protocol):
    """What instances mean to one model."""

    def dialogue(self, instances: Sequence[object], parameters: Mapping[str, object]) -> Dialogue:
        """Predict all instances. Nothing is checked before the first `send`.

        Raises InvalidInput that names the instance and the place in it, MalformedRequest for unknown fields, and
        InferenceFailed when an output is not finite: JSON has no NaN.
        """
        ...

    def is_heavy(self, instances: Sequence[object], parameters: Mapping[str, object]) -> bool:
        """Whether encoding or decoding these would hold up an event loop."""
        ...


# ---------------------------------------------------------------------------------------------------------- forecast


@dataclass(frozen=True)
class Question:
    """One forecasting instance, checked: raw values (T, F) without gaps, and what is asked about them."""

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

    def dialogue(self, instances: Sequence[object], parameters: Mapping[str, object]) -> Dialogue:
        questions = self.encode(instances, parameters)
        step = self.face.horizon
        num_runs = -(-max(question.horizon for question in questions) // step)
        num_numbers = len(questions) * num_runs * step * self._numbers_per_step
        if num_numbers > MAX_NUMBERS:
            raise PayloadTooLarge(
                f"the answer would hold {num_numbers} numbers, at most {MAX_NUMBERS} are given: ask for fewer instances "
                "or a shorter horizon",
                found=num_numbers,
                limit=MAX_NUMBERS,
            )
        # (N, H, targets, 1 + Q): the mean and behind it the quantiles
        shape = (len(questions), num_runs * step, len(self.face.targets), 1 + len(self.face.quantiles))
        answers = np.empty(shape, np.float32)
        histories = [question.history for question in questions]
        for start in range(0, num_runs * step, step):
            asking = [index for index, question in enumerate(questions) if question.horizon > start]
            if start > 0:
                for index in asking:
                    histories[index] = self._fed_back(histories[index], answers[index, start - step : start, :, 0])
            groups = grouped([len(histories[index]) for index in asking], self.limits)
            rows = [[asking[place] for place in group] for group in groups]
            outputs = yield [self._item([histories[index] for index in group]) for group in rows]
            for group, output in zip(rows, outputs, strict=True):
                answers[group, start : start + step, :, 0] = _finite(output, "mean", group)
                if self.face.quantiles:
                    answers[group, start : start + step, :, 1:] = _finite(output, "quantiles", group)
        return self.decode(questions, answers)

    def encode(self, instances: Sequence[object], parameters: Mapping[str, object]) -> list[Question]:
        """Check every instance; fill gaps and cut histories to what the network reads."""
        _expect_instances(instances)
        unknown = [name for name in parameters if name not in self.PARAMETERS]
        if unknown:
            raise _unknown_parameters(unknown, self.PARAMETERS)
        ask = _Asked(self, parameters) if parameters else self._asked_nothing
        return [self._question(instance, index, ask) for index, instance in enumerate(instances)]

    def decode(self, questions: Sequence[Question], answers: Array) -> list[Prediction]:
        """Predictions of questions from what was answered (N, H, targets, 1 + Q), in the order of the questions."""
        predictions: list[Prediction] = [None] * len(questions)
        alike: dict[tuple[tuple[float, ...], int], list[int]] = {}
        for index, question in enumerate(questions):
            alike.setdefault((question.levels, question.horizon), []).append(index)
        for (levels, horizon), group in alike.items():
            keys = [f"{level:.12g}" for level in levels]
            for begin in range(0, len(group), ROWS_AT_ONCE):
                part = group[begin : begin + ROWS_AT_ONCE]
                values = answers[part, :horizon]
                if levels != tuple(self.face.quantiles):
                    values = values.astype(np.float64) @ _selection(tuple(self.face.quantiles), levels)
                # (N, h, targets, 1 + L) → (N, 1 + L, h, targets), without the last axis where there is one target
                values = values[:, :, 0].transpose(0, 2, 1) if len(self.face.targets) == 1 else values.transpose(0, 3, 1, 2)
                for index, (mean, *at_levels) in zip(part, rounded(values).tolist(), strict=True):
                    prediction = predictions[index] = {"mean": mean}
                    if keys:
                        prediction["quantiles"] = dict(zip(keys, at_levels, strict=True))
        for prediction, question in zip(predictions, questions, strict=True):
            if question.start is not None and question.frequency is not None:
                steps = range(question.num_given, question.num_given + question.horizon)
                prediction["timestamps"] = timestamps(question.start, question.frequency, steps)
            if question.num_interpolated:
                prediction["num_interpolated"] = question.num_interpolated
        return predictions

    def _question(self, instance: object, index: int, ask: _Asked) -> Question:
        if not isinstance(instance, dict):
            raise _wrong_type(index, "", "an object with a history", instance)
        if not instance.keys() <= self.FIELDS:
            raise _unknown_fields(index, set(instance) - self.FIELDS, self.FIELDS)
        given = instance.get("history")
        if not isinstance(given, list):
            raise (
                _wrong_type(index, "history", "a list of numbers", given) if "history" in instance else _missing(index, "history")
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
        values, has_gaps = _numbers(given, len(self.face.features), index)
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
        columns = [self.face.targets.index(feature) for feature in self.face.features]
        return np.concatenate((history, mean[:, columns]))[-self.face.context_length :]

    def _item(self, histories: Sequence[Array]) -> Tensors:
        lengths = np.array([len(history) for history in histories], np.int64)
        padded = np.zeros((len(histories), int(lengths.max()), len(self.face.features)), np.float32)  # (B, T, F)
        for row, history in zip(padded, histories, strict=True):
            row[: len(history)] = history
        return with_zero_state({"history": padded, LENGTHS: lengths}, self.signature, len(histories))


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
            raise _wrong_type(index, "horizon", "a whole number", value)
        if not 1 <= value <= self.max_horizon:
            why = "" if self.can_feed_back else ", for some of its features are not forecast and cannot be fed back"
            raise InvalidInput(
                f"{_place(index, 'horizon')}: expected 1 to {self.max_horizon} steps (one run of this model forecasts "
                f"{self.face.horizon}){why}, got {_shown(value)}",
                reason="length",
                instance=index,
                where="horizon",
                found=_shown(value),
                expected=f"1 to {self.max_horizon}",
            )
        return value

    def levels(self, value: object, index: int | None = None) -> tuple[float, ...]:
        """The asked levels, once each, in the order asked."""
        if not isinstance(value, list) or not all(type(level) in (int, float) for level in value):
            raise _wrong_type(index, "quantiles", "a list of numbers between 0 and 1", value)
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
                f"{_place(index, 'quantiles')}: expected {expected}, got {_shown(outside[0])}",
                instance=index,
                where="quantiles",
                found=_shown(outside[0]),
                expected=own,
            )
        if len(self._levels) > 100:
            self._levels.clear()  # one request may ask anything, and this one may serve all requests
        self._levels[key] = tuple(dict.fromkeys(float(level) for level in value))
        return self._levels[key]

    def frequency(self, value: object, index: int | None = None) -> Frequency | None:
        if not isinstance(value, str):
            raise _wrong_type(index, "frequency", "a string", value)
        found = read_frequency(value)
        known = [frequency for _, frequency in self._listed]
        if found is None or (known and not any(f and (f.code, f.count) == (found.code, found.count) for f in known)):
            expected = self.face.frequencies or ["S", "T", "H", "D", "W", "M", "Q", "Y"]
            raise InvalidInput(
                f"{_place(index, 'frequency')}: expected one of {expected}, got {_shown(value)}",
                reason="timestamp",
                instance=index,
                where="frequency",
                found=_shown(value),
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


def _numbers(given: list[Any], num_features: int, index: int) -> tuple[Array, bool]:
    """A history as (T, F) with NaN for null, and whether there are nulls. All of it is checked, also what is not read."""
    steps_at_once = max(1, NUMBERS_AT_ONCE // num_features)
    if len(given) <= steps_at_once:
        return _numbers_at_once(given, given, num_features, index)
    parts = [
        _numbers_at_once(given[start : start + steps_at_once], given, num_features, index)
        for start in range(0, len(given), steps_at_once)
    ]
    return np.concatenate([values for values, _ in parts]), any(has_gaps for _, has_gaps in parts)


def _numbers_at_once(part: list[Any], given: list[Any], num_features: int, index: int) -> tuple[Array, bool]:
    """A part of a history. The fast path only learns that something is wrong, and has all of it searched for what."""
    has_rows = num_features > 1 or isinstance(given[0], list)
    try:
        if has_rows and set(map(len, part)) != {num_features}:
            raise _misfit(given, num_features, index)
        types = set(map(type, itertools.chain.from_iterable(part) if has_rows else part))
        if types <= _NUMBER_OR_NULL:
            values = np.array(part, np.float64).reshape(len(part), num_features)
            if np.abs(values).max() <= FLOAT32_MAX:
                return values, False
            is_missing = np.isnan(values)
            num_nulls = sum(row.count(None) for row in part) if has_rows else part.count(None)
            if num_nulls == is_missing.sum() and np.abs(values[~is_missing]).max(initial=0.0) <= FLOAT32_MAX:
                return values, True
    except (TypeError, OverflowError):
        pass  # a row that is no list, or an integer of 400 digits
    raise _misfit(given, num_features, index)


_NUMBER_OR_NULL = {int, float, type(None)}


def _misfit(given: list[Any], num_features: int, index: int) -> InvalidInput:
    """The slow path: find the first value that cannot be read."""
    has_rows = num_features > 1 or isinstance(given[0], list)
    for step, entry in enumerate(given):
        where = f"history[{step}]"
        if not has_rows:
            if (why := _why_not(entry)) is not None:
                return _bad_value(index, where, entry, *why)
            continue
        if not isinstance(entry, list):
            return _wrong_type(index, where, f"a row of {num_features} numbers", entry)
        if len(entry) != num_features:
            return InvalidInput(
                f"instance {index}: {where}: expected a row of {num_features} numbers, got {len(entry)}",
                instance=index,
                where=where,
                found=len(entry),
                expected=num_features,
            )
        for feature, value in enumerate(entry):
            if (why := _why_not(value)) is not None:
                return _bad_value(index, f"{where}[{feature}]", value, *why)
    raise AssertionError("every value can be read")


def _why_not(value: object) -> tuple[str, str] | None:
    """(reason, words) if the value cannot be a step of a history."""
    if value is None:
        return None
    if type(value) is int or type(value) is float:
        if value != value or value in (math.inf, -math.inf):
            return "nonfinite", ""
        return ("nonfinite", " (beyond float32)") if abs(value) > FLOAT32_MAX else None
    return "dtype", ""


def _bad_value(index: int, where: str, value: object, reason: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"instance {index}: {where}: expected a finite number or null, got {_shown(value)}{why}",
        reason=reason,
        instance=index,
        where=where,
        found=_shown(value),
        expected="a finite number or null",
    )


def _check_start(start: object, frequency: Frequency, num_steps: int, index: int) -> None:
    if not isinstance(start, str):
        raise _wrong_type(index, "start", "an ISO 8601 timestamp as a string", start, reason="timestamp")
    try:
        timestamps(start, frequency, (0, num_steps))
    except ValueError as exc:
        raise InvalidInput(
            f"instance {index}: start: expected an ISO 8601 timestamp such as 2024-01-31T00:00:00+01:00, whose forecast "
            f"ends before the year 10000, got {_shown(start)}",
            reason="timestamp",
            instance=index,
            where="start",
            found=_shown(start),
            expected="an ISO 8601 timestamp",
        ) from exc


@lru_cache(maxsize=64)
def _selection(own: tuple[float, ...], levels: tuple[float, ...]) -> Array:
    """The matrix (1 + Q, 1 + L) that keeps the mean and takes the model's quantiles to the asked levels, linear in between."""
    matrix = np.zeros((1 + len(own), 1 + len(levels)))
    matrix[0, 0] = 1
    for place, unit in enumerate(np.eye(len(own)), 1):
        matrix[place, 1:] = np.interp(levels, own, unit)
    return matrix


# ---------------------------------------------------------------------------------------------------------- classify


class Encoder(Protocol):
    """What splits texts into token ids; `service.tokenization` has the real one."""

    @property
    def largest_id(self) -> int: ...

    def encode(self, texts: Sequence[str], max_length: int, head: int, tail: int) -> Sequence[tuple[Sequence[int], bool]]:
        """Per text its ids (at least one) and whether it was truncated. Raises InvalidInput for a text that has none."""
        ...


@dataclass(frozen=True)
class Classify:
    """Texts in, a label and the probability of every label out."""

    face: ClassifyFace
    signature: Signature
    tokenizer: Encoder
    limits: ItemLimits = field(default_factory=ItemLimits)

    def is_heavy(self, instances: Sequence[object], parameters: Mapping[str, object]) -> bool:
        if len(instances) > HEAVY_NUM_INSTANCES:
            return True
        texts = [instance.get("text") if isinstance(instance, dict) else instance for instance in instances]
        return sum(len(text) for text in texts if isinstance(text, str)) > HEAVY_SIZE

    def dialogue(self, instances: Sequence[object], parameters: Mapping[str, object]) -> Dialogue:
        encoded = self.encode(instances, parameters)
        groups = grouped([len(ids) for ids, _ in encoded], self.limits)
        probabilities = np.empty((len(encoded), len(self.face.labels)), np.float64)  # (N, labels)
        outputs = yield [self._item([encoded[index][0] for index in group]) for group in groups]
        for group, output in zip(groups, outputs, strict=True):
            probabilities[group] = _finite(output, "probabilities", group)
        return self.decode(probabilities, [is_truncated for _, is_truncated in encoded])

    def encode(self, instances: Sequence[object], parameters: Mapping[str, object]) -> list[tuple[Sequence[int], bool]]:
        """Check every instance; per text its token ids and whether it was truncated."""
        _expect_instances(instances)
        if parameters:
            raise _unknown_parameters(list(parameters), ())
        texts = [_text(instance, index) for index, instance in enumerate(instances)]
        truncation = self.face.truncation
        return list(self.tokenizer.encode(texts, self.face.max_length, truncation.head, truncation.tail))

    def decode(self, probabilities: Array, truncated: Sequence[bool]) -> list[Prediction]:
        """Predictions from probabilities (N, labels)."""
        labels = self.face.labels
        best = probabilities.argmax(axis=1).tolist()
        predictions: list[Prediction] = []
        for row, winner, is_truncated in zip(rounded(probabilities).tolist(), best, truncated, strict=True):
            prediction = {"label": labels[winner], "score": row[winner], "probabilities": dict(zip(labels, row, strict=True))}
            if is_truncated:
                prediction["truncated"] = True
            predictions.append(prediction)
        return predictions

    def last_token(self) -> Tensors:
        """An item of one row, which holds only the last token of the vocabulary: a sound graph takes it."""
        return self._item([[self.tokenizer.largest_id]])

    def _item(self, rows: Sequence[Sequence[int]]) -> Tensors:
        lengths = np.array([len(ids) for ids in rows], np.int64)
        padded = np.zeros((len(rows), int(lengths.max())), np.int64)  # (B, T)
        for row, ids in zip(padded, rows, strict=True):
            row[: len(ids)] = ids
        return with_zero_state({"tokens": padded, LENGTHS: lengths}, self.signature, len(rows))


def _text(instance: object, index: int) -> str:
    text = instance
    if isinstance(instance, dict):
        if instance.keys() != {"text"}:
            if "text" not in instance:
                raise _missing(index, "text")
            raise _unknown_fields(index, set(instance) - {"text"}, {"text"})
        text = instance["text"]
    where = "text" if isinstance(instance, dict) else ""
    if not isinstance(text, str):
        raise _wrong_type(index, where, "a string", text)
    if len(text) > MAX_CHARACTERS:
        raise InvalidInput(
            f"instance {index}: the text has {len(text)} characters, expected at most {MAX_CHARACTERS}",
            reason="length",
            instance=index,
            where=where or None,
            found=len(text),
            expected=f"at most {MAX_CHARACTERS} characters",
        )
    return text


# ------------------------------------------------------------------------------------------------------------ tensor


@dataclass(frozen=True)
class TensorRows:
    """Nested lists in, nested lists out: for graphs that no richer face describes. One instance is one row of the batch."""

    signature: Signature
    limits: ItemLimits = field(default_factory=ItemLimits)

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a caller gives: `lengths` follows from the rows, state begins with zeros."""
        states = {name for name, _ in self.signature.state}
        return tuple(
            spec
            for spec in self.signature.inputs
            if spec.name not in states and not (spec.name == LENGTHS and self.signature.is_ragged)
        )

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        states = {name for _, name in self.signature.state}
        return tuple(spec for spec in self.signature.outputs if spec.name not in states)

    def is_heavy(self, instances: Sequence[object], parameters: Mapping[str, object]) -> bool:
        return len(instances) > HEAVY_NUM_INSTANCES or sum(map(_approximate_size, instances)) > HEAVY_SIZE

    def dialogue(self, instances: Sequence[object], parameters: Mapping[str, object]) -> Dialogue:
        rows = self.encode(instances, parameters)
        lengths = [num_steps(row, self.signature) for row in rows]
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, row in enumerate(rows):
            key = batch_key(row, self.signature) or ((lengths[index],) if not self.signature.is_ragged else ())
            alike.setdefault(key, []).append(index)
        groups = [
            [indices[place] for place in group]
            for indices in alike.values()
            for group in grouped([lengths[index] for index in indices], self.limits)
        ]
        outputs = yield [collate([rows[index] for index in group], self.signature) for group in groups]
        answers: list[Tensors] = [{}] * len(rows)
        for group, output in zip(groups, outputs, strict=True):
            for place, index in enumerate(group):
                answers[index] = {name: array[place : place + 1] for name, array in output.items()}
        return self.decode(answers, lengths)

    def encode(self, instances: Sequence[object], parameters: Mapping[str, object]) -> list[Tensors]:
        """Every instance as a checked item of one row."""
        _expect_instances(instances)
        if parameters:
            raise _unknown_parameters(list(parameters), ())
        return [self._row(instance, index) for index, instance in enumerate(instances)]

    def decode(self, answers: Sequence[Tensors], lengths: Sequence[int]) -> list[Prediction]:
        """Predictions from outputs of one row each; time is cut to the row's own length."""
        predictions: list[Prediction] = []
        for index, (answer, length) in enumerate(zip(answers, lengths, strict=True)):
            values = {spec.name: _json(self._cut(_finite(answer, spec.name, [index]), spec, length)) for spec in self.outputs}
            predictions.append(values if len(values) != 1 else next(iter(values.values())))
        return predictions

    def _cut(self, rows: Array, spec: TensorSpec, length: int) -> Array:
        if spec.time_axis is None or not self.signature.is_ragged:
            return rows
        return rows[(slice(None),) * spec.time_axis + (slice(0, length),)]

    def _row(self, instance: object, index: int) -> Tensors:
        names = [spec.name for spec in self.inputs]
        if isinstance(instance, dict):
            given: dict[str, object] = instance
            if not given.keys() <= set(names):
                raise _unknown_fields(index, set(given) - set(names), names)
        elif len(names) == 1:
            given = {names[0]: instance}
        else:
            raise _wrong_type(index, "", f"an object with {names}", instance)
        try:
            tensors: Tensors = {}
            for spec in self.inputs:
                if spec.name not in given:
                    raise _missing(index, spec.name)
                tensors[spec.name] = parse_row(given[spec.name], spec, instance=index)
            if self.signature.is_ragged:
                tensors[LENGTHS] = np.array([num_steps(tensors, self.signature)], np.int64)
            tensors = with_zero_state(tensors, self.signature, 1)
            check(tensors, self.signature)
        except InvalidInput as exc:
            raise _of_instance(exc, index) from exc
        return tensors


def _of_instance(exc: InvalidInput, index: int) -> InvalidInput:
    """The same complaint, about an instance by its number in the request."""
    message = exc.message if exc.message.startswith(f"instance {index}") else f"instance {index}: {exc.message}"
    facts = exc.facts
    where = facts.get("where")
    return InvalidInput(
        message,
        reason=exc.reason,
        instance=index,
        where=where if isinstance(where, str) else None,
        found=facts.get("found"),
        expected=facts.get("expected"),
    )


def _json(rows: Array) -> Any:
    """The only row of an output as JSON values; nine significant digits give a float32 back exactly."""
    return (rounded(rows, num_digits=9) if rows.dtype == np.float32 else rows).tolist()[0]


def _approximate_size(value: object) -> int:
    size = 1
    if isinstance(value, dict):
        return sum(map(_approximate_size, value.values()))
    while isinstance(value, list) and value:
        size *= len(value)
        value = value[0]
    return size


# ------------------------------------------------------------------------------------------------- what all tasks use


def grouped(lengths: Sequence[int], limits: ItemLimits) -> list[list[int]]:
    """Cut rows into groups of similar length, none above the limits (but at least one row each): lists of row numbers."""
    if len(lengths) == 1:
        return [[0]]
    groups: list[list[int]] = []
    group: list[int] = []
    # Ascending: the row that is looked at is the longest of its group, the first one the shortest.
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group:
            is_full = len(group) == limits.max_rows or (len(group) + 1) * lengths[row] > limits.max_padded_steps
            if is_full or lengths[row] + STEPS_PER_RUN > 2 * (lengths[group[0]] + STEPS_PER_RUN):
                groups.append(group)
                group = []
        group.append(row)
    return [*groups, group]


_SMALLEST = 1e-45
_POWERS = np.array([float(f"1e{exponent}") for exponent in range(310)])


def rounded(values: Array, *, num_digits: int = NUM_DIGITS) -> Array:
    """Floats rounded to significant digits, as float64 whose shortest decimal has no more digits (magnitudes 1e-15 to 1e22).

    13 us for the 480 values of one forecast; `"%.7g"` on each takes 145 us.
    """
    exact = values.astype(np.float64, copy=False)
    size = np.abs(exact)
    np.maximum(size, _SMALLEST, out=size)
    exponent = np.floor(np.log10(size, out=size), out=size).astype(np.int64)
    shift = num_digits - 1 - exponent
    # Dividing an exact integer by an exact power of ten gives the float nearest to the decimal.
    up = _POWERS[np.maximum(shift, 0)]
    result: Array
    if shift.min(initial=0) >= 0:
        result = np.rint(exact * up) / up
    else:
        down = _POWERS[np.maximum(-shift, 0)]
        result = np.rint(exact * up / down) / up * down
    return result


def _finite(output: Tensors, name: str, instances: Sequence[int]) -> Array:
    """An output whose rows answer these instances. Raises InferenceFailed that names the first whose row is not finite."""
    array = output[name]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise InferenceFailed(
            f'instance {instances[row]}: the model\'s output "{name}" is not finite', instance=instances[row], output=name
        )
    return array


def _expect_instances(instances: Sequence[object]) -> None:
    if not instances:
        raise InvalidInput("instances: expected at least one, got none", where="instances", found=0, expected="at least one")


def _unknown_parameters(unknown: Sequence[str], known: Sequence[str]) -> MalformedRequest:
    expected = f"this model takes {list(known)}" if known else "this model takes none"
    return MalformedRequest(f"parameters: unknown {_shown(unknown[0])}; {expected}", where="parameters", expected=list(known))


def _unknown_fields(index: int, unknown: Iterable[object], known: Iterable[str]) -> MalformedRequest:
    first, expected = min(map(str, unknown)), sorted(known)
    return MalformedRequest(
        f"instance {index}: unknown field {_shown(first)}; expected {expected}", instance=index, where=first, expected=expected
    )


def _missing(index: int, field: str) -> InvalidInput:
    return InvalidInput(f"instance {index}: {field} is missing", instance=index, where=field)


def _wrong_type(index: int | None, where: str, expected: str, found: object, *, reason: str = "dtype") -> InvalidInput:
    return InvalidInput(
        f"{_place(index, where)}: expected {expected}, got {_shown(found)}",
        reason=reason,
        instance=index,
        where=where or None,
        found=_shown(found),
        expected=expected,
    )


def _place(index: int | None, where: str) -> str:
    if index is None:
        return f"parameters: {where}"
    return f"instance {index}: {where}" if where else f"instance {index}"


def _shown(value: object) -> str:
    """A value as it stood in the JSON, cut short; never the whole of what a caller sent."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "an integer of more than 20 digits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return f'"{value[:60]}"' + ("…" if len(value) > 60 else "")
    return str(value)[:60]
