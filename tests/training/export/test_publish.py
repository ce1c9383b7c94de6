"""A folder appears whole or not at all, and replaces another only with `replace`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from training.data.sources import Content
from training.export.publish import Publication, PublishError, describe_data, next_version, publish
from training.recipe import ForecastRecipe, SeriesSource

RECIPE = {
    "task": "forecast",
    "name": "toy",
    "data": {"train": [{"path": "a.csv"}]},
    "forecast": {"context_length": 4, "horizon": 2},
    "layers": [{"type": "dense"}],
    "fit": {"loss": "mse"},
}


def make_publication(**changes: Any) -> Publication:
    fields: dict[str, Any] = {
        "recipe": ForecastRecipe.model_validate(RECIPE),
        "graph": b"graph",
        "tensors": {"inputs": [], "outputs": [], "state": []},
        "spec": {"horizon": 2},
        "instances": [{"history": [1, 2]}],
        "predictions": [{"forecast": [3.0]}],
        "metrics": {"mae": 1.0},
        "baselines": {"seasonal_naive": {"mae": 2.0}},
        "data": [{"name": "a.csv", "licence": "free"}, {"name": "b.csv", "licence": "free"}, {"name": "c.csv"}],
        "files": {"tokenizer.json": "{}"},
    }
    return Publication(**{**fields, **changes})


def with_version(version: int) -> ForecastRecipe:
    return ForecastRecipe.model_validate({**RECIPE, "version": version})


def test_a_folder_holds_the_graph_and_what_describes_it(tmp_path: Path) -> None:
    folder = publish(make_publication(), tmp_path)
    assert folder == tmp_path / "toy" / "1"
    assert sorted(file.name for file in folder.iterdir()) == ["example.json", "manifest.json", "model.onnx", "tokenizer.json"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["graphs"][0]["sha256"] == hashlib.sha256(b"graph").hexdigest()
    assert manifest["version"] == "1"
    assert manifest["licence"] == "free"
    assert manifest["training"]["baselines"] == {"seasonal_naive": {"mae": 2.0}}
    assert manifest["training"]["recipe"]["forecast"] == {"context_length": 4, "horizon": 2}
    assert {"python", "torch", "onnx"} <= set(manifest["training"]["versions"])
    example = json.loads((folder / "example.json").read_text())
    assert example["request"] == {"model": "toy", "instances": [{"history": [1, 2]}]}
    assert example["response"] == {"predictions": [{"forecast": [3.0]}]}


def test_the_version_is_the_next_free_number(tmp_path: Path) -> None:
    for name in ("2", "10", "draft", "03"):
        (tmp_path / "toy" / name).mkdir(parents=True)
    assert next_version(tmp_path / "toy") == 11
    assert publish(make_publication(), tmp_path).name == "11"


def test_a_version_is_replaced_only_when_asked(tmp_path: Path) -> None:
    publish(make_publication(recipe=with_version(3)), tmp_path)
    with pytest.raises(PublishError, match=r"toy/3 exists: .* --replace"):
        publish(make_publication(recipe=with_version(3), graph=b"new"), tmp_path)
    assert (tmp_path / "toy" / "3" / "model.onnx").read_bytes() == b"graph"
    publish(make_publication(recipe=with_version(3), graph=b"new"), tmp_path, replace=True)
    assert (tmp_path / "toy" / "3" / "model.onnx").read_bytes() == b"new"
    assert [entry.name for entry in (tmp_path / "toy").iterdir()] == ["3"]


def test_what_fails_midway_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        publish(make_publication(metrics={"mae": float("nan")}), tmp_path)
    assert list((tmp_path / "toy").iterdir()) == []


def test_files_are_described_by_what_was_read() -> None:
    read, unread = SeriesSource(path="a.csv", origin="https://example.org", licence="free"), SeriesSource(path="b.csv")
    content = Content(read, "a.csv", b"x", "f" * 64)
    assert describe_data([read, unread], [content]) == [
        {"name": "a.csv", "origin": "https://example.org", "licence": "free", "sha256": "f" * 64},
        {"name": "b.csv"},
    ]
