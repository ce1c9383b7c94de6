"""Statistics of training and measures of the service: the same features, the same numbers; and a server that measures drift."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.models.folder import ModelOptions, examine
from tests.folders import edit_manifest, write_forecast_folder, write_tensor_folder, write_text_folder
from tests.serving import client_of
from training.export.publish import set_statistics
from training.export.statistics import collect_statistics, measure
from training.scoring.evaluate import Graph

RNG = np.random.default_rng(0)
LENGTHS = np.array([3, 5, 1, 4])


def rows(task: str) -> dict[str, Any]:
    if task == "classify":
        return {"tokens": RNG.integers(0, 12, (4, 5)), "lengths": LENGTHS}
    if task == "forecast":
        return {"history": RNG.normal(size=(4, 5, 1)).astype(np.float32), "lengths": LENGTHS}
    return {"x": RNG.normal(size=(4, 5, 2)).astype(np.float32), "lengths": LENGTHS, "state": np.zeros((4, 3), np.float32)}


@pytest.mark.parametrize("write", [write_forecast_folder, write_text_folder, write_tensor_folder])
def test_the_service_measures_what_training_measured(write: Any, tmp_path: Path) -> None:
    folder = write(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    inputs, graph = rows(manifest["task"]), Graph((folder / "model.onnx").read_bytes())
    outputs = graph.run(inputs)
    parts = examine(folder, ModelOptions(device="cpu")).parts
    assert parts is not None
    found, expected = parts.task.measure(inputs, outputs), measure(inputs, outputs, manifest, unknown_id=0)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    statistics = collect_statistics(graph, [inputs], manifest, unknown_id=0)
    assert statistics is not None
    set_statistics(folder, statistics)
    assert {feature["name"] for feature in statistics["features"]} == expected.keys()
    read = examine(folder, ModelOptions(device="cpu"))
    assert read.findings == []
    assert read.parts is not None
    assert read.parts.manifest.statistics is not None


async def test_a_watched_model_says_so_and_one_without_statistics_says_why(tmp_path: Path) -> None:
    folder = write_text_folder(tmp_path)
    write_forecast_folder(tmp_path)
    edge = {"name": "score", "edges": [0.5], "shares": [0.5, 0.5]}
    edit_manifest(folder, lambda manifest: manifest.update(statistics={"num_rows": 10, "features": [edge]}))
    async with client_of(tmp_path, drift_models="*") as client:
        assert (await describe(client, "toy-sentiment"))["drift"] == {"num_rows": 0, "features": {}}
        assert "no statistics" in (await describe(client, "toy-forecast"))["drift"]["reason"]
        assert 'sluice_drift_window_rows{model="toy-sentiment",version="1"} 0.0' in (await client.get("/metrics")).text
    async with client_of(tmp_path) as client:
        assert "drift" not in await describe(client, "toy-sentiment")


async def describe(client: httpx.AsyncClient, name: str) -> dict[str, Any]:
    about: dict[str, Any] = (await client.get(f"/models/{name}")).json()
    return about


@pytest.mark.parametrize(
    "feature",
    [
        {"name": "x", "edges": [1.0, 1.0], "shares": [0.5, 0.25, 0.25]},
        {"name": "x", "edges": [1.0], "shares": [1.0]},
        {"name": "x", "edges": [1.0], "shares": [0.9, 0.9]},
        {"name": "x" * 301, "edges": [1.0], "shares": [0.5, 0.5]},
        {"name": "x", "edges": [float(number) for number in range(65)], "shares": [1.0] + [0.0] * 65},
        {"name": "x", "edges": [], "shares": [1.0]},
    ],
)
def test_statistics_that_are_none_are_found(feature: dict[str, Any], tmp_path: Path) -> None:
    folder = write_text_folder(tmp_path)
    edit_manifest(folder, lambda manifest: manifest.update(statistics={"num_rows": 1, "features": [feature]}))
    assert any("statistics" in finding for finding in examine(folder, ModelOptions(device="cpu")).findings)
