"""How the answers of an example are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from service.models.example import find_differences
from service.models.folder import ModelOptions
from tests.folders import (
    write_forecast_folder,
    write_tensor_folder,
    write_text_folder,
)

CPU = ModelOptions(device="cpu")
WRITERS: list[Callable[[Path], Path]] = [write_forecast_folder, write_text_folder, write_tensor_folder]


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        (1.0005, 1, None),
        (1.002, 1, "x: expected 1, found 1.002"),
        (float("nan"), 1.0, "x: expected 1, found nan"),
        (True, 1, "x: expected 1, found True"),
        ("a", "b", "x: expected 'b', found 'a'"),
        ([1, 2], [1], "x: expected 1 entries, found 2"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "x.a[1]: expected 3, found 2"),
        ({"a": 1}, {"b": 1}, "x: expected the fields ['b'], found ['a']"),
        (None, 0, "x: expected 0, found None"),
    ],
)
def test_answers_differ_by_more_than_the_tolerance_or_in_kind(found: object, expected: object, difference: str | None) -> None:
    lines = find_differences(found, expected, 1e-4, 1e-3, "x")
    assert (lines == []) if difference is None else lines[0].startswith(difference)
