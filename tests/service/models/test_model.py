from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import DeadlineExceeded, InferenceFailed, InvalidInput, Overloaded
from service.models.example import find_differences
from service.models.folder import ModelOptions
from service.models.loading import load_model
from service.models.model import Model, SilentModelObserver
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
