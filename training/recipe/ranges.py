"""Values of an option that a search may try: a range as `1e-4..1e-2`, or a list. Knows no recipe and searches nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Value = str | int | float | bool

LOGARITHMIC_FROM = 10
"""A range whose end is so many times its beginning is drawn by logarithm: 1e-4..1e-3 as often as 1e-3..1e-2."""
SEARCHABLE = ("fit", "layers", "ensemble", "tokenizer", "vectors")
CHANGES_THE_SCORE = ("fit.loss", "fit.minutes")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both among them."""

    low: float
    high: float
    is_whole: bool

    @property
    def is_logarithmic(self) -> bool:
        return self.low > 0 and self.high >= LOGARITHMIC_FROM * self.low

    def contains(self, value: object) -> bool:
        is_number = isinstance(value, int if self.is_whole else int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high  # type: ignore[operator]  # is_number says that it is one


@dataclass(frozen=True)
class Choices:
    """Any of these."""

    values: tuple[Value, ...]

    def contains(self, value: object) -> bool:
        return value in self.values


def read_values(given: str | Sequence[Value]) -> Range | Choices:
    """The values that a text or a list stands for. Raises ValueError, as a sentence about the value."""
    if not isinstance(given, str):
        if len(given) < 2 or len(set(given)) < len(given):
            raise ValueError(f"a list of values has two or more different ones, got {list(given)}")
        return Choices(tuple(given))
    first, dots, last = given.partition("..")
    expected = f'expected a range as "1e-4..1e-2" or a list of values, got {given!r}'
    if not dots:
        raise ValueError(expected)
    try:
        low, high = float(first), float(last)
    except ValueError:
        raise ValueError(expected) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"a range goes from a smaller number to a larger one, got {given!r}")
    return Range(low, high, is_whole=_is_whole(first) and _is_whole(last))


def require_comparable(key: str) -> None:
    """Raise ValueError where trials with different values of an option could not be compared by their validation scores."""
    table = key.partition(".")[0]
    if table not in SEARCHABLE:
        raise ValueError(f"searched are options of {', '.join(SEARCHABLE)}: with others the validation scores would not compare")
    if key in CHANGES_THE_SCORE:
        raise ValueError("with other values of it the validation scores would not compare")


def _is_whole(number: str) -> bool:
    try:
        int(number)
    except ValueError:
        return False
    return True
