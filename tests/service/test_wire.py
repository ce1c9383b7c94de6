"""JSON in and out."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.wire import VALUES_PER_PART, WrittenRows, is_plain, read, write, write_indented, write_parts

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_what_is_written_is_read_again(value: object) -> None:
    assert read(write(value)) == value
    assert json.loads(write(value)) == value
    assert json.loads(write_indented(value)) == value


def test_what_is_indented_is_json_whatever_a_manifest_holds() -> None:
    assert write_indented({"a": [1]}) == b'{\n  "a": [\n    1\n  ]\n}\n'
    assert json.loads(write_indented({"large": 10**30, "no number": None})) == {"large": 10**30, "no number": None}
    assert json.loads(write_indented([math.nan, math.inf, np.float64(0.5)])) == [None, None, 0.5]


@pytest.mark.parametrize("text", [b"", b"[1,", b"NaN", b"[Infinity]", b"1e999", b"[-1e400]", b"'a'", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(text)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_a_float32_is_written_so_that_it_comes_back_and_no_longer_than_that(values: list[float]) -> None:
    array = np.array(values, np.float32)
    text = write(array)
    assert np.array(read(text), np.float32).tolist() == array.tolist()
    assert all(len(number.strip("-").split("e")[0].replace(".", "").strip("0")) <= 9 for number in text[1:-1].decode().split(","))


def test_numpy_scalars_and_nested_arrays_are_values() -> None:
    array = np.arange(6, dtype=np.int64).reshape(2, 3)
    assert write({"a": array, "b": np.float32(0.1), "c": np.bool_(True)}) == b'{"a":[[0,1,2],[3,4,5]],"b":0.1,"c":true}'


@given(VALUES)
def test_a_plain_text_holds_neither_true_nor_false_nor_null_in_a_list(value: object) -> None:
    def holds(inner: object) -> bool:
        children = inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list) else ()
        return inner is None or isinstance(inner, bool) or any(holds(child) for child in children)

    text = write({"instances": [value]})
    assert not (is_plain(text) and holds([value]))


def test_a_body_of_numbers_is_plain() -> None:
    body = {"model": "forecast-hourly", "instances": [{"history": [1, -2.5, math.pi, 1e-7, 1e300]}]}
    assert is_plain(json.dumps(body).encode())
    assert not is_plain(json.dumps({**body, "instances": [{"history": [1, True]}]}).encode())


def forecasts(num: int, horizon: int) -> list[object]:
    return [{"forecast": np.arange(horizon, dtype=np.float32), "quantiles": {"0.5": np.ones(horizon)}} for _ in range(num)]


class Doubles(WrittenRows):
    """Rows of two equal numbers."""

    def __init__(self, num: int) -> None:
        self._num = num

    @property
    def num_values(self) -> int:
        return 2 * self._num

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: Any) -> Any:
        return [index, index]

    def write_rows(self, start: int, end: int) -> bytes:
        return b",".join(b"[%d,%d]" % (row, row) for row in range(start, end))


@pytest.mark.parametrize("num", [0, 1, 5])
def test_rows_that_write_themselves_are_a_list(num: int) -> None:
    assert (
        write({"a": Doubles(num)})
        == write({"a": [[row, row] for row in range(num)]})
        == b"".join(write_parts({"a": Doubles(num)}))
    )


LARGE: dict[str, object] = {
    "rows that write themselves": {"predictions": Doubles(2 * VALUES_PER_PART), "b": 1},
    "one array": np.arange(VALUES_PER_PART * 3 + 1),
    "rows of an array": np.ones((7, VALUES_PER_PART // 2, 2), np.float32),
    "strings": {"data": ["a,[]"] * (VALUES_PER_PART * 2 + 1)},
    "many predictions": {"predictions": forecasts(1000, 48)},
    "large ones among small ones": [1, *forecasts(2, VALUES_PER_PART), *forecasts(3, 2), np.ones(2 * VALUES_PER_PART), 1],
    "nested": {"a": {"b": [[list(range(VALUES_PER_PART))] * 3], "c": None}, "d": []},
}


@pytest.mark.parametrize("name", LARGE)
def test_parts_of_a_large_text_are_that_text_and_each_is_small(name: str) -> None:
    parts = list(write_parts(LARGE[name]))
    assert b"".join(parts) == write(LARGE[name])
    assert len(parts) > 1
    assert max(part.count(b",") for part in parts) <= 2 * VALUES_PER_PART


@given(VALUES)
def test_a_small_value_is_written_at_once(value: object) -> None:
    assert list(write_parts(value)) == [write(value)]
