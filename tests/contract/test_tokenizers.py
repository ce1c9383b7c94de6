"""A tokenizer that an import publishes is one that the service reads, with the same unknown token."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

import training.importers
from service.tasks.tokenization import UNKNOWN_TOKENS, load_tokenizer

NAME = "UNKNOWN_TOKENS"


def test_both_sides_know_the_same_names_of_the_unknown_token() -> None:
    modules = [import_module(found.name) for found in pkgutil.walk_packages(training.importers.__path__, "training.importers.")]
    lists = [getattr(module, NAME) for module in modules if hasattr(module, NAME)]
    assert lists
    assert all(names == UNKNOWN_TOKENS for names in lists)


@pytest.mark.parametrize("name", UNKNOWN_TOKENS)
@pytest.mark.parametrize("is_named", [True, False], ids=["named by the tokenizer", "only in the vocabulary"])
def test_a_word_outside_the_vocabulary_becomes_the_unknown_token(name: str, is_named: bool, tmp_path: Path) -> None:
    vocabulary = {"a": 0, "b": 1, name: 7}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=name) if is_named else models.WordLevel(vocabulary))
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    served = load_tokenizer(path)
    assert served.unknown_id == 7
    assert [encoding.ids for encoding in served.encode(["a", "unheard-of"], 10, 5, 5)] == [[0], [7]]
