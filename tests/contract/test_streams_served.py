"""Networks for streams, from recipe to folder: tiny trainings, the service's check, and its answers beside the graph's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from service.models.loading import check_folder
from training.recipe import RecipeError, parse_recipe
from training.runs.train import train as train_recipe
from training.scoring.evaluate import Graph
from training.scoring.streams import StreamRunner

SENSOR = """\
task = "forecast"
name = "toy"

[data]
train = [{ path = "series.csv", format = "table" }]
targets = ["b", "a"]
validation_length = 30
test_length = 620

[forecast]
streaming = true
context_length = 64
horizon = 3
season_length = 6
seasonal_lag = 6
warm_up = 8
quantiles = [0.1, 0.25, 0.5, 0.75, 0.9]

[scaling]
kind = "running"
span = 20

[[layers]]
type = "gru"
units = 4
return_sequences = true

[[layers]]
type = "recent"
n = 1

[[layers]]
type = "dense"

[fit]
loss = "quantile"
learning_rate = 0.01
epochs = 2
batch_size = 8
steps_per_epoch = 10
window_length = 40
missing_share = 0.05

[evaluate]
baselines = ["last_value", "seasonal_naive", "linear"]
"""

TEXTS = """\
task = "classify"
name = "toy-texts"
streaming = true
data = { train = [{ path = "texts.txt" }], validation_share = 0.2, test_share = 0.2 }
tokenizer = { kind = "words", vocabulary = 30, min_frequency = 1, head = 20, tail = 0 }
evaluate = { baselines = ["majority"] }

[[layers]]
type = "embedding"
output_dim = 4

[[layers]]
type = "lstm"
units = 4
return_sequences = true

[[layers]]
type = "concat_pooling"

[[layers]]
type = "dense"
units = 2

[fit]
loss = "categorical_crossentropy"
epochs = 1
batch_size = 8

[quantize]
max_points_lost = 100.0
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = ["a,b,c"]
    for step in range(1000):
        season = math.sin(2 * math.pi * step / 6)
        row = (20 + season, 1000 * (1 + season), 3.0) + 0.1 * rng.standard_normal(3)
        lines.append(",".join(f"{value:.4f}" for value in row))
    (folder / "series.csv").write_text("\n".join(lines))
    words = ("good fine great", "bad dull poor")
    texts = [f"{i % 2} {' '.join(rng.permutation(words[i % 2].split()))} {i}" for i in range(100)]
    (folder / "texts.txt").write_text("\n".join(texts))
    return folder


@pytest.fixture(scope="module")
def sensor(data: Path) -> Path:
    """The folder of the recipe for a sensor, trained once."""
    return train(data, SENSOR)


def train(data: Path, text: str, *changes: str) -> Path:
    path = data / "toy.toml"
    path.write_text(text)
    recipe = parse_recipe(text, changes)
    return train_recipe(recipe, path, data=data, models=data / "models", runs=data / "runs", console=Console(quiet=True))


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_a_recipe_for_streams_becomes_a_folder_that_passes_the_check(sensor: Path) -> None:
    assert check_folder(sensor) == []
    manifest = read_json(sensor / "manifest.json")
    block = manifest["forecast"]
    assert (block["streaming"], block["warm_up"], block["min_length"], block["context_length"]) == (True, 8, 1, 64)
    assert [pair["input"] for pair in manifest["state"]][-3:] == ["season_known", "next_quantiles", "gru_0_hidden"]
    assert {tensor["name"]: tensor["shape"] for tensor in manifest["outputs"]}["anomaly"] == ["batch", "time", 2]
    metrics, baselines = manifest["training"]["metrics"], manifest["training"]["baselines"]
    assert {"mae", "pinball", "coverage_80", "one_step_mae", "one_step_coverage_80", "one_step_coverage_50"} <= metrics.keys()
    assert {"spike_auroc", "level_shift_auroc", "flat_line_auroc"} <= metrics.keys()
    assert set(baselines) == {"last_value", "seasonal_naive", "linear", "rolling_z_score"}
    assert {"mae", "one_step_mae"} <= baselines["linear"].keys()
    assert "spike_auroc" in baselines["rolling_z_score"]
    example = read_json(sensor / "example.json")
    first = example["response"]["predictions"][0]
    assert len(first["anomaly"]) == len(example["request"]["instances"][0]["history"]) == 60
    assert first["anomaly"][30] == [None, None]


def test_the_graph_in_pieces_gives_the_example_of_the_whole(sensor: Path) -> None:
    example = read_json(sensor / "example.json")
    history = np.array(example["request"]["instances"][0]["history"], np.float64)
    runner = StreamRunner(Graph((sensor / "model.onnx").read_bytes()))
    answers = [runner.read(piece) for piece in np.split(history, [1, 2, 31, 50])]
    expected = example["response"]["predictions"][0]
    np.testing.assert_allclose(answers[-1]["forecast"], expected["forecast"], rtol=1e-5)
    scores = np.concatenate([answer["anomaly"] for answer in answers])
    scores[30] = np.nan
    np.testing.assert_allclose(scores, np.array(expected["anomaly"], np.float64), atol=1e-5)


def test_a_recipe_for_texts_in_pieces_becomes_a_folder_with_two_graphs_and_state(data: Path) -> None:
    folder = train(data, TEXTS)
    assert check_folder(folder) == []
    manifest = read_json(folder / "manifest.json")
    assert manifest["classify"]["streaming"] is True
    assert [graph["precision"] for graph in manifest["graphs"]] == ["fp32", "int8"]
    parts = ["lstm_1_hidden", "lstm_1_cell", "concat_pooling_2_maximum", "concat_pooling_2_sum", "concat_pooling_2_num_steps"]
    assert [pair["input"] for pair in manifest["state"]] == parts


def test_layers_that_read_a_text_as_a_whole_are_refused_before_anything_is_learned(data: Path) -> None:
    text = TEXTS.replace('type = "concat_pooling"', 'type = "global_max_pooling"')
    with pytest.raises(RecipeError, match="streaming: these layers cannot go on from piece to piece"):
        train(data, text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "running"\nspan = 20', 'kind = "standard"', 'streaming and scaling of kind "running" need each other'),
        ("span = 20", "", 'span and kind "running" need each other'),
        ("streaming = true", "min_length = 3", "warm_up is for streaming"),
        ("warm_up = 8", "min_length = 3", "min_length and step are not for streaming"),
        ("quantiles = [0.1, 0.25, 0.5, 0.75, 0.9]", "quantiles = [0.5]", "streaming needs three quantiles or more"),
        ('loss = "quantile"', 'loss = "smape"', 'streaming needs loss "quantile"'),
        ("seasonal_lag = 6", "mape_point = true", "decomposition and mape_point are not for streaming"),
        ("window_length = 40", "window_length = 8", "window_length must be above forecast.warm_up, 8 steps"),
    ],
)
def test_options_that_do_not_make_a_stream_are_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(SENSOR.replace(old, new))
