"""What training publishes, the service reads, loads and answers: the one place where both packages meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.models.loading import check_folder
from service.tasks.registry import built_in_tasks
from training.recipe import parse_recipe
from training.runs.train import train

FORECAST = """
task = "forecast"
name = "toy"
[[data.train]]
builtin = "air-passengers"
[forecast]
context_length = 24
min_length = 12
horizon = 6
season_length = 12
seasonal_lag = 12
frequencies = ["M"]
quantiles = [0.1, 0.5, 0.9]
[scaling]
kind = "window"
transform = "log"
[[layers]]
type = "lstm"
units = 4
[[layers]]
type = "dense"
[fit]
loss = "quantile"
epochs = 1
"""

STREAMING = """
task = "forecast"
name = "toy"
[[data.train]]
builtin = "air-passengers"
[forecast]
context_length = 24
horizon = 6
[scaling]
kind = "standard"
[[layers]]
type = "lstm"
units = 4
[[layers]]
type = "dense"
[fit]
loss = "mse"
epochs = 1
"""

CLASSIFY = """
task = "classify"
name = "toy"
[data]
labels = ["bad", "good"]
[[data.train]]
path = "texts.csv"
[[data.test]]
path = "texts.csv"
[tokenizer]
kind = "wordpiece"
vocabulary = 60
min_frequency = 1
replacements = { "<br />" = " " }
head = 6
tail = 6
[[layers]]
type = "embedding"
output_dim = 4
[[layers]]
type = "bidirectional"
layer = { type = "gru", units = 3 }
[[layers]]
type = "dense"
[fit]
loss = "categorical_crossentropy"
epochs = 1
"""

TWO_GRAPHS = CLASSIFY.replace('"gru"', '"lstm"') + "[quantize]\n"

BESIDE_NGRAMS = """
task = "classify"
name = "toy"
[data]
labels = ["bad", "good"]
[[data.train]]
path = "texts.csv"
[[data.train]]
path = "facts.txt"
neutral = true
[[data.unlabelled]]
path = "texts.csv"
[[data.test]]
path = "texts.csv"
[tokenizer]
kind = "words"
vocabulary = 60
min_frequency = 2
piece_length = 6
min_known = 0.5
[vectors]
epochs = 1
block = 64
[ngrams]
order = 2
buckets = 512
[[layers]]
type = "embedding"
output_dim = 70
storage = "int8"
[[layers]]
type = "bidirectional"
layer = { type = "lstm", units = 3, return_sequences = true }
[[layers]]
type = "concat_pooling"
[[layers]]
type = "dense"
activation = "sigmoid"
[fit]
loss = "binary_crossentropy"
epochs = 1
batch_tokens = 60
rates = { embedding = 0.25 }
[quantize]
max_points_lost = 100.0
"""

ROWS = """
task = "tensor"
name = "toy"
[[data.train]]
builtin = "breast-cancer"
[[layers]]
type = "normalization"
[[layers]]
type = "reshape"
target_shape = [1, 30]
[[layers]]
type = "lstm"
units = 4
[[layers]]
type = "dense"
units = 1
activation = "sigmoid"
[fit]
loss = "binary_crossentropy"
epochs = 1
[quantize]
"""


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (FORECAST, {"task": "forecast", "state": 0}),
        (STREAMING, {"task": "forecast", "state": 2}),
        (CLASSIFY, {"task": "classify", "state": 0}),
        (TWO_GRAPHS, {"task": "classify", "state": 0}),
        (BESIDE_NGRAMS, {"task": "classify", "state": 0}),
        (ROWS, {"task": "tensor", "state": 0}),
    ],
    ids=["forecast", "streaming", "classify", "texts in two graphs", "n-grams beside layers", "rows in two graphs"],
)
def test_a_published_folder_is_valid_to_the_service(tmp_path: Path, text: str, facts: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    rows = [
        f"{'good' if i % 2 else 'bad'} film<br />{' '.join(rng.choice(['a', 'the', 'of'], i % 9))} {i},{i % 2}" for i in range(60)
    ]
    (tmp_path / "texts.csv").write_text("text,label\n" + "\n".join(rows))
    (tmp_path / "facts.txt").write_text("x what is the of a\nx a film is the film\n")
    changes = ["data.drop_shared_texts=false"] if facts["task"] == "classify" else []
    recipe = parse_recipe(text, changes)
    folder = train(recipe, tmp_path / "toy.toml", data=tmp_path, models=tmp_path / "models", runs=tmp_path / "runs")

    manifest = built_in_tasks().read_manifest(folder)
    assert manifest.task == facts["task"]
    assert len(manifest.state) == facts["state"]
    assert manifest.training.seed == recipe.seed
    assert [graph.precision for graph in manifest.graphs] == ["fp32"] + ["int8"] * (recipe.quantize is not None)
    assert check_folder(folder) == []
