"""The table of layers: of every recipe without its data, of a folder, and as Keras itself counts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from training.__main__ import app
from training.recipe import RECIPES, RecipeError, read_recipe
from training.runs.train import train
from training.summary import summarize

ALL = sorted(file.stem for file in RECIPES.glob("*.toml"))


@pytest.mark.parametrize("name", ALL)
def test_no_bundled_recipe_needs_its_data_to_be_summarized(name: str) -> None:
    assert summarize(name, None).num_trainable > 0


def test_the_embedding_lstm_is_counted_as_in_the_tutorials() -> None:
    result = CliRunner().invoke(app, ["summary", "embedding-lstm"], env={"SLUICE_DATA": None})
    for part in ("5,120,000", "6,295,552", "1,025", "Total params: 11,416,577 (43.55 MB)", "(None, 25, 512)", "lstm (LSTM)"):
        assert part in result.output


def test_shapes_and_parameters_are_those_of_keras() -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras: Any = pytest.importorskip("keras", reason="Keras is not installed")
    layers = keras.layers
    reference = keras.Sequential(
        [
            keras.Input((10,)),
            layers.Embedding(100, 50),
            layers.LSTM(50, return_sequences=True),
            layers.LSTM(10),
            layers.Dropout(0.5),
            layers.Dense(8),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    found = summarize("sentiments", None)
    assert [row.num_parameters for row in found.rows[1:]] == [layer.count_params() for layer in reference.layers]
    assert [row.shape for row in found.rows[1:]] == [str(layer.output.shape) for layer in reference.layers]
    assert [row.kind for row in found.rows[1:]] == [type(layer).__name__ for layer in reference.layers]
    assert found.num_trainable == reference.count_params()


def test_a_folder_is_summarized_by_what_it_holds(tmp_path: Path) -> None:
    path = RECIPES / "feature-vectors.toml"
    recipe = read_recipe(path, ["fit.epochs=1", "fit.steps_per_epoch=1"])
    folder = train(recipe, path, data=None, models=tmp_path / "models", runs=tmp_path / "runs", console=Console(quiet=True))
    assert summarize(str(folder), None) == summarize("feature-vectors", None)


@pytest.mark.parametrize(
    ("what", "message"), [("absent", 'no recipe "absent"'), (".", "there is no manifest.json with a recipe")]
)
def test_a_path_without_layers_is_refused(what: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        summarize(what, None)


def test_a_layer_that_does_not_fit_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text((RECIPES / "feature-vectors.toml").read_text().replace("[1, 30]", "[1, 29]"))
    result = CliRunner().invoke(app, ["summary", str(path)])
    text = " ".join(result.output.split())
    assert result.exit_code == 1
    assert 'line 20: layers[1] (reshape): option "target_shape"' in text
