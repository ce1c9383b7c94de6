"""From a recipe to an answer over HTTP: what one command trains, the other serves, with the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.serving import server_process

ROOT = Path(__file__).parent.parent.parent


def test_a_trained_recipe_is_served_with_the_numbers_that_training_saw(tmp_path: Path) -> None:
    models = tmp_path / "models"
    command = [sys.executable, "-m", "training", "run", "passengers", "--models", str(models), "--runs", str(tmp_path / "runs")]
    subprocess.run([*command, "--set", "fit.epochs=2"], cwd=ROOT, check=True, capture_output=True, timeout=300)
    folder = models / "passengers" / "1"
    check = subprocess.run(
        [sys.executable, "-m", "service", "check", str(folder)], cwd=ROOT, check=False, capture_output=True, text=True, timeout=60
    )
    assert check.returncode == 0, check.stdout + check.stderr

    example = json.loads((folder / "example.json").read_text())
    with server_process(models) as server:
        answer = httpx.post(f"{server.url}/predict", json=example["request"], timeout=30)
        assert answer.status_code == 200
        served = answer.json()["predictions"]
        assert len(served) == len(example["response"]["predictions"])
        for prediction, expected in zip(served, example["response"]["predictions"], strict=True):
            assert prediction["forecast"] == pytest.approx(expected["forecast"], rel=1e-3)
            assert prediction["quantiles"].keys() == expected["quantiles"].keys()

        year = httpx.post(
            f"{server.url}/predict/forecast",
            json={"instances": [{"history": list(range(100, 136)), "start": "1958-01-31", "frequency": "M", "horizon": 24}]},
            timeout=30,
        ).json()["predictions"][0]
        assert len(year["forecast"]) == 24
        assert year["timestamps"][:2] == ["1961-01-31", "1961-02-28"]
