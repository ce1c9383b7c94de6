"""The options of `import-torch`: what they mean, and the sentences for what they cannot mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.importers.torch.errors import ModuleRefused
from training.importers.torch.options import read_inputs, read_quantiles, read_scale, read_scores, read_task_options
from training.importers.torch.tasks import Classify, Forecast, Lists


def test_each_task_gets_its_own_options() -> None:
    assert read_task_options("tensor", horizon=None) == Lists()
    assert read_task_options("forecast", horizon=3, targets=("a",), labels=None) == Forecast(3, targets=("a",))
    found = read_task_options("classify", labels=("a", "b"), tokenizer=Path("t.json"), subject="tone", are_probabilities=False)
    assert found == Classify(("a", "b"), Path("t.json"), subject="tone", are_probabilities=False)


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("regress", {}, "--task: expected tensor, forecast, classify, got 'regress'"),
        ("forecast", {}, "--task forecast needs --horizon"),
        ("classify", {"labels": ("a", "b")}, "--task classify needs --tokenizer"),
        ("tensor", {"horizon": 3}, "--horizon belongs to --task forecast, the task is tensor"),
        ("forecast", {"horizon": 3, "are_probabilities": True}, "--probabilities belongs to --task classify"),
        ("classify", {"frequencies": ("H",)}, "--frequency belongs to --task forecast"),
    ],
)
def test_options_of_another_task_and_missing_ones_are_named(task: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModuleRefused) as refusal:
        read_task_options(task, **options)
    assert words in str(refusal.value)


def test_axes_scores_and_levels_are_read() -> None:
    assert read_inputs(["x=time,7", "facts=3"]) == {"x": ("time", 7), "facts": (3,)}
    assert read_inputs([]) is None
    assert read_inputs(["x="]) == {"x": ()}
    assert read_scores(["accuracy=0.93", "mae=1e-3"]) == {"accuracy": 0.93, "mae": 0.001}
    assert read_quantiles("0.1, 0.5") == (0.1, 0.5)
    assert read_quantiles(None) is None


@pytest.mark.parametrize("text", ["minmax:2,6", "standard:2,4", "minmax.json", "standard.json"])
def test_a_scale_maps_two_to_zero_and_six_to_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "minmax.json").write_text(json.dumps({"min_": [-0.5], "scale_": [0.25], "feature_range": [0, 1]}))
    (tmp_path / "standard.json").write_text(json.dumps({"mean_": [2.0], "scale_": [4.0]}))
    scale = read_scale(str(tmp_path / text) if text.endswith("json") else text, "--scale")
    assert scale is not None
    np.testing.assert_allclose(np.array([2.0, 6.0]) * scale.factor + scale.offset, [0, 1])
    assert read_scale(None, "--scale") is None


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda folder: read_inputs(["x"]), "ARGUMENT=AXES"),
        (lambda folder: read_inputs(["x=time,0"]), "ARGUMENT=AXES"),
        (lambda folder: read_inputs(["x=steps"]), "ARGUMENT=AXES"),
        (lambda folder: read_scores(["accuracy"]), "MEASURE=NUMBER"),
        (lambda folder: read_scores(["accuracy=nan"]), "MEASURE=NUMBER"),
        (lambda folder: read_quantiles("0.1,half"), "--quantiles"),
        (lambda folder: read_scale("minmax:1", "--scale"), "minmax: and two numbers"),
        (lambda folder: read_scale("minmax:1,1", "--scale"), "zero or not finite"),
        (lambda folder: read_scale("standard:0,inf", "--scale"), "zero or not finite"),
        (lambda folder: read_scale(str(folder / "absent.json"), "--scaler"), "No such file"),
        (lambda folder: read_scale(str(folder / "broken.json"), "--scaler"), "cannot be read"),
        (lambda folder: read_scale(str(folder / "other.json"), "--scaler"), "neither min_ and scale_"),
        (lambda folder: read_scale(str(folder / "uneven.json"), "--scaler"), "lists of one length"),
        (lambda folder: read_scale(str(folder / "zero.json"), "--scaler"), "zero or not finite"),
        (lambda folder: read_scale(str(folder / "deep.json"), "--scaler"), "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_worded(read: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    files: dict[str, str] = {
        "broken": "{",
        "other": '{"a": 1}',
        "uneven": '{"min_": [1, 2], "scale_": [1]}',
        "zero": '{"mean_": [1], "scale_": [0]}',
        "deep": "[" * 100_000,
    }
    for name, text in files.items():
        (tmp_path / f"{name}.json").write_text(text)
    with pytest.raises(ModuleRefused) as refusal:
        read(tmp_path)
    assert words in str(refusal.value)
