"""Models that Keras 2 saved, of TensorFlow 2.13 and of tf_keras today: served with the numbers that it predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.peers.environments import run_in
from tests.serving import client_of
from training.importers.importer import read_options
from training.importers.keras.importer import import_keras

pytestmark = pytest.mark.slow

IMPORTS = {"tf213": "from tensorflow import keras", "tf_keras": "import tf_keras as keras"}
SCRIPT = """
import json, os, warnings
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
warnings.simplefilter("ignore")
import numpy as np
IMPORT
L, Input, Model, Sequential = keras.layers, keras.Input, keras.Model, keras.Sequential
rng = np.random.default_rng(5)

def encoder(features, units=5):
    x = Input((None, features))
    return Model(x, L.Dense(4, "tanh")(L.LSTM(units)(x)), name="encoder")

def nested():
    x = Input((None, 3), name="readings")
    inner = Sequential([L.GRU(6, return_sequences=True), L.Dropout(0.2), L.Dense(4)], name="inner")
    return Model(x, L.Dense(2)(L.Concatenate()([encoder(4)(inner(x)), L.LSTM(3)(inner(x))])))

def siamese():
    shared = encoder(3)
    one, other = Input((None, 3), name="one"), Input((None, 3), name="other")
    return Model([one, other], L.Dense(1, "sigmoid")(L.Subtract()([shared(one), shared(other)])))

def nested_masked():
    x = Input((None,), name="words")
    inner = Sequential([L.Embedding(20, 6, mask_zero=True), L.Bidirectional(L.LSTM(4, return_sequences=True))], name="texts")
    return Model(x, L.Dense(3, "softmax")(L.GRU(5)(inner(x))))

def two_masked():
    one, other = Input((None,), name="question"), Input((None,), name="answer")
    embedding = L.Embedding(20, 6, mask_zero=True)
    h = [L.LSTM(4)(embedding(one)), L.GlobalAveragePooling1D()(L.GRU(4, return_sequences=True)(embedding(other)))]
    return Model([one, other], L.Dense(2)(L.Concatenate()(h)))

def masking():
    x = Input((None, 3), name="readings")
    h = L.Masking(0.0)(x)
    return Model(x, L.Dense(1)(L.Add()([L.LSTM(4)(h), L.GRU(4, reset_after=False)(h)])))

def chain():
    return Sequential([Input((None, 3), name="readings"), L.LSTM(4, return_sequences=True), L.LSTM(5, return_sequences=True),
                       L.SpatialDropout1D(0.1), L.LSTM(3), L.Dense(2)])

def seq2seq():
    x = Input((None, 3), name="readings")
    y, h, c = L.LSTM(4, return_sequences=True, return_state=True)(x)
    return Model(x, L.TimeDistributed(L.Dense(2))(L.LSTM(4, return_sequences=True)(L.RepeatVector(3)(h), initial_state=[h, c])))

def attention():
    x = Input((None, 3), name="readings")
    h = L.Bidirectional(L.LSTM(4, return_sequences=True))(x)
    scores = L.Softmax(axis=1)(L.Dense(1)(h))
    return Model(x, L.Dense(1)(L.Dot(axes=1)([scores, h])))

report = {}
for build in (nested, siamese, nested_masked, two_masked, masking, chain, seq2seq, attention):
    keras.backend.clear_session()
    model = build()
    for weight in model.weights:
        weight.assign(rng.uniform(-0.6, 0.6, weight.shape))
    names = [tensor.name.split(":")[0] for tensor in model.inputs]
    rows, answers = [], []
    for length in (9, 14, 5):
        row = {}
        for name, tensor in zip(names, model.inputs):
            is_ids = name in ("words", "question", "answer")
            row[name] = rng.integers(1, 20, (length,)) if is_ids else rng.normal(size=(length, 3)).astype("float32")
            if is_ids:
                row[name][-1] = 0
            elif build is masking:
                row[name][2] = 0
        given = [row[name][None] for name in names]
        found = model.predict(given if len(given) > 1 else given[0], verbose=0)
        rows.append({name: values.tolist() for name, values in row.items()})
        answers.append(np.asarray(found)[0].tolist())
    for suffix in ("keras", "h5"):
        model.save(f"{build.__name__}.{suffix}")
    report[build.__name__] = {"rows": rows, "answers": answers}
json.dump(report, open("report.json", "w"))
"""
NAMES = ("nested", "siamese", "nested_masked", "two_masked", "masking", "chain", "seq2seq", "attention")


@pytest.fixture(scope="module", params=list(IMPORTS))
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that one of them saved, and `report.json` with rows and answers."""
    folder = tmp_path_factory.mktemp(request.param)
    run_in(request.param, SCRIPT.replace("IMPORT", IMPORTS[request.param]), folder)
    return folder


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("name", NAMES)
async def test_a_model_of_keras_2_is_served_as_it_predicted(name: str, suffix: str, files: Path, tmp_path: Path) -> None:
    known: dict[str, Any] = json.loads((files / "report.json").read_text())[name]
    import_keras(files / f"{name}.{suffix}", read_options(name="toy"), tmp_path)
    instances = [next(iter(row.values())) if len(row) == 1 else row for row in known["rows"]]
    async with client_of(tmp_path) as client:
        response = await client.post("/predict", content=json.dumps({"model": "toy", "instances": instances}))
        assert response.status_code == 200, response.text
    for found, wanted in zip(response.json()["predictions"], known["answers"], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
