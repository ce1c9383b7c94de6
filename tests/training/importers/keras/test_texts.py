"""TextVectorization and StringLookup as a tokenizer: the token ids of Keras itself, and what no tokenizer can be made of.

`text_vectorization.json` holds what Keras 3.15 with TensorFlow 2.21 answered; without TensorFlow Keras has no such layers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.keras_models import QUIET, keras
from training.importers.importer import read_options
from training.importers.keras.entry import KerasFileError
from training.importers.keras.texts import TextLayer, options_with_tokenizer, split_texts
from training.importers.model import ModelImportError

pytestmark = QUIET
RECORDED = json.loads((Path(__file__).parent / "text_vectorization.json").read_text(encoding="utf-8"))
CASES = [pytest.param(case, id=f"{case['standardize']}, {case['split']}") for case in RECORDED["cases"]]


def model_of(kind: str, shape: list[int | None], **config: Any) -> Any:
    layer = {"class_name": kind, "config": {"name": "texts", "vocabulary": ["cat", "dog"], "batch_input_shape": shape, **config}}
    embedding = {"class_name": "Embedding", "config": {"name": "embedding", "input_dim": 9, "output_dim": 2}}
    return {"class_name": "Sequential", "config": {"name": "sequential", "layers": [layer, embedding]}}


def layer_of(model: Any, vocabulary: str | None = None) -> TextLayer:
    _, layer = split_texts(model, lambda group: vocabulary)
    assert layer is not None
    return layer


def ids_of(layer: TextLayer, text: str) -> list[int]:
    return list(Tokenizer.from_str(layer.tokenizer).encode(text).ids)


@pytest.mark.parametrize("case", CASES)
def test_token_ids_are_those_of_keras(case: dict[str, Any]) -> None:
    options = {"standardize": case["standardize"], "split": case["split"], "vocabulary": RECORDED["vocabulary"]}
    layer = layer_of(model_of("TextVectorization", [None, 1], **options))
    assert [ids_of(layer, text) for text in RECORDED["texts"]] == case["ids"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_recorded_ids_are_those_of_keras(case: dict[str, Any]) -> None:
    pytest.importorskip("tensorflow")
    options = {"standardize": case["standardize"], "split": case["split"], "vocabulary": RECORDED["vocabulary"]}
    layer = keras.layers.TextVectorization(**options)
    assert [layer([text]).numpy().reshape(-1).tolist() for text in RECORDED["texts"]] == case["ids"]


def test_the_model_reads_ids_in_the_place_of_texts() -> None:
    for length in (6, None):
        model, layer = split_texts(model_of("TextVectorization", [None, 1], output_sequence_length=length), lambda group: None)
        first, second = model["config"]["layers"]
        assert (first["class_name"], first["config"]["batch_shape"]) == ("InputLayer", [None, length])
        assert second["class_name"] == "Embedding"
        assert layer is not None
        assert layer.pads_behind


def test_a_model_without_texts_is_left_as_it_is() -> None:
    model = model_of("TextVectorization", [None, 1])
    del model["config"]["layers"][0]
    assert split_texts(model, lambda group: None) == (model, None)


def test_the_vocabulary_is_read_from_the_archive_with_its_special_tokens() -> None:
    layer = layer_of(model_of("TextVectorization", [None, 1], vocabulary=None), "\n[UNK]\ncat\ncafé\n\n")
    assert ids_of(layer, "cat café bird") == [2, 3, 1]


@pytest.mark.parametrize(
    ("shape", "mask", "text", "ids"),
    [
        ([None, None], None, "dog bird cat", [2, 0, 1]),
        ([None, None], "", "dog bird cat", [3, 1, 2]),
        ([None, None], "[MASK]", "[MASK] bird cat", [0, 1, 2]),
        ([None, 1], None, "dog", [2]),
        ([None, 1], None, "dog bird", [0]),
    ],
)
def test_string_lookup_numbers_tokens(shape: list[int | None], mask: str | None, text: str, ids: list[int]) -> None:
    assert ids_of(layer_of(model_of("StringLookup", shape, mask_token=mask)), text) == ids


REFUSALS = [
    ("TextVectorization", {"ngrams": [2]}, 'option "ngrams"'),
    ("TextVectorization", {"output_mode": "tf_idf"}, "option \"output_mode\" must be one of 'int', got 'tf_idf'"),
    ("TextVectorization", {"standardize": {"class_name": "function", "config": "clean"}}, 'option "standardize"'),
    ("TextVectorization", {"split": {"class_name": "function", "config": "cut"}}, "got a function"),
    ("TextVectorization", {"encoding": "latin-1"}, 'option "encoding"'),
    ("TextVectorization", {"vocabulary": None}, "the file holds no vocabulary"),
    ("TextVectorization", {"vocabulary": ["cat", "cat"]}, "names a token twice"),
    ("TextVectorization", {"vocabulary": ["cat", "[UNK]"]}, "the vocabulary is empty"),
    ("StringLookup", {"num_oov_indices": 2}, 'option "num_oov_indices"'),
    ("StringLookup", {"invert": True}, 'option "invert"'),
    ("StringLookup", {"output_mode": "multi_hot"}, 'option "output_mode"'),
    ("StringLookup", {"vocabulary": [1, 2]}, "the file holds no vocabulary"),
]


@pytest.mark.parametrize(("kind", "config", "words"), REFUSALS)
def test_what_no_tokenizer_does_is_refused_with_layer_and_option(kind: str, config: dict[str, Any], words: str) -> None:
    with pytest.raises(KerasFileError) as caught:
        layer_of(model_of(kind, [None, 1], **config))
    assert f'layer "texts" ({kind})' in str(caught.value)
    assert words in str(caught.value)


def test_a_layer_of_texts_behind_another_is_refused() -> None:
    model = model_of("TextVectorization", [None, 1])
    model["config"]["layers"].reverse()
    with pytest.raises(KerasFileError, match="must be the first layer"):
        split_texts(model, lambda group: None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "reads texts: give --task classify and --labels"),
        ({"task": "classify", "labels": ("a", "b"), "tokenizer": Path("t.json")}, "--tokenizer: layer"),
        ({"task": "classify", "labels": ("a", "b"), "padding": "pre"}, "--padding: layer"),
    ],
)
def test_options_that_contradict_the_layer_are_refused(options: dict[str, Any], words: str) -> None:
    layer = layer_of(model_of("TextVectorization", [None, 1]))
    with pytest.raises(ModelImportError) as caught, options_with_tokenizer(read_options(name="toy", **options), layer):
        pass
    assert words in str(caught.value)
