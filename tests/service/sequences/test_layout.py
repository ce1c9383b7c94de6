"""Many states ↔ tensors at once: the same bytes as one by one, and nothing else is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.errors import StateError
from service.runtime.tensors import TensorSpec
from service.sequences.layout import StateLayout
from service.sequences.state import MAX_STEPS, GraphIdentity, SequenceState

OWN = GraphIdentity("toy", 1, "ab" * 32)
SPECS = (
    TensorSpec("h", "FP32", ("batch", 2, 3)),
    TensorSpec("steps", "INT64", ("batch",)),
    TensorSpec("c", "FP16", ("batch", 1)),
)
LAYOUT = StateLayout(OWN, SPECS)
"""Of a tensor that is called as a number of every state is, and of one without axes."""


def row(value: float) -> dict[str, Any]:
    return {
        "h": np.full((2, 3), value, np.float32),
        "steps": np.array(round(value), np.int64),
        "c": np.full(1, -value, np.float16),
    }


def state(value: float, steps: int = 5, **changes: Any) -> SequenceState:
    return SequenceState(*OWN, steps, row(value) | changes)


@given(
    st.lists(
        st.tuples(
            st.integers(0, MAX_STEPS),
            hnp.arrays(np.float32, (2, 3), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_states_that_are_written_together_are_bit_for_bit_those_of_each_alone(rows: list[tuple[int, Any]]) -> None:
    alone = [state(7, steps, h=h) for steps, h in rows]
    tensors = {name: np.stack([each.tensors[name] for each in alone]) for name in ("h", "steps", "c")}
    together = LAYOUT.write(tensors, [steps for steps, _ in rows])
    assert [each.to_bytes() for each in together] == [each.to_bytes() for each in alone]
    assert [each.steps for each in together] == [steps for steps, _ in rows]
    found = LAYOUT.read(list(enumerate(together)))
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def test_every_state_of_a_graph_has_one_size() -> None:
    assert LAYOUT.num_bytes == state(1).num_bytes == len(state(2, 10**9).to_bytes())


def test_what_was_written_does_not_change_with_its_batch() -> None:
    batch = {name: np.stack([array]) for name, array in row(1).items()}
    (written,) = LAYOUT.write(batch, [1])
    batch["h"][:] = 9
    assert written == state(1, 1)


def test_tensors_go_by_their_names_and_not_by_their_places() -> None:
    reordered = SequenceState(*OWN, 5, dict(reversed(list(row(2).items()))))
    assert reordered.body != state(2).body
    found = LAYOUT.read([(0, state(1)), (1, reordered)])
    assert np.array_equal(found["h"][1], row(2)["h"])
    assert found["steps"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"h": np.zeros((3, 2), np.float32)}, "tensors"),
        ({"h": np.zeros((2, 3), np.int32)}, "tensors"),
        ({"x": np.zeros(2, np.float32)}, "tensors"),
        ({"h": np.full((2, 3), np.inf, np.float32)}, "nonfinite"),
        ({"c": np.array([np.nan], np.float16)}, "nonfinite"),
    ],
    ids=["axes", "datatype", "more", "infinity", "NaN"],
)
def test_a_state_of_other_tensors_is_refused_by_the_number_of_its_instance(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(StateError, match="instance 7: ") as caught:
        LAYOUT.read([(3, state(1)), (7, state(1, **changes))])
    assert caught.value.problem == problem


@pytest.mark.parametrize("changes", [{"model": "other"}, {"version": 2}, {"digest": "00" * 32}])
def test_a_state_of_another_graph_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(StateError, match="instance 0: the state belongs to"):
        LAYOUT.read([(0, SequenceState(*OWN._replace(**changes), 1, row(1)))])


def test_a_body_of_the_right_size_and_wrong_parts_is_damaged() -> None:
    body = bytearray(state(1).body)
    body[-3:] = b"\xff\xff\xff"
    body[len(body) - 2 - 4 - 1 - 4] ^= 0xFF  # the length of the last name
    with pytest.raises(StateError) as caught:
        LAYOUT.read([(0, SequenceState.from_body(bytes(body)))])
    assert caught.value.problem == "damaged"
