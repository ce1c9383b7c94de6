"""The tutorials do what they say: every command is run in its order, and shows what stands under it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.docs.pages import Command, assert_shows, commands
from tests.serving import ServerProcess, server_process

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
# Installing is tested by tests/sluice/test_wheel.py; here the environment is there.
SET_UP = re.compile(r"python3 -m venv|\. \.venv/bin/activate|pip install|cd ")
SERVE = re.compile(r"sluice serve\b")

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def run(tutorial: Sequence[Command], folder: Path, programs: Path) -> list[Command]:
    """Run a tutorial in `folder` and return the commands that were run. A server that it starts is ended with it."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("SLUICE_")}
    environ |= {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    done = []
    with contextlib.ExitStack() as stack:
        server: ServerProcess | None = None
        for command in tutorial:
            if SET_UP.match(command.text):
                continue
            if SERVE.match(command.text):
                words = ["bash", "-c", f"exec {command.text}"]
                places = {"PATH": environ["PATH"], "PYTHONPATH": environ["PYTHONPATH"]}
                server = stack.enter_context(server_process(folder / "models", command=words, cwd=folder, **places))
                assert_shows(re.sub(r":8000", ":…", command.output), server.output)
            else:
                text = command.text if server is None else command.text.replace("http://localhost:8000", server.url)
                shell = ["bash", "-o", "pipefail", "-c", text]
                found = subprocess.run(shell, cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=600)
                assert found.returncode == 0, f"{text}\n{found.stdout}{found.stderr}"
                assert_shows(command.output, found.stdout)
            done.append(command)
    return done


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The command `sluice` of this checkout, and Python with its libraries."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sluice").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sluice "$@"\n')
    (folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for program in folder.iterdir():
        program.chmod(0o755)
    return folder


def test_the_first_five_minutes_go_as_written(tmp_path: Path, programs: Path) -> None:
    folder = tmp_path / "sluice-checkout"
    folder.mkdir()
    for name in ("models", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    done = run(commands((TUTORIALS / "first-five-minutes.md").read_text(encoding="utf-8")), folder, programs)
    assert len(done) >= 8
    assert sum(command.text.startswith("curl") for command in done) >= 6


@pytest.mark.slow
def test_a_csv_becomes_a_forecast_endpoint_as_written(tmp_path: Path, programs: Path) -> None:
    folder = tmp_path / "shops"
    folder.mkdir()
    done = run(commands((TUTORIALS / "csv-to-forecast.md").read_text(encoding="utf-8")), folder, programs)
    begins = [" ".join(command.text.split()[:2]) for command in done]
    assert [begin for begin in begins if begin.startswith("sluice")] == [
        "sluice init",
        "sluice train",
        "sluice check",
        "sluice serve",
    ]
    assert begins[-1] == "curl -s"


@pytest.mark.slow
def test_a_torch_network_becomes_an_endpoint_as_written(tmp_path: Path, programs: Path) -> None:
    folder = tmp_path / "machines"
    folder.mkdir()
    done = run(commands((TUTORIALS / "torch-to-endpoint.md").read_text(encoding="utf-8")), folder, programs)
    begins = [" ".join(command.text.split()[:2]) for command in done]
    assert [begin for begin in begins if begin.startswith(("sluice", "python", "curl"))] == [
        "python train.py",
        "python publish.py",
        "sluice import-torch",
        "sluice check",
        "sluice serve",
        "curl -s",
        "python compare.py",
    ]
