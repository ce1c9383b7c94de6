"""Tensors of requests: what the declared shape and datatype allow is read exactly, all else is refused by the tensor's name."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from service.errors import InvalidInput
from service.runtime.tensor_data import datatype_of, largest_classes, read_tensor, write_bytes, write_values
from service.runtime.tensors import DATATYPES, TensorSpec

SIZES = {"BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8}
SIZES |= {"FP16": 2, "FP32": 4, "FP64": 8}


class Given(NamedTuple):
    name: str
    datatype: str
    shape: list[int]
    data: Any


def spec(datatype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec("x", datatype, ("batch", *shape))


def refusal(given: Given, expected: TensorSpec) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_tensor(given, expected)
    assert caught.value.message.startswith('tensor "x": ')
    return caught.value.message


@pytest.mark.parametrize("datatype", SIZES)
def test_numbers_are_read_from_the_bytes_that_they_are_written_to(datatype: str) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(DATATYPES[datatype])
    data = write_bytes(values)
    assert len(data) == 6 * SIZES[datatype]
    read = read_tensor(Given("x", datatype, [2, 3], memoryview(data)), spec(datatype, 3))
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values)
    assert datatype_of(read) == datatype


@pytest.mark.parametrize("data", [[[1.5, 2], [3, 4]], [1.5, 2, 3, 4]], ids=["nested", "flat"])
def test_nested_and_flat_lists_are_the_same_tensor(data: list[Any]) -> None:
    read = read_tensor(Given("x", "FP32", [2, 2], data), spec("FP32", 2))
    np.testing.assert_array_equal(read, np.array([[1.5, 2], [3, 4]], np.float32))


@pytest.mark.parametrize(
    "data", [[3, 4], [[3], [4]], memoryview(np.array([3, 4], "<i8").tobytes())], ids=["flat", "nested", "binary"]
)
def test_one_value_per_row_may_be_a_column(data: Any) -> None:
    assert read_tensor(Given("x", "INT64", [2, 1], data), spec("INT64")).tolist() == [3, 4]
    assert "expected 1 axes" in refusal(Given("x", "INT64", [1, 2], data), spec("INT64"))


def test_strings_are_read_from_lists_and_from_elements_with_their_length() -> None:
    texts = np.array([["good", ""], ["schön", "\0"]], np.object_)
    assert write_bytes(texts)[:8] == b"\4\0\0\0good"
    for data in (texts.tolist(), memoryview(write_bytes(texts))):
        read = read_tensor(Given("x", "BYTES", [2, 2], data), spec("BYTES", 2))
        assert read.tolist() == texts.tolist()
    assert write_values(texts) == ["good", "", "schön", "\0"]


def test_values_are_written_flat_in_row_major_order() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert write_values(values).tolist() == [0, 3, 1, 4, 2, 5]
    assert np.frombuffer(write_bytes(values), "<f4").tolist() == [0, 3, 1, 4, 2, 5]


REFUSED: dict[str, tuple[Given, TensorSpec, str]] = {
    "another datatype": (Given("x", "FP64", [1], [1.0]), spec("FP32"), "the datatype FP64"),
    "another number of axes": (Given("x", "FP32", [1, 1, 1], [1.0]), spec("FP32"), "expected 1 axes"),
    "a size of zero": (Given("x", "FP32", [0], []), spec("FP32"), "expected sizes from 1"),
    "a negative size": (Given("x", "FP32", [-1], [1.0]), spec("FP32"), "expected sizes from 1"),
    "a size beyond all bounds": (Given("x", "FP32", [2**40], [1.0]), spec("FP32"), "expected sizes from 1"),
    "a large shape with three values": (
        Given("x", "FP32", [25_000_000], [1.0] * 3),
        spec("FP32"),
        "takes 25000000 values, got 3",
    ),
    "a large shape with twelve bytes": (
        Given("x", "FP32", [25_000_000], b"\0" * 12),
        spec("FP32"),
        "takes 100000000 bytes, got 12",
    ),
    "ragged lists": (Given("x", "FP32", [2, 2], [[1, 2], [3]]), spec("FP32", 2), "lists of 2 in axis 1"),
    "lists that are not deep enough": (Given("x", "FP32", [1, 1, 2], [[1, 2]]), spec("FP32", 1, 2), "lists of 1 in axis 1"),
    "lists that are too deep": (Given("x", "FP32", [1], [[1.0]]), spec("FP32"), "got lists"),
    "numbers beside lists": (Given("x", "FP32", [2, 1], [[1.0], 2.0]), spec("FP32", 1), "lists 1 deep"),
    "true as a number": (Given("x", "FP32", [2], [1.0, True]), spec("FP32"), "numbers and true or false"),
    "null": (Given("x", "FP32", [1], [None]), spec("FP32"), "got null"),
    "a fraction as a whole number": (Given("x", "INT64", [1], [1.5]), spec("INT64"), "values of INT64"),
    "a whole number beyond the datatype": (Given("x", "INT8", [1], [300]), spec("INT8"), "too large for INT8"),
    "a whole number beyond every float": (Given("x", "FP32", [1], [10**400]), spec("FP32"), "too large for FP32"),
    "a negative number without sign": (Given("x", "UINT8", [1], [-1]), spec("UINT8"), "too large for UINT8"),
    "half precision as JSON": (Given("x", "FP16", [1], [1.0]), spec("FP16"), "send it as binary data"),
    "a byte that is no truth value": (Given("x", "BOOL", [1], b"\2"), spec("BOOL"), "a byte of 0 or 1"),
    "numbers as strings": (Given("x", "BYTES", [1], [1]), spec("BYTES"), "values of BYTES, got numbers"),
    "too few elements": (Given("x", "BYTES", [3], b"\1\0\0\0a\1\0\0\0b"), spec("BYTES"), "take 12 bytes at least, got 10"),
    "an element beyond the data": (Given("x", "BYTES", [1], b"\xff\xff\xff\xffab"), spec("BYTES"), "ends beyond the data"),
    "a length that is cut off": (Given("x", "BYTES", [2], b"\3\0\0\0abc\1"), spec("BYTES"), "element 1 ends beyond"),
    "bytes behind the last element": (Given("x", "BYTES", [1], b"\1\0\0\0ab"), spec("BYTES"), "1 bytes are left"),
    "bytes that are no text": (Given("x", "BYTES", [1], b"\1\0\0\0\xff"), spec("BYTES"), "is not UTF-8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fill_the_declared_tensor_is_refused(name: str) -> None:
    given, expected, message = REFUSED[name]
    assert message in refusal(given, expected)


def test_the_largest_classes_are_named_by_value_index_and_label() -> None:
    values = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
    classes = largest_classes(values, 1, ["no", "yes"])
    assert classes.tolist() == [["0.750000:1:yes"], ["0.500000:0:no"]]
    assert largest_classes(values, 9).tolist()[0] == ["0.750000:1", "0.250000:0"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.float32])
def test_classes_are_in_the_order_of_their_values_for_every_type_of_numbers(dtype: type[np.generic]) -> None:
    limits = np.finfo(dtype) if issubclass(dtype, np.floating) else np.iinfo(dtype)  # type: ignore[type-var]
    values = np.array([[limits.min, 1, limits.max, 1]], dtype)
    classes = largest_classes(values, 2**31).tolist()
    assert [text.split(":")[1] for text in classes[0]] == ["2", "1", "3", "0"]
