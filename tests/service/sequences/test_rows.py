"""The states of one request: fed to the rows of its items, taken from their outputs, and refused where they cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.errors import InferenceFailed, StateError
from service.runtime.tensors import Item, Tensors
from service.sequences.layout import StateLayout
from service.sequences.rows import SequenceRows, StatefulTensors
from service.sequences.state import CHECKSUM_BYTES, GraphIdentity, SequenceState
from tests.fakes import lstm_signature

OWN = GraphIdentity("toy", 1, "ab" * 32)
SIGNATURE = lstm_signature(units=2)
LAYOUT = StateLayout(OWN, SIGNATURE.state_specs)


def state(value: float, steps: int = 5, **changes: Any) -> SequenceState:
    tensors = {"h0": np.full(2, value, np.float32), "c0": np.full(2, -value, np.float32)}
    return SequenceState(*OWN, steps, tensors | changes)


def item(rows: int, instances: tuple[int, ...] = ()) -> Item:
    lengths = tuple(range(1, rows + 1))
    return Item({"history": np.zeros((rows, rows, 1), np.float32)}, rows, rows, lengths, instances=instances)


def outputs(rows: int, first: float) -> Tensors:
    values = np.arange(rows, dtype=np.float32)[:, np.newaxis] + np.array([first, first + 0.5], np.float32)
    return {"h1": values, "c1": -values}


def test_rows_begin_in_the_states_of_their_instances_and_others_with_zeros() -> None:
    sequences = SequenceRows([state(1), None, state(3)], SIGNATURE, LAYOUT)
    assert sequences.steps_seen == [5, 0, 5]
    (first, second) = sequences.attach([item(2, (2, 1)), item(1, (0,))])
    assert isinstance(first.tensors, StatefulTensors)
    assert first.tensors["h0"].tolist() == [[3, 3], [0, 0]]
    assert first.tensors["c0"].tolist() == [[-3, -3], [0, 0]]
    assert second.tensors["h0"].tolist() == [[1, 1]]


def test_where_all_begin_nothing_is_fed_for_the_batch_begins_with_zeros() -> None:
    (only,) = SequenceRows([None, None], SIGNATURE, LAYOUT).attach([item(2)])
    assert only.tensors.keys() == {"history"}
    assert isinstance(only.tensors, StatefulTensors)


def test_new_states_are_those_after_the_first_run_and_the_next_run_goes_on_from_the_last() -> None:
    sequences = SequenceRows([state(1), None], SIGNATURE, LAYOUT)
    sequences.attach([item(2)])
    sequences.collect([outputs(2, 10)])
    (again,) = sequences.attach([item(1, (1,))])
    assert again.tensors["h0"].tolist() == [[11, 11.5]]
    sequences.collect([outputs(1, 20)])
    first, second = sequences.states
    assert (first.steps, second.steps) == (6, 2)
    assert first.identity == OWN
    assert second.tensors["h0"].tolist() == [11, 11.5]
    assert second.tensors["c0"].tolist() == [-11, -11.5]


def test_a_new_state_does_not_hold_on_to_its_batch() -> None:
    sequences = SequenceRows([None, None], SIGNATURE, LAYOUT)
    sequences.attach([item(2)])
    sequences.collect([outputs(2, 10)])
    first, second = sequences.states
    assert [len(each.body) + CHECKSUM_BYTES for each in (first, second)] == [LAYOUT.num_bytes] * 2
    assert first.tensors["h0"].tolist() == [10, 10.5], "read from its own body"


def test_a_new_state_that_is_not_finite_is_a_failure_of_the_model() -> None:
    sequences = SequenceRows([None, None], SIGNATURE, LAYOUT)
    sequences.attach([item(2, (1, 0))])
    with pytest.raises(InferenceFailed, match='instance 0: the model\'s new state "c1" is not finite'):
        sequences.collect([outputs(2, 1) | {"c1": np.array([[0, 0], [0, np.nan]], np.float32)}])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"h0": np.zeros(3, np.float32)}, "tensors"),
        ({"h0": np.zeros((1, 2), np.float32)}, "tensors"),
        ({"h0": np.zeros(2, np.float64)}, "tensors"),
        ({"x": np.zeros(2, np.float32)}, "tensors"),
        ({"h0": np.array([0, np.nan], np.float32)}, "nonfinite"),
        ({"c0": np.array([np.inf, 0], np.float32)}, "nonfinite"),
    ],
)
def test_a_state_of_other_tensors_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(StateError, match="instance 1: ") as caught:
        SequenceRows([None, state(1, **changes)], SIGNATURE, LAYOUT)
    assert caught.value.problem == problem
    assert caught.value.facts["instance"] == 1


def test_a_state_without_all_of_its_tensors_is_refused() -> None:
    with pytest.raises(StateError, match=r"holds the tensors \['h0'\], expected \['c0', 'h0'\]"):
        SequenceRows([SequenceState(*OWN, 1, {"h0": np.zeros(2, np.float32)})], SIGNATURE, LAYOUT)


def test_a_state_of_another_graph_is_refused() -> None:
    with pytest.raises(StateError) as caught:
        SequenceRows([state(1)], SIGNATURE, StateLayout(OWN._replace(version=2), SIGNATURE.state_specs))
    assert caught.value.problem == "version"
