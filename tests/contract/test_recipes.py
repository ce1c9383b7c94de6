"""Every recipe of the tutorials, shortened: one command, a folder that passes the check, and torch's own answers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from service.models.loading import check_folder
from service.tasks.tokenization import load_tokenizer
from training.layers.preprocessing import Normalization
from training.network.network import Network
from training.recipe import RECIPES, read_recipe
from training.runs.train import train as train_recipe
from training.summary import network_of_folder

SHORT = {
    "passengers": ["fit.epochs=2"],
    "feature-vectors": ["fit.epochs=2"],
    "close-price": ["fit.epochs=1", "fit.steps_per_epoch=2"],
    "close-returns": ["fit.epochs=1", "fit.steps_per_epoch=2", "fit.average=0.0"],
    "sentiments": ["fit.epochs=1", "fit.steps_per_epoch=4"],
    "question-type": ["fit.epochs=1", "fit.steps_per_epoch=4"],
    "embedding-lstm": ["fit.epochs=1", "fit.steps_per_epoch=1"],
    "forecast-quarterly": ["fit.epochs=1", "fit.steps_per_epoch=2", "ensemble.members=2", "fit.average=0.0"],
}
# 11 million parameters: half a minute, most of it Adam's checkpoint and the four verification.
MARKS = {"embedding-lstm": [pytest.mark.data, pytest.mark.slow]}
NEEDS_DATA = [
    pytest.param(name, marks=MARKS.get(name, [pytest.mark.data]))
    for name in SHORT
    if name not in ("passengers", "feature-vectors")
]


@pytest.fixture
def data_folder() -> Path:
    folder = Path(os.environ.get("SLUICE_DATA") or "absent")
    if not folder.is_dir():
        pytest.skip("the public data sets are absent: $SLUICE_DATA names no folder")
    return folder


def train(name: str, tmp_path: Path, data: Path | None) -> Path:
    path = RECIPES / f"{name}.toml"
    recipe = read_recipe(path, SHORT[name])
    return train_recipe(recipe, path, data=data, models=tmp_path / "models", runs=tmp_path / "runs", console=Console(quiet=True))


def trained_network(folder: Path, tmp_path: Path) -> Network:
    """The torch network of the published folder, with the weights of its run's best epoch."""
    network = network_of_folder(folder)
    state = torch.load(tmp_path / "runs" / folder.parent.name / "best.ckpt", weights_only=True)["state_dict"]
    network.load_state_dict({key.removeprefix("network."): value for key, value in state.items()})
    first = network.layers[0]
    assert not isinstance(first, Normalization) or first.is_fitted
    return network.eval()


def instances(folder: Path) -> tuple[list[Any], list[Any]]:
    example = json.loads((folder / "example.json").read_text(encoding="utf-8"))
    return example["request"]["instances"], example["response"]["predictions"]


def answers(network: Network, folder: Path, given: list[Any]) -> list[np.ndarray[Any, Any]]:
    """What torch answers to each instance, as the server would feed it."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    found = []
    for instance in given:
        if manifest["task"] == "tensor":
            inputs = {manifest["inputs"][0]["name"]: torch.tensor([instance])}
        elif manifest["task"] == "forecast":
            history = torch.tensor(instance["history"], dtype=torch.float32).reshape(1, len(instance["history"]), -1)
            inputs = {"history": history, "lengths": torch.tensor([history.shape[1]])}
        else:
            block = manifest["classify"]
            tokenizer = load_tokenizer(folder / block["tokenizer"])
            ids = tokenizer.encode([instance], block["max_length"], **block["truncation"])[0].ids
            inputs = {"tokens": torch.tensor([ids]), "lengths": torch.tensor([len(ids)])}
        with torch.no_grad():
            found.append(next(iter(network(inputs).values()))[0].numpy())
    return found


@pytest.mark.parametrize("name", ["passengers", "feature-vectors", *NEEDS_DATA])
def test_a_recipe_publishes_a_folder_that_passes_the_check_and_answers_as_torch_does(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    needs_data = name not in ("passengers", "feature-vectors")
    folder = train(name, tmp_path, request.getfixturevalue("data_folder") if needs_data else None)
    assert check_folder(folder) == []
    given, predictions = instances(folder)
    expected = answers(trained_network(folder, tmp_path), folder, given)
    for prediction, values in zip(predictions, expected, strict=True):
        if isinstance(prediction, dict):
            prediction = prediction["forecast"] if "forecast" in prediction else list(prediction["probabilities"].values())
        np.testing.assert_allclose(np.array(prediction), values.reshape(np.shape(prediction)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["passengers", "feature-vectors"])
def test_the_pictures_are_in_the_folder_and_named_in_the_manifest(name: str, tmp_path: Path) -> None:
    folder = train(name, tmp_path, None)
    named = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["training"]["plots"]
    assert named == ["plots/loss.png", "plots/forecast.png" if name == "passengers" else "plots/confusion.png"]
    for picture in named:
        assert (folder / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.data
def test_a_classifier_writes_every_test_row_with_its_answer(tmp_path: Path, data_folder: Path) -> None:
    folder = train("sentiments", tmp_path, data_folder)
    lines = (tmp_path / "runs" / "sentiments" / "results.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "set,text,label,predicted,is_right,p_negative,p_positive"
    assert len(lines) == 1822
    accuracy = json.loads((folder / "manifest.json").read_text())["training"]["metrics"]["accuracy"]
    assert sum(",true," in line for line in lines[1:]) / 1821 == pytest.approx(accuracy)
