"""Keras models whose layers branch, join or attend: what Keras saved, Sluice serves with the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.models.folder import ModelOptions
from service.models.loading import load_model
from tests.keras_models import QUIET, keras, randomized, saved
from training.importers.importer import read_options
from training.importers.keras.calls_importer import ImportedCalls, read_calls_module
from training.importers.keras.entry import KerasFileError
from training.importers.keras.importer import import_keras
from training.importers.keras.keras_file import read_keras_calls
from training.importers.keras.scales import Scales
from training.importers.model import ModelImportError
from training.importers.torch.errors import ModuleRefused
from training.importers.torch.options import read_scale
from training.importers.torch.wrappers import LinearScale

pytestmark = QUIET
L, ops = keras.layers, keras.ops
Array = NDArray[Any]
FEATURES, VOCABULARY = 3, 20
OPEN, FIXED = (9, 14, 5), (8, 8, 8)
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """A model, and the lengths of its rows."""

    build: Callable[[], Any]
    lengths: tuple[int, ...] = OPEN
    batching: str = "ragged"


def numbers(join: Callable[[Any], Any], steps: int | None = None) -> Any:
    x = keras.Input((steps, FEATURES), name="readings")
    return keras.Model(x, join(x))


def tokens(join: Callable[[Any], Any], steps: int | None = None, masked: bool = True) -> Any:
    x = keras.Input((steps,), name="tokens")
    return keras.Model(x, join(L.Embedding(VOCABULARY, 5, mask_zero=masked)(x)))


def sequences(units: int = 4, cell: Any = None, **options: Any) -> Any:
    return (cell or L.LSTM)(units, return_sequences=True, **options)


def bahdanau(x: Any) -> Any:
    """The attention that tutorials write by hand."""
    h = L.Bidirectional(sequences())(x)
    weights = L.Softmax(axis=1)(L.Dense(1)(L.Dense(6, "tanh")(h)))
    return L.Dense(2)(ops.sum(L.Multiply()([h, weights]), axis=1))


def flattened_attention(x: Any) -> Any:
    """Another that many copied: scores flattened, repeated over the features and turned."""
    h = sequences()(x)
    weights = L.Activation("softmax")(L.Flatten()(L.Dense(1, "tanh")(h)))
    weights = L.Permute((2, 1))(L.RepeatVector(4)(weights))
    return L.Dense(2)(ops.sum(L.Multiply()([h, weights]), axis=1))


def transformer_block(x: Any) -> Any:
    h = L.Dense(6)(x)
    h = L.LayerNormalization()(h + L.MultiHeadAttention(2, 3)(h, h))
    h = L.LayerNormalization()(L.Add()([h, L.Dense(6)(L.Dense(12, "relu")(h))]))
    return L.Dense(1)(L.GlobalAveragePooling1D()(h))


def residual(x: Any) -> Any:
    h = sequences()(x)
    for _ in range(2):
        h = L.Add()([h, sequences()(h)])
    return L.Dense(2)(L.LSTM(3)(h))


def inner(units: int) -> Any:
    return keras.Sequential([keras.Input((None, FEATURES)), sequences(units), L.Dense(units, "relu")])


def siamese() -> Any:
    """One encoder read by two inputs."""
    encoder = keras.Sequential([keras.Input((None, FEATURES)), L.GRU(4), L.Dense(3)])
    one, other = keras.Input((None, FEATURES), name="one"), keras.Input((None, FEATURES), name="other")
    return keras.Model([one, other], L.Dot(axes=1, normalize=True)([encoder(one), encoder(other)]))


def siamese_of_models() -> Any:
    """One functional model, called twice."""
    x = keras.Input((None, FEATURES))
    shared = keras.Model(x, L.Dense(3)(L.GRU(4)(x)))
    one, other = keras.Input((None, FEATURES), name="one"), keras.Input((None, FEATURES), name="other")
    return keras.Model([one, other], L.Dense(1)(L.Subtract()([shared(one), shared(other)])))


def several_outputs() -> Any:
    x = keras.Input((None, FEATURES), name="readings")
    h, state, cell = L.LSTM(4, return_sequences=True, return_state=True, name="encoder")(x)
    return keras.Model(x, [L.Dense(2, name="label")(state), L.Dense(1, name="steps")(h), cell])


def several_inputs() -> Any:
    x = keras.Input((None, FEATURES), name="readings")
    facts = keras.Input((4,), name="facts")
    return keras.Model([x, facts], L.Dense(2)(L.Concatenate()([L.LSTM(4)(x), L.Dense(3, "relu")(facts)])))


def decoder() -> Any:
    """The step by step half of a translation: states in, states out."""
    x = keras.Input((None,), name="words")
    h, c = keras.Input((4,), name="hidden"), keras.Input((4,), name="cell")
    y, hidden, cell = L.LSTM(4, return_sequences=True, return_state=True, name="decoder")(
        L.Embedding(VOCABULARY, 5)(x), initial_state=[h, c]
    )
    return keras.Model([x, h, c], [L.Dense(VOCABULARY, "softmax", name="next")(y), hidden, cell])


def encoder_decoder(x: Any) -> Any:
    _, h, c = L.LSTM(4, return_state=True)(x)
    y = L.LSTM(4, return_sequences=True)(L.RepeatVector(3)(h), initial_state=[h, c])
    return L.TimeDistributed(L.Dense(1))(y)


def cells(x: Any) -> Any:
    return L.Dense(1)(L.RNN([L.LSTMCell(4), L.GRUCell(3)])(x))


CASES: dict[str, Case] = {
    "lstm beside gru": Case(lambda: numbers(lambda x: L.Dense(2)(L.Concatenate()([L.LSTM(4)(x), L.GRU(3)(x)])))),
    "max beside mean": Case(
        lambda: numbers(
            lambda x: (lambda h: L.Dense(2)(L.concatenate([L.GlobalMaxPooling1D()(h), L.GlobalAveragePooling1D()(h)])))(
                L.Bidirectional(sequences())(x)
            )
        )
    ),
    "last beside mean, masked": Case(
        lambda: tokens(
            lambda x: (lambda h: L.Dense(2)(L.concatenate([L.GRU(3)(h), L.GlobalAveragePooling1D()(h)])))(sequences()(x))
        )
    ),
    "residual": Case(lambda: numbers(residual)),
    "residual, masked": Case(lambda: tokens(residual)),
    "last step sliced": Case(lambda: numbers(lambda x: L.Dense(1)(sequences()(x)[:, -1, :]))),
    "bahdanau by hand": Case(lambda: numbers(bahdanau)),
    "bahdanau by hand, fixed": Case(lambda: numbers(bahdanau, 8), FIXED),
    "flattened attention": Case(lambda: numbers(flattened_attention)),
    "flattened attention, fixed": Case(lambda: numbers(flattened_attention, 8), FIXED),
    "transformer block": Case(lambda: numbers(transformer_block)),
    "transformer block, masked": Case(lambda: tokens(transformer_block)),
    "causal": Case(
        lambda: numbers(
            lambda x: L.LSTM(3)(
                L.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True) + L.Attention()([x, x], use_causal_mask=True)
            )
        )
    ),
    "siamese": Case(siamese),
    "siamese, functional": Case(siamese_of_models),
    "several outputs": Case(several_outputs),
    "several inputs": Case(several_inputs),
    "decoder": Case(decoder),
    "encoder and decoder": Case(lambda: numbers(encoder_decoder)),
    "encoder and decoder, masked": Case(lambda: tokens(encoder_decoder)),
    "nested": Case(lambda: keras.Sequential([keras.Input((None, FEATURES)), inner(4), L.GRU(3), keras.Sequential([L.Dense(2)])])),
    "nested twice": Case(
        lambda: numbers(lambda x: L.GRU(2)(keras.Sequential([keras.Input((None, FEATURES)), inner(5), L.Dropout(0.5)])(x)))
    ),
    "cells": Case(lambda: numbers(cells)),
    "cells, masked": Case(lambda: tokens(cells)),
    "one cell": Case(lambda: numbers(lambda x: L.RNN(L.GRUCell(4, reset_after=False), return_sequences=True)(x))),
    "permuted": Case(lambda: numbers(lambda x: L.GRU(3)(L.Permute((2, 1))(x)), 8), FIXED),
    "average pooling": Case(lambda: numbers(lambda x: L.LSTM(3)(L.AveragePooling1D(2)(x)))),
    "zero padding": Case(lambda: numbers(lambda x: L.LSTM(3)(L.Conv1D(4, 3)(L.ZeroPadding1D((2, 1))(x))))),
    "cropping": Case(lambda: numbers(lambda x: L.LSTM(3)(L.Cropping1D((1, 2))(x)))),
    "up sampling, open": Case(lambda: numbers(lambda x: L.LSTM(3)(L.UpSampling1D(3)(L.MaxPooling1D(2)(x))))),
    "up sampling": Case(lambda: numbers(lambda x: L.LSTM(3)(L.UpSampling1D(2)(x)), 8), FIXED),
    "rescaling": Case(lambda: keras.Sequential([keras.Input((None, FEATURES)), L.Rescaling(0.1, -0.5), L.LSTM(3)])),
    "relu options": Case(
        lambda: numbers(
            lambda x: L.ReLU(max_value=0.7, negative_slope=0.1, threshold=0.2)(L.PReLU(shared_axes=[1])(sequences()(x)))
        )
    ),
    "convolutions beside one another": Case(
        lambda: tokens(
            lambda x: L.Dense(2, "softmax")(
                L.concatenate([L.GlobalMaxPooling1D()(L.Conv1D(4, size, activation="relu")(x)) for size in (2, 3)])
            ),
            masked=False,
        )
    ),
    "nothing in a prediction": Case(
        lambda: numbers(
            lambda x: L.LSTM(3)(
                L.AlphaDropout(0.2)(
                    L.GaussianDropout(0.2)(L.SpatialDropout1D(0.2)(L.ActivityRegularization(l2=0.1)(L.Dense(4)(x))))
                )
            )
        )
    ),
}
JOINS: dict[str, Callable[[Any], Any]] = {
    "Dot": lambda x: L.Dense(1)(L.Dot(axes=(1, 1))([sequences(3)(x), sequences(2)(x)])),
    "Concatenate": lambda x: L.GRU(2)(L.Concatenate()([sequences()(x), sequences(3, L.GRU)(x)])),
    "Attention": lambda x: L.GRU(2)(L.Attention(use_scale=True)([x, sequences(x.shape[-1])(x)])),
    "Attention, concat": lambda x: L.GRU(2)(L.Attention(score_mode="concat")([x, x])),
    "AdditiveAttention": lambda x: L.GRU(2)(L.AdditiveAttention()([x, x])),
    "MultiHeadAttention": lambda x: L.GRU(2)(L.MultiHeadAttention(2, 3)(x, x)),
}
JOINS |= {
    kind: lambda x, kind=kind: L.GRU(2)(getattr(L, kind)()([sequences()(x), sequences()(x)]))  # type: ignore[misc]
    for kind in ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")
}
for name, join in JOINS.items():
    CASES[name] = Case(partial(numbers, join))
    CASES[f"{name}, masked"] = Case(partial(tokens, join))


# Of every kind one in the fast tests; each publication runs the service in a process of its own.
FAST = (
    "lstm beside gru",
    "residual, masked",
    "bahdanau by hand",
    "several inputs",
    "several outputs",
    "decoder",
    "nested",
    "Attention",
)
NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


def rows_of(case: Case, model: Any) -> list[dict[str, Array]]:
    """A row of each length, ids from 0 on so that masked steps lie anywhere but in front."""
    rng = np.random.default_rng(7)
    rows = []
    for length in case.lengths:
        row: dict[str, Array] = {}
        for tensor in model.inputs:
            axes = [length if size is None else size for size in tensor.shape[1:]]
            if tensor.name in ("tokens", "words"):
                row[tensor.name] = rng.integers(0, VOCABULARY, axes)
                row[tensor.name][[0, -1]] = 3, 0
            else:
                row[tensor.name] = rng.normal(size=axes).astype(np.float32)
        rows.append(row)
    return rows


def answers_of(model: Any, row: dict[str, Array]) -> list[Array]:
    given = [row[tensor.name][None] for tensor in model.inputs]
    found = model.predict(given if len(given) > 1 else given[0], verbose=0)
    return [np.asarray(part)[0] for part in (found if isinstance(found, list | tuple) else [found])]


async def served(folder: Path, instances: Sequence[Any]) -> Sequence[Any]:
    model = await load_model(folder, ModelOptions(device="cpu"))
    try:
        return await model.predict(list(instances), {})
    finally:
        await model.stop()


async def assert_served(model: Any, folder: Path, rows: Sequence[dict[str, Array]]) -> None:
    """Every row, all in one request, with Keras's answer for it alone."""
    names = [tensor.name for tensor in model.inputs]
    instances = [
        {name: value.tolist() for name, value in row.items()} if len(names) > 1 else next(iter(row.values())).tolist()
        for row in rows
    ]
    for found, row in zip(await served(folder, instances), rows, strict=True):
        parts = list(found.values()) if isinstance(found, dict) else [found]
        for part, wanted in zip(parts, answers_of(model, row), strict=True):
            np.testing.assert_allclose(np.asarray(part), wanted, rtol=1e-5, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
async def test_models_that_are_no_chain_are_served_as_keras_predicts(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = randomized(case.build())
    result = import_keras(saved(model, tmp_path / "model.keras"), read_options(name="toy"), tmp_path / "models")
    assert isinstance(result, ImportedCalls)
    assert (result.published.route, result.published.batching) == ("translated", case.batching), result
    await assert_served(model, result.folder, rows_of(case, model))


@pytest.mark.parametrize("name", NAMES)
def test_h5_files_of_such_models_hold_the_same(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = randomized(case.build())
    module = read_calls_module(read_keras_calls(saved(model, tmp_path / "model.h5")))
    for row in rows_of(case, model):
        with torch.no_grad():
            found = module(*(torch.from_numpy(row[tensor.name])[None] for tensor in model.inputs))
        parts = list(found.values()) if isinstance(found, dict) else [found]
        for part, wanted in zip(parts, answers_of(model, row), strict=True):
            np.testing.assert_allclose(part[0].numpy(), wanted, rtol=1e-5, atol=TOLERANCE)


def scaled_rows(rows: Sequence[dict[str, Array]], name: str, low: float, high: float) -> list[dict[str, Array]]:
    return [{**row, name: row[name] * (high - low) + low} for row in rows]


def states_of(folder: Path) -> list[dict[str, str]]:
    """The pairs of state that a folder declares."""
    found: list[dict[str, str]] = json.loads((folder / "manifest.json").read_text())["state"]
    return found


async def test_a_scale_outside_a_model_that_is_no_chain_goes_into_the_graph_too(tmp_path: Path) -> None:
    model = randomized(numbers(residual))
    scales = Scales(read_scale("minmax:20,80", "--scale"), read_scale("standard:5,2", "--unscale"))
    file = saved(model, tmp_path / "model.keras")
    result = import_keras(file, read_options(name="toy"), tmp_path / "models", scales=scales)
    assert isinstance(result, ImportedCalls)
    rows = rows_of(Case(lambda: model), model)
    raw = [row["readings"].tolist() for row in scaled_rows(rows, "readings", 20, 80)]
    for found, row in zip(await served(result.folder, raw), rows, strict=True):
        np.testing.assert_allclose(np.asarray(found), answers_of(model, row)[0] * 2 + 5, rtol=1e-5, atol=1e-4)


async def test_a_scale_outside_the_model_goes_into_the_graph_before_and_behind_it(tmp_path: Path) -> None:
    model = randomized(keras.Sequential([keras.Input((None, FEATURES), name="readings"), L.LSTM(4), L.Dense(2)]))
    file = saved(model, tmp_path / "model.keras")
    scales = Scales(read_scale("minmax:20,80", "--scale"), read_scale("standard:5,2", "--unscale"))
    result = import_keras(file, read_options(name="toy"), tmp_path / "models", scales=scales)
    assert len(states_of(result.folder)) == 2  # the scales take no part in it: the chain streams as it did
    rows = rows_of(Case(lambda: model), model)
    raw = [row["readings"].tolist() for row in scaled_rows(rows, "readings", 20, 80)]
    for found, row in zip(await served(result.folder, raw), rows, strict=True):
        np.testing.assert_allclose(np.asarray(found), answers_of(model, row)[0] * 2 + 5, rtol=1e-5, atol=1e-4)


async def test_a_forecast_behind_a_scaler_is_in_the_units_of_the_series(tmp_path: Path) -> None:
    model = randomized(keras.Sequential([keras.Input((8, 1), name="readings"), L.LSTM(4), L.Dense(3)]))
    file = saved(model, tmp_path / "model.keras")
    scaler = tmp_path / "scaler.json"
    scaler.write_text('{"min_": [-0.5], "scale_": [0.025]}', encoding="utf-8")
    options = read_options(name="toy", task="forecast", horizon=3)
    scales = Scales(scaler=read_scale(str(scaler), "--scaler"))
    result = import_keras(file, options, tmp_path / "models", scales=scales)
    assert not isinstance(result, ImportedCalls)
    history = np.random.default_rng(7).uniform(20, 60, 8)
    (found,) = await served(result.folder, [{"history": history.tolist()}])
    (wanted,) = answers_of(model, {"readings": (history * 0.025 - 0.5)[:, None].astype(np.float32)})
    np.testing.assert_allclose(found["forecast"], (wanted + 0.5) / 0.025, rtol=1e-5, atol=1e-4)


def test_scales_that_do_not_fit_are_refused_with_the_option(tmp_path: Path) -> None:
    file = saved(randomized(keras.Sequential([keras.Input((8, 2)), L.LSTM(4), L.Dense(2)])), tmp_path / "model.keras")
    scale = read_scale("minmax:0,1", "--scale")
    forecast = read_options(name="toy", task="forecast", horizon=1)
    for options, scales, words in (
        (read_options(name="toy"), Scales(scaler=scale), "--scaler belongs to --task forecast"),
        (read_options(name="toy"), Scales(scale=LinearScale(np.ones(3), np.zeros(3))), "--scale: it has 3 features"),
        (forecast, Scales(scale=scale), "--scale and --unscale"),
    ):
        with pytest.raises(ModelImportError, match=words):
            import_keras(file, options, tmp_path / "models", scales=scales)
    assert not (tmp_path / "models").exists()


def test_states_that_come_back_are_named_in_a_note(tmp_path: Path) -> None:
    result = import_keras(saved(randomized(decoder()), tmp_path / "model.keras"), read_options(name="toy"), tmp_path / "models")
    assert isinstance(result, ImportedCalls)
    (note,) = result.published.notes
    assert "--state hidden=decoder_hidden --state cell=decoder_cell" in note
    assert not states_of(result.folder)


async def test_a_decoder_whose_states_are_named_is_served_step_by_step(tmp_path: Path) -> None:
    model = randomized(decoder())
    state = {"hidden": "decoder_hidden", "cell": "decoder_cell"}
    result = import_keras(saved(model, tmp_path / "model.keras"), read_options(name="toy"), tmp_path / "models", state=state)
    assert states_of(result.folder) == [{"input": name, "output": output} for name, output in state.items()]
    loaded = await load_model(result.folder, ModelOptions(device="cpu"))
    words, zeros = np.array([3, 7, 1, 12]), np.zeros((1, 4), np.float32)
    try:
        (whole,) = await loaded.predict([words.tolist()], {})
        given: dict[str, Array] = {}
        for step, word in enumerate(words):
            inputs = {"words": np.array([[word]]), **given}
            found = await loaded.infer(inputs)
            np.testing.assert_allclose(found["next"][0, 0], whole[step], rtol=1e-5, atol=TOLERANCE)
            given = {name: found[output] for name, output in state.items()}
    finally:
        await loaded.stop()
    wanted = model.predict([words[None], zeros, zeros], verbose=0)[0][0]
    np.testing.assert_allclose(np.asarray(whole), wanted, rtol=1e-5, atol=TOLERANCE)


def test_a_state_of_another_name_is_refused(tmp_path: Path) -> None:
    file = saved(randomized(decoder()), tmp_path / "model.keras")
    for state, words in (
        ({"absent": "decoder_hidden"}, 'forward takes no "absent"'),
        ({"hidden": "absent"}, 'no output is called "absent"'),
    ):
        with pytest.raises(ModuleRefused, match=words):
            import_keras(file, read_options(name="toy"), tmp_path / "models", state=state)
    assert not (tmp_path / "models").exists()


def test_average_pooling_that_depends_on_the_length_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model = randomized(numbers(lambda x: L.LSTM(3)(L.AveragePooling1D(2, padding="same")(x))))
    with pytest.raises(KerasFileError, match='padding "same" needs the same number of steps in every row'):
        import_keras(saved(model, tmp_path / "model.keras"), read_options(name="toy"), tmp_path / "models")
