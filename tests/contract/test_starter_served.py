"""From a CSV file to a folder that passes the check in three commands: init, run, check."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def command(folder: Path, *arguments: str) -> str:
    """A command of the project, run in `folder`."""
    script = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = {list(arguments)!r}; "
    script += f"runpy.run_module({arguments[0]!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def sales(tmp_path: Path) -> Path:
    lines = ["date,store,sales"]
    for store, level in (("north", 100.0), ("south", 20.0)):
        for day in range(150):
            value = level * (1 + 0.3 * math.sin(2 * math.pi * day / 7)) + 0.1 * day
            lines.append(f"{date(2024, 1, 1) + timedelta(days=day)},{store},{value:.2f}")
    (tmp_path / "sales.csv").write_text("\n".join(lines))
    return tmp_path


def test_a_csv_of_two_series_becomes_a_forecaster_that_passes_the_check(sales: Path) -> None:
    columns = ("--time", "date", "--value", "sales", "--series", "store", "--frequency", "D")
    assert "next        python -m training run sales.toml" in command(sales, "training", "init", "sales.csv", *columns)
    assert "published" in command(sales, "training", "run", "sales.toml", "--set", "fit.epochs=8")
    folder = sales / "models" / "sales" / "1"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["forecast"]["horizon"], manifest["forecast"]["frequencies"]) == (14, ["D"])
    metrics, baselines = manifest["training"]["metrics"], manifest["training"]["baselines"]
    assert metrics["mase"] < baselines["seasonal_naive"]["mase"]
    command(sales, "service", "check", str(folder))


@pytest.mark.slow
def test_a_csv_of_texts_becomes_a_classifier_that_passes_the_check(tmp_path: Path) -> None:
    words = {"good": ["fine", "great", "lovely"], "bad": ["dull", "poor", "awful"]}
    labels = ["good", "bad"]
    rows = [f"the film number {i} was {words[labels[i % 2]][i % 3]},{labels[i % 2]}" for i in range(120)]
    (tmp_path / "reviews.csv").write_text("\n".join(["review,label", *rows]))
    command(tmp_path, "training", "init", "reviews.csv", "--text", "review", "--label", "label", "--name", "moods")
    command(tmp_path, "training", "run", "moods.toml", "--set", "fit.epochs=6", "--set", "fit.learning_rate=0.02")
    folder = tmp_path / "models" / "moods" / "1"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["classify"]["labels"] == ["bad", "good"]
    assert manifest["training"]["metrics"]["accuracy"] > 0.9
    command(tmp_path, "service", "check", str(folder))
