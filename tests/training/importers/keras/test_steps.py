"""Which of Keras's layers can be imported, counted on Keras itself."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from tests.keras_models import keras
from training.importers.keras.entry import KerasFileError
from training.importers.keras.steps import require_known

PAGE = Path(__file__).parents[4] / "docs" / "how-to" / "import-keras.md"
# Layers that are no calls of their own in a graph: an input, the cells of an RNN, and what becomes a tokenizer.
READ_ELSEWHERE = {"InputLayer", "LSTMCell", "GRUCell", "SimpleRNNCell", "StackedRNNCells", "TextVectorization"}


def is_known(name: str) -> bool:
    try:
        require_known([{"class_name": name, "module": "keras.layers", "config": {"name": "x", "trainable": True}}])
    except KerasFileError:
        return name in READ_ELSEWHERE
    return True


def test_the_page_says_how_many_of_the_layers_can_be_imported_and_which_of_sequences_cannot() -> None:
    sentence = re.search(
        r"Of the (\d+) layers of Keras (\d+\.\d+), (\d+) can be imported\..* of sequences are (.*)\.", PAGE.read_text("utf-8")
    )
    assert sentence is not None
    num_layers, version, num_known, missing = sentence.groups()
    if not keras.__version__.startswith(f"{version}."):
        pytest.skip(f"the page counts the layers of Keras {version}")
    classes = {each for _, each in inspect.getmembers(keras.layers, inspect.isclass) if issubclass(each, keras.layers.Layer)}
    names = {each.__name__ for each in classes}
    known = set(filter(is_known, names))
    assert (len(names), len(known)) == (int(num_layers), int(num_known))
    assert names >= READ_ELSEWHERE
    assert set(re.findall(r"`(\w+)`", missing)) <= names - known
    assert set(re.findall(r"`(\w+)`", missing)) >= {name for name in names - known if "1D" in name}
