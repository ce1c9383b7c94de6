"""Nested lists in, nested lists out: what is checked, what the graph is fed, what is answered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.errors import InferenceFailed, InvalidInput, MalformedRequest
from service.manifest import manifest_type
from service.runtime.tensors import DATATYPES, Signature, Tensors, TensorSpec
from service.scheduling.planning import Limits
from service.tasks.tensor import TASK, TensorTask
from service.wire import read, write
from tests.fakes import run_task

LENGTHS = TensorSpec("lengths", "INT64", ("batch",))

TENSORS = Signature(
    (TensorSpec("x", "FP32", ("batch", "time", 2)), LENGTHS, TensorSpec("h", "FP32", ("batch", 3))),
    (TensorSpec("y", "FP32", ("batch", "time", 2)), TensorSpec("h_new", "FP32", ("batch", 3))),
    (("h", "h_new"),),
)


MANIFEST = manifest_type("tensor", None).model_construct()


def double(item: Tensors) -> Tensors:
    return {"y": item["x"] * 2, "h_new": item["h"] + 1}


def test_rows_of_one_input_go_in_and_rows_of_one_output_come_out() -> None:
    seen: list[Tensors] = []
    task = TensorTask(TENSORS)
    instances = [[[1, 2], [3, 4], [5, 6]], {"x": [[0.1, 0.2]]}, [[7, 8]]]
    answers = run_task(task, double, instances, seen, limits=Limits(max_batch_size=2))
    assert answers == [
        [[2, 4], [6, 8], [10, 12]],
        [[0.2, 0.4]],
        [[14, 16]],
    ]
    assert [item["lengths"].tolist() for item in seen] == [[3, 1], [1]]
    assert seen[0]["h"].tolist() == [[0, 0, 0]] * 2


def test_several_outputs_are_named() -> None:
    signature = Signature(
        (TensorSpec("a", "INT32", ("batch", 2)), TensorSpec("b", "BYTES", ("batch",))),
        (TensorSpec("sum", "INT32", ("batch",)), TensorSpec("big", "BOOL", ("batch", 2)), TensorSpec("b", "BYTES", ("batch",))),
    )

    def run(item: Tensors) -> Tensors:
        return {"sum": item["a"].sum(axis=1), "big": item["a"] > 5, "b": item["b"]}

    assert run_task(TensorTask(signature), run, [{"a": [1, 9], "b": "x"}, {"a": [3, 4], "b": "ü"}]) == [
        {"sum": 10, "big": [False, True], "b": "x"},
        {"sum": 7, "big": [False, False], "b": "ü"},
    ]
    with pytest.raises(InvalidInput, match=r"instance 0: expected an object with \['a', 'b'\]"):
        run_task(TensorTask(signature), run, [[1, 9]])


def test_rows_of_other_open_axes_do_not_share_an_item() -> None:
    signature = Signature((TensorSpec("x", "FP32", ("batch", "width")),), (TensorSpec("y", "FP32", ("batch", "width")),))
    seen: list[Tensors] = []
    answers = run_task(TensorTask(signature), lambda item: {"y": item["x"] + 1}, [[1], [1, 2], [3]], seen)
    assert answers == [[2], [2, 3], [4]]
    assert sorted(item["x"].shape for item in seen) == [(1, 2), (2, 1)]


@pytest.mark.parametrize(
    ("instance", "part"),
    [
        ([[1, 2], [3]], "different lengths"),
        ([1, 2], "axes"),
        ([[1, 2, 3]], "expected FP32 [batch, time, 2]"),
        ([], "at least one step"),
        ([[]], "expected FP32 [batch, time, 2]"),
        ([["1", "2"]], "strings"),
        ([[1, None]], "null"),
        ([[1, 1e39]], "x[0][1]"),
        ({"x": [[1, 2]], "z": 1}, 'unknown field "z"'),
        ({}, "x is missing"),
    ],
)
def test_a_bad_row_is_named(instance: object, part: str) -> None:
    with pytest.raises((InvalidInput, MalformedRequest)) as caught:
        run_task(TensorTask(TENSORS), double, [[[1, 2]], instance])
    assert caught.value.message.startswith("instance 1")
    assert part in caught.value.message
    assert caught.value.facts["instance"] == 1


def test_an_output_that_is_not_finite_names_its_instance() -> None:
    def run(item: Tensors) -> Tensors:
        return {name: np.where(array == 14, np.nan, array) for name, array in double(item).items()}

    with pytest.raises(InferenceFailed, match=r"^instance 2: ") as caught:
        run_task(TensorTask(TENSORS), run, [[[1, 2]], [[3, 4]], [[5, 6], [7, 8]]])
    assert caught.value.facts["instance"] == 2


def test_only_large_requests_are_heavy() -> None:
    task, small, large = TensorTask(TENSORS), [[1, 2]] * 10, {"x": [[1, 2]] * 20_000}
    assert not task.is_heavy([small], {})
    assert task.is_heavy([small] * 100, {})
    assert task.is_heavy([small, large], {})
    assert not task.is_heavy([None, 5, {}], {})


def test_the_tensors_that_clients_name_are_the_graphs_without_state() -> None:
    tensors = TASK.public_tensors(MANIFEST, TENSORS)
    assert [spec.name for spec in tensors.inputs] == ["x", "lengths"]
    assert [spec.name for spec in tensors.outputs] == ["y"]


@pytest.mark.parametrize("dtype", [*DATATYPES.values(), np.dtype(np.longlong)], ids=str)
def test_a_prediction_of_one_value_can_be_written_whatever_its_type(dtype: np.dtype[Any]) -> None:
    spec = TensorSpec("y", "INT64", ("batch",))
    task = TensorTask(Signature((spec,), (spec,)))
    value = np.array(["text"] if dtype.kind == "O" else [1], dtype)
    assert read(write(task.decode({"y": value[0]}, 1))) == ("text" if dtype.kind == "O" else 1)
