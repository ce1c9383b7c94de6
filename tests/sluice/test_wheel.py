"""What is installed from a wheel: the files that belong into it, and a server and an importer that work in empty environments."""

from __future__ import annotations

import email
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import httpx
import pytest

from service import __version__
from tests.serving import server_process

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Training needs these; importing a finished model must not.
ONLY_FOR_TRAINING = ("lightning", "torchmetrics", "polars", "statsforecast", "scikit-learn", "matplotlib", "pandas", "scipy")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what it is made of, since setuptools leaves its traces beside the sources."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in ("sluice", "service", "training"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    code = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(target)], cwd=source, check=True, capture_output=True, timeout=300)
    (found,) = target.glob("*.whl")
    return found


def test_the_wheel_holds_the_packages_with_their_data_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"sluice_serving-{__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"sluice", "service", "training", info}
    packages = [ROOT / package for package in ("sluice", "service", "training")]
    sources = {file.relative_to(ROOT).as_posix() for package in packages for file in package.rglob("*") if file.is_file()}
    assert {name for name in names if not name.startswith(info)} == {name for name in sources if "__pycache__" not in name}
    for needed in ("sluice/py.typed", "service/py.typed", "training/py.typed", "training/recipes/passengers.toml"):
        assert needed in names
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= names


def test_the_metadata_name_the_version_the_licence_and_the_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"sluice_serving-{__version__}.dist-info"
    metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == (
        "sluice-serving",
        __version__,
        "Apache-2.0",
    )
    assert metadata["Author"] == "Sluice developers"
    assert metadata.get_all("Project-URL") is None  # none that is not ours
    assert "sluice = sluice.__main__:main" in archive.read(f"{info}/entry_points.txt").decode()


def test_the_extra_for_imports_asks_for_nothing_that_only_training_needs() -> None:
    extra = PROJECT["optional-dependencies"]["import"]
    assert {"torch", "onnx", "h5py"} <= {_name(requirement) for requirement in extra}
    assert not {_name(requirement) for requirement in [*extra, *PROJECT["dependencies"]]} & {*ONLY_FOR_TRAINING}


def test_torch_is_a_range_in_the_metadata_and_pinned_in_the_constraints() -> None:
    (torch,) = [entry for entry in PROJECT["optional-dependencies"]["import"] if _name(entry) == "torch"]
    assert re.fullmatch(r"torch>=[\d.]+,<[\d.]+", torch)
    assert "\ntorch==" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and the CPU runtime alone; its folder of programs."""
    return install(wheel, "cpu", tmp_path_factory.mktemp("environment"))


@pytest.mark.slow
def test_an_empty_environment_serves_a_models_folder_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    command = [str(environment / "sluice"), "serve"]
    with server_process(ROOT / "models", command=command, cwd=tmp_path) as server:
        body = (ROOT / "docs" / "examples" / "hourly.json").read_bytes()
        answer = httpx.post(f"{server.url}/predict", content=body, headers={"content-type": "application/json"}, timeout=30)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == "forecast-hourly"
        assert len(answer.json()["predictions"]) == 1
        assert httpx.get(f"{server.url}/docs", timeout=30).status_code == 200


@pytest.mark.slow
def test_an_environment_that_serves_says_what_training_needs(environment: Path, tmp_path: Path) -> None:
    found = subprocess.run(
        [str(environment / "sluice"), "train", "passengers"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert found.returncode != 0
    assert "pip install 'sluice-serving[cpu,train]'" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.fixture(scope="module")
def import_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with what imports need, and nothing that only training needs; its folder of programs."""
    programs = install(wheel, "cpu,import", tmp_path_factory.mktemp("import"))
    listed = subprocess.run(
        [str(programs / "python"), "-m", "pip", "list", "--format", "json"], check=True, capture_output=True, timeout=120
    )
    assert not {entry["name"].lower() for entry in json.loads(listed.stdout)} & {*ONLY_FOR_TRAINING}
    return programs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_import_extra_publishes_a_keras_file_without_what_training_needs(import_environment: Path, tmp_path: Path) -> None:
    from tests.keras_models import keras, saved, sequential

    programs = import_environment
    file = saved(sequential((None, 2), keras.layers.LSTM(4), keras.layers.Dense(1)), tmp_path / "model.keras")
    command = [str(programs / "sluice"), "import", str(file), "--name", "mine", "--models", str(tmp_path / "models")]
    imported = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert imported.returncode == 0, imported.stdout + imported.stderr
    check = [str(programs / "sluice"), "check", str(tmp_path / "models" / "mine")]
    assert subprocess.run(check, cwd=tmp_path, check=False, capture_output=True, timeout=120).returncode == 0


# What the lines of the README suppose: a network, its weights, and two rows.
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 4, batch_first=True)
        self.fc = nn.Linear(4, 1)

    def forward(self, x):
        return self.fc(self.lstm(x)[0][:, -1])

torch.save(Net().state_dict(), "best.pt")
row_a, row_b = torch.rand(5, 2), torch.rand(8, 2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/how-to/import-torch.md"])
def test_the_lines_for_torch_work_as_they_stand_with_the_import_extra_alone(
    page: str, import_environment: Path, tmp_path: Path
) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    (lines,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "sluice.publish" in block]
    (tmp_path / "page.py").write_text(f"{NET}\n{lines}")
    # The working folder has no packages of ours: what is imported is what the wheel installed.
    ran = subprocess.run(
        [str(import_environment / "python"), "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    with server_process(tmp_path / "models", command=[str(import_environment / "sluice"), "serve"], cwd=tmp_path) as server:
        rows = [[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6]]]  # the instances of the page's curl
        answer = httpx.post(f"{server.url}/predict", json={"model": "machine-health", "instances": rows}, timeout=30)
    assert answer.status_code == 200, answer.text
    assert [len(prediction) for prediction in answer.json()["predictions"]] == [1, 1]


def install(wheel: Path, extras: str, folder: Path) -> Path:
    """A fresh environment in `folder` with the wheel and its extras, in the versions of constraints.txt; its programs."""
    place = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, capture_output=True, timeout=120)
    programs = place / ("Scripts" if os.name == "nt" else "bin")
    command = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*command, f"sluice-serving[{extras}] @ {wheel.as_uri()}"], check=True, capture_output=True, timeout=900)
    return programs


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return found[0].lower()
