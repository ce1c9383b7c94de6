"""Which tokenizer files an import accepts, and that the service accepts what it writes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from service.tasks.tokenization import parse_tokenizer
from training.importers.model import ModelImportError
from training.importers.tokenizer_file import read_tokenizer

WORDS = {"a": 1, "b": 2}


def save(folder: Path, vocabulary: dict[str, int], unknown: str | None) -> Path:
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown or "<unk>"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(8)
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize(
    ("vocabulary", "unknown", "expected"),
    [
        ({"[UNK]": 0, **WORDS}, "[UNK]", 0),
        ({"oov": 7, "[UNK]": 0, **WORDS}, "oov", 7),
        ({"[UNK]": 0, **WORDS}, None, 0),
        ({"[UNK]": 0, **WORDS}, "missing", 0),
        ({"UNK": 3, **WORDS}, "missing", 3),
    ],
)
def test_an_unknown_word_gets_the_same_id_in_the_import_in_what_it_writes_and_in_the_service(
    tmp_path: Path, vocabulary: dict[str, int], unknown: str | None, expected: int
) -> None:
    tokenizer, unknown_id = read_tokenizer(save(tmp_path, vocabulary, unknown))
    written = tokenizer.to_str()
    served = parse_tokenizer(written.encode(), "tokenizer.json")
    assert unknown_id == served.unknown_id == expected
    for each in (tokenizer, Tokenizer.from_str(written)):
        assert each.encode("never-seen").ids == [expected]
    assert served.encode(["never-seen"], 8, 4, 4)[0].ids == [expected]


def test_a_tokenizer_without_an_unknown_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelImportError, match=r"has no unknown token; there must be one of \[UNK\], <unk>"):
        read_tokenizer(save(tmp_path, WORDS, "missing"))
