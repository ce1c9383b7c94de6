"""Several processes learn what one learns: with gloo on the CPU, as NCCL does on GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.serving import ROOT
from tests.training.fitting.test_fit import make_network
from training.fitting.fit import FitError, fit, share_of
from training.fitting.losses import forecast_loss
from training.recipe import Fit

SCRIPT = Path(__file__).with_name("two_processes.py")
TIMEOUT_S = 600


def run(*args: object) -> str:
    environ = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "NODE_RANK")}
    command = [sys.executable, *map(str, args)]
    found = subprocess.run(
        command, cwd=ROOT, env=environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


@pytest.mark.parametrize(("num_rows", "num_processes"), [(8, 2), (7, 2), (7, 3), (1, 2), (5, 1)])
def test_the_mean_of_all_shares_is_the_mean_of_the_rows(num_rows: int, num_processes: int) -> None:
    values = torch.arange(num_rows, dtype=torch.float64)
    shares = [share_of({"x": values, "y": -values}, rank, num_processes) for rank in range(num_processes)]
    mean = sum(weight * float(share["x"].mean()) for share, weight in shares) / num_processes
    assert mean == pytest.approx(float(values.mean()))
    assert all(torch.equal(share["x"], -share["y"]) for share, _ in shares)


def test_an_ensemble_is_not_shared(tmp_path: Path) -> None:
    settings = Fit.model_validate({"loss": "mse", "devices": 2})
    with pytest.raises(FitError, match=r"set fit\.devices = 1"):
        fit(
            make_network(members=2),
            forecast_loss("mse", ()),
            lambda _: [],
            1,
            lambda _: 0.0,
            settings,
            seed=1,
            folder=tmp_path,
        )


@pytest.mark.slow
@pytest.mark.parametrize("average", [0.0, 0.9], ids=["plain", "averaged"])
def test_two_processes_end_with_the_weights_of_one(tmp_path: Path, average: float) -> None:
    found = []
    for num_processes in (1, 2):
        output = tmp_path / f"{num_processes}.pt"
        run(SCRIPT, num_processes, average, tmp_path / f"run-{num_processes}", output)
        found.append(torch.load(output, weights_only=True))
    one, two = found
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-4)
    for name, weights in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weights, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_command_tells_and_publishes_once(tmp_path: Path) -> None:
    changes = ["fit.devices=2", "fit.epochs=2", "fit.patience=1"]
    options = [option for change in changes for option in ("--set", change)]
    text = run("-m", "training", "run", "passengers", *options, "--models", tmp_path / "models", "--runs", tmp_path / "runs")
    assert text.count("epoch 2/2") == 1
    assert text.count("parameters") == 1
    assert (tmp_path / "models" / "passengers" / "1" / "manifest.json").exists()
