"""A state and its block of bytes: what is written is read again, and anything else is refused."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.errors import StateError
from service.sequences.state import (
    CHECKSUM_BYTES,
    MAX_HEAD_BYTES,
    MAX_STEPS,
    GraphIdentity,
    SequenceState,
    expect_identity,
    read_bodies,
    read_identity,
)

DIGEST = hashlib.sha256(b"a graph").hexdigest()
DTYPES = ["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"]


def make_state(**changes: Any) -> SequenceState:
    tensors = {"h": np.array([0.5, -1.25, 3.0], np.float32), "c": np.arange(6, dtype=np.float32).reshape(2, 3)}
    values: dict[str, Any] = {"model": "toy", "version": 3, "digest": DIGEST, "steps": 17, "tensors": tensors}
    return SequenceState(**(values | changes))


def with_checksum(body: bytes) -> bytes:
    return body + hashlib.blake2b(body, digest_size=CHECKSUM_BYTES).digest()


@given(
    st.text(min_size=1, max_size=40),
    st.integers(0, 2**32 - 1),
    st.integers(0, MAX_STEPS),
    st.dictionaries(
        st.text(min_size=1, max_size=30),
        st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_side=4))),
        max_size=4,
    ),
)
def test_what_is_written_is_read_bit_for_bit(model: str, version: int, steps: int, tensors: dict[str, Any]) -> None:
    state = SequenceState(model, version, DIGEST, steps, tensors)
    block = state.to_bytes()
    found = SequenceState.from_bytes(block)
    assert (found.model, found.version, found.digest, found.steps) == (model, version, DIGEST, steps)
    assert list(found.tensors) == list(tensors)
    for name, array in tensors.items():
        assert found.tensors[name].dtype == array.dtype
        assert found.tensors[name].shape == array.shape
        assert found.tensors[name].tobytes() == array.tobytes()
    assert found == state
    assert hash(found) == hash(state)
    assert state.num_bytes == len(block)
    assert SequenceState.from_bytes(memoryview(bytearray(block))) == state
    assert read_identity(block[:MAX_HEAD_BYTES]) == state.identity


def test_a_state_of_other_values_is_another_one() -> None:
    assert make_state() != make_state(steps=18)
    assert make_state() != make_state(tensors={"h": np.zeros(3, np.float32)})
    assert make_state() != "a state"


def test_tensors_that_were_read_cannot_be_changed() -> None:
    found = SequenceState.from_bytes(bytearray(make_state().to_bytes()))
    with pytest.raises(ValueError, match="read-only"):
        found.tensors["h"][0] = 1


def test_a_strided_tensor_is_written_by_its_values() -> None:
    values = np.arange(6, dtype=np.float32)
    assert make_state(tensors={"h": values[::2]}).to_bytes() == make_state(tensors={"h": values[::2].copy()}).to_bytes()


@given(st.data())
def test_a_block_with_a_changed_byte_is_damaged(data: st.DataObject) -> None:
    block = bytearray(make_state().to_bytes())
    place = data.draw(st.integers(0, len(block) - 1))
    block[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StateError) as caught:
        SequenceState.from_bytes(block)
    assert caught.value.problem == "damaged"


@given(st.integers(0, 200))
def test_a_cut_block_is_damaged(size: int) -> None:
    block = make_state().to_bytes()
    with pytest.raises(StateError, match="the state is damaged"):
        SequenceState.from_bytes(block[: min(size, len(block) - 1)])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_state_or_damaged(data: bytes) -> None:
    for block in (data, with_checksum(data), with_checksum(make_state().to_bytes()[:60] + data)):
        with pytest.raises(StateError) as caught:
            SequenceState.from_bytes(block)
        assert caught.value.problem == "damaged"


def head(num_tensors: int, steps: int = 1) -> bytes:
    return struct.pack("<4sIQ32sBB", b"SLS1", 1, steps, bytes(32), 1, num_tensors) + b"m"


@pytest.mark.parametrize(
    "body",
    [
        head(0) + b"more",
        head(1),
        head(255),
        head(0, steps=2**63),
        head(1) + struct.pack("<HBB", 1, 200, 0) + b"h",  # no such datatype
        head(1) + struct.pack("<HBB", 1, 0, 255) + b"h" + bytes(4 * 255),  # too many axes
        head(1) + struct.pack("<HBBcIII", 1, 0, 3, b"h", 2**32 - 1, 2**32 - 1, 2**32 - 1),  # 2^98 bytes
        head(1) + struct.pack("<HBBcI", 1, 0, 1, b"\xff", 0),  # a name that is no text
        head(2) + 2 * (struct.pack("<HBBcIf", 1, 0, 1, b"h", 1, 0.0)),  # a name twice
    ],
    ids=["more", "no tensor", "many tensors", "steps", "datatype", "axes", "size", "name", "twice"],
)
def test_a_block_with_a_right_checksum_and_wrong_parts_is_damaged(body: bytes) -> None:
    with pytest.raises(StateError) as caught:
        SequenceState.from_bytes(with_checksum(body))
    assert caught.value.problem == "damaged"


@pytest.mark.parametrize(
    ("found", "problem", "message"),
    [
        (GraphIdentity("other", 3, DIGEST), "model", 'the state belongs to model "other", expected one of "toy"'),
        (GraphIdentity("toy", 2, DIGEST), "version", "the state belongs to version 2"),
        (GraphIdentity("toy", 3, "00" * 32), "graph", "the state belongs to another graph"),
    ],
)
def test_a_state_of_another_graph_is_refused_with_what_differs(found: GraphIdentity, problem: str, message: str) -> None:
    with pytest.raises(StateError, match=message) as caught:
        expect_identity(found, make_state().identity)
    assert caught.value.problem == problem
    located = caught.value.at(2)
    assert (located.problem, located.facts["instance"]) == (problem, 2)
    assert located.message == f"instance 2: {caught.value.message}"


def test_a_state_of_the_same_graph_is_accepted() -> None:
    expect_identity(make_state().identity, GraphIdentity("toy", 3, DIGEST))


def test_bodies_are_read_together_as_each_alone_whatever_graphs_they_are_of() -> None:
    other = make_state(digest=hashlib.sha256(b"another graph").hexdigest())
    longer, newer = make_state(model="toys", steps=18), make_state(version=4, steps=0)
    states = [make_state(), make_state(steps=2**40), None, other, make_state(), longer, newer, make_state(tensors={}), None]
    found = read_bodies([None if state is None else state.body for state in states])
    assert found == states
    for state, one in zip(found, states, strict=True):
        assert (state and (state.identity, state.steps)) == (one and (one.identity, one.steps))
    assert all(state is None or state.is_finite for state in found)


@pytest.mark.parametrize("body", [b"", b"SLS1", make_state().body[:40], b"x" + make_state().body[1:]])
def test_what_is_no_body_is_refused_among_others_too(body: bytes) -> None:
    with pytest.raises(StateError, match=r"the state is damaged"):
        read_bodies([make_state().body, body])
