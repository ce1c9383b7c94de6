"""From texts to token ids, cut as training cut them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from service.errors import FolderError, InvalidInput
from service.tasks.tokenization import LONG_TEXT, PORTION_SIZE, Encoding, TextTokenizer, load_tokenizer, portions

WORDS = ["[UNK]", "good", "bad", "a", "film", "!"]


def tokenizer(words: list[str] = WORDS, unknown: str | None = "[UNK]") -> Tokenizer:
    """Lower-cases, drops control characters, splits words and punctuation; the id is the place in `words`."""
    vocabulary = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown) if unknown else models.WordLevel(vocabulary))
    made.normalizer = normalizers.BertNormalizer(clean_text=True, lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def loaded(folder: Path, made: Tokenizer | None = None) -> TextTokenizer:
    path = folder / "tokenizer.json"
    (made or tokenizer()).save(str(path))
    return load_tokenizer(path)


SMALL = TextTokenizer(tokenizer(), 0)


def test_texts_become_ids(tmp_path: Path) -> None:
    words = loaded(tmp_path)
    assert words.encode(["A GOOD film!"], 10, 5, 5) == [Encoding([3, 1, 4, 5], False)]
    assert words.encode(["a bad film", "good"], 10, 5, 5) == [Encoding([3, 2, 4], False), Encoding([1], False)]
    assert words.encode([], 10, 5, 5) == []
    assert words.largest_id == len(WORDS) - 1


@pytest.mark.parametrize(
    ("head", "tail", "ids"),
    [(3, 0, [3, 1, 4]), (0, 3, [3, 2, 4]), (2, 1, [3, 1, 4]), (1, 2, [3, 2, 4])],
)
def test_of_a_long_text_head_and_tail_are_kept(head: int, tail: int, ids: list[int]) -> None:
    text = "a good film ! ! ! a bad film"
    assert SMALL.encode([text], 3, head, tail) == [Encoding(ids, True)]


def test_a_text_of_exactly_the_limit_is_whole() -> None:
    assert SMALL.encode(["a good film"], 3, 2, 1) == [Encoding([3, 1, 4], False)]


def test_many_texts_are_split_in_portions_and_come_in_their_order() -> None:
    sizes = [PORTION_SIZE // 2, PORTION_SIZE // 2, 1, PORTION_SIZE + 1, 2, 3]
    cut = portions(["a" * size for size in sizes])
    assert [[len(text) for text in portion] for portion in cut] == [sizes[:2], [1], [PORTION_SIZE + 1], [2, 3]]
    texts = [("good " if i % 2 else "bad ") + "!" * (PORTION_SIZE // 3) for i in range(7)]
    assert [encoding.ids[0] for encoding in SMALL.encode(texts, 3, 2, 1)] == [2, 1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize("text", ["\x00", "\u200b", "\x01\x02"])
def test_a_text_of_which_nothing_is_left_is_one_unknown_token(text: str) -> None:
    assert SMALL.encode([text], 5, 3, 2) == [Encoding([0], False)]


@pytest.mark.parametrize("text", ["", " ", "\n\t \u3000"])
def test_an_empty_text_is_refused_by_its_index(text: str) -> None:
    with pytest.raises(InvalidInput, match="instance 1: the text is empty") as caught:
        SMALL.encode(["good", text], 5, 3, 2)
    assert caught.value.facts["instance"] == 1


def test_half_a_character_is_refused_by_its_index() -> None:
    with pytest.raises(InvalidInput, match="instance 1: the text has a lone surrogate"):
        SMALL.encode(["good", "bad \ud83d film"], 5, 3, 2)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60), min_size=1, max_size=5))
def test_any_language_is_taken_and_one_text_is_as_in_a_list(texts: list[str]) -> None:
    texts = [text for text in texts if not text.isspace()]
    together = SMALL.encode(texts, 6, 4, 2)
    assert together == [SMALL.encode([text], 6, 4, 2)[0] for text in texts]
    assert all(1 <= len(encoding.ids) <= 6 for encoding in together)


def test_several_threads_share_one_tokenizer() -> None:
    texts = ["a good film", "bad !", "film"] * 20
    expected = SMALL.encode(texts, 6, 4, 2)
    with ThreadPoolExecutor(4) as pool:
        assert all(answer == expected for answer in pool.map(lambda _: SMALL.encode(texts, 6, 4, 2), range(20)))


def test_a_long_text_is_split_without_the_gil() -> None:
    """Only `encode_batch_fast` lets other threads run meanwhile: a text of 5 MB stopped the whole process for 2.6 s."""

    class Without:
        def encode(self, text: str) -> Any:
            raise AssertionError("holds the GIL")

        def encode_batch_fast(self, texts: list[str]) -> Any:
            return tokenizer().encode_batch_fast(texts)

    words = TextTokenizer(cast(Tokenizer, Without()), 0)
    assert words.encode(["good " * (LONG_TEXT // 5)], 3, 2, 1) == [Encoding([1, 1, 1], True)]


def test_the_unknown_token_is_the_models_own(tmp_path: Path) -> None:
    assert loaded(tmp_path, tokenizer(["good", "<oov>"], "<oov>")).unknown_id == 1


def test_without_an_unknown_token_the_folder_is_broken(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"tokenizer\.json: there is no unknown token"):
        loaded(tmp_path, tokenizer(["good"], None))


@pytest.mark.parametrize("what", ["truncation", "padding"])
def test_a_tokenizer_that_cuts_or_pads_by_itself_is_refused(tmp_path: Path, what: str) -> None:
    made = tokenizer()
    if what == "truncation":
        made.enable_truncation(5)
    else:
        made.enable_padding()
    with pytest.raises(FolderError, match="truncation and padding must be off"):
        loaded(tmp_path, made)


@pytest.mark.parametrize("content", [b"", b"{}", b"no json", b"\xff\xfe\x00"])
def test_a_file_that_is_no_tokenizer_breaks_its_folder(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(FolderError, match="is no tokenizer"):
        load_tokenizer(path)


def test_a_missing_file_breaks_its_folder(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="cannot be read: No such file"):
        load_tokenizer(tmp_path / "tokenizer.json")
