"""How a folder becomes a model: what its graph costs, which device runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import FolderError
from service.models.description import describe_model, summarize_model
from service.models.example import find_differences
from service.models.folder import ModelOptions
from service.models.loading import load_model
from service.models.model import SilentModelObserver
from service.runtime.base import Device, Runtime
from service.runtime.onnx_runtime import open_runtime
from service.runtime.tensors import Signature, Tensors
from service.scheduling.planning import Limits, RequestedLimits
from service.wire import read, write
from tests.fakes import FakeRuntime
from tests.folders import (
    write_forecast_folder,
    write_tensor_folder,
    write_text_folder,
)

CPU = ModelOptions(device="cpu")
WRITERS: list[Callable[[Path], Path]] = [write_forecast_folder, write_text_folder, write_tensor_folder]


class BatchSizes(SilentModelObserver):
    """Remembers the rows of every batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def batch_executed(self, *, rows: int, **_: Any) -> None:
        self.sizes.append(rows)


@pytest.mark.parametrize("write", WRITERS)
async def test_bounds_that_are_left_open_follow_from_the_cost_that_was_measured(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    options = ModelOptions(device="cpu", measure_s=0.02)
    model = await load_model(write(tmp_path), options)
    batching = describe_model(model)["batching"]
    assert batching["max_batch_size"] >= 1
    assert batching["max_padded_steps"] >= 1
    assert batching["cost"]["is_measured"]
    assert batching["best"]["rows_per_s"] > 0
    assert model.batcher.limits == model.limits
    random = np.random.default_rng(1)
    instances: list[Any] = [
        {
            "forecast": {"history": random.normal(size=length).tolist()},
            "classify": " ".join(["good", "not", "bad"] * length),
            "tensor": random.normal(size=(length, 2)).tolist(),
        }[model.task]
        for length in (2, 30, 7) * 100
    ]
    assert len(await model.predict(instances)) == 300
    await model.stop()


async def test_a_large_request_is_cut_into_items_that_fit_the_chosen_batch(tmp_path: Path) -> None:
    options = ModelOptions(device="cpu", limits=RequestedLimits(5), measure_s=0.02)
    observer = BatchSizes()
    model = await load_model(write_forecast_folder(tmp_path), options, observer=observer)
    await model.predict([{"history": [1, 2]}] * 23)
    assert max(observer.sizes) == 5
    await model.stop()


async def test_a_model_that_is_not_measured_has_the_default_bounds(tmp_path: Path) -> None:
    model = await load_model(write_forecast_folder(tmp_path), ModelOptions(device="cpu"))
    batching = describe_model(model)["batching"]
    assert (batching["max_batch_size"], batching["max_padded_steps"]) == (Limits().max_batch_size, Limits().max_padded_steps)
    assert not batching["cost"]["is_measured"]
    assert "best" not in batching
    await model.stop()


def open_device(answer: Callable[[Runtime, Tensors], Tensors]) -> Callable[[bytes, Device], Runtime]:
    """Opens graphs on a CUDA that answers so."""

    def open_graph(graph: bytes, device: Device) -> Runtime:
        real = open_runtime(graph, "cpu")
        if device == "cpu":
            return real
        on_device = FakeRuntime(
            Signature(real.inputs, real.outputs), lambda tensors: answer(real, tensors), provider="CUDAExecutionProvider"
        )
        on_device.requested = device
        return on_device

    return open_graph


def right(real: Runtime, tensors: Tensors) -> Tensors:
    return real.run(tensors)


def reads_padding(real: Runtime, tensors: Tensors) -> Tensors:
    longest = next(array.shape[1] for array in tensors.values() if array.ndim > 1)
    return real.run({**tensors, "lengths": np.full_like(tensors["lengths"], longest)})


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("device", ["cuda", "auto"])
async def test_a_device_that_answers_rightly_is_used(write: Callable[[Path], Path], device: Device, tmp_path: Path) -> None:
    model = await load_model(write(tmp_path), ModelOptions(device=device), open_graph=open_device(right))
    assert summarize_model(model)["provider"] == "CUDAExecutionProvider"
    assert "fallback" not in summarize_model(model)
    await model.stop()


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
async def test_a_device_that_reads_the_padding_makes_the_model_unavailable(device: Device, tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    with pytest.raises(FolderError, match=r"^model.onnx: CUDAExecutionProvider answers wrongly: output .* the same row alone$"):
        await load_model(folder, ModelOptions(device=device), open_graph=open_device(reads_padding))


async def test_under_auto_the_cpu_answers_in_its_place_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_forecast_folder(tmp_path)
    model = await load_model(folder, ModelOptions(device="auto"), open_graph=open_device(reads_padding))
    assert (summarize_model(model)["provider"], summarize_model(model)["device"]) == ("CPUExecutionProvider", "auto")
    assert summarize_model(model)["fallback"].startswith("CUDAExecutionProvider answers wrongly: output ")
    [warning] = [record.getMessage() for record in caplog.records if record.name == "service.models.folder"]
    assert warning.startswith("the device is not used for this model, the CPU is: CUDAExecutionProvider answers wrongly")
    example = json.loads((folder / "example.json").read_text())
    found = read(write(await model.predict(example["request"]["instances"])))
    assert find_differences(found, example["response"]["predictions"], 1e-5, 1e-5) == []
    await model.stop()
