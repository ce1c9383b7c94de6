"""`Model.advance` and its tensor entrance: pieces of sequences in, predictions and new states out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from service.errors import DeadlineExceeded, InferenceFailed, InvalidInput, StateError
from service.models.folder import ModelOptions
from service.models.loading import load_model
from service.models.model import HEAVY_REQUEST_SIZE, AllOfIt, Model
from service.runtime.base import Device, Runtime
from service.runtime.onnx_runtime import open_runtime
from service.runtime.tensors import Tensors
from service.sequences.state import SequenceState
from service.tasks.base import HEAVY_NUM_INSTANCES
from tests.fakes import ManualClock
from tests.folders import write_tensor_folder
from tests.streams import FEATURES, cells, write_forecast_stream, write_tensor_stream, write_text_stream

CPU = ModelOptions(device="cpu")
ROWS = np.random.default_rng(1).normal(size=(1, 9, FEATURES)).astype(np.float32)


class Given(NamedTuple):
    """A tensor as a client sends it."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: Any


@pytest.fixture
async def model(tmp_path: Path) -> AsyncIterator[Model]:
    loaded = await load_model(write_tensor_stream(tmp_path, cells("lstm", gives_steps=True)), CPU)
    yield loaded
    await loaded.stop()


def given(name: str, values: np.ndarray) -> Given:
    datatype = {"float32": "FP32", "int64": "INT64"}[values.dtype.name]
    return Given(name, datatype, list(values.shape), values.ravel().tolist())


def instance(start: int, end: int) -> dict[str, Any]:
    return {"x": ROWS[0, start:end].tolist()}


async def test_a_state_of_another_model_is_refused_before_anything_runs(model: Model) -> None:
    _, (state,) = await model.advance([instance(0, 2)], [None])
    other = SequenceState("other", 1, state.digest, state.steps, state.tensors)
    with pytest.raises(StateError, match='instance 1: the state belongs to model "other"'):
        await model.advance([instance(0, 1)] * 2, [state, other])


async def test_deadlines_are_kept(tmp_path: Path) -> None:
    clock = ManualClock()
    model = await load_model(write_tensor_folder(tmp_path), CPU, clock=clock)
    with pytest.raises(DeadlineExceeded):
        await model.advance([[[1.0, 2.0]]], [None], deadline=clock.now())
    await model.stop()


async def test_a_bad_instance_is_refused_by_its_number(model: Model) -> None:
    with pytest.raises(InvalidInput, match="instance 1"):
        await model.advance([instance(0, 1), {"x": "no"}], [None, None])


@pytest.mark.parametrize("num", [2, HEAVY_NUM_INSTANCES + 1])
async def test_many_sequences_are_answered_as_each_alone(model: Model, num: int) -> None:
    instances = [{"x": (ROWS[0, : 1 + i % 9] + i).tolist()} for i in range(num)]
    predictions, states = await model.advance(instances, [None] * num)
    predictions, states = await model.advance(instances, states)
    for index in (0, num - 1):
        _, alone = await model.advance([instances[index]], [None])
        (expected,), alone = await model.advance([instances[index]], alone)
        assert np.array_equal(predictions[index], expected)
        assert states[index] == alone[0]
        assert states[index].steps == 2 * (1 + index % 9)


async def test_a_state_that_is_not_finite_is_a_failure_and_not_an_answer(tmp_path: Path) -> None:
    class Broken:
        """Answers, but returns no state that anything could go on from."""

        def __init__(self, real: Runtime) -> None:
            self._real = real
            self.requested, self.provider, self.inputs, self.outputs = real.requested, real.provider, real.inputs, real.outputs
            self.fallback = real.fallback

        def run(self, tensors: Tensors) -> Tensors:
            outputs = self._real.run(tensors)
            return outputs | {"new_state": np.full_like(outputs["new_state"], np.nan)}

        def terminate(self) -> None:
            pass

    def open_graph(graph: bytes, device: Device) -> Runtime:
        return Broken(open_runtime(graph, device))

    model = await load_model(write_tensor_folder(tmp_path), CPU, open_graph=open_graph)
    assert await model.predict([[[1.0, 2.0]]])
    with pytest.raises(InferenceFailed, match='new state "new_state" is not finite'):
        await model.advance([[[1.0, 2.0]]], [None])
    await model.stop()


# ----------------------------------------------------------------------------------------------------------- tensors


async def test_state_tensors_are_taken_and_given_by_name(model: Model) -> None:
    pairs = dict(model.signature.state)
    wanted = [AllOfIt("y"), *map(AllOfIt, pairs.values())]
    whole = {each.name: each for each in await model.infer_public([given("x", ROWS)], wanted)}
    first = {each.name: each for each in await model.infer_public([given("x", ROWS[:, :4])], wanted)}
    state = [Given(name, "FP32", first[after].shape, np.ravel(first[after].data).tolist()) for name, after in pairs.items()]
    last = {each.name: each for each in await model.infer_public([given("x", ROWS[:, 4:]), *state], wanted)}
    for after in pairs.values():
        assert np.array_equal(last[after].data, whole[after].data)
    assert np.array_equal([*np.ravel(first["y"].data), *np.ravel(last["y"].data)], np.ravel(whole["y"].data))
    assert [each.name for each in await model.infer_public([given("x", ROWS), *state])] == ["y"]


async def test_a_part_of_the_state_is_refused(model: Model) -> None:
    name = model.signature.state[0][0]
    with pytest.raises(InvalidInput, match="the recurrent state comes whole or not at all"):
        await model.infer_public([given("x", ROWS), given(name, np.zeros((1, 8), np.float32))])
    state = [given(each, np.zeros((1, 9), np.float32)) for each, _ in model.signature.state]
    with pytest.raises(InvalidInput, match="expected"):
        await model.infer_public([given("x", ROWS), *state])
    with pytest.raises(InvalidInput, match="unknown input"):
        await model.infer_public([given("x", ROWS), *[given(name, np.zeros((1, 8), np.float32))] * 2])


async def test_sequences_advance_by_tensors_as_by_instances(model: Model) -> None:
    (whole,), (expected,) = await model.advance([instance(0, 9)], [None])
    (first,), states = await model.advance_public([given("x", ROWS[:, :4])], [None])
    (last,), states = await model.advance_public([given("x", ROWS[:, 4:])], states)
    assert states == [expected]
    assert np.array_equal([*np.ravel(first.data), *np.ravel(last.data)], np.ravel(whole))


async def test_padded_rows_advance_by_their_own_lengths(model: Model) -> None:
    rows = np.repeat(ROWS, 2, axis=0)
    lengths = np.array([4, 9], np.int64)
    _, states = await model.advance_public([given("x", rows), given("lengths", lengths)], [None, None])
    assert [state.steps for state in states] == [4, 9]
    _, alone = await model.advance([instance(0, 4)], [None])
    assert states[0] == alone[0]


async def test_a_large_request_advances_on_a_thread(model: Model) -> None:
    num = HEAVY_REQUEST_SIZE // ROWS.size + 1
    _, states = await model.advance_public([given("x", np.repeat(ROWS, num, axis=0))], [None] * num)
    _, alone = await model.advance([instance(0, 9)], [None])
    assert states[0] == states[-1] == alone[0]


async def test_rows_and_sequences_are_as_many(model: Model) -> None:
    with pytest.raises(InvalidInput, match="1 rows for 2 sequences"):
        await model.advance_public([given("x", ROWS)], [None, None])
    name = model.signature.state[0][0]
    with pytest.raises(InvalidInput, match=f'unknown input "{name}"'):
        await model.advance_public([given("x", ROWS), given(name, np.zeros((1, 8), np.float32))], [None])


async def test_texts_and_series_advance_by_their_public_tensors(tmp_path: Path) -> None:
    sensor = await load_model(write_forecast_stream(tmp_path, cells("gru"), min_length=2), CPU)
    values = np.arange(60, dtype=np.float32).reshape(1, 60, 1) / 10
    with pytest.raises(InvalidInput, match="expected at least 2"):
        await sensor.advance_public([given("history", values[:, :1])], [None])
    whole, expected = await sensor.advance_public([given("history", values)], [None])
    _, states = await sensor.advance_public([given("history", values[:, :59])], [None])
    last, states = await sensor.advance_public([given("history", values[:, 59:])], states)
    assert states == expected
    assert [np.ravel(each.data).tolist() for each in last] == [np.ravel(each.data).tolist() for each in whole]
    await sensor.stop()
    chat = await load_model(write_text_stream(tmp_path, cells("lstm")), CPU)
    words = ["good film", "not a bad plot", "very good good good good good"]
    state: list[SequenceState | None] = [None]
    for piece in words:
        found, (new,) = await chat.advance_public([Given("text", "BYTES", [1], [piece])], state)
        state = [new]
    whole, (expected_state,) = await chat.advance_public([Given("text", "BYTES", [1], [" ".join(words)])], [None])
    assert new == expected_state
    assert [np.ravel(each.data).tolist() for each in found] == [np.ravel(each.data).tolist() for each in whole]
    await chat.stop()


async def test_rows_with_and_without_state_and_raw_tensors_share_a_batch(model: Model) -> None:
    _, (state,) = await model.advance([instance(0, 3)], [None])
    plain, moved, raw = (
        model.predict([instance(0, 5)]),
        model.advance([instance(3, 9)], [state]),
        model.infer({"x": ROWS[:, :2]}),
    )
    (prediction,), ((advanced,), _), outputs = await asyncio.gather(plain, moved, raw)
    (expected,) = await model.predict([instance(0, 9)])
    assert np.array_equal(prediction, np.array(expected)[:5])
    assert np.array_equal(advanced, np.array(expected)[3:])
    assert np.array_equal(outputs["y"][0], np.array(expected)[:2])
