"""An int8 graph from training, served: which graph runs, how it is reported, and that a row in a batch is the row alone."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from rich.console import Console

from service.errors import FolderError
from service.models.example import find_differences
from service.models.folder import ModelOptions
from service.models.loading import check_folder, load_model
from service.models.model import Model
from service.models.precision import RequestedPrecision, precision_of
from service.runtime.base import CUDA, Device, Runtime
from service.runtime.onnx_runtime import open_runtime
from service.wire import read, write
from tests.folders import add_int8_graph, edit_manifest, write_forecast_folder
from tests.serving import client_of, server_process
from training.recipe import parse_recipe
from training.runs.train import train

RECIPE = """
task = "forecast"
name = "toy"
[[data.train]]
builtin = "air-passengers"
[forecast]
context_length = 24
min_length = 12
horizon = 6
season_length = 12
seasonal_lag = 12
frequencies = ["M"]
quantiles = [0.1, 0.5, 0.9]
[scaling]
kind = "window"
transform = "log"
[[layers]]
type = "lstm"
units = 12
[[layers]]
type = "dense"
[fit]
loss = "quantile"
epochs = 1
[evaluate]
baselines = ["seasonal_naive"]
[quantize]
max_error_gained = 10.0
"""
CPU = ModelOptions(device="cpu")


def with_precision(requested: RequestedPrecision) -> ModelOptions:
    return replace(CPU, precision=requested)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one trained model of two graphs."""
    path = tmp_path_factory.mktemp("int8")
    recipe = parse_recipe(RECIPE)
    train(recipe, path / "toy.toml", data=None, models=path / "models", runs=path / "runs", console=Console(quiet=True))
    return path / "models"


def test_both_graphs_of_a_trained_folder_pass_the_check(models: Path) -> None:
    assert check_folder(models / "toy" / "1", CPU) == []


async def predict(model: Model, instances: list[Any]) -> Any:
    """The predictions as a client reads them."""
    return read(write(await model.predict(instances)))


async def test_the_int8_graph_answers_near_the_first_and_a_row_in_a_batch_as_the_row_alone(models: Path) -> None:
    folder = models / "toy" / "1"
    fp32, int8 = await load_model(folder, with_precision("fp32")), await load_model(folder, with_precision("int8"))
    assert [model.graph.precision for model in (fp32, int8)] == ["fp32", "int8"]
    random = np.random.default_rng(0)
    instances: list[Any] = [
        {"history": (10.0**exponent * random.uniform(1, 2, length)).tolist()}
        for exponent, length in zip((0, 5, -3, 2, 8), (24, 12, 40, 13, 12), strict=True)
    ]
    alone = [(await predict(int8, [instance]))[0] for instance in instances]
    assert find_differences(await predict(int8, instances), alone, 1e-5, 1e-5) == []
    assert (
        find_differences([r[0] for r in await asyncio.gather(*(predict(int8, [i]) for i in instances))], alone, 1e-5, 1e-5) == []
    )
    expected = await predict(fp32, instances)
    assert find_differences(alone, expected, 0, 0.1) == []
    assert find_differences(alone, expected, 0, 1e-6) != []
    await fp32.stop()
    await int8.stop()


def test_a_real_server_runs_the_requested_graph_and_reports_it(models: Path) -> None:
    example = json.loads((models / "toy" / "1" / "example.json").read_text())
    digests = {
        entry["precision"]: entry["sha256"]
        for entry in json.loads((models / "toy" / "1" / "manifest.json").read_text())["graphs"]
    }
    with server_process(models, SLUICE_PRECISION="int8") as server:
        answer = httpx.post(f"{server.url}/predict", json=example["request"], timeout=30)
        assert answer.status_code == 200
        for found, expected in zip(answer.json()["predictions"], example["response"]["predictions"], strict=True):
            assert found["forecast"] == pytest.approx(expected["forecast"], rel=0.1)
            assert found["forecast"] != expected["forecast"]
        about = httpx.get(f"{server.url}/models/toy", timeout=30).json()
        assert (about["precision"], about["graph"]["precision"], about["graph"]["sha256"]) == ("int8", "int8", digests["int8"])
        assert "precision_note" not in about
        (info,) = [
            line for line in httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines() if "sluice_model_info{" in line
        ]
        assert 'precision="int8"' in info
        assert digests["int8"] in info
        assert "precision=int8" in server.log


@pytest.mark.parametrize(
    ("requested", "change", "precision", "note"),
    [
        ("auto", {}, "int8", None),
        ("fp32", {}, "fp32", None),
        ("int8", {}, "int8", None),
        ("auto", {"loss": 0.02}, "fp32", "model.int8.onnx loses more than its bound: mae 2 % (bound 1 %)"),
        ("int8", {"loss": 0.02}, "int8", None),
        ("auto", {"loss": None}, "fp32", "the manifest does not say what model.int8.onnx loses"),
        # An answer beyond its tolerance, as on a processor that computes otherwise.
        ("auto", {"tolerance": 1e-9}, "fp32", "model.int8.onnx does not answer the example on this machine: example.json: "),
    ],
)
async def test_get_models_reports_which_graph_runs_and_why(
    tmp_path: Path, requested: RequestedPrecision, change: dict[str, Any], precision: str, note: str | None
) -> None:
    add_int8_graph(write_forecast_folder(tmp_path), **change)
    async with client_of(tmp_path, precision=requested) as client:
        (about,) = (await client.get("/models")).json()["models"]
    assert (about["state"], about["precision"]) == ("READY", precision)
    assert about.get("precision_note", "").startswith(note or "")
    assert ("precision_note" in about) == (note is not None)


async def test_int8_is_requested_for_a_folder_without(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    async with client_of(tmp_path, precision="int8") as client:
        (about,) = (await client.get("/models")).json()["models"]
    assert (about["precision"], about["precision_note"]) == ("fp32", "int8 was asked for, the folder has no int8 graph")


async def test_an_int8_graph_that_answers_wrongly_is_not_served_even_when_requested(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    add_int8_graph(folder, tolerance=1e-9)
    with pytest.raises(FolderError, match=r"predictions\[0\]"):
        await load_model(folder, with_precision("int8"))


def swap_files(folder: Path) -> None:
    """fp32 is declared int8, and the other way round; every hash is right."""
    graphs = [(folder / name).read_bytes() for name in ("model.int8.onnx", "model.onnx")]

    def edit(manifest: dict[str, Any]) -> None:
        for entry, graph in zip(manifest["graphs"], graphs, strict=True):
            (folder / entry["file"]).write_bytes(graph)
            entry["sha256"] = hashlib.sha256(graph).hexdigest()

    edit_manifest(folder, edit)


def declare(number: int, precision: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        edit_manifest(folder, lambda manifest: manifest["graphs"][number].update(precision=precision))

    return change


@pytest.mark.parametrize("requested", ["auto", "fp32", "int8"])
@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        (
            swap_files,
            [
                "model.onnx: it is an int8 graph, the manifest says fp32",
                "model.int8.onnx: it is an fp32 graph, the manifest says int8",
            ],
        ),
        (declare(0, "int8"), ["model.onnx: it is an fp32 graph, the manifest says int8"]),
        (declare(1, "fp32"), ["model.int8.onnx: it is an int8 graph, the manifest says fp32"]),
    ],
    ids=["swapped", "fp32 as int8", "int8 as fp32"],
)
async def test_a_manifest_with_the_wrong_precision_is_refused(
    tmp_path: Path, requested: RequestedPrecision, change: Callable[[Path], None], sentences: list[str]
) -> None:
    folder = write_forecast_folder(tmp_path)
    add_int8_graph(folder)
    change(folder)
    found = await asyncio.to_thread(check_folder, folder, CPU)
    assert [sentence for sentence in sentences if sentence not in found] == []
    with pytest.raises(FolderError):
        await load_model(folder, with_precision(requested))


class OnCuda:
    """A real graph that says it runs on the GPU."""

    def __init__(self, real: Runtime) -> None:
        self.requested, self.provider, self.fallback = real.requested, CUDA, real.fallback
        self.inputs, self.outputs, self.run = real.inputs, real.outputs, real.run
        self.terminate = real.terminate


async def test_on_a_gpu_fp32_runs_because_int8_operators_do_not(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    add_int8_graph(folder)
    opened: list[str | None] = []

    def open_graph(graph: bytes, device: Device) -> Runtime:
        opened.append(precision_of(graph))
        return OnCuda(open_runtime(graph, "cpu"))

    model = await load_model(folder, with_precision("int8"), open_graph=open_graph)
    assert opened == ["int8", "fp32", "fp32"]  # the last one on the CPU, beside which the GPU is proven
    assert model.graph.precision == "fp32"
    assert model.precision_note == "int8 operators run on the CPU alone, this graph runs on CUDAExecutionProvider"
    await model.stop()


def test_check_looks_at_every_graph(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    add_int8_graph(folder, tolerance=1e-9)
    assert any("predictions[0]" in finding for finding in check_folder(folder, CPU))
    (folder / "model.int8.onnx").write_bytes(b"junk")
    assert any(finding.startswith("model.int8.onnx: its sha256 is") for finding in check_folder(folder, CPU))
