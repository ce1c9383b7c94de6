from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from service.errors import DeadlineExceeded, InferenceFailed, InvalidInput, Overloaded
from service.models.example import find_differences
from service.models.folder import ModelOptions
from service.models.loading import load_model
from service.models.model import HEAVY_REQUEST_SIZE, HEAVY_TENSOR_SIZE, Model, SilentModelObserver, reading_size
from service.runtime.base import Device, Runtime
from service.runtime.onnx_runtime import open_runtime
from service.runtime.tensors import Tensors
from service.scheduling.planning import RequestedLimits
from service.wire import read, write
from tests.fakes import ManualClock
from tests.folders import (
    write_forecast_folder,
    write_tensor_folder,
    write_text_folder,
)

CPU = ModelOptions(device="cpu")
Folders = list[Callable[[Path], Path]]
WRITERS: Folders = [write_forecast_folder, write_text_folder, write_tensor_folder]


class Listener(SilentModelObserver):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.rows = 0
        self.lengths: list[int] = []

    def encoded(self, duration_s: float, lengths: Sequence[int]) -> None:
        self.events.append("encoded")
        self.lengths = sorted(lengths)

    def decoded(self, duration_s: float) -> None:
        self.events.append("decoded")

    def enqueued(self, rows: int) -> None:
        self.rows += rows


class BatchSizes(SilentModelObserver):
    """Remembers the rows of every batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def batch_executed(self, *, rows: int, **_: Any) -> None:
        self.sizes.append(rows)


class LaterRuntime:
    """A real graph that answers so many runs, and by `run` from then on."""

    def __init__(self, real: Runtime, run: Callable[[Tensors], Tensors], num_true_runs: int) -> None:
        self.requested, self.provider, self.inputs, self.outputs = real.requested, real.provider, real.inputs, real.outputs
        self.fallback = real.fallback
        self._real = real
        self._run = run
        self._num_true_runs = num_true_runs

    def run(self, tensors: Tensors) -> Tensors:
        self._num_true_runs -= 1
        return self._real.run(tensors) if self._num_true_runs >= 0 else self._run(tensors)

    def terminate(self) -> None:
        pass


# -------------------------------------------------------------------------------------------------------- predicting


async def predict(model: Model, instances: list[Any]) -> Any:
    """The predictions as a client reads them."""
    return read(write(await model.predict(instances)))


@pytest.mark.parametrize("write", WRITERS)
async def test_a_model_answers_its_example(write: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = write(tmp_path)
    example = json.loads((folder / "example.json").read_text())
    model = await load_model(folder, CPU)
    predictions = await predict(model, example["request"]["instances"])
    assert find_differences(predictions, example["response"]["predictions"], 1e-5, 1e-5) == []
    assert model.runtime.provider == "CPUExecutionProvider"
    await model.stop()


@pytest.mark.parametrize("write", WRITERS)
async def test_a_row_in_a_ragged_batch_is_answered_as_alone(write: Callable[[Path], Path], tmp_path: Path) -> None:
    model = await load_model(write(tmp_path), CPU)
    random = np.random.default_rng(1)
    instances: list[Any] = [
        {
            "forecast": {"history": random.normal(size=length).tolist()},
            "classify": " ".join(["good", "not", "bad"] * length),
            "tensor": random.normal(size=(length, 2)).tolist(),
        }[model.task]
        for length in (2, 30, 7, 7, 100, 3)
    ]
    alone = [(await predict(model, [instance]))[0] for instance in instances]
    assert find_differences(await predict(model, instances), alone, 1e-5, 1e-5) == []
    assert (
        find_differences([r[0] for r in await asyncio.gather(*(predict(model, [i]) for i in instances))], alone, 1e-5, 1e-5) == []
    )
    await model.stop()


async def test_a_request_larger_than_the_queue_is_answered_in_order(tmp_path: Path) -> None:
    options = ModelOptions(device="cpu", num_workers=2, limits=RequestedLimits(max_batch_size=4, max_queue_size=16))
    model = await load_model(write_forecast_folder(tmp_path), options)
    instances = [{"history": [i / 100, 1.0, i / 50][: 2 + i % 2]} for i in range(200)]
    alone = [(await predict(model, [instances[i]]))[0] for i in (0, 77, 199)]
    predictions = await predict(model, instances)
    assert len(predictions) == 200
    assert find_differences([predictions[i] for i in (0, 77, 199)], alone, 1e-5, 1e-5) == []
    await model.stop()


async def test_a_bad_instance_stops_its_request_before_anything_runs(tmp_path: Path) -> None:
    listener = Listener()
    model = await load_model(write_forecast_folder(tmp_path), CPU, observer=listener)
    with pytest.raises(InvalidInput, match=r"^instance 1: history\[0\]"):
        await model.predict([{"history": [1, 2]}, {"history": ["x", 2]}])
    assert (listener.rows, listener.events) == (0, [])
    await model.stop()


@pytest.mark.parametrize("num_instances", [2, 100])
async def test_requests_are_observed_but_not_the_example(tmp_path: Path, num_instances: int) -> None:
    listener = Listener()
    model = await load_model(write_forecast_folder(tmp_path), CPU, observer=listener)
    assert (listener.rows, listener.events) == (0, [])
    await model.predict([{"history": [1, 2], "horizon": 6}] * num_instances)
    assert listener.events == ["encoded", "decoded"]
    assert listener.lengths == [2] * num_instances
    assert listener.rows == 2 * num_instances  # the horizon takes two runs
    await model.stop()


async def test_deadlines_are_kept(tmp_path: Path) -> None:
    clock = ManualClock()
    model = await load_model(write_forecast_folder(tmp_path), CPU, clock=clock)
    with pytest.raises(DeadlineExceeded):
        await model.predict([{"history": [1, 2]}], deadline=clock.now())
    assert await model.predict([{"history": [1, 2]}], deadline=clock.now() + 1)
    await model.stop()


async def test_a_full_queue_refuses(tmp_path: Path) -> None:
    options = ModelOptions(device="cpu", limits=RequestedLimits(max_batch_size=1, max_queue_size=1))
    model = await load_model(write_forecast_folder(tmp_path), options)
    requests = [model.predict([{"history": [1, 2]}]) for _ in range(10)]
    answers = await asyncio.gather(*requests, return_exceptions=True)
    assert any(isinstance(answer, list) for answer in answers)
    assert any(isinstance(answer, Overloaded) for answer in answers)
    await model.stop()


async def test_a_graph_that_answers_nan_is_an_error_and_not_an_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def run(tensors: Tensors) -> Tensors:
        rows = len(tensors["lengths"])
        return {"forecast": np.full((rows, 4, 1), np.nan, np.float32), "quantiles": np.zeros((rows, 4, 1, 3), np.float32)}

    def open_graph(graph: bytes, device: Device) -> Runtime:
        return LaterRuntime(open_runtime(graph, device), run, num_true_runs=1)

    model = await load_model(write_forecast_folder(tmp_path), CPU, open_graph=open_graph)
    with pytest.raises(InferenceFailed, match='output "forecast" is not finite'):
        await model.predict([{"history": [1, 2]}])
    await model.stop()
    [record] = [vars(record) for record in caplog.records if record.name == "service.models.model"]
    assert (record["levelname"], record["model"], record["instance"]) == ("WARNING", "toy-forecast", 0)


def overflowing(graph: bytes, device: Device) -> Runtime:
    """A forecaster whose quantiles are the square of the last value of a history: infinite from 1.8e19 on, and always for 13."""
    real = open_runtime(graph, device)

    def run(tensors: Tensors) -> Tensors:
        outputs = real.run(tensors)
        last = tensors["history"][np.arange(len(tensors["lengths"])), tensors["lengths"] - 1, 0]
        with np.errstate(over="ignore"):
            squares = np.where(last == 13, np.float32(np.inf), last * last)
        outputs["quantiles"] = np.broadcast_to(squares[:, None, None, None], outputs["quantiles"].shape).astype(np.float32)
        return outputs

    return LaterRuntime(real, run, num_true_runs=1)


@pytest.mark.parametrize("others", [[], [{"history": [1, 2]}] * 3])
async def test_numbers_for_which_a_sound_model_overflows_are_refused_as_input(tmp_path: Path, others: list[Any]) -> None:
    model = await load_model(write_forecast_folder(tmp_path), CPU, open_graph=overflowing)
    assert len(await model.predict([*others, {"history": [1e17, 1e17]}])) == len(others) + 1
    with pytest.raises(InvalidInput, match=r'output "quantiles" is not finite, for history holds 1e\+30') as caught:
        await model.predict([*others, {"history": [1e-30, 1e30]}])
    assert (caught.value.facts["instance"], caught.value.reason, caught.value.facts["where"]) == (
        len(others),
        "nonfinite",
        "history",
    )
    with pytest.raises(InferenceFailed):
        await model.predict([*others, {"history": [1, 13]}])
    history = np.array([[[1], [2]], [[1e-30], [1e30]]], np.float32)
    with pytest.raises(InvalidInput, match=r"instance 1: .* history holds"):
        await model.infer({"history": history})
    history[1] = 13
    with pytest.raises(InferenceFailed):
        await model.infer({"history": history})
    await model.stop()


# ----------------------------------------------------------------------------------------------------------- tensors


def streams(lengths: Sequence[int], seed: int = 0) -> Tensors:
    """Rows for the folder of `write_tensor_folder`, with garbage in their padding."""
    draw = np.random.default_rng(seed)
    return {
        "x": draw.normal(size=(len(lengths), max(lengths), 2)).astype(np.float32),
        "lengths": np.array(lengths, np.int64),
        "state": draw.normal(size=(len(lengths), 3)).astype(np.float32),
    }


def run_alone(model: Model, tensors: Tensors, row: int) -> Tensors:
    length = int(tensors["lengths"][row])
    return model.runtime.run(
        {
            "x": tensors["x"][row : row + 1, :length],
            "lengths": tensors["lengths"][row : row + 1],
            "state": tensors["state"][row : row + 1],
        }
    )


async def test_tensors_go_in_and_come_out_row_by_row_with_their_state(tmp_path: Path) -> None:
    options = ModelOptions(device="cpu", limits=RequestedLimits(max_batch_size=3, max_padded_steps=200))
    observer = BatchSizes()
    model = await load_model(write_tensor_folder(tmp_path), options, observer=observer)
    lengths = [7, 90, 1, 7, 100, 3, 8, 2]
    tensors = streams(lengths)
    outputs = await model.infer(tensors)
    assert {name: array.shape for name, array in outputs.items()} == {"y": (8, 100, 3), "new_state": (8, 3)}
    for row, length in enumerate(lengths):
        alone = run_alone(model, tensors, row)
        np.testing.assert_allclose(outputs["y"][row, :length], alone["y"][0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(outputs["new_state"][row], alone["new_state"][0], rtol=0, atol=1e-5)
    assert max(observer.sizes) <= 3
    await model.stop()


async def test_lengths_and_states_may_be_missing(tmp_path: Path) -> None:
    model = await load_model(write_tensor_folder(tmp_path), CPU)
    tensors = streams([5, 5])
    whole = await model.infer({**tensors, "state": np.zeros((2, 3), np.float32)})
    found = await model.infer({"x": tensors["x"]})
    assert found.keys() == whole.keys() == {"y", "new_state"}
    for name in found:
        np.testing.assert_array_equal(found[name], whole[name])
    await model.stop()


async def test_a_text_model_takes_token_ids_and_gives_probabilities(tmp_path: Path) -> None:
    model = await load_model(write_text_folder(tmp_path), CPU)
    [prediction] = await predict(model, ["good film"])
    outputs = await model.infer({"tokens": np.array([[1, 3, 0]]), "lengths": np.array([2])})
    assert outputs["probabilities"].tolist()[0] == pytest.approx(list(prediction["probabilities"].values()))
    await model.stop()


async def test_tensors_and_instances_share_batches(tmp_path: Path) -> None:
    options = ModelOptions(device="cpu", limits=RequestedLimits(max_queue_delay_s=60.0, max_batch_size=4))
    observer = BatchSizes()
    model = await load_model(write_forecast_folder(tmp_path), options, observer=observer)
    history = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    found, outputs, [other] = await asyncio.gather(
        predict(model, [{"history": row.tolist()} for row in history[:1]]),
        model.infer({"history": history[:, :, None]}),
        predict(model, [{"history": history[1].tolist()}]),
    )
    assert observer.sizes == [4]
    assert outputs.keys() == {"forecast", "quantiles"}
    assert outputs["forecast"].shape == (2, 4, 1)
    for row, prediction in enumerate((*found, other)):
        np.testing.assert_allclose(outputs["forecast"][row, :, 0], prediction["forecast"], rtol=1e-6)
        np.testing.assert_allclose(outputs["quantiles"][row, :, 0, 2], prediction["quantiles"]["0.9"], rtol=1e-6)
    await model.stop()


async def test_large_tensors_are_cut_on_a_thread_and_are_whole(tmp_path: Path) -> None:
    model = await load_model(write_tensor_folder(tmp_path), CPU)
    lengths = [1 + row % 300 for row in range(400)]
    tensors = streams(lengths)
    assert tensors["x"].size > HEAVY_TENSOR_SIZE
    outputs = await model.infer(tensors)
    for row in (0, 17, 299, 399):
        alone = run_alone(model, tensors, row)
        np.testing.assert_allclose(outputs["y"][row, : lengths[row]], alone["y"][0], rtol=0, atol=1e-5)
    await model.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((0, 4, 2), np.float32)}, "is empty"),
        ({"x": np.zeros((2, 0, 2), np.float32)}, "is empty"),
        ({"x": np.full((2, 4, 2), np.nan, np.float32)}, "instance 0: x.* is nan"),
        ({"x": np.zeros((2, 4, 3), np.float32)}, "expected FP32"),
        ({"x": np.zeros((2, 4, 2), np.float64)}, "expected FP32"),
        ({"lengths": np.array([4, 5])}, "row 1 is 5"),
        ({"lengths": np.array([4, 0])}, "row 1 is 0"),
        ({"lengths": np.array([4])}, "axis 0"),
        ({"state": np.zeros((3, 3), np.float32)}, "axis 0"),
        ({"z": np.zeros((2, 1), np.float32)}, "unknown tensor"),
    ],
)
async def test_tensors_that_are_not_the_models_are_refused_before_anything_runs(
    change: Tensors, message: str, tmp_path: Path
) -> None:
    listener = Listener()
    model = await load_model(write_tensor_folder(tmp_path), CPU, observer=listener)
    with pytest.raises(InvalidInput, match=message):
        await model.infer({**streams([4, 4]), **change})
    assert (listener.rows, listener.events) == (0, [])
    await model.stop()


async def test_no_tensors_are_refused(tmp_path: Path) -> None:
    model = await load_model(write_tensor_folder(tmp_path), CPU)
    with pytest.raises(InvalidInput, match='tensor "x" is missing'):
        await model.infer({})
    await model.stop()


async def test_tensors_keep_their_deadline(tmp_path: Path) -> None:
    clock = ManualClock()
    model = await load_model(write_tensor_folder(tmp_path), CPU, clock=clock)
    with pytest.raises(DeadlineExceeded):
        await model.infer(streams([3]), deadline=clock.now())
    assert await model.infer(streams([3]), deadline=clock.now() + 1)
    await model.stop()


async def test_an_output_that_is_not_finite_fails_the_request_and_no_other(tmp_path: Path) -> None:
    def open_graph(graph: bytes, device: Device) -> Runtime:
        real = open_runtime(graph, device)

        def run(tensors: Tensors) -> Tensors:
            outputs = real.run(tensors)
            is_large = (tensors["x"][:, 0] > 5).any(axis=1, keepdims=True)
            outputs["new_state"] = np.where(is_large, np.float32(np.nan), outputs["new_state"])
            return outputs

        return LaterRuntime(real, run, num_true_runs=1)

    options = ModelOptions(device="cpu", limits=RequestedLimits(max_queue_delay_s=60.0, max_batch_size=3))
    model = await load_model(write_tensor_folder(tmp_path), options, open_graph=open_graph)
    bad = {"x": np.array([[[1, 1]], [[9, 9]]], np.float32)}
    good, failed = await asyncio.gather(
        model.infer({"x": np.array([[[1, 1]]], np.float32)}), model.infer(bad), return_exceptions=True
    )
    assert isinstance(good, dict)
    assert isinstance(failed, InferenceFailed)
    assert failed.message == 'instance 1: the model\'s output "new_state" is not finite'
    await model.stop()


class Given(NamedTuple):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | bytes


@pytest.mark.parametrize(
    ("given", "is_heavy"),
    [
        (Given("text", "BYTES", [2], ["good film", "bad plot"]), False),
        (Given("text", "BYTES", [1], ["a b " * 25_000]), True),
        (Given("text", "BYTES", [1], b"\x10\x27\0\0" + b"a b " * 2500), True),
        (Given("history", "FP32", [1, 336, 1], [[[1.0]] * 336]), False),
        (Given("history", "FP32", [1, 336, 1], bytes(4 * 336)), False),
        (Given("history", "FP32", [1, 100_000, 1], [[[1.0]] * 100_000]), True),
        (Given("history", "FP32", [100_000], [1.0] * 100_000), True),
        (Given("history", "FP32", [], [1.0] * 100_000), True),
        (Given("history", "FP32", [2**63] * 32, [1.0]), True),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_takes_long_to_read_is_read_on_a_thread(given: Given, is_heavy: bool) -> None:
    assert (reading_size(given) > HEAVY_REQUEST_SIZE) == is_heavy
