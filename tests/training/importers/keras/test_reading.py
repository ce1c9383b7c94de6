"""Of a Keras file, whether rows may have any length: where Keras gives the same for a row with and without its padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.keras_models import QUIET, keras, saved, sequential
from training.importers.keras.keras_file import read_keras_file
from training.importers.keras.reading import source_model

pytestmark = QUIET
L = keras.layers
STACKS: dict[str, tuple[Callable[[], list[Any]], bool]] = {
    "the mask ends in a recurrent layer": (lambda: [L.LSTM(3), L.Dense(2)], True),
    "in one of two directions": (lambda: [L.Bidirectional(L.GRU(3)), L.Dense(2)], True),
    "in a mean": (lambda: [L.LSTM(3, return_sequences=True), L.LayerNormalization(), L.GlobalAveragePooling1D()], True),
    "behind layers of single steps": (
        lambda: [L.Dropout(0.1), L.TimeDistributed(L.Dense(3)), L.BatchNormalization(), L.Activation("tanh"), L.SimpleRNN(3)],
        True,
    ),
    "a maximum reads masked steps": (lambda: [L.Dense(3), L.GlobalMaxPooling1D()], False),
    "a convolution reads them": (lambda: [L.Conv1D(3, 2, padding="same"), L.LSTM(3)], False),
    "a second mask, of the vectors": (lambda: [L.Masking(), L.LSTM(3)], False),
}


@pytest.mark.parametrize("name", STACKS)
def test_rows_are_open_where_padding_changes_nothing(name: str, tmp_path: Path) -> None:
    build, is_open = STACKS[name]
    model = sequential((6,), L.Embedding(9, 4, mask_zero=True), *build())
    row = np.array([[3, 1, 4]])
    alone, padded = (np.asarray(model(values).detach()) for values in (row, np.pad(row, ((0, 0), (0, 3)))))
    assert np.allclose(alone, padded, atol=1e-6) == is_open
    assert source_model(read_keras_file(saved(model, tmp_path / "model.keras"))).is_open == is_open


def test_rows_are_not_open_where_steps_are_normalised_by_one_another(tmp_path: Path) -> None:
    model = sequential((6,), L.Embedding(9, 4, mask_zero=True), L.LayerNormalization(axis=1), L.LSTM(3))
    assert not source_model(read_keras_file(saved(model, tmp_path / "model.keras"))).is_open
