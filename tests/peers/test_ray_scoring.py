"""A folder of files scored on a real Ray of this machine: its files are those of one machine, and errors keep their words."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.models.folder import ModelOptions
from service.scoring.run import find_model, score_file
from tests.folders import write_forecast_folder
from tests.peers.environments import ROOT, TIMEOUT_S, find_python

NUM_FILES = 3
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "300", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
"""A test sends nothing unasked, and a machine that has other things to do takes its time to start Ray's processes."""


def write_series(path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 60, 50)
    times = np.concatenate([np.datetime64("2026-01-05T00:00:00", "us") + np.arange(num).astype("m8[h]") for num in lengths])
    names = np.repeat([f"series-{seed}-{number}" for number in range(len(lengths))], lengths)
    table = {"unique_id": pa.array(names), "ds": pa.array(times), "y": random.normal(10, 3, len(times))}
    pq.write_table(pa.table(table), path)


def score_on_ray(models: Path, source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [str(find_python("ray")), "-m", "sluice", "score", "toy-forecast", str(source), str(target), "--engine", "ray"]
    command += ["--models", str(models), "--device", "cpu", "--num-threads", "1"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLUICE_", "RAY_"))}
    environment = {**kept, **QUIET, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)


@pytest.mark.slow
def test_a_folder_that_ray_scores_has_the_files_of_one_machine(tmp_path: Path) -> None:
    models, source, target = tmp_path / "models", tmp_path / "in", tmp_path / "out"
    write_forecast_folder(models)
    source.mkdir()
    for seed in range(NUM_FILES):
        write_series(source / f"part-{seed}.parquet", seed)
    found = score_on_ray(models, source, target)
    assert found.returncode == 0, found.stderr[-3000:]
    assert f"{NUM_FILES * 50} scored, 0 rejected" in found.stdout
    model = find_model("toy-forecast", [models], ModelOptions("cpu"))
    for seed in range(NUM_FILES):
        name, alone = f"part-{seed}.parquet", tmp_path / f"alone-{seed}.parquet"
        score_file(model, source / name, alone)
        assert pq.read_table(target / name).equals(pq.read_table(alone)), name

    (source / "part-9.parquet").write_text("no parquet")
    found = score_on_ray(models, source, target)
    assert found.returncode == 1
    assert "it is no parquet file" in found.stderr.splitlines()[-1]
    assert {path.name for path in target.iterdir()} == {f"part-{seed}.parquet" for seed in range(NUM_FILES)}
