from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from tokenizers import Tokenizer

from service.errors import DeadlineExceeded, FolderError, InferenceFailed, InvalidInput, Overloaded, StartError
from service.models.folder import ModelOptions
from service.models.loading import check_folder, differences, load_model
from service.models.model import Model, SilentModelObserver
from service.runtime.onnx_runtime import Device, Runtime, open_runtime
from service.runtime.tensors import Signature, Tensors
from service.scheduling.planning import Limits
from service.wire import read, write
from tests.fakes import FakeRuntime, ManualClock
from tests.folders import (
    build_graph,
    edit_example,
    edit_manifest,
    write_forecast_folder,
    write_graph,
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


# ------------------------------------------------------------------------------------------------------------ asking


async def ask(model: Model, instances: list[Any]) -> Any:
    """The predictions as a client reads them."""
    return read(write(await model.predict(instances)))


@pytest.mark.parametrize("write", WRITERS)
async def test_a_model_answers_its_example(write: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = write(tmp_path)
    example = json.loads((folder / "example.json").read_text())
    model = await load_model(folder, CPU)
    predictions = await ask(model, example["request"]["instances"])
    assert differences(predictions, example["response"]["predictions"], 1e-5, 1e-5) == []
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
    alone = [(await ask(model, [instance]))[0] for instance in instances]
    assert differences(await ask(model, instances), alone, 1e-5, 1e-5) == []
    assert differences([r[0] for r in await asyncio.gather(*(ask(model, [i]) for i in instances))], alone, 1e-5, 1e-5) == []
    await model.stop()


async def test_a_request_larger_than_the_queue_is_answered_in_order(tmp_path: Path) -> None:
    options = ModelOptions(device="cpu", num_workers=2, limits=Limits(max_batch_size=4, max_queue_size=16))
    model = await load_model(write_forecast_folder(tmp_path), options)
    instances = [{"history": [i / 100, 1.0, i / 50][: 2 + i % 2]} for i in range(200)]
    alone = [(await ask(model, [instances[i]]))[0] for i in (0, 77, 199)]
    predictions = await ask(model, instances)
    assert len(predictions) == 200
    assert differences([predictions[i] for i in (0, 77, 199)], alone, 1e-5, 1e-5) == []
    await model.stop()


async def test_a_bad_instance_stops_its_request_before_anything_runs(tmp_path: Path) -> None:
    listener = Listener()
    model = await load_model(write_forecast_folder(tmp_path), CPU, observer=listener)
    with pytest.raises(InvalidInput, match=r"^instance 1: history\[0\]"):
        await model.predict([{"history": [1, 2]}, {"history": ["x", 2]}])
    assert (listener.rows, listener.events) == (0, [])
    await model.stop()


@pytest.mark.parametrize("num_instances", [2, 100])
async def test_the_observer_hears_requests_but_not_the_example(tmp_path: Path, num_instances: int) -> None:
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
    options = ModelOptions(device="cpu", limits=Limits(max_batch_size=1, max_queue_size=1))
    model = await load_model(write_forecast_folder(tmp_path), options)
    asked = [model.predict([{"history": [1, 2]}]) for _ in range(10)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert any(isinstance(answer, list) for answer in answers)
    assert any(isinstance(answer, Overloaded) for answer in answers)
    await model.stop()


async def test_a_graph_that_answers_nan_is_an_error_and_not_an_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def run(tensors: Tensors) -> Tensors:
        rows = len(tensors["lengths"])
        return {"mean": np.full((rows, 4, 1), np.nan, np.float32), "quantiles": np.zeros((rows, 4, 1, 3), np.float32)}

    def open_graph(graph: bytes, device: Device) -> Runtime:
        return LaterRuntime(open_runtime(graph, device), run, num_true_runs=1)

    model = await load_model(write_forecast_folder(tmp_path), CPU, open_graph=open_graph)
    with pytest.raises(InferenceFailed, match='output "mean" is not finite'):
        await model.predict([{"history": [1, 2]}])
    await model.stop()
    [record] = [vars(record) for record in caplog.records if record.name == "service.models.model"]
    assert (record["levelname"], record["model"], record["instance"]) == ("WARNING", "toy-forecast", 0)


async def test_the_description_tells_the_manifest_and_the_truth(tmp_path: Path) -> None:
    model = await load_model(write_forecast_folder(tmp_path), ModelOptions(device="cpu", num_workers=3))
    about = model.describe()
    assert json.loads(json.dumps(about)) == about
    assert (about["name"], about["version"], about["task"], about["licence"]) == ("toy-forecast", "1", "forecast", "CC0")
    assert (about["provider"], about["device"]) == ("CPUExecutionProvider", "cpu")
    assert about["forecast"]["horizon"] == 4
    assert about["forecast"]["max_horizon"] == 40
    assert about["inputs"][0] == {"name": "history", "datatype": "FP32", "shape": ["batch", "time", 1]}
    assert about["training"]["metrics"] == {"mase": 0.9}
    assert about["training"]["baselines"] == {"seasonal naive": {"mase": 1.1}}
    assert about["batching"]["num_workers"] == 3
    await model.stop()


# -------------------------------------------------------------------------------------------------- cost and device


@pytest.mark.parametrize("write", WRITERS)
async def test_bounds_that_are_left_open_follow_from_the_cost_that_was_measured(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    options = ModelOptions(device="cpu", limits=Limits(0, 0), measure_s=0.02)
    model = await load_model(write(tmp_path), options)
    batching = model.describe()["batching"]
    assert batching["max_batch_size"] >= 1
    assert batching["max_padded_steps"] >= 1
    assert batching["cost"]["is_measured"]
    assert batching["best"]["rows_per_s"] > 0
    assert model.batcher.limits == model.options.limits
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
    options = ModelOptions(device="cpu", limits=Limits(5, 0), measure_s=0.02)
    observer = BatchSizes()
    model = await load_model(write_forecast_folder(tmp_path), options, observer=observer)
    await model.predict([{"history": [1, 2]}] * 23)
    assert max(observer.sizes) == 5
    await model.stop()


async def test_a_model_that_is_not_measured_has_the_default_bounds(tmp_path: Path) -> None:
    model = await load_model(write_forecast_folder(tmp_path), ModelOptions(device="cpu", limits=Limits(0, 0)))
    batching = model.describe()["batching"]
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
    assert model.summary["provider"] == "CUDAExecutionProvider"
    assert "fallback" not in model.summary
    await model.stop()


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
async def test_a_device_that_reads_the_padding_makes_the_model_unavailable(device: Device, tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    with pytest.raises(FolderError, match=r"^model.onnx: CUDAExecutionProvider answers wrongly: output .* the same row alone$"):
        await load_model(folder, ModelOptions(device=device), open_graph=open_device(reads_padding))


async def test_under_auto_the_cpu_answers_in_its_place_and_everybody_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_forecast_folder(tmp_path)
    model = await load_model(folder, ModelOptions(device="auto"), open_graph=open_device(reads_padding))
    assert (model.summary["provider"], model.summary["device"]) == ("CPUExecutionProvider", "auto")
    assert model.summary["fallback"].startswith("CUDAExecutionProvider answers wrongly: output ")
    [warning] = [record.getMessage() for record in caplog.records if record.name == "service.models.folder"]
    assert warning.startswith("the device is not used for this model, the CPU is: CUDAExecutionProvider answers wrongly")
    example = json.loads((folder / "example.json").read_text())
    found = await ask(model, example["request"]["instances"])
    assert differences(found, example["response"]["predictions"], 1e-5, 1e-5) == []
    await model.stop()


# ----------------------------------------------------------------------------------------------------- lying folders


def other_graph(folder: Path, **changes: Any) -> None:
    """Put a graph beside the manifest that has other inputs or outputs than the manifest says; None takes one away."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for kind in ("inputs", "outputs"):
        tensors = {tensor["name"]: tensor for tensor in manifest[kind]}
        for name, change in changes.items():
            if name in tensors or (kind == "inputs" and name.startswith("another")):
                tensors[name] = tensors.get(name, {"name": name}) | (change or {})
        manifest[kind] = [tensor for tensor in tensors.values() if changes.get(tensor["name"], {}) is not None]
    # Every output is zeros of its shape, as many rows as `history` has.
    nodes = [helper.make_node("Shape", ["history"], ["rows"], start=0, end=1)]
    sizes: dict[str, list[int]] = {}
    for output in manifest["outputs"]:
        name, datatype = output["name"], {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64}[output["datatype"]]
        sizes[f"{name}_sizes"] = output["shape"][1:]
        nodes += [
            helper.make_node("Concat", ["rows", f"{name}_sizes"], [f"{name}_shape"], axis=0),
            helper.make_node("Cast", ["nothing"], [f"{name}_zero"], to=datatype),
            helper.make_node("Expand", [f"{name}_zero", f"{name}_shape"], [name]),
        ]
    write_graph(folder, build_graph(manifest, nodes, {"nothing": np.zeros(1)}, sizes))


def manifest_says(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_manifest(folder, lambda manifest: manifest.update(changes))


def graph_has(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: other_graph(folder, **changes)


def no_longer(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def link_outside(folder: Path) -> None:
    graph = (folder / "model.onnx").read_bytes()
    outside = folder.parents[2] / "outside.onnx"
    outside.write_bytes(graph)
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(outside)


def two_features(manifest: dict[str, Any]) -> None:
    manifest["inputs"][0]["shape"] = ["batch", "time", 2]
    manifest["forecast"]["features"] = ["y", "z"]


def graph_file(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["graphs"][0].update(file=name)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (no_longer("manifest.json"), "manifest.json cannot be read: No such file"),
    "manifest is not JSON": (overwrite("manifest.json", b"{"), "manifest.json: manifest: Invalid JSON"),
    "unknown field": (manifest_says(colour="red"), "manifest.json: colour: Extra inputs are not permitted"),
    "newer schema": (manifest_says(schema_version=2), "manifest.json: schema_version: Input should be 1"),
    "other name": (manifest_says(name="other"), 'name is "other", the folder is named "toy-forecast"'),
    "other version": (manifest_says(version="2"), 'version is "2", the folder is named "1"'),
    "no graph": (no_longer("model.onnx"), "model.onnx cannot be read: No such file"),
    "graph elsewhere": (link_outside, "model.onnx leads out of the folder"),
    "file with a path": (lambda folder: edit_manifest(folder, graph_file("../../x.onnx")), "graphs.0.file: String should match"),
    "other graph than promised": (overwrite("model.onnx", b"junk"), "model.onnx: its sha256 is"),
    "graph is junk": (lambda folder: write_graph(folder, b"junk"), "onnxruntime does not take the graph"),
    "two features instead of one": (
        lambda folder: edit_manifest(folder, two_features),
        'input "history": the manifest says FP32 [batch, time, 2], the graph has FP32 [batch, time, 1]',
    ),
    "missing input": (graph_has(lengths=None), 'input "lengths": the manifest says INT64 [batch], the graph has no such input'),
    "additional input": (
        graph_has(another={"datatype": "FP32", "shape": ["batch"]}),
        'input "another": the graph has it as FP32 [batch], the manifest does not name it',
    ),
    "missing output": (
        graph_has(quantiles=None),
        'output "quantiles": the manifest says FP32 [batch, 4, 1, 3], the graph has no',
    ),
    "other datatype": (
        graph_has(mean={"datatype": "INT64"}),
        'output "mean": the manifest says FP32 [batch, 4, 1], the graph has INT64 [batch, 4, 1]',
    ),
    "other horizon": (
        graph_has(mean={"shape": ["batch", 6, 1]}),
        'output "mean": the manifest says FP32 [batch, 4, 1], the graph has FP32 [batch, 6, 1]',
    ),
    "frozen time axis": (
        graph_has(history={"shape": ["batch", 168, 1]}),
        'input "history": the manifest says FP32 [batch, time, 1], the graph has FP32 [batch, 168, 1]',
    ),
    "one axis less": (
        graph_has(mean={"shape": ["batch", 4]}),
        'output "mean": the manifest says FP32 [batch, 4, 1], the graph has',
    ),
    "no example": (no_longer("example.json"), "example.json cannot be read: No such file"),
    "example is not JSON": (overwrite("example.json", b"nonsense"), "example.json is not JSON"),
    "example without answer": (lambda folder: edit_example(folder, lambda e: e.pop("response")), "example.json: response: Field"),
    "example of another model": (
        lambda folder: edit_example(folder, lambda e: e["request"].update(model="other")),
        'request.model is "other", the model is "toy-forecast"',
    ),
    "example asks too much": (
        lambda folder: edit_example(folder, lambda e: e["request"]["instances"][0].update(horizon=1000)),
        "the model did not answer: instance 0: horizon: expected 1 to 40 steps",
    ),
    "wrong answer": (
        lambda folder: edit_example(folder, lambda e: e["response"]["predictions"][1]["mean"].__setitem__(2, 99)),
        "predictions[1].mean[2]: expected 99, found 1.542",
    ),
    "missing answer": (
        lambda folder: edit_example(folder, lambda e: e["response"]["predictions"].pop()),
        "predictions: expected 1 entries, found 2",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_folder_that_is_broken_or_lies_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    change, reason = BROKEN[name]
    folder = write_forecast_folder(tmp_path / "models")
    change(folder)
    with pytest.raises(FolderError) as caught:
        await load_model(folder, CPU)
    assert reason in caught.value.message


@pytest.mark.parametrize("name", BROKEN)
def test_check_says_what_load_says(name: str, tmp_path: Path) -> None:
    change, reason = BROKEN[name]
    folder = write_forecast_folder(tmp_path / "models")
    change(folder)
    assert reason in "\n".join(check_folder(folder, CPU))


@pytest.mark.parametrize("write", WRITERS)
def test_check_finds_nothing_in_a_sound_folder(write: Callable[[Path], Path], tmp_path: Path) -> None:
    assert check_folder(write(tmp_path), CPU) == []


def test_check_finds_everything_at_once(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    edit_manifest(folder, lambda manifest: manifest.update(name="other"))
    edit_manifest(folder, lambda manifest: manifest["graphs"][0].update(sha256="0" * 64))
    edit_example(folder, lambda example: example["request"].update(instances=[{"history": [1, 2]}]))
    edit_example(folder, lambda example: example["response"].update(predictions=[{"mean": [0, 0, 0, 0]}]))
    findings = check_folder(folder, CPU)
    for part in ('name is "other"', "sha256", "request.model", "at least two instances", "expected the fields ['mean']"):
        assert part in "\n".join(findings)
    assert len(findings) == 5


def test_check_lists_every_error_of_a_manifest(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    edit_manifest(folder, lambda manifest: manifest.update(colour="red", version="one"))
    assert [finding.split(": ")[1] for finding in check_folder(folder, CPU)] == ["version", "colour"]


async def test_a_text_model_needs_its_tokenizer(tmp_path: Path) -> None:
    folder = write_text_folder(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FolderError, match=r"^tokenizer\.json cannot be read"):
        await load_model(folder, CPU)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(FolderError, match=r"^tokenizer\.json is no tokenizer"):
        await load_model(folder, CPU)


async def test_a_tokenizer_with_more_tokens_than_the_graph_is_refused(tmp_path: Path) -> None:
    folder = write_text_folder(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    last = tokenizer.get_vocab_size() - 1
    assert await asyncio.to_thread(check_folder, folder, CPU) == []
    tokenizer.add_tokens(["unheard"])
    tokenizer.save(str(folder / "tokenizer.json"))
    message = f"tokenizer.json has token ids up to {last + 1}, the graph does not take them"
    assert await asyncio.to_thread(check_folder, folder, CPU) == [message]
    with pytest.raises(FolderError) as caught:
        await load_model(folder, CPU)
    assert caught.value.message == message


async def test_state_must_have_one_shape_in_and_out(tmp_path: Path) -> None:
    folder = write_tensor_folder(tmp_path)
    edit_manifest(folder, lambda manifest: manifest.update(state=[{"input": "state", "output": "y"}]))
    with pytest.raises(FolderError, match=r'state "state" → "y": expected FP32'):
        await load_model(folder, CPU)


async def test_a_missing_device_is_no_fault_of_the_folder(tmp_path: Path) -> None:
    def open_graph(graph: bytes, device: Device) -> Runtime:
        return open_runtime(graph, "cuda", available=["CPUExecutionProvider"])

    with pytest.raises(StartError):
        await load_model(write_forecast_folder(tmp_path), CPU, open_graph=open_graph)


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        (1.0005, 1, None),
        (1.002, 1, "x: expected 1, found 1.002"),
        (float("nan"), 1.0, "x: expected 1, found nan"),
        (True, 1, "x: expected 1, found True"),
        ("a", "b", "x: expected 'b', found 'a'"),
        ([1, 2], [1], "x: expected 1 entries, found 2"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "x.a[1]: expected 3, found 2"),
        ({"a": 1}, {"b": 1}, "x: expected the fields ['b'], found ['a']"),
        (None, 0, "x: expected 0, found None"),
    ],
)
def test_answers_differ_by_more_than_the_tolerance_or_in_kind(found: object, expected: object, difference: str | None) -> None:
    lines = differences(found, expected, 1e-4, 1e-3, "x")
    assert (lines == []) if difference is None else lines[0].startswith(difference)
