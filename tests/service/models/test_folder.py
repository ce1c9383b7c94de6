"""A folder that is not what it says is refused with the reason, by the server and by `check`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from tokenizers import Tokenizer

from service.errors import FolderError, StartError
from service.models.folder import ModelOptions
from service.models.loading import check_folder, load_model
from service.runtime.base import Device, Runtime
from service.runtime.onnx_runtime import open_runtime
from service.wire import read, write
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
WRITERS: list[Callable[[Path], Path]] = [write_forecast_folder, write_text_folder, write_tensor_folder]


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
    "manifest is not JSON": (overwrite("manifest.json", b"{"), "manifest.json is not JSON"),
    "unknown field": (manifest_says(colour="red"), "manifest.json: colour: Extra inputs are not permitted"),
    "unknown task": (manifest_says(task="divine"), "task: expected one of ['classify', 'forecast', 'tensor'], got 'divine'"),
    "no task": (lambda folder: edit_manifest(folder, lambda manifest: manifest.pop("task")), "task: expected one of"),
    "a list": (overwrite("manifest.json", b"[]"), "manifest.json: expected an object"),
    "block of another task": (manifest_says(classify={}), "manifest.json: classify: Extra inputs are not permitted"),
    "no block": (lambda folder: edit_manifest(folder, lambda manifest: manifest.pop("forecast")), "forecast: Field required"),
    "output of another horizon": (
        lambda folder: edit_manifest(folder, lambda manifest: manifest["forecast"].update(horizon=9)),
        "manifest.json: outputs: tensor \"forecast\": expected FP32 ['batch', 9, 1], got FP32 ['batch', 4, 1]",
    ),
    "output of another name": (
        lambda folder: edit_manifest(folder, lambda manifest: manifest["outputs"][0].update(name="average")),
        "manifest.json: outputs: tensor \"forecast\" FP32 ['batch', 4, 1] is missing",
    ),
    "newer schema": (manifest_says(schema_version=2), "manifest.json: schema_version: Input should be 1"),
    "other name": (manifest_says(name="other"), 'name is "other", the folder is named "toy-forecast"'),
    "other version": (manifest_says(version="2"), 'version is "2", the folder is named "1"'),
    "no graph": (no_longer("model.onnx"), "model.onnx cannot be read: No such file"),
    "graph elsewhere": (link_outside, "model.onnx is a link that leads out of the folder"),
    "file with a path": (lambda folder: edit_manifest(folder, graph_file("../../x.onnx")), "graphs.0.file: String should match"),
    "other graph than listed": (overwrite("model.onnx", b"junk"), "model.onnx: its sha256 is"),
    "graph is junk": (lambda folder: write_graph(folder, b"junk"), "it is not an ONNX file"),
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
        graph_has(forecast={"datatype": "INT64"}),
        'output "forecast": the manifest says FP32 [batch, 4, 1], the graph has INT64 [batch, 4, 1]',
    ),
    "other horizon": (
        graph_has(forecast={"shape": ["batch", 6, 1]}),
        'output "forecast": the manifest says FP32 [batch, 4, 1], the graph has FP32 [batch, 6, 1]',
    ),
    "frozen time axis": (
        graph_has(history={"shape": ["batch", 168, 1]}),
        'input "history": the manifest says FP32 [batch, time, 1], the graph has FP32 [batch, 168, 1]',
    ),
    "one axis less": (
        graph_has(forecast={"shape": ["batch", 4]}),
        'output "forecast": the manifest says FP32 [batch, 4, 1], the graph has',
    ),
    "no example": (no_longer("example.json"), "example.json cannot be read: No such file"),
    "example is not JSON": (overwrite("example.json", b"nonsense"), "example.json is not JSON"),
    "example without answer": (lambda folder: edit_example(folder, lambda e: e.pop("response")), "example.json: response: Field"),
    "example of another model": (
        lambda folder: edit_example(folder, lambda e: e["request"].update(model="other")),
        'request.model is "other", the model is "toy-forecast"',
    ),
    "example beyond the horizon": (
        lambda folder: edit_example(folder, lambda e: e["request"]["instances"][0].update(horizon=1000)),
        "the model did not answer: instance 0: horizon: expected 1 to 40 steps",
    ),
    "wrong answer": (
        lambda folder: edit_example(folder, lambda e: e["response"]["predictions"][1]["forecast"].__setitem__(2, 99)),
        "predictions[1].forecast[2]: expected 99, found 1.542",
    ),
    "missing answer": (
        lambda folder: edit_example(folder, lambda e: e["response"]["predictions"].pop()),
        "predictions: expected 1 entries, found 2",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_folder_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
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
def test_check_finds_nothing_in_a_valid_folder(write: Callable[[Path], Path], tmp_path: Path) -> None:
    assert check_folder(write(tmp_path), CPU) == []


def test_check_finds_everything_at_once(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    edit_manifest(folder, lambda manifest: manifest.update(name="other"))
    edit_manifest(folder, lambda manifest: manifest["graphs"][0].update(sha256="0" * 64))
    edit_example(folder, lambda example: example["request"].update(instances=[{"history": [1, 2]}]))
    edit_example(folder, lambda example: example["response"].update(predictions=[{"forecast": [0, 0, 0, 0]}]))
    findings = check_folder(folder, CPU)
    for part in ('name is "other"', "sha256", "request.model", "at least two instances", "expected the fields ['forecast']"):
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


@pytest.mark.parametrize("with_quantiles", [True, False])
async def test_a_folder_of_the_first_release_is_served_and_answers_as_today(with_quantiles: bool, tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path, output="mean", quantiles=(0.1, 0.5) if with_quantiles else ())
    example = json.loads((folder / "example.json").read_text())
    assert "mean" in example["response"]["predictions"][0]
    assert await asyncio.to_thread(check_folder, folder, CPU) == []
    model = await load_model(folder, CPU)
    [prediction] = read(write(await model.predict(example["request"]["instances"][:1])))
    assert list(prediction) == ["forecast", "quantiles"][: 1 + with_quantiles]
    await model.stop()


async def test_a_block_of_another_task_may_be_null(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    edit_manifest(folder, lambda manifest: manifest.update(classify=None))
    assert await asyncio.to_thread(check_folder, folder, CPU) == []
