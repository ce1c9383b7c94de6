"""Labelled texts: read, cut by group, tokenized on the training part alone, batched by length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from training.data.sources import DataError, fingerprint
from training.data.texts import (
    NEUTRAL,
    UNKNOWN_ID,
    TextSplit,
    batches_by_length,
    batches_by_tokens,
    batches_in_order,
    collate,
    cut_pieces,
    encode,
    encode_rows,
    learn_tokenizer,
    num_batches_by_length,
    read_texts,
    sizes_by_tokens,
)
from training.recipe import TextData, TextSource, TokenizerSettings

LINES = "".join(f"{i % 2} sentence number {i} is {'good' if i % 2 else 'bad'}\n" for i in range(40))
TEST_LINES = "1 a good one\n0 a bad one\n"


def read(folder: Path, train: str | bytes, name: str = "train.txt", **options: object) -> TextSplit:
    (folder / name).write_bytes(train if isinstance(train, bytes) else train.encode())
    (folder / "test.txt").write_text(TEST_LINES)
    source = TextSource.model_validate({"path": name, **options})
    data = TextData(train=[source], test=[TextSource(path="test.txt")], labels=["negative", "positive"])
    return read_texts(data, folder, seed=1)


def test_lines_are_label_space_text(tmp_path: Path) -> None:
    split = read(tmp_path, LINES)
    assert split.labels == ("negative", "positive")
    assert split.tests["test"].texts == ("a good one", "a bad one")
    assert split.tests["test"].labels.tolist() == [1, 0]
    assert len(split.train) + len(split.validation["train"]) == 40


def test_latin_1_is_understood_and_splits_no_line(tmp_path: Path) -> None:
    split = read(tmp_path, LINES.encode() + b"1 caf\xe9 cr\xe8me \x85 brul\xe9e\n", validation_share=0.5)
    everything = split.train.texts + split.validation["train"].texts
    assert "café crème \x85 brulée" in everything


def test_tables_name_their_columns(tmp_path: Path) -> None:
    rows = "\n".join(f'text {i} "quoted\t{"neg" if i % 2 else "pos"}' for i in range(30))
    (tmp_path / "a.tsv").write_text(f"sentence\tmood\n{rows}\n")
    data = TextData(
        train=[TextSource(path="a.tsv", text="sentence", label="mood")],
        test=[TextSource(path="a.tsv", text="sentence", label="mood")],
        labels={"neg": "negative", "pos": "positive"},
        drop_shared_texts=False,
    )
    split = read_texts(data, tmp_path, 0)
    assert split.tests["a"].texts[0] == 'text 0 "quoted'
    assert split.tests["a"].labels[:2].tolist() == [1, 0]


def test_a_group_never_stands_on_both_sides_of_the_cut(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"text": [f"text {i}" for i in range(200)], "label": [i % 2 for i in range(200)], "movie": [i // 7 for i in range(200)]}
    )
    frame.write_parquet(tmp_path / "a.parquet")
    (tmp_path / "test.txt").write_text(TEST_LINES)
    data = TextData(
        train=[TextSource(path="a.parquet", group="movie", validation_share=0.2)],
        test=[TextSource(path="test.txt")],
        labels=["0", "1"],
    )
    split = read_texts(data, tmp_path, 3)
    movies = [{int(text.split()[1]) // 7 for text in part.texts} for part in (split.train, split.validation["a"])]
    assert movies[0] | movies[1] == set(range(29))
    assert not movies[0] & movies[1]
    assert 40 <= len(split.validation["a"]) < 47
    assert read_texts(data, tmp_path, 3).train.texts == split.train.texts
    assert read_texts(data, tmp_path, 4).train.texts != split.train.texts


def test_equal_texts_stay_together_where_there_is_no_group(tmp_path: Path) -> None:
    split = read(tmp_path, LINES * 3, validation_share=0.3)
    assert not set(split.train.texts) & set(split.validation["train"].texts)


def test_training_texts_that_stand_in_the_test_file_are_left_out(tmp_path: Path) -> None:
    split = read(tmp_path, LINES + "1 A GOOD one \n")
    assert split.num_shared == 1
    assert "A GOOD one" not in split.train.texts


@pytest.mark.parametrize(
    ("drop", "num_shared", "seen"), [(True, 2, [False, False]), (False, 0, [True, False]), ("validation", 1, [True, False])]
)
def test_which_shared_texts_are_left_out_is_an_option_and_those_seen_are_known(
    tmp_path: Path, drop: bool | str, num_shared: int, seen: list[bool]
) -> None:
    (tmp_path / "train.txt").write_text(LINES + "1 A GOOD one \n0 held out\n")
    (tmp_path / "dev.txt").write_text("0 held out\n")
    (tmp_path / "test.txt").write_text(TEST_LINES)
    sources = {"train": [{"path": "train.txt"}], "validation": [{"path": "dev.txt"}], "test": [{"path": "test.txt"}]}
    split = read_texts(TextData.model_validate({**sources, "labels": ["no", "yes"], "drop_shared_texts": drop}), tmp_path, 0)
    assert split.num_shared == num_shared
    assert split.seen["test"].tolist() == seen


def test_without_test_files_a_share_of_the_texts_is_the_test_part(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(LINES + LINES.upper())
    data = TextData(train=[TextSource(path="train.txt")], test_share=0.25)
    split = read_texts(data, tmp_path, 3)
    parts = [split.train, split.validation["train"], split.tests["train"]]
    assert len(split.tests["train"]) == 20
    assert sum(map(len, parts)) + split.num_shared == 80
    texts = [{text.lower() for text in part.texts} for part in parts]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    assert read_texts(data, tmp_path, 3).tests["train"].texts == split.tests["train"].texts
    assert read_texts(data, tmp_path, 4).tests["train"].texts != split.tests["train"].texts


@pytest.mark.parametrize("data", [{}, {"test": [{"path": "b.txt"}], "test_share": 0.2}, {"test_share": 0.0}])
def test_a_test_part_comes_from_files_or_from_a_share(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"give \[\[data.test\]\] or data.test_share"):
        TextData.model_validate({"train": [{"path": "a.txt"}], **data})


def test_unlabelled_and_neutral_files_need_no_labels(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(LINES)
    (tmp_path / "test.txt").write_text(TEST_LINES)
    pl.DataFrame({"text": ["seen before", "A good one", "and more"]}).write_parquet(tmp_path / "more.parquet")
    (tmp_path / "facts.txt").write_text("DESC What is a comet ?\nLOC a bad one\n")
    data = TextData(
        train=[TextSource(path="train.txt"), TextSource(path="facts.txt", neutral=True)],
        test=[TextSource(path="test.txt")],
        unlabelled=[TextSource(path="more.parquet")],
        labels=["negative", "positive"],
    )
    split = read_texts(data, tmp_path, 1)
    assert split.labels == ("negative", "positive")
    assert split.unlabelled == ("seen before", "and more")
    assert list(split.validation) == ["train"]
    neutral = [text for text, label in zip(split.train.texts, split.train.labels, strict=True) if label == NEUTRAL]
    assert neutral == ["What is a comet ?"]
    assert len(split.contents) == 4


def test_a_neutral_file_is_no_place_for_scores() -> None:
    with pytest.raises(ValueError, match="there is no right answer to score"):
        TextData(train=[TextSource(path="a.txt")], test=[TextSource(path="b.txt", neutral=True)])
    with pytest.raises(ValueError, match="there is no label to learn"):
        TextData(train=[TextSource(path="a.txt", neutral=True)], test=[TextSource(path="b.txt")])


def test_labels_that_repeat_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(LINES)
    with pytest.raises(DataError, match="the labels must differ"):
        read_texts(TextData(train=[TextSource(path="train.txt")], test_share=0.2, labels=["a", "a"]), tmp_path, 0)


def test_a_file_may_be_seen_several_times(tmp_path: Path) -> None:
    once, twice = (read(tmp_path, LINES, repeat=n) for n in (1, 2))
    assert len(twice.train) == 2 * len(once.train)


@pytest.mark.parametrize(
    ("name", "train", "options", "message"),
    [
        ("a.txt", "", {}, "a.txt: is empty"),
        ("a.txt", "1 fine\n0\n", {}, "a.txt: line 2: expected `label text`, got '0'"),
        ("a.txt", LINES + "7 seven\n", {"validation_share": 0.0}, "label '7' is not one of 0, 1, negative, positive"),
        ("a.csv", "text,label\nfine,1\n,0\n", {}, "a.csv: row 2: the text is empty"),
        ("a.csv", "text,label\nfine,1\n  ,0\n", {}, "a.csv: row 2: the text is empty"),
        ("a.csv", "text,label\nfine,\nbad,0\n", {}, "a.csv: row 1: the label is missing"),
        ("a.csv", "text,label\nfine,1\n", {"text": "body"}, 'a.csv: has no column "body"; there are text, label'),
        ("a.csv", "text,label\n", {}, "no rows"),
        ("a.txt", "1 one\n0 two\n", {"validation_share": 0.0}, "nothing left to validate with"),
        ("a.parquet", "no parquet at all", {}, "a.parquet: has no column"),
    ],
)
def test_unusable_files_are_refused_with_the_reason(
    tmp_path: Path, name: str, train: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, train, name, **options)
    assert message in str(caught.value)


TEXTS = ["The film is good.", "the plot is bad, the film is not", "good plot<br />bad film"] * 3


@pytest.mark.parametrize("kind", ["words", "wordpiece", "bpe", "characters"])
def test_a_tokenizer_has_padding_and_unknown_first_and_survives_its_file(kind: str) -> None:
    settings = TokenizerSettings.model_validate({"kind": kind, "vocabulary": 60, "replacements": {"<br />": " "}})
    tokenizer = learn_tokenizer(TEXTS, settings)
    assert [tokenizer.id_to_token(i) for i in range(2)] == ["[PAD]", "[UNK]"]
    assert tokenizer.get_vocab_size() <= 60
    again = type(tokenizer).from_str(tokenizer.to_str())
    for text in (*TEXTS, "unseen wörds — ☃"):
        assert again.encode(text).ids == tokenizer.encode(text).ids
    assert tokenizer.encode("GOOD<br />plot").ids == tokenizer.encode("good plot").ids
    assert UNKNOWN_ID in tokenizer.encode("☃").ids


def test_of_a_long_text_the_head_and_the_tail_are_read() -> None:
    tokenizer = learn_tokenizer(["a b c d e f"] * 2, TokenizerSettings(kind="words"))
    whole = encode(tokenizer, ["a b c d e f"], 10, 0)[0].tolist()
    assert encode(tokenizer, ["a b c d e f"], 2, 1)[0].tolist() == [*whole[:2], whole[-1]]
    assert encode(tokenizer, ["a b c d e f"], 2, 0)[0].tolist() == whole[:2]
    assert encode(tokenizer, [""], 2, 1)[0].tolist() == [UNKNOWN_ID]


def test_a_long_text_is_read_whole_in_the_fewest_even_pieces() -> None:
    assert [piece.tolist() for piece in cut_pieces(np.arange(7), 3)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [piece.tolist() for piece in cut_pieces(np.arange(3), 3)] == [[0, 1, 2]]
    tokenizer = learn_tokenizer(["a b c d e f g"] * 2, TokenizerSettings(kind="words"))
    rows = encode_rows(tokenizer, ["a b", "a b c d e f g", "☃"], (2, 1), piece_length=3)
    assert [len(ids) for ids in rows.ids] == [2, 2, 2, 3, 1]
    assert rows.texts.tolist() == [0, 1, 1, 1, 2]
    cut = encode_rows(tokenizer, ["a b", "a b c d e f g"], (2, 1))
    assert [len(ids) for ids in cut.ids] == [2, 3]
    assert cut.texts.tolist() == [0, 1]


def test_batches_of_short_rows_may_hold_more_of_them() -> None:
    rng = np.random.default_rng(0)
    rows = [np.full(n, i + 2) for i, n in enumerate(rng.integers(1, 60, 997))]
    labels = np.arange(997)
    sizes = sizes_by_tokens(rows, 8, 160)
    assert sum(sizes) == 997
    assert min(sizes[1:]) == 8
    assert max(sizes) > 30
    batches = list(batches_by_tokens(rows, labels, sizes, rng))
    assert sorted(map(len, batches)) == sorted(sizes)
    assert sorted(np.concatenate([batch.labels for batch in batches]).tolist()) == list(range(997))
    assert all(batch.tokens.size <= 160 * 1.3 or len(batch) <= 8 for batch in batches)
    assert sizes_by_tokens([np.arange(5)] * 3, 2, 1) == [1, 2]


def test_batches_hold_every_row_once_with_similar_lengths() -> None:
    rng = np.random.default_rng(0)
    rows = [np.full(n, i + 2) for i, n in enumerate(rng.integers(1, 60, 997))]
    labels = np.arange(997)
    batches = list(batches_by_length(rows, labels, 16, rng))
    assert len(batches) == num_batches_by_length(997, 16)
    assert sorted(np.concatenate([batch.labels for batch in batches]).tolist()) == list(range(997))
    padding = [1 - batch.lengths.sum() / batch.tokens.size for batch in batches]
    assert np.mean(padding) < 0.1
    for batch in batches[:5]:
        for tokens, length, label in zip(batch.tokens, batch.lengths, batch.labels, strict=True):
            assert tokens[:length].tolist() == rows[label].tolist()
            assert not tokens[length:].any()


@pytest.mark.parametrize(("num_rows", "batch_size"), [(1, 4), (200, 4), (201, 4), (1999, 10)])
def test_the_number_of_batches_is_known_before(num_rows: int, batch_size: int) -> None:
    rows = [np.ones(3, np.int64)] * num_rows
    batches = batches_by_length(rows, np.zeros(num_rows, np.int64), batch_size, np.random.default_rng(0))
    assert len(list(batches)) == num_batches_by_length(num_rows, batch_size)


def test_batches_in_order_hold_every_row_once_as_they_stand() -> None:
    rows = [np.full(n, n + 1) for n in (4, 1, 3, 2, 5)]
    batches = list(batches_in_order(rows, np.arange(5), 2, np.random.default_rng(0)))
    assert [batch.labels.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert batches[0].tokens.tolist() == [[5, 5, 5, 5], [2, 0, 0, 0]]
    assert len(batches) == num_batches_by_length(5, 2)
    noisy = next(batches_in_order([np.full(50, 7)], np.zeros(1, np.int64), 1, np.random.default_rng(0), word_dropout=0.5))
    assert set(noisy.tokens[0].tolist()) == {7, UNKNOWN_ID}


def test_word_dropout_replaces_words_but_no_padding() -> None:
    rows = [np.full(n, 7) for n in (50, 10)]
    batch = next(batches_by_length(rows, np.zeros(2, np.int64), 2, np.random.default_rng(0), word_dropout=0.5))
    plain = collate([rows[i] for i in ([0, 1] if batch.lengths[0] == 50 else [1, 0])], np.zeros(2, np.int64))
    changed = batch.tokens != plain.tokens
    assert set(batch.tokens[changed].tolist()) == {UNKNOWN_ID}
    assert 15 < changed.sum() < 45
    assert (batch.tokens[plain.tokens == 0] == 0).all()


def test_a_parquet_files_fingerprint_is_of_its_content(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": ["a", None], "label": [1, 0]})
    prints = set()
    for compression in ("zstd", "uncompressed"):
        frame.write_parquet(tmp_path / "a.parquet", compression=compression)
        prints.add(fingerprint((tmp_path / "a.parquet").read_bytes()))
    frame.with_columns(label=pl.lit(1)).write_parquet(tmp_path / "a.parquet")
    assert len(prints) == 1
    assert fingerprint((tmp_path / "a.parquet").read_bytes()) not in prints


@pytest.mark.data
def test_the_stanford_sentences_are_as_published(data_folder: Path) -> None:
    data = TextData(
        train=[TextSource(path="sst2/train.txt", name="sst2")],
        validation=[TextSource(path="sst2/dev.txt", name="sst2")],
        test=[TextSource(path="sst2/test.txt", name="sst2")],
    )
    split = read_texts(data, data_folder, 0)
    assert len(split.train) + split.num_shared == 6920
    assert len(split.validation["sst2"]) == 872
    assert len(split.tests["sst2"]) == 1821
