"""A folder appears whole or not at all, and replaces another only with `replace`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training.data.sources import Content
from training.export.publish import (
    Publication,
    PublishError,
    add_graph,
    card_of,
    describe_data,
    next_version,
    publish,
    version_folders,
    write_card,
)
from training.recipe import ForecastRecipe, SeriesSource

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
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
    names = ["README.md", "example.json", "manifest.json", "model.onnx", "tokenizer.json"]
    assert sorted(file.name for file in folder.iterdir()) == names
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


def test_a_folder_has_the_card_of_its_manifest_and_keeps_it_with_a_further_graph(tmp_path: Path) -> None:
    folder = publish(make_publication(), tmp_path)
    card = folder / "README.md"
    assert card.read_text(encoding="utf-8") == card_of(folder)
    assert "| mae | **1** | 2 |" in card.read_text(encoding="utf-8")
    add_graph(folder, "model.int8.onnx", b"int8", {"file": "model.int8.onnx", "precision": "int8", "score": {"mae": 1.5}})
    assert card.read_text(encoding="utf-8") == card_of(folder)
    assert "| mae | **1** | 1.5 | 2 |" in card.read_text(encoding="utf-8")


def test_a_card_is_written_again_where_it_is_not_the_manifests(tmp_path: Path) -> None:
    folder = publish(make_publication(), tmp_path)
    assert not write_card(folder)
    (folder / "README.md").unlink()
    assert write_card(folder)
    (folder / "README.md").write_text("by hand")
    assert write_card(folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == card_of(folder)
    assert "README.md" in {file.name for file in folder.iterdir()}
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []


def test_a_card_that_the_disk_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = publish(make_publication(), tmp_path)
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()
    with pytest.raises(PublishError, match=r"README\.md cannot be written"):
        write_card(folder)
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []


def test_version_folders_are_found_from_each_level_and_what_is_none_is_refused(tmp_path: Path) -> None:
    first = publish(make_publication(), tmp_path)
    second = publish(make_publication(), tmp_path)
    assert version_folders(tmp_path) == version_folders(tmp_path / "toy") == [first, second]
    assert version_folders(first) == [first]
    with pytest.raises(PublishError, match="no model folder"):
        version_folders(first / "plots")
    (first / "manifest.json").write_text("[]")
    with pytest.raises(PublishError, match=r"no manifest\.json that a card"):
        write_card(first)


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
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="the limit is one of POSIX")
@pytest.mark.parametrize("limit", [0, 1, 4_000, 60_000], ids=lambda limit: f"{limit} bytes")
def test_a_disk_that_refuses_a_write_is_named_and_nothing_is_left(limit: int, tmp_path: Path) -> None:
    """The limit stops the graph, then a file behind it: the disk is full at different files."""
    code = f"""
import resource
from pathlib import Path
from tests.training.export.test_publish import make_publication
from training.export.publish import PublishError, publish
publication = make_publication(graph=bytes(3_000), files={{"tokenizer.json": "x" * 50_000}}, instances=[[0.5] * 20_000])
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
try:
    publish(publication, Path({str(tmp_path)!r}))
except PublishError as exc:
    print(exc)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout == f"{tmp_path / 'toy'} cannot be written: File too large\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are those of POSIX")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    models.chmod(0o555)
    # Root may write everywhere: then the process gives its rights away.
    for folder in (tmp_path, *tmp_path.parents[:2]):
        if os.geteuid() == 0:
            folder.chmod(0o755)
    code = f"""
import os
from pathlib import Path
from tests.training.export.test_publish import make_publication
from training.export.publish import PublishError, publish
publication = make_publication()
if os.geteuid() == 0:
    os.setuid(65534)
try:
    publish(publication, Path({str(models)!r}))
except PublishError as exc:
    print(exc)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout == f"{models / 'toy'} cannot be written: Permission denied\n"
    assert list(models.iterdir()) == []


def test_a_file_where_the_models_own_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "toy").write_text("a file")
    with pytest.raises(PublishError, match="toy cannot be written: File exists"):
        publish(make_publication(), tmp_path)
    assert (tmp_path / "toy").read_text() == "a file"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed as POSIX does")
@pytest.mark.parametrize("replace", [False, True], ids=["a new version", "a version that is replaced"])
def test_a_publisher_that_is_killed_anywhere_leaves_no_half_version(replace: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.training.export.killed_publisher", str(tmp_path), *(["replace"] if replace else [])]
    found = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=120)
    results = [json.loads(line) for line in found.stdout.splitlines()]
    killed, last = results[:-1], results[-1]
    assert len(killed) > 8
    assert all(result["is_killed"] for result in killed)
    names = {f"toy/1/{name}" for name in ("model.onnx", "manifest.json", "example.json", "tokenizer.json", "README.md")}
    assert last["files"].keys() == names
    for result in results:
        served = {name: size for name, size in result["files"].items() if name.startswith("toy/1/")}
        assert served.keys() == names or (not served and not replace), result
        if served:
            before = replace and served["toy/1/model.onnx"] == len(b"before")
            assert before or served == last["files"] | {"toy/1/manifest.json": served["toy/1/manifest.json"]}
        # What lies aside has a name that no listing takes for a version.
        assert all(name.split("/")[1].startswith(".") for name in result["files"].keys() - names)


def test_files_are_described_by_what_was_read() -> None:
    read, unread = SeriesSource(path="a.csv", origin="https://example.org", licence="free"), SeriesSource(path="b.csv")
    content = Content(read, "a.csv", b"x", "f" * 64)
    assert describe_data([read, unread], [content]) == [
        {"name": "a.csv", "origin": "https://example.org", "licence": "free", "sha256": "f" * 64},
        {"name": "b.csv"},
    ]
