"""A history as JSON values → an array of numbers, with the place of the first value that is none.

Pure. What a history is for, and how long it may be, is decided in `forecast_request.py`.
"""

from __future__ import annotations

import itertools
import math
import struct
from functools import lru_cache
from typing import Any

import numpy as np

from service.errors import InvalidInput, InvalidReason
from service.runtime.tensors import Array, is_all_finite
from service.tasks.refusals import refuse_type, show

FLOAT32_MAX = float(np.finfo(np.float32).max)
NUMBERS_AT_ONCE = 20_000
"""Numbers of a history that are converted by one call, which keeps the GIL: 1 ms; a million in one call took 43."""


def read_numbers(given: list[Any], num_features: int, index: int, *, is_plain: bool = False) -> tuple[Array, bool]:
    """A history as FP32 (T, F) with NaN for null, and whether there are nulls. All of it is checked, also what is not read.

    Raises InvalidInput that names the first value of instance `index` that is no finite float32 number or null.
    """
    if len(given) * num_features > NUMBERS_AT_ONCE:
        step = max(1, NUMBERS_AT_ONCE // num_features)
        parts = [_read_at_once(given[start : start + step], given, num_features, index) for start in range(0, len(given), step)]
        return np.concatenate([values for values, _ in parts]), any(has_gaps for _, has_gaps in parts)
    if num_features == 1:
        try:
            # The fast path, 3 µs for 336 numbers: it takes numbers and booleans, and makes inf of what is beyond float32.
            packed = _packer(len(given)).pack(*given)
        except (struct.error, OverflowError):
            pass
        else:
            values = np.frombuffer(packed, np.float32).reshape(-1, 1)
            if is_all_finite(values) and (is_plain or bool not in set(map(type, given))):
                return values, False
    return _read_at_once(given, given, num_features, index)


@lru_cache(maxsize=2048)
def _packer(num: int) -> struct.Struct:
    return struct.Struct(f"{num}f")


def _read_at_once(part: list[Any], given: list[Any], num_features: int, index: int) -> tuple[Array, bool]:
    """A part of a history. Where something is wrong in it, all of the history is searched for the first such value."""
    has_rows = num_features > 1 or isinstance(given[0], list)
    try:
        if has_rows and set(map(len, part)) != {num_features}:
            raise _find_misfit(given, num_features, index)
        types = set(map(type, itertools.chain.from_iterable(part) if has_rows else part))
        if types <= _NUMBER_OR_NULL:
            values = np.array(part, np.float64).reshape(len(part), num_features)
            if np.abs(values).max() <= FLOAT32_MAX:
                return values.astype(np.float32), False
            is_missing = np.isnan(values)
            num_nulls = sum(row.count(None) for row in part) if has_rows else part.count(None)
            if num_nulls == is_missing.sum() and np.abs(values[~is_missing]).max(initial=0.0) <= FLOAT32_MAX:
                return values.astype(np.float32), True
    except (TypeError, OverflowError):
        pass  # a row that is no list, or an integer of 400 digits
    raise _find_misfit(given, num_features, index)


_NUMBER_OR_NULL = {int, float, type(None)}


def _find_misfit(given: list[Any], num_features: int, index: int) -> InvalidInput:
    """The slow path: find the first value that cannot be read."""
    has_rows = num_features > 1 or isinstance(given[0], list)
    for step, entry in enumerate(given):
        where = f"history[{step}]"
        if not has_rows:
            if (why := _objection(entry)) is not None:
                return _bad_value(index, where, entry, *why)
            continue
        if not isinstance(entry, list):
            return refuse_type(index, where, f"a row of {num_features} numbers", entry)
        if len(entry) != num_features:
            return InvalidInput(
                f"instance {index}: {where}: expected a row of {num_features} numbers, got {len(entry)}",
                instance=index,
                where=where,
                found=len(entry),
                expected=num_features,
            )
        for feature, value in enumerate(entry):
            if (why := _objection(value)) is not None:
                return _bad_value(index, f"{where}[{feature}]", value, *why)
    raise AssertionError("every value can be read")


def _objection(value: object) -> tuple[InvalidReason, str] | None:
    """(reason, words) if the value cannot be a step of a history."""
    if value is None:
        return None
    if type(value) is int or type(value) is float:
        if value != value or value in (math.inf, -math.inf):
            return "nonfinite", ""
        return ("nonfinite", " (beyond float32)") if abs(value) > FLOAT32_MAX else None
    return "dtype", ""


def _bad_value(index: int, where: str, value: object, reason: InvalidReason, why: str) -> InvalidInput:
    return InvalidInput(
        f"instance {index}: {where}: expected a finite number or null, got {show(value)}{why}",
        reason=reason,
        instance=index,
        where=where,
        found=show(value),
        expected="a finite number or null",
    )
