"""One row of JSON values becomes a tensor of its datatype, or is refused with its place."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import InvalidInput
from service.runtime.tensor_data import VALUES_AT_ONCE
from service.runtime.tensors import DATATYPES, Signature, TensorSpec, check
from service.tasks.nested_lists import parse_row


@pytest.mark.parametrize(
    ("values", "datatype", "shape"),
    [
        ([[1, 2.5], [3, -4]], "FP32", ("batch", "time", 2)),
        ([1, 2, 3], "INT64", ("batch", "time")),
        ([0, 255], "UINT8", ("batch", 2)),
        ([True, False], "BOOL", ("batch", 2)),
        (["a", "ü"], "BYTES", ("batch", 2)),
        (7, "INT32", ("batch",)),
        ([1e300], "FP64", ("batch", 1)),
    ],
)
def test_one_row_is_parsed_into_a_batch_of_one(values: Any, datatype: str, shape: tuple[int | str, ...]) -> None:
    row = parse_row(values, TensorSpec("x", datatype, shape))
    assert row.dtype == DATATYPES[datatype]
    assert row[0].tolist() == values


@pytest.mark.parametrize(
    ("values", "datatype", "shape", "words"),
    [
        ([1.0, 1e39], "FP32", ("batch", "time"), r"instance 3: x\[1\] is inf, which is not a finite FP32"),
        ([1.0, float("nan")], "FP32", ("batch", "time"), r"x\[1\] is nan"),
        ([10**400, 1.0], "FP32", ("batch", "time"), "too large"),
        ([10**400], "FP32", ("batch", "time"), "too large"),
        ([10**400], "INT64", ("batch", "time"), "too large"),
        ([2**63], "INT64", ("batch", "time"), "expected values of INT64"),
        ([256], "UINT8", ("batch", 1), "expected values of UINT8"),
        ([-1], "UINT8", ("batch", 1), "expected values of UINT8"),
        ([1.5], "INT64", ("batch", "time"), "numbers with a fraction"),
        (["1"], "FP32", ("batch", "time"), "got strings"),
        ([None], "FP32", ("batch", "time"), "null"),
        ([True], "FP32", ("batch", "time"), "true or false"),
        ([1], "BOOL", ("batch", "time"), "expected values of BOOL"),
        ([1], "BYTES", ("batch", "time"), "expected values of BYTES"),
        ([[1.0], [1.0, 2.0]], "FP32", ("batch", "time", 2), "different lengths"),
        ([], "FP32", ("batch", "time", 2), r"the row is empty; expected at least one step of FP32 \[batch, time, 2\]"),
        ([1.0], "FP32", ("batch", "time", 2), r"expected 2 axes in one row of FP32 \[batch, time, 2\], got 1"),
        ({"a": 1}, "FP32", ("batch", "time"), "expected 1 axes"),
    ],
)
def test_a_row_of_other_values_is_refused(values: Any, datatype: str, shape: tuple[int | str, ...], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        parse_row(values, TensorSpec("x", datatype, shape), instance=3)
    assert caught.value.facts["instance"] == 3


LONG = VALUES_AT_ONCE + 7


@pytest.mark.parametrize(
    ("values", "datatype", "shape"),
    [
        ([0.5] * LONG, "FP32", ("batch", "time")),
        ([0.5] * LONG + [1], "FP32", ("batch", "time")),
        ([[1, 2]] * LONG, "INT64", ("batch", "time", 2)),
        ([[[1], [2]]] * LONG, "INT64", ("batch", "time", 2, 1)),
        (["a"] * LONG, "BYTES", ("batch", "time")),
    ],
    ids=["numbers", "numbers of two types", "rows", "rows of rows", "strings"],
)
def test_a_long_row_is_the_same_in_parts(values: Any, datatype: str, shape: tuple[int | str, ...]) -> None:
    assert parse_row(values, TensorSpec("x", datatype, shape))[0].tolist() == values


@pytest.mark.parametrize("last", [[1.0], [[1.0]], [], 1.0, None, "1"])
def test_a_long_row_with_something_else_at_its_end_is_refused(last: Any) -> None:
    with pytest.raises(InvalidInput):
        parse_row([[0.5, 1.5]] * LONG + [last], TensorSpec("x", "FP32", ("batch", "time", 2)))


def test_an_empty_row_is_parsed_and_refused_by_the_check() -> None:
    row = parse_row([], TensorSpec("x", "FP32", ("batch", "time")))
    with pytest.raises(InvalidInput, match="is empty"):
        check({"x": row}, Signature((TensorSpec("x", "FP32", ("batch", "time")),), ()))
