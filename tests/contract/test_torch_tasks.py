"""Torch modules published from the command line as forecasters and classifiers answer at the endpoints of their tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from typer.testing import CliRunner

from tests.serving import client_of
from tests.torch_models import HIDDEN, WORDS
from training.__main__ import app

HORIZON, LEVELS = 4, (0.1, 0.5, 0.9)
LOWEST, HIGHEST = 100.0, 300.0
TEXTS = ["w1 w2 w3", "w4", "w5 w9 w7 w8 w2 absent w12", "w20 w21 w20 w21"]


def make_forecaster() -> nn.Module:
    """Reads the scaled load and heat; gives the scaled heat, all steps and levels flat."""
    torch.manual_seed(4)
    return _LastStep(2, HORIZON * len(LEVELS))


def make_classifier(num_answers: int = 3) -> nn.Module:
    """Reads token ids; gives logits."""
    torch.manual_seed(4)
    return nn.Sequential(nn.Embedding(WORDS, 6), _LastStep(6, num_answers))


def make_binary() -> nn.Module:
    """One probability, that of the second label."""
    return nn.Sequential(make_classifier(1), nn.Sigmoid())


class _LastStep(nn.Module):
    def __init__(self, features: int, num_answers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, num_answers)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.lstm(x)[0][:, -1])


def series(*lengths: int) -> list[Any]:
    random = np.random.default_rng(3)
    return [random.uniform(LOWEST, HIGHEST, (length, 2)).round(2).tolist() for length in lengths]


def publish(maker: str, name: str, models: Path, rows: Any, *options: str) -> str:
    """Run the command in `models`; what it printed."""
    example = models.parent / f"{name}.json"
    example.write_text(json.dumps(rows))
    args = ["import-torch", f"{__name__}:{maker}", "--name", name, "--example", str(example), "--models", str(models), *options]
    result = CliRunner().invoke(app, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    words = Tokenizer(models.WordLevel({"[UNK]": 1} | {f"w{number}": number for number in range(2, WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


async def test_a_forecaster_answers_in_the_units_of_the_series(tmp_path: Path) -> None:
    options = ["--task", "forecast", "--horizon", str(HORIZON), "--features", "load,heat", "--targets", "heat"]
    options += ["--quantiles", ",".join(map(str, LEVELS)), "--frequency", "H,D", "--season-length", "24"]
    options += [
        "--scaler",
        f"minmax:{LOWEST},{HIGHEST}",
        "--score",
        "mae=3.5",
        "--licence",
        "CC0-1.0",
        "--description",
        "of heat",
    ]
    printed = publish("make_forecaster", "heat", tmp_path / "models", series(24, 30), *options)
    assert "translated, batches of rows of any length" in printed
    histories = series(24, 30, 12, 26)
    async with client_of(tmp_path / "models") as client:
        body = {"parameters": {"frequency": "H"}, "instances": [{"history": history} for history in histories]}
        response = await client.post("/predict/forecast", json=body)
        described = (await client.get("/models/heat")).json()
    assert response.status_code == 200, response.text
    assert response.json()["model"] == "heat"
    module = make_forecaster().eval()
    for history, prediction in zip(histories, response.json()["predictions"], strict=True):
        scaled = (torch.tensor(history) - LOWEST) / (HIGHEST - LOWEST)
        with torch.no_grad():
            answer = module(scaled[None])[0].reshape(HORIZON, len(LEVELS)) * (HIGHEST - LOWEST) + LOWEST
        answer = answer.sort(dim=1).values.numpy()
        assert list(prediction["quantiles"]) == [str(level) for level in LEVELS]
        for place, level in enumerate(LEVELS):
            np.testing.assert_allclose(np.ravel(prediction["quantiles"][str(level)]), answer[:, place], rtol=1e-4)
        np.testing.assert_allclose(np.ravel(prediction["forecast"]), answer[:, 1], rtol=1e-4)
    text = json.dumps(described)
    for part in ('"of heat"', '"CC0-1.0"', '"mae": 3.5', '["load", "heat"]', '["heat"]'):
        assert part in text


async def test_a_classifier_answers_texts_with_labels(tokenizer: Path, tmp_path: Path) -> None:
    options = ["--task", "classify", "--labels", "bad,fair,good", "--tokenizer", str(tokenizer), "--max-length", "5"]
    publish("make_classifier", "tone", tmp_path / "models", TEXTS, *options, "--language", "en", "--subject", "tone")
    async with client_of(tmp_path / "models") as client:
        response = await client.post("/predict/classify", json={"model": "tone", "instances": TEXTS})
    assert response.status_code == 200, response.text
    module, ids = make_classifier().eval(), Tokenizer.from_file(str(tokenizer))
    for text, prediction in zip(TEXTS, response.json()["predictions"], strict=True):
        with torch.no_grad():
            expected = torch.softmax(module(torch.tensor([ids.encode(text).ids[:5]])), 1)[0].numpy()
        assert prediction["label"] == ("bad", "fair", "good")[int(expected.argmax())]
        found = [prediction["probabilities"][label] for label in ("bad", "fair", "good")]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert prediction.get("truncated", False) == (len(ids.encode(text).ids) > 5)


async def test_a_binary_classifier_with_one_probability_has_two_labels(tokenizer: Path, tmp_path: Path) -> None:
    options = ["--task", "classify", "--labels", "negative,positive", "--tokenizer", str(tokenizer)]
    publish("make_binary", "mood", tmp_path / "models", TEXTS, *options)
    async with client_of(tmp_path / "models") as client:
        response = await client.post("/predict/sentiment", json={"instances": TEXTS})
    assert response.status_code == 200, response.text
    module, ids = make_binary().eval(), Tokenizer.from_file(str(tokenizer))
    for text, prediction in zip(TEXTS, response.json()["predictions"], strict=True):
        with torch.no_grad():
            expected = float(module(torch.tensor([ids.encode(text).ids]))[0, 0])
        assert prediction["probabilities"]["positive"] == pytest.approx(expected, abs=1e-5)
        assert prediction["probabilities"]["negative"] == pytest.approx(1 - expected, abs=1e-5)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[1, 2, 3], [4, 5]], "a classifier's rows are texts"),
        (["one text"], "at least two rows"),
        (["w2 w3", "w4 w5"], "all have 2 steps"),
    ],
)
def test_a_classifier_is_tried_on_texts_of_different_length(rows: Any, words: str, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    args = ["import-torch", f"{__name__}:make_classifier", "--name", "tone", "--example", str(tmp_path / "rows.json")]
    args += ["--task", "classify", "--labels", "a,b,c", "--tokenizer", str(tokenizer), "--models", str(tmp_path / "models")]
    result = CliRunner().invoke(app, args, catch_exceptions=False)
    assert result.exit_code == 1
    assert words in result.output
    assert not (tmp_path / "models").exists()
