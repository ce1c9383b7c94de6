"""What an item must look like, and that collating and splitting lose nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InferenceFailed, InvalidInput
from service.runtime.tensors import (
    Signature,
    Tensors,
    TensorSpec,
    batch_key,
    check,
    collate,
    make_item,
    put_rows,
    row_lengths,
    split,
    take_rows,
)
from tests.fakes import SUM_SIGNATURE, lstm_signature

HISTORY = TensorSpec("history", "FP32", ("batch", "time", 2))
RAGGED = Signature(
    inputs=(HISTORY, TensorSpec("lengths", "INT64", ("batch",)), TensorSpec("kind", "FP32", ("batch", 3))),
    outputs=(TensorSpec("mean", "FP32", ("batch", 3)), TensorSpec("sequence", "FP32", ("batch", "time", 2))),
)


def item(rows: int = 1, steps: int = 4, *, lengths: list[int] | None = None, seed: int = 0) -> Tensors:
    draw = np.random.default_rng(seed)
    return {
        "history": draw.normal(size=(rows, steps, 2)).astype(np.float32),
        "lengths": np.array(lengths or [steps] * rows, np.int64),
        "kind": draw.normal(size=(rows, 3)).astype(np.float32),
    }


def test_a_good_item_is_counted_in_rows() -> None:
    assert check(item(rows=3, steps=5, lengths=[5, 1, 2]), RAGGED) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"history": np.zeros((1, 4, 2), np.float64)}, 'tensor "history": expected FP32 [batch, time, 2], got FP64 [1, 4, 2]'),
        ({"history": np.zeros((1, 4, 7), np.float32)}, 'tensor "history": expected FP32 [batch, time, 2], got FP32 [1, 4, 7]'),
        ({"history": np.zeros((1, 4), np.float32)}, 'tensor "history": expected FP32 [batch, time, 2], got FP32 [1, 4]'),
        ({"lengths": np.array([4], np.int32)}, 'tensor "lengths": expected INT64 [batch], got INT32 [1]'),
        ({"lengths": np.array([4, 4])}, 'axis 0 (batch) is 1 in another input, "lengths" has 2'),
        ({"kind": np.zeros((2, 3), np.float32)}, 'axis 0 (batch) is 1 in another input, "kind" has 2'),
        ({"history": np.zeros((1, 0, 2), np.float32)}, "axis 1 (time) is empty"),
        ({"history": np.zeros((0, 4, 2), np.float32)}, "axis 0 (batch) is empty"),
        ({"other": np.zeros(1)}, "unknown tensor ['other']: the model's inputs are ['history', 'lengths', 'kind']"),
        ({"kind": None}, 'tensor "kind" is missing: expected FP32 [batch, 3]'),
    ],
)
def test_a_wrong_shape_or_type_is_refused_with_what_was_found_and_expected(changes: dict[str, Any], words: str) -> None:
    tensors = {name: array for name, array in {**item(), **changes}.items() if array is not None}
    with pytest.raises(InvalidInput) as caught:
        check(tensors, RAGGED)
    assert words in caught.value.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_by_row_and_place(value: float) -> None:
    tensors = item(rows=3, steps=4)
    tensors["history"][2, 3, 1] = value
    with pytest.raises(InvalidInput, match=r"instance 2: history\[3\]\[1\] is .*not a finite FP32") as caught:
        check(tensors, RAGGED)
    assert caught.value.reason == "nonfinite"
    assert caught.value.facts["instance"] == 2
    assert caught.value.facts["where"] == "history[3][1]"


@pytest.mark.parametrize("length", [0, -1, 5, 2**40, -(2**63)])
def test_a_length_outside_the_time_axis_is_refused(length: int) -> None:
    with pytest.raises(InvalidInput, match=f"row 1 is {length}, expected 1 ≤ length ≤ 4") as caught:
        check(item(rows=3, steps=4, lengths=[4, length, 9]), RAGGED)
    assert caught.value.reason == "length"


@pytest.mark.parametrize(
    ("tensors", "row"), [(item(steps=2), 0), (item(2, steps=4, lengths=[4, 2]), 1), ({**item(steps=2), "lengths": None}, 0)]
)
def test_a_row_shorter_than_the_network_can_read_is_refused(tensors: Tensors, row: int) -> None:
    signature = replace(RAGGED, min_length=3)
    given = {name: values for name, values in tensors.items() if values is not None}
    with pytest.raises(InvalidInput, match=f"row {row} has 2 steps, expected at least 3"):
        check(given, signature)
    assert check(item(2, steps=4, lengths=[4, 3]), signature) == 2


def test_the_steps_of_an_axis_that_cannot_be_padded_are_counted() -> None:
    signature = Signature((TensorSpec("x", "FP32", ("batch", "steps", 2)),), (), min_length=3)
    assert make_item({"x": np.zeros((2, 5, 2), np.float32)}, signature).steps == 5
    with pytest.raises(InvalidInput, match="expected at least 3"):
        check({"x": np.zeros((2, 2, 2), np.float32)}, signature)


def test_every_zero_dimension_of_every_input_is_refused() -> None:
    for spec in RAGGED.inputs:
        for axis in range(len(spec.shape)):
            tensors = item()
            shape = list(tensors[spec.name].shape)
            shape[axis] = 0
            tensors[spec.name] = np.zeros(shape, spec.dtype)
            with pytest.raises(InvalidInput):
                check(tensors, RAGGED)


def test_collated_rows_are_padded_with_zeros_to_the_longest() -> None:
    short, long = item(steps=2, seed=1), item(rows=2, steps=5, seed=2)
    batch = collate([short, long], RAGGED)
    assert check(batch, RAGGED) == 3
    assert batch["lengths"].tolist() == [2, 5, 5]
    np.testing.assert_array_equal(batch["history"][0, :2], short["history"][0])
    np.testing.assert_array_equal(batch["history"][0, 2:], np.zeros((3, 2)))
    np.testing.assert_array_equal(batch["history"][1:], long["history"])


def test_one_item_is_its_own_batch_without_a_copy() -> None:
    only = item(rows=2)
    batch = collate([only], RAGGED)
    assert batch["history"] is only["history"]
    assert batch["lengths"].tolist() == only["lengths"].tolist()


def test_texts_are_padded_with_empty_texts() -> None:
    signature = Signature((TensorSpec("x", "BYTES", ("batch", "time")), TensorSpec("lengths", "INT64", ("batch",))), ())
    items: list[Tensors] = [
        {"x": np.array([["a"]], object), "lengths": np.array([1])},
        {"x": np.array([["b", "c"]], object), "lengths": np.array([2])},
    ]
    assert collate(items, signature)["x"].tolist() == [["a", ""], ["b", "c"]]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_splitting_what_was_collated_gives_the_items_back(sizes: list[tuple[int, int]], seed: int) -> None:
    """Through an identity "graph": outputs that repeat the inputs."""
    items = [item(rows, steps, seed=seed + number) for number, (rows, steps) in enumerate(sizes)]
    batch = collate(items, RAGGED)
    assert check(batch, RAGGED) == sum(rows for rows, _ in sizes)
    parts = split({"mean": batch["kind"], "sequence": batch["history"]}, items, RAGGED)
    assert len(parts) == len(items)
    for part, original in zip(parts, items, strict=True):
        np.testing.assert_array_equal(part["mean"], original["kind"])
        np.testing.assert_array_equal(part["sequence"], original["history"])


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), min_size=1, max_size=6))
def test_collating_in_two_steps_is_collating_at_once(sizes: list[tuple[int, int]]) -> None:
    items = [item(rows, steps, seed=number) for number, (rows, steps) in enumerate(sizes)]
    half = len(items) // 2
    parts = [collate(part, RAGGED) for part in (items[:half], items[half:]) if part]
    at_once, in_two = collate(items, RAGGED), collate(parts, RAGGED)
    for name in at_once:
        np.testing.assert_array_equal(at_once[name], in_two[name])


def test_outputs_with_other_rows_than_the_items_are_a_failure_of_the_model() -> None:
    with pytest.raises(InferenceFailed, match='output "mean" has shape'):
        split({"mean": np.zeros((3, 3), np.float32)}, [item(), item()], RAGGED)
    with pytest.raises(InferenceFailed):
        split({"mean": np.zeros((), np.float32)}, [item()], RAGGED)


def test_an_item_knows_its_rows_its_steps_and_their_true_lengths() -> None:
    assert make_item(item(rows=3, steps=7, lengths=[7, 2, 1]), RAGGED)[1:5] == (3, 7, [7, 2, 1], ())
    without = item(rows=2, steps=4)
    del without["lengths"]
    assert make_item(without, RAGGED).lengths == [4, 4]
    flat = Signature((TensorSpec("x", "FP32", ("batch", 3)),), ())
    assert make_item({"x": np.zeros((2, 3))}, flat)[1:5] == (2, 1, [1, 1], ())


def test_axes_that_cannot_be_padded_keep_items_apart() -> None:
    assert batch_key(item(steps=3), RAGGED) == batch_key(item(steps=9), RAGGED) == ()
    without_lengths = Signature((TensorSpec("x", "FP32", ("batch", "time", "channels")),), ())
    assert not without_lengths.is_ragged
    assert batch_key({"x": np.zeros((2, 5, 3))}, without_lengths) == (5, 3)


def test_without_lengths_the_time_axis_of_outputs_is_left_alone() -> None:
    signature = Signature((TensorSpec("x", "FP32", ("batch", "time")),), (TensorSpec("y", "FP32", ("batch", "time")),))
    items: list[Tensors] = [{"x": np.zeros((1, 4), np.float32)}, {"x": np.ones((2, 4), np.float32)}]
    parts = split({"y": np.zeros((3, 2), np.float32)}, items, signature)
    assert [part["y"].shape for part in parts] == [(1, 2), (2, 2)]


def test_an_item_without_a_state_begins_with_zeros_beside_one_that_has_one() -> None:
    signature = lstm_signature(units=4)
    with_state: Tensors = {
        "history": np.ones((2, 3, 1), np.float32),
        "lengths": np.array([3, 2]),
        "c0": np.ones((2, 4), np.float32),
    }
    without: Tensors = {"history": np.ones((1, 5, 1), np.float32)}
    assert check(with_state, signature) == 2
    assert check(without, signature) == 1
    batch = collate([without, with_state], signature)
    assert check(batch, signature) == 3
    assert batch["h0"].tolist() == [[0] * 4] * 3
    assert batch["c0"].tolist() == [[0] * 4, [1] * 4, [1] * 4]


def test_rows_without_lengths_are_as_long_as_their_item() -> None:
    without = item(rows=2, steps=3)
    del without["lengths"]
    assert collate([without, item(steps=5, lengths=[4])], RAGGED)["lengths"].tolist() == [3, 3, 4]
    assert collate([without], RAGGED)["lengths"].tolist() == [3, 3]


def test_a_thousand_rows_of_odd_lengths_are_whole_after_collating() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 1000)
    items: list[Tensors] = [
        {"history": np.full((1, length, 1), length, np.float32), "lengths": np.array([length])} for length in lengths
    ]
    batch = collate(items, SUM_SIGNATURE)
    assert check(batch, SUM_SIGNATURE) == 1000
    np.testing.assert_array_equal(batch["history"].sum(axis=(1, 2)), (lengths**2).astype(np.float32))


def test_rows_that_are_taken_apart_come_back_in_their_order() -> None:
    lengths = [2, 5, 1, 4]
    tensors = item(rows=4, steps=6, lengths=lengths)
    assert row_lengths(tensors, RAGGED) == lengths
    groups = [[1, 3], [0, 2]]
    parts = [take_rows(tensors, rows, max(lengths[row] for row in rows), RAGGED) for rows in groups]
    assert [part["history"].shape for part in parts] == [(2, 5, 2), (2, 2, 2)]
    assert [part["lengths"].tolist() for part in parts] == [[5, 4], [2, 1]]
    outputs = [{"mean": part["kind"], "sequence": part["history"]} for part in parts]
    whole = put_rows(outputs, groups, 6, RAGGED)
    np.testing.assert_array_equal(whole["mean"], tensors["kind"])
    assert whole["sequence"].shape == (4, 6, 2)
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(whole["sequence"][row, :length], tensors["history"][row, :length])
        assert not whole["sequence"][row, 5 if row in groups[0] else 2 :].any()


def test_rows_of_a_model_without_time_are_taken_whole() -> None:
    signature = Signature((TensorSpec("x", "BYTES", ("batch", 2)),), (TensorSpec("y", "BYTES", ("batch", 2)),))
    tensors: Tensors = {"x": np.array([["a", "b"], ["c", "d"], ["e", "f"]], object)}
    parts = [take_rows(tensors, rows, 1, signature) for rows in ([2], [0, 1])]
    assert [part["x"].tolist() for part in parts] == [[["e", "f"]], [["a", "b"], ["c", "d"]]]
    assert put_rows([{"y": part["x"]} for part in parts], [[2], [0, 1]], 1, signature)["y"].tolist() == tensors["x"].tolist()
