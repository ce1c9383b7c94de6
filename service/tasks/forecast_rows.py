"""Histories of one length and nothing else, as most requests have them: read at once, and their forecasts written at once. Pure.

Instance by instance, a request of a hundred steps of sequences would take four times as long around its graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from service.errors import InvalidInput
from service.runtime.tensors import Array
from service.tasks.forecast_request import RequestDefaults
from service.tasks.history import NUMBERS_AT_ONCE, read_numbers
from service.wire import WrittenRows, write

HISTORY = "history"


def find_histories(instances: Sequence[object]) -> list[list[Any]] | None:
    """The histories of instances that hold nothing else, None where one of them does, or is something else."""
    try:
        histories = [cast("Mapping[str, Any]", instance)[HISTORY] for instance in instances]
    except (TypeError, KeyError):
        return None
    if set(map(type, histories)) != {list} or set(map(len, cast("Sequence[Any]", instances))) != {1}:
        return None
    return histories


def read_histories(
    instances: Sequence[object], defaults: RequestDefaults, *, is_plain: bool, steps_seen: Sequence[int] | None
) -> Array | None:
    """The histories, FP32 (N, T, 1), NaN for null, of instances that hold nothing else, where all have T steps.

    None for whatever is to be read instance by instance: what is refused, which has to be named, and what is filled or cut.
    """
    spec = defaults.spec
    histories = find_histories(instances) if len(spec.features) == 1 and not spec.num_known else None
    if histories is None or defaults.horizon > spec.horizon:
        return None
    steps = set(map(len, histories))
    num_steps = max(steps)
    least = max(1, spec.min_length - (min(steps_seen) if steps_seen else 0))
    is_long = spec.streaming and steps_seen is not None and num_steps > spec.context_length
    if len(steps) > 1 or num_steps < least or is_long or num_steps * len(histories) > NUMBERS_AT_ONCE:
        return None
    flat = [value for history in histories for value in history]
    try:
        values, has_gaps = read_numbers(flat, 1, 0, is_plain=is_plain)
    except InvalidInput:
        return None
    if has_gaps and not spec.streaming:
        return None
    found = values.reshape(len(histories), num_steps, 1)
    return found[:, -spec.context_length :] if steps_seen is None else found


class AnswerForm(NamedTuple):
    """What predictions of the same kind have in common."""

    keys: tuple[str, ...]
    """Of the quantiles, in order; empty: there are none."""
    horizon: int


class ForecastRows(WrittenRows):
    """The predictions of such instances: each what `decode` makes of its number, and all of them the same JSON."""

    def __init__(self, form: AnswerForm, forecasts: Array, anomalies: Array | None, decode: Callable[[int], Any]) -> None:
        """`forecasts` FP32 (N, 1 + Q, ≥ horizon); `anomalies` FP32 (N, T), NaN for null, of models that give them."""
        self._forecasts = np.ascontiguousarray(forecasts[:, :, : form.horizon])
        self._anomalies = anomalies
        self._decode = decode
        # What is written before each list of a row, and behind the last; between two lists stands what `_split` leaves: "],".
        self._heads = [b'{"forecast":[']
        self._heads += [b'%b"%b":[' % (b"" if number else b'"quantiles":{', key.encode()) for number, key in enumerate(form.keys)]
        self._end_of_forecasts = b"]}" if form.keys else b"]"

    @property
    def num_values(self) -> int:
        return self._forecasts.size + (0 if self._anomalies is None else self._anomalies.size)

    def __len__(self) -> int:
        return len(self._forecasts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._decode(each) for each in range(len(self))[index]]
        return self._decode(range(len(self))[index])

    def write_rows(self, start: int, end: int) -> bytes:
        num_rows, num_lists = end - start, len(self._heads)
        columns = []
        pieces = _split(self._forecasts[start:end].reshape(num_rows * num_lists, -1))
        for place, head in enumerate(self._heads):
            column = pieces[place::num_lists]
            columns += [[head] * num_rows, column if place < num_lists - 1 else [piece[:-2] for piece in column]]
        columns.append([self._end_of_forecasts] * num_rows)
        if self._anomalies is not None:
            columns += [
                [b',"anomaly":['] * num_rows,
                [piece[:-2] for piece in _split(self._anomalies[start:end])],
                [b"]"] * num_rows,
            ]
        columns.append([b"},"] * (num_rows - 1) + [b"}"])
        parts = [b""] * (len(columns) * num_rows)
        for place, column in enumerate(columns):
            parts[place :: len(columns)] = column
        return b"".join(parts)


def _split(rows: Array) -> list[bytes]:
    """The JSON of each row of (N, M), without its first bracket, and with what is behind its last: a comma, or a bracket.

    Cut at one character, which is found four times as fast as three.
    """
    return write(rows).split(b"[")[2:]
