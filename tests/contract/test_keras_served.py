"""What Keras saved, Sluice serves with the same numbers: build, save, import, load as the service does, compare."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from service.models.folder import ModelOptions
from service.models.loading import check_folder, load_model
from tests.keras_models import QUIET, functional, keras, predicted, saved, saved_by_keras_2, sequential
from tests.serving import server_process
from training.importers.importer import read_options
from training.importers.keras.importer import import_keras

pytestmark = QUIET
L = keras.layers
ROOT = Path(__file__).parent.parent.parent
STEPS, FEATURES, VOCABULARY = 7, 3, 20
SEQUENCE = (STEPS, FEATURES)
TOLERANCE = 1e-5
Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A model, and how its rows may be: of which lengths a caller may give them."""

    build: Callable[[], Any]
    kind: str = "floats"
    lengths: tuple[int, ...] = (STEPS,) * 4
    num_states: int | None = None  # None: whatever the network has


def tokens(*layers: Any, masked: bool = True, steps: int | None = STEPS) -> Callable[[], Any]:
    return lambda: sequential((steps,), L.Embedding(VOCABULARY, 5, mask_zero=masked), *_fresh(layers))


def floats(*layers: Any, shape: tuple[int | None, ...] = SEQUENCE) -> Callable[[], Any]:
    return lambda: sequential(shape, *_fresh(layers))


def _fresh(layers: Sequence[Any]) -> list[Any]:
    """Layers that no other model has built yet."""
    return [layer.__class__.from_config(layer.get_config()) for layer in layers]


RAGGED = (STEPS, 1, 4, 6)
OPEN = (9, 2, 5, 12)
CELLS: dict[str, Any] = {
    "simple_rnn": lambda **o: L.SimpleRNN(4, **o),
    "lstm": lambda **o: L.LSTM(4, **o),
    "gru": lambda **o: L.GRU(4, **o),
    "gru_before": lambda **o: L.GRU(4, reset_after=False, **o),
}

CASES: dict[str, Case] = {}
for name, cell in CELLS.items():
    CASES |= {
        f"{name}": Case(floats(cell(), L.Dense(2))),
        f"{name}_open": Case(floats(cell(), L.Dense(2), shape=(None, FEATURES)), lengths=OPEN),
        f"{name}_many_to_many": Case(floats(cell(return_sequences=True), L.TimeDistributed(L.Dense(2)))),
        f"{name}_many_to_many_open": Case(floats(cell(return_sequences=True), L.Dense(2), shape=(None, FEATURES)), lengths=OPEN),
        f"{name}_stacked": Case(floats(cell(return_sequences=True), L.Dropout(0.2), cell(), L.Dense(1))),
        f"{name}_backwards": Case(floats(cell(go_backwards=True, return_sequences=True), cell())),
        f"{name}_relu": Case(floats(cell(activation="relu"), L.Dense(1))),
        f"{name}_no_bias": Case(floats(cell(use_bias=False), L.Dense(1, use_bias=False))),
        f"{name}_masked": Case(tokens(cell(), L.Dense(2)), "tokens", RAGGED),
        f"{name}_masked_many_to_many": Case(tokens(cell(return_sequences=True), L.Dense(3, "softmax")), "tokens", RAGGED),
        f"{name}_bidirectional": Case(floats(L.Bidirectional(cell()), L.Dense(2))),
        f"{name}_bidirectional_masked": Case(
            tokens(L.Bidirectional(cell(return_sequences=True)), L.Bidirectional(cell()), L.Dense(2)), "tokens", RAGGED
        ),
        f"{name}_stateful": Case(
            lambda cell=cell: sequential(SEQUENCE, *_fresh([cell(stateful=True), L.Dense(1)]), batch_size=4),  # type: ignore[misc]
            num_states=2 if name == "lstm" else 1,
        ),
    }
for activation in ("relu", "linear", "elu", "softsign", "hard_sigmoid", "selu", "swish"):
    CASES[f"lstm_activation_{activation}"] = Case(floats(L.LSTM(4, activation=activation), L.Dense(1)))
for activation in ("hard_sigmoid", "tanh", "relu", "linear"):
    CASES[f"gru_recurrent_{activation}"] = Case(floats(L.GRU(4, recurrent_activation=activation), L.Dense(1)))
for mode in ("concat", "sum", "mul", "ave"):
    CASES[f"merge_{mode}"] = Case(floats(L.Bidirectional(L.LSTM(3), merge_mode=mode), L.Dense(1)))
    CASES[f"merge_{mode}_masked"] = Case(
        tokens(L.Bidirectional(L.GRU(3, return_sequences=True), merge_mode=mode), L.Dense(2)), "tokens", RAGGED
    )
CASES |= {
    "merge_none": Case(lambda: functional(SEQUENCE, L.Bidirectional(L.LSTM(3, return_sequences=True), merge_mode=None))),
    "backward_layer": Case(floats(L.Bidirectional(L.LSTM(3), backward_layer=L.GRU(3, go_backwards=True)), L.Dense(1))),
    "return_state": Case(lambda: functional(SEQUENCE, L.LSTM(3, return_state=True))),
    "zero_output_for_mask": Case(
        tokens(L.LSTM(3, return_sequences=True, zero_output_for_mask=True), L.Dense(2)), "tokens", RAGGED
    ),
    "embedding_unmasked": Case(tokens(L.LSTM(4), L.Dense(1, "sigmoid"), masked=False), "tokens"),
    "embedding_unmasked_open": Case(tokens(L.LSTM(4), L.Dense(1, "sigmoid"), masked=False, steps=None), "tokens", OPEN),
    "embedding_masked_open": Case(tokens(L.LSTM(4), L.Dense(1, "sigmoid"), steps=None), "tokens", OPEN),
    "embedding_average": Case(tokens(L.GlobalAveragePooling1D(), L.Dense(2, "softmax")), "tokens", RAGGED),
    "embedding_maximum": Case(tokens(L.GlobalMaxPooling1D(), L.Dense(2, "softmax")), "tokens"),
    "embedding_flatten": Case(tokens(L.Flatten(), L.Dense(3, "relu"), L.Dense(1)), "tokens"),
    "embedding_convolution": Case(
        tokens(L.Conv1D(4, 3, padding="same", activation="relu"), L.MaxPooling1D(2), L.LSTM(3)), "tokens"
    ),
    "stacked_masked": Case(
        tokens(
            L.SpatialDropout1D(0.2), L.LSTM(4, return_sequences=True), L.LayerNormalization(), L.GRU(3), L.Dense(4, "softmax")
        ),
        "tokens",
        RAGGED,
    ),
    "masking": Case(floats(L.Masking(-1.0), L.LSTM(4), L.Dense(1))),
    "masking_functional": Case(
        lambda: functional(
            SEQUENCE,
            *_fresh([L.Masking(0.5), L.GRU(4, return_sequences=True), L.Dropout(0.2), L.TimeDistributed(L.Dense(3))]),
            *_fresh([L.Bidirectional(L.LSTM(3, return_sequences=True)), L.GlobalAveragePooling1D()]),
        )
    ),
    "stacked_masked_functional": Case(
        lambda: functional(
            (STEPS,),
            *_fresh([L.Embedding(VOCABULARY, 5, mask_zero=True), L.Bidirectional(L.LSTM(4, return_sequences=True))]),
            *_fresh([L.LayerNormalization(), L.GRU(3, go_backwards=True), L.Dense(4, "softmax")]),
        ),
        "tokens",
        RAGGED,
    ),
    "convolution": Case(floats(L.Conv1D(4, 3, activation="relu"), L.MaxPooling1D(2), L.GRU(3), L.Dense(2))),
    "convolution_causal": Case(
        floats(L.Conv1D(4, 2, padding="causal", dilation_rate=2), L.GlobalMaxPooling1D(), shape=(None, FEATURES)), lengths=OPEN
    ),
    "average_open": Case(
        floats(L.Conv1D(4, 3, padding="same"), L.GlobalAveragePooling1D(), shape=(None, FEATURES)), lengths=OPEN
    ),
    "batch_normalization": Case(
        floats(L.LSTM(4, return_sequences=True), L.BatchNormalization(), L.LSTM(3), L.BatchNormalization())
    ),
    "layer_normalization": Case(floats(L.LSTM(4), L.LayerNormalization(), L.Dense(2))),
    "repeat_vector": Case(floats(L.LSTM(4), L.RepeatVector(5), L.LSTM(3, return_sequences=True), L.TimeDistributed(L.Dense(1)))),
    "reshape": Case(floats(L.Flatten(), L.Dense(8), L.Reshape((4, 2)), L.GRU(3))),
    "normalization": Case(lambda: adapted(), num_states=0),
    "normalization of all": Case(lambda: adapted_as_one(), num_states=0),
    "vectors": Case(floats(L.Dense(5, "relu"), L.Dense(3, "softmax"), shape=(6,))),
    "one_step": Case(floats(L.LSTM(5, return_sequences=True), L.LSTM(3), L.Dropout(0.5), L.Dense(1), shape=(1, 6))),
    "leaky_relu": Case(floats(L.LSTM(4), L.Dense(4), L.LeakyReLU(negative_slope=0.2), L.Dense(3), L.Softmax())),
    "gaussian_noise": Case(floats(L.GaussianNoise(0.1), L.SimpleRNN(3), L.Activation("tanh"))),
    "output_named_output": Case(lambda: functional(SEQUENCE, L.LSTM(3, name="lengths"), L.Dense(2, name="output"), name="input")),
    "input_named_by_its_author": Case(lambda: functional(SEQUENCE, L.LSTM(3), L.Dense(2), name="readings")),
}


def adapted() -> Any:
    """A model that standardizes its own input by what it saw."""
    normalization = L.Normalization()
    normalization.adapt(np.random.default_rng(3).normal([1, 20, -300], [1, 5, 100], (50, STEPS, FEATURES)).astype(np.float32))
    return keras.Sequential([keras.Input(SEQUENCE), normalization, L.LSTM(4), L.Dense(1)])


def adapted_as_one() -> Any:
    """The same for all values alike."""
    normalization = L.Normalization(axis=None)
    normalization.adapt(np.random.default_rng(3).normal(20, 5, (50, STEPS, FEATURES)).astype(np.float32))
    return keras.Sequential([keras.Input(SEQUENCE), normalization, L.LSTM(4), L.Dense(1)])


def rows_of(case: Case, model: Any) -> list[Array]:
    """A row of each length."""
    rng = np.random.default_rng(7)
    axes = model.input_shape[1:]
    if case.kind == "tokens":
        return [rng.integers(1, VOCABULARY, length) for length in case.lengths]
    shapes = [(length, *axes[1:]) if len(axes) > 1 else axes for length in case.lengths]
    shapes = [shape if axes[0] is None else axes for shape in shapes]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def expected_of(model: Any, rows: Sequence[Array]) -> list[Any]:
    """Keras's answer for each row: padded to the model's length and masked, or alone where it reads any length."""
    steps = model.input_shape[1]
    if model.input_shape[0] is not None or len({len(row) for row in rows}) == 1:
        answers = predicted(model, np.stack(rows))
        return [[part[i] for part in answers] if isinstance(answers, list) else answers[i] for i in range(len(rows))]
    if steps is None:
        return [predicted(model, row[None])[0] for row in rows]
    padded = np.zeros((len(rows), steps), np.int64)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return list(predicted(model, padded))


def published(model: Any, tmp_path: Path, *, suffix: str = ".keras", **options: Any) -> Path:
    path = saved(model, tmp_path / f"model{suffix}")
    example = options.pop("example", None)
    return import_keras(path, read_options(name="toy", **options), tmp_path / "models", example=example).folder


async def served(folder: Path, instances: Sequence[Any]) -> Sequence[Any]:
    model = await load_model(folder, ModelOptions(device="cpu"))
    try:
        return await model.predict(list(instances), {})
    finally:
        await model.stop()


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for part, wanted in zip(found.values(), expected, strict=True):
            np.testing.assert_allclose(part, wanted, rtol=1e-6, atol=TOLERANCE)
        return
    found = np.array(found)
    # Of a sequence the answer has the row's own steps; Keras's has those of the padding too.
    expected = expected[: len(found)] if found.ndim == 2 else expected
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=TOLERANCE)


# The reader gives the same layers for both formats (tests/training/test_keras_file.py): one of each kind shows it here.
IN_BOTH_FORMATS = ("lstm", "gru_before", "gru_masked", "merge_none", "backward_layer", "lstm_stateful", "stacked_masked",
                   "stacked_masked_functional", "batch_normalization", "normalization", "convolution", "leaky_relu",
                   "output_named_output")  # fmt: skip
FILES = [(name, ".keras") for name in CASES] + [(name, ".h5") for name in IN_BOTH_FORMATS]


@pytest.mark.parametrize(("name", "suffix"), FILES)
async def test_the_served_answer_equals_keras(tmp_path: Path, name: str, suffix: str) -> None:
    case = CASES[name]
    model = case.build()
    folder = published(model, tmp_path, suffix=suffix)
    rows = rows_of(case, model)
    for found, expected in zip(await served(folder, [row.tolist() for row in rows]), expected_of(model, rows), strict=True):
        assert_equal(found, expected)
    manifest = json.loads((folder / "manifest.json").read_text())
    if case.num_states is not None:
        assert len(manifest["state"]) == case.num_states


@pytest.mark.parametrize("is_functional", [False, True], ids=["sequential", "functional"])
@pytest.mark.parametrize(
    "name", ["lstm", "gru", "gru_before", "stacked_masked", "batch_normalization", "merge_concat", "convolution"]
)
async def test_a_file_of_keras_2_is_served_with_the_numbers_of_its_weights(
    tmp_path: Path, name: str, is_functional: bool
) -> None:
    case = CASES[name]
    model = case.build()
    path = saved_by_keras_2(model, tmp_path / "model.h5", is_functional=is_functional)
    folder = import_keras(path, read_options(name="toy"), tmp_path / "models").folder
    rows = rows_of(case, model)
    for found, expected in zip(await served(folder, [row.tolist() for row in rows]), expected_of(model, rows), strict=True):
        assert_equal(found, expected)


async def test_the_hard_sigmoid_of_keras_2_is_another_one(tmp_path: Path) -> None:
    model = floats(L.LSTM(4, recurrent_activation="hard_sigmoid"))()
    row = np.random.default_rng(0).normal(size=SEQUENCE).astype(np.float32)
    answers = []
    for version in ("2.3.1", "3.0.0"):
        path = saved_by_keras_2(model, tmp_path / "model.h5", version=version)
        folder = import_keras(path, read_options(name="toy"), tmp_path / version).folder
        answers.append(np.array((await served(folder, [row.tolist()]))[0]))
    np.testing.assert_allclose(answers[1], predicted(model, row[None])[0], rtol=0, atol=TOLERANCE)
    assert np.abs(answers[0] - answers[1]).max() > 1e-3


@pytest.mark.parametrize(
    "name", ["lstm", "lstm_open", "lstm_masked", "lstm_stateful", "merge_none", "vectors", "lstm_many_to_many"]
)
def test_a_published_folder_passes_the_check_of_the_service(tmp_path: Path, name: str) -> None:
    assert check_folder(published(CASES[name].build(), tmp_path)) == []


async def test_a_row_of_a_masked_embedding_may_have_any_length_and_zeros_anywhere(tmp_path: Path) -> None:
    model = CASES["stacked_masked"].build()
    folder = published(model, tmp_path)
    rows = [[3, 7, 5], [0, 0, 0, 0, 3, 7, 5], [3, 7, 5, 0, 0, 0, 0], [3, 0, 7, 0, 5], [4]]
    padded = np.array([row + [0] * (STEPS - len(row)) for row in rows])
    np.testing.assert_allclose(await served(folder, rows), predicted(model, padded), rtol=0, atol=TOLERANCE)


async def test_an_instance_may_name_the_input(tmp_path: Path) -> None:
    model = CASES["input_named_by_its_author"].build()
    row = np.random.default_rng(0).normal(size=SEQUENCE).astype(np.float32)
    folder = published(model, tmp_path)
    answers = await served(folder, [{"readings": row.tolist()}, row.tolist()])
    assert np.array_equal(answers[0], answers[1])
    np.testing.assert_allclose(answers[0], predicted(model, row[None])[0], rtol=0, atol=TOLERANCE)


# ------------------------------------------------------------------------------------------------------ other tasks


@pytest.mark.parametrize("steps", [STEPS, None], ids=["fixed", "open"])
async def test_a_model_of_one_series_forecasts(tmp_path: Path, steps: int | None) -> None:
    model = sequential((steps, 1), L.LSTM(5, return_sequences=True), L.LSTM(4), L.Dense(3))
    options: dict[str, Any] = {"horizon": 3, "frequency": ("M",)} | ({} if steps else {"context_length": 12})
    folder = published(model, tmp_path, task="forecast", **options)
    history = np.random.default_rng(0).normal(size=STEPS).astype(np.float32)
    (answer,) = await served(folder, [{"history": history.tolist()}])
    np.testing.assert_allclose(answer["forecast"], predicted(model, history[None, :, None])[0], rtol=0, atol=TOLERANCE)
    block = json.loads((folder / "manifest.json").read_text())["forecast"]
    assert (block["min_length"], block["context_length"]) == ((STEPS, STEPS) if steps else (1, 12))
    assert await asyncio.to_thread(check_folder, folder) == []


async def test_a_model_of_several_features_forecasts_the_one_that_is_named(tmp_path: Path) -> None:
    model = sequential((STEPS, 3), L.GRU(5), L.Dense(2))
    folder = published(model, tmp_path, task="forecast", horizon=2, features=("load", "heat", "wind"), targets=("heat",))
    history = np.random.default_rng(0).normal(size=(STEPS, 3)).astype(np.float32)
    (answer,) = await served(folder, [{"history": history.tolist()}])
    np.testing.assert_allclose(answer["forecast"], predicted(model, history[None])[0], rtol=0, atol=TOLERANCE)


async def test_a_decoder_that_repeats_a_vector_forecasts_every_feature(tmp_path: Path) -> None:
    model = sequential((STEPS, 2), L.LSTM(4), L.RepeatVector(5), L.LSTM(3, return_sequences=True), L.TimeDistributed(L.Dense(2)))
    folder = published(model, tmp_path, task="forecast", horizon=5)
    history = np.random.default_rng(0).normal(size=(STEPS, 2)).astype(np.float32)
    (answer,) = await served(folder, [{"history": history.tolist()}])
    np.testing.assert_allclose(answer["forecast"], predicted(model, history[None])[0], rtol=0, atol=TOLERANCE)


WORDS = ["a", "good", "bad", "film", "plot", "never", "always", "dull", "fine", "very"]


def tokenizer_file(folder: Path) -> Path:
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {word: index for index, word in enumerate(WORDS, start=2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=STEPS)
    path = folder / "words.json"
    tokenizer.save(str(path))
    return path


CLASSIFIERS: dict[str, tuple[tuple[Any, ...], bool, tuple[str, ...]]] = {
    "sigmoid": ((L.LSTM(4), L.Dense(1, "sigmoid")), True, ("bad", "good")),
    "softmax": ((L.Bidirectional(L.GRU(4)), L.Dense(3, "softmax")), True, ("bad", "fair", "good")),
    "softmax_after": ((L.LSTM(4), L.Dense(3), L.Activation("softmax")), True, ("bad", "fair", "good")),
    "unmasked": ((L.LSTM(4), L.Dense(1, "sigmoid")), False, ("bad", "good")),
    "flat": ((L.Flatten(), L.Dense(2, "softmax")), False, ("bad", "good")),
}


@pytest.mark.parametrize("padding", ["pre", "post"])
@pytest.mark.parametrize("name", CLASSIFIERS)
async def test_a_text_classifier_answers_with_labels(tmp_path: Path, name: str, padding: str) -> None:
    layers, is_masked, labels = CLASSIFIERS[name]
    model = sequential((STEPS,), L.Embedding(VOCABULARY, 5, mask_zero=is_masked), *_fresh(layers))
    path = tokenizer_file(tmp_path)
    folder = published(model, tmp_path, task="classify", labels=labels, tokenizer=path, padding=padding)
    texts = ["a good film", "never dull", " ".join(WORDS)]
    answers = await served(folder, texts)
    for text, answer in zip(texts, answers, strict=True):
        ids = [WORDS.index(word) + 2 for word in text.split()][-STEPS:]
        gap = [0] * (STEPS - len(ids))
        expected = predicted(model, np.array([gap + ids if padding == "pre" else ids + gap]))[0]
        expected = expected if len(labels) == len(expected) else np.array([1 - expected[0], expected[0]])
        np.testing.assert_allclose(list(answer["probabilities"].values()), expected, rtol=0, atol=TOLERANCE)
        assert answer["label"] == labels[int(expected.argmax())]
    assert "truncated" in answers[-1]
    assert await asyncio.to_thread(check_folder, folder) == []


# ------------------------------------------------------------------------------------------------------- a real server


def test_an_imported_file_is_served_over_http(tmp_path: Path) -> None:
    """From `model.save` to an answer, with the two commands."""
    model = CASES["stacked_masked"].build()
    path, rows = saved(model, tmp_path / "model.keras"), [[3, 7, 5], [1, 2, 3, 4, 5, 6, 7]]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    command = [sys.executable, "-m", "training", "import-keras", str(path), "--name", "imported"]
    command += ["--example", str(tmp_path / "rows.json"), "--models", str(tmp_path / "models")]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "models" / "imported" / "1"
    assert json.loads((folder / "example.json").read_text())["request"]["instances"] == rows
    check = [sys.executable, "-m", "service", "check", str(folder)]
    checked = subprocess.run(check, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with server_process(tmp_path / "models") as server:
        answer = httpx.post(f"{server.url}/predict", json={"model": "imported", "instances": rows}, timeout=30)
    assert answer.status_code == 200
    padded = np.array([row + [0] * (STEPS - len(row)) for row in rows])
    np.testing.assert_allclose(answer.json()["predictions"], predicted(model, padded), rtol=0, atol=TOLERANCE)
