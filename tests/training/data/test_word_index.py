"""The word index against Keras's own Tokenizer, in training's form and in the server's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from service.tasks.tokenization import load_tokenizer
from training.data.texts import encode, learn_tokenizer, unknown_id
from training.recipe import TokenizerSettings

TEXTS = (
    "The cat sat on the mat, and the dog sat (too)!",
    "A dog; a cat: i am A cat\tand I\nknow it's true -- a1 1a",
    "the the the, a a a. Zebra an ai ia éa É",
)
OTHERS = ("the unseen dog a aa ax xa a", "A Cat!", "zebra zebras i", "x y z", "the\u00a0dog the-dog")


@pytest.fixture(scope="module")
def keras_tokenizer() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    text = pytest.importorskip("keras.src.legacy.preprocessing.text", reason="Keras is not installed")
    return text.Tokenizer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_words": 5},
        {"num_words": 2},
        {"num_words": 6, "oov_token": "<OOV>"},
        {"num_words": 6, "oov_token": "x"},
        {"oov_token": "<OOV>", "lower": False},
        {"num_words": 8, "lower": False, "filters": ",."},
        {"filters": ""},
        {"num_words": 1000},
    ],
)
def test_ids_are_those_of_keras(options: dict[str, Any], keras_tokenizer: Any) -> None:
    reference = keras_tokenizer(**options)
    reference.fit_on_texts(TEXTS)
    tokenizer = learn_tokenizer(TEXTS, TokenizerSettings(kind="keras", **options))
    texts = [*TEXTS, *OTHERS]
    found = [tokenizer.encode(text).ids for text in texts]
    assert found == reference.texts_to_sequences(texts)
    assert sum(map(len, found)) > 0


def test_the_server_reads_the_same_ids_and_cuts_the_same_way(tmp_path: Path) -> None:
    tokenizer = learn_tokenizer(TEXTS, TokenizerSettings(kind="keras", num_words=9))
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    served = load_tokenizer(tmp_path / "tokenizer.json")
    texts = [*TEXTS, *OTHERS, "!!!"]
    trained = encode(tokenizer, texts, 0, 3)
    assert [encoding.ids for encoding in served.encode(texts, 3, 0, 3)] == [ids.tolist() for ids in trained]
    assert max(map(len, trained)) == 3


def test_the_name_of_nothing_is_no_word() -> None:
    tokenizer = learn_tokenizer(["[UNK] is [UNK]"], TokenizerSettings(kind="keras", filters="", lower=False))
    assert tokenizer.encode("[UNK] is [UNK] a[UNK]").ids == [1]


@pytest.mark.parametrize(("oov_token", "expected"), [(None, 0), ("<OOV>", 1)])
def test_a_text_of_which_nothing_is_left_is_one_unknown_token(oov_token: str | None, expected: int) -> None:
    tokenizer = learn_tokenizer(TEXTS, TokenizerSettings(kind="keras", num_words=9, oov_token=oov_token))
    assert unknown_id(tokenizer) == expected
    assert [ids.tolist() for ids in encode(tokenizer, ["?!"], 5, 0)] == [[expected]]


@pytest.mark.parametrize(("kind", "option"), [("keras", {"vocabulary": 50}), ("words", {"num_words": 50})])
def test_options_of_another_kind_are_refused(kind: str, option: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f'{next(iter(option))} is not for kind "{kind}"'):
        TokenizerSettings.model_validate({"kind": kind, **option})
