"""A model that begins with TextVectorization is served texts, and answers as Keras does for the ids of its own layer."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.models.folder import ModelOptions
from service.models.loading import load_model
from tests.keras_models import QUIET, functional, keras, predicted, saved, sequential
from training.importers.importer import read_options
from training.importers.keras.importer import import_keras

pytestmark = QUIET
L = keras.layers
RECORDED = json.loads(
    (Path(__file__).parents[1] / "training" / "importers" / "keras" / "text_vectorization.json").read_text(encoding="utf-8")
)
LENGTH = 4
# Keras pads a text without any token; the service reads an unknown one.
PAIRS = [pair for pair in zip(RECORDED["texts"], RECORDED["cases"][0]["ids"], strict=True) if pair[1]]


def masked() -> Any:
    return sequential((LENGTH,), L.Embedding(40, 5, mask_zero=True), L.LSTM(4), L.Dense(2, "softmax"))


def unmasked() -> Any:
    return functional((LENGTH,), L.Embedding(40, 5), L.Conv1D(4, 2), L.GlobalMaxPooling1D(), L.Dense(2, "softmax"))


def joined() -> Any:
    x = keras.Input((LENGTH,))
    h = L.Embedding(40, 5)(x)
    h = L.Concatenate()([L.LSTM(3)(h), L.GlobalAveragePooling1D()(h)])
    return keras.Model(x, L.Dense(2, "softmax")(h))


def with_texts(model: Any, path: Path) -> Path:
    """The model's archive with a TextVectorization before its Embedding, written as Keras does with TensorFlow."""
    plain = saved(model, path.with_name("ids.keras"))
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, _begin_with_texts(content) if name == "config.json" else content)
        vocabulary = "\n".join(["", "[UNK]", *RECORDED["vocabulary"]])
        target.writestr("assets/layers/text_vectorization/vocabulary.txt", vocabulary)
    return path


def _begin_with_texts(content: bytes) -> bytes:
    config = json.loads(content)
    own = config["config"]
    source, *layers = own["layers"]
    text = {**source, "config": {**source["config"], "batch_shape": [None, 1], "dtype": "string"}}
    options = {
        "name": "texts",
        "standardize": "lower_and_strip_punctuation",
        "split": "whitespace",
        "ngrams": None,
        "output_mode": "int",
        "output_sequence_length": LENGTH,
        "vocabulary": None,
        "encoding": "utf-8",
    }
    layer: dict[str, Any] = {"module": "keras.layers", "class_name": "TextVectorization", "config": options}
    if "input_layers" in own:
        reads = {"class_name": "__keras_tensor__", "config": {"keras_history": [source["name"], 0, 0]}}
        layer |= {"name": "texts", "inbound_nodes": [{"args": [reads], "kwargs": {}}]}
        layers = json.loads(json.dumps(layers).replace(f'["{source["name"]}", 0, 0]', '["texts", 0, 0]'))
    return json.dumps({**config, "config": {**own, "layers": [text, layer, *layers]}}).encode()


@pytest.mark.parametrize("build", [masked, unmasked, joined])
async def test_texts_are_answered_as_keras_predicts(build: Callable[[], Any], tmp_path: Path) -> None:
    model = build()
    file = with_texts(model, tmp_path / "model.keras")
    options = read_options(name="toy", task="classify", labels=("bad", "good"))
    folder = import_keras(file, options, tmp_path / "models").folder
    rows = np.zeros((len(PAIRS), LENGTH), np.int64)
    for row, (_, ids) in zip(rows, PAIRS, strict=True):
        row[: len(ids)] = ids[:LENGTH]
    served = await load_model(folder, ModelOptions(device="cpu"))
    try:
        answers = await served.predict([text for text, _ in PAIRS], {})
    finally:
        await served.stop()
    found = [[answer["probabilities"][label] for label in ("bad", "good")] for answer in answers]
    np.testing.assert_allclose(found, predicted(model, rows), rtol=1e-5, atol=1e-5)
