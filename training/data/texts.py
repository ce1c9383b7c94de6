"""Labelled texts: read from files, cut into training, validation and test, tokenized, and gathered into batches.

The tokenizer is learned from the training part only. Nothing here knows torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from training.data.columns import class_indices, expect_columns, expect_rows, first_row, read_classes
from training.data.sources import Content, DataError, read, with_location
from training.data.word_index import learn_word_index
from training.recipe import TextData, TextSource, TokenizerSettings

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

PADDING, UNKNOWN = "[PAD]", "[UNK]"
PADDING_ID, UNKNOWN_ID = 0, 1
LENGTH_BLUR = 0.1
"""By how much of itself a row may count as longer when rows of similar length are gathered."""


NEUTRAL = -1
"""In the place of a label: every label is as probable as the others."""


@dataclass(frozen=True)
class Texts:
    """Texts with the index of each one's label, or NEUTRAL."""

    texts: tuple[str, ...]
    labels: Int64

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Texts({len(self)} texts, {np.bincount(self.labels[self.labels != NEUTRAL]).tolist()} per label)"


@dataclass(frozen=True)
class TextSplit:
    """A recipe's texts: the training part, the validation parts (which choose the epoch) and the test parts by name."""

    labels: tuple[str, ...]
    train: Texts
    validation: Mapping[str, Texts]
    tests: Mapping[str, Texts]
    num_shared: int = 0  # training texts left out because they also stand in a validation or test file
    contents: tuple[Content, ...] = ()
    unlabelled: tuple[str, ...] = ()
    seen: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)  # of the test parts, which texts training has too


@dataclass(frozen=True)
class Rows:
    """Texts as a network reads them: token ids, a row for each text or several for the pieces of a long one, in order."""

    ids: Sequence[Int64]
    texts: Int64  # (rows,), the number of the text that each is of, ascending

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Tokens:
    """A batch: token ids padded with zeros at the end, true lengths, labels."""

    tokens: Int64  # (B, T)
    lengths: Int64  # (B,)
    labels: Int64  # (B,)

    def __len__(self) -> int:
        return len(self.lengths)


def label_shares(labels: Int64, num_labels: int) -> Float64:
    """The probability of each label (rows, labels): 1 of a row's own, and all the same where the label is NEUTRAL."""
    is_neutral = (labels == NEUTRAL)[:, None]
    shares: Float64 = np.where(is_neutral, 1 / num_labels, np.eye(num_labels)[np.where(is_neutral[:, 0], 0, labels)])
    return shares


def read_texts(data: TextData, folder: Path | None, seed: int) -> TextSplit:
    """The texts of a recipe, cut by groups. The same seed cuts the same way.

    Raises DataError: a missing file or column, an empty text, a label outside the classes, or an empty part.
    """
    contents: list[Content] = []
    frames: dict[str, list[tuple[str, TextSource, pl.DataFrame]]] = {role: [] for role in _roles(data)}
    for role, sources in _roles(data).items():
        for number, source in enumerate(sources):
            with with_location("data", role, number):
                has_labels = not (source.neutral or role == "unlabelled")
                frames[role].append((_name(source), source, _frame(source, folder, contents, has_labels=has_labels)))
    labelled = [frame["label"] for _, source, frame in frames["train"] if not source.neutral]
    values, labels = read_classes(data.labels, pl.concat(labelled))
    for index, (name, source, frame) in enumerate(list(frames["train"])):
        with with_location("data", "train", index):
            if not source.neutral:
                class_indices(frame["label"], values, name)  # before any cut, so that the row is the file's
        if data.test_share and not source.neutral:
            test, rest = cut_by_group(frame, data.test_share, np.random.default_rng([seed, index, 1]))
            frames["test"].append((name, source, test))
            frames["train"][index] = (name, source, rest)
    roles = {True: ("validation", "test"), False: (), "validation": ("validation",)}[data.drop_shared_texts]
    held_out = [_plain(frame["text"]) for role in roles for _, _, frame in frames[role]]
    shared = pl.concat(held_out).unique().to_list() if held_out else []

    def without_shared(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.filter(~_plain(frame["text"]).is_in(shared)) if shared else frame

    default_share = data.validation_share if data.validation_share is not None else (0.0 if data.validation else 0.1)
    train: list[Texts] = []
    validation: dict[str, Texts] = {}
    tests: dict[str, Texts] = {}
    num_shared = 0
    for index, (name, source, frame) in enumerate(frames["train"]):
        num_rows, frame = frame.height, without_shared(frame)
        num_shared += num_rows - frame.height
        if source.neutral:
            texts = tuple(frame["text"].to_list())
            train.extend([Texts(texts, np.full(len(texts), NEUTRAL))] * source.repeat)
            continue
        share = source.validation_share if source.validation_share is not None else default_share
        back, rest = cut_by_group(frame, share, np.random.default_rng([seed, index]))
        with with_location("data", "train", index):
            if back.height:
                validation[_free(name, validation)] = _texts(back, values, name)
            train.extend([_texts(rest, values, name)] * source.repeat)
    for role, parts in (("validation", validation), ("test", tests)):
        for index, (name, _, frame) in enumerate(frames[role]):
            with with_location("data", role, index):
                parts[_free(name, parts)] = _texts(frame, values, name)
    learned = Texts(
        tuple(text for part in train for text in part.texts), np.concatenate([part.labels for part in train], dtype=np.int64)
    )
    for use, is_empty in (("learn from", not len(learned)), ("validate with", not validation)):
        if is_empty:
            raise DataError(f"nothing left to {use}: see data.validation_share", location=("data",))
    unlabelled = tuple(text for _, _, frame in frames["unlabelled"] for text in without_shared(frame)["text"].to_list())
    known = _plain(pl.Series("text", [text for part in train for text in part.texts], pl.String)).unique().to_list()
    seen = {name: _plain(pl.Series("text", part.texts)).is_in(known).to_numpy() for name, part in tests.items()}
    return TextSplit(labels, learned, validation, tests, num_shared, tuple(contents), unlabelled, seen)


def cut_by_group(frame: pl.DataFrame, share: float, rng: np.random.Generator) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Two parts with no group in both; the first has about `share` of the rows. Order within each part is kept."""
    if share == 0:
        return frame.clear(), frame
    groups = frame["group"].unique(maintain_order=True)
    counts = dict(frame["group"].value_counts().iter_rows())
    back: set[str] = set()
    num_rows = 0
    for index in rng.permutation(len(groups)):
        if num_rows >= share * frame.height:
            break
        back.add(groups[int(index)])
        num_rows += counts[groups[int(index)]]
    is_back = frame["group"].is_in(list(back))
    return frame.filter(is_back), frame.filter(~is_back)


def learn_tokenizer(texts: Sequence[str], settings: TokenizerSettings) -> Tokenizer:
    """A tokenizer learned from `texts`; id 0 is padding, `unknown_id` the unknown token. It truncates and pads nothing."""
    if settings.kind == "keras":
        return learn_word_index(texts, settings)
    special = [PADDING, UNKNOWN]
    common: dict[str, Any] = {"special_tokens": special, "show_progress": False}
    trainer: trainers.Trainer
    if settings.kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN, max_input_chars_per_word=100))
        trainer = trainers.WordPieceTrainer(vocab_size=settings.vocabulary, min_frequency=settings.min_frequency, **common)
        tokenizer.decoder = decoders.WordPiece()
    elif settings.kind == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, end_of_word_suffix="</w>"))
        trainer = trainers.BpeTrainer(
            vocab_size=settings.vocabulary, min_frequency=settings.min_frequency, end_of_word_suffix="</w>", **common
        )
        tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        trainer = trainers.WordLevelTrainer(vocab_size=settings.vocabulary, min_frequency=settings.min_frequency, **common)
    steps: list[normalizers.Normalizer] = [normalizers.Replace(old, new) for old, new in settings.replacements.items()]
    steps.append(normalizers.NFKC())
    if settings.lowercase:
        steps.append(normalizers.Lowercase())
    tokenizer.normalizer = normalizers.Sequence(steps)
    if settings.kind == "characters":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return tokenizer


def unknown_id(tokenizer: Tokenizer) -> int:
    """The id that the server sends for a text of which the tokenizer leaves nothing."""
    token = getattr(tokenizer.model, "unk_token", None) or UNKNOWN
    found = tokenizer.token_to_id(token)
    assert isinstance(found, int), f"the vocabulary has no {token}"
    return found


def encode(tokenizer: Tokenizer, texts: Sequence[str], head: int, tail: int) -> list[Int64]:
    """Token ids of each text: of an over-long one the first `head` and last `tail`; the unknown token for none at all."""
    encoded, nothing = [], [unknown_id(tokenizer)]
    for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
        ids = np.array(encoding.ids or nothing, dtype=np.int64)
        encoded.append(ids if len(ids) <= head + tail else np.concatenate([ids[:head], ids[len(ids) - tail :]]))
    return encoded


def encode_rows(tokenizer: Tokenizer, texts: Sequence[str], cut: tuple[int, int], piece_length: int | None = None) -> Rows:
    """The rows of texts: with `piece_length` all tokens, in pieces where there are more; else `cut` by `encode`."""
    if piece_length is None:
        return Rows(encode(tokenizer, texts, *cut), np.arange(len(texts)))
    ids: list[Int64] = []
    owners: list[int] = []
    for number, whole in enumerate(encode(tokenizer, texts, sys.maxsize, 0)):
        pieces = cut_pieces(whole, piece_length)
        ids += pieces
        owners += [number] * len(pieces)
    return Rows(ids, np.array(owners, np.int64))


def cut_pieces(ids: Int64, piece_length: int) -> list[Int64]:
    """All tokens in order, in the fewest pieces of at most `piece_length` whose lengths differ by one at most."""
    num_pieces = -(-len(ids) // piece_length)
    ends = [len(ids) * number // num_pieces for number in range(num_pieces + 1)]
    return [ids[start:end] for start, end in pairwise(ends)]


def collate(rows: Sequence[Int64], labels: Int64) -> Tokens:
    """Pad to the longest row with zeros."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    tokens = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
    is_real = np.arange(tokens.shape[1])[None, :] < lengths[:, None]
    tokens[is_real] = np.concatenate(rows)
    return Tokens(tokens, lengths, labels)


def batches_by_length(
    rows: Sequence[Int64],
    labels: Int64,
    batch_size: int,
    rng: np.random.Generator,
    *,
    word_dropout: float = 0.0,
    unknown: int = UNKNOWN_ID,
) -> Iterator[Tokens]:
    """Every row once, in random batches of similar lengths; a share of the tokens replaced by the `unknown` one."""
    lengths = np.array([len(row) for row in rows])
    order = rng.permutation(len(rows))
    pool = batch_size * 50
    batches: list[npt.NDArray[np.intp]] = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches.extend(part[at : at + batch_size] for at in range(0, len(part), batch_size))
    for index in rng.permutation(len(batches)):
        batch = collate([rows[i] for i in batches[index]], labels[batches[index]])
        yield _drop_words(batch, word_dropout, unknown, rng)


def batches_by_tokens(
    rows: Sequence[Int64],
    labels: Int64,
    sizes: Sequence[int],
    rng: np.random.Generator,
    *,
    word_dropout: float = 0.0,
    unknown: int = UNKNOWN_ID,
) -> Iterator[Tokens]:
    """Every row once, in random order of batches with as many rows as `sizes` says, the shortest first: see `sizes_by_tokens`."""
    lengths = np.array([len(row) for row in rows])
    # Lengths are blurred, so that a row does not meet the same others in every epoch.
    order = np.argsort(lengths * (1 + LENGTH_BLUR * rng.random(len(rows))), kind="stable")
    ends = np.cumsum([0, *sizes])
    for index in rng.permutation(len(sizes)):
        chosen = order[ends[index] : ends[index + 1]]
        yield _drop_words(collate([rows[i] for i in chosen], labels[chosen]), word_dropout, unknown, rng)


def sizes_by_tokens(rows: Sequence[Int64], batch_size: int, batch_tokens: int) -> list[int]:
    """The rows of each batch in rising order of length: `batch_size`, or more that have `batch_tokens` with their padding."""
    lengths = np.sort([len(row) for row in rows])[::-1]
    sizes, start = [], 0
    while start < len(lengths):
        size = min(max(batch_size, batch_tokens // max(1, int(lengths[start]))), len(lengths) - start)
        sizes.append(size)
        start += size
    return sizes[::-1]


def batches_in_order(
    rows: Sequence[Int64],
    labels: Int64,
    batch_size: int,
    rng: np.random.Generator,
    *,
    word_dropout: float = 0.0,
    unknown: int = UNKNOWN_ID,
) -> Iterator[Tokens]:
    """Every row once, in the order given, as many batches as by length; a share of the tokens replaced likewise."""
    for at in range(0, len(rows), batch_size):
        batch = collate(rows[at : at + batch_size], labels[at : at + batch_size])
        yield _drop_words(batch, word_dropout, unknown, rng)


def num_batches_by_length(num_rows: int, batch_size: int) -> int:
    """How many batches `batches_by_length` yields."""
    pools, rest = divmod(num_rows, batch_size * 50)
    return pools * 50 + -(-rest // batch_size)


def _drop_words(batch: Tokens, share: float, unknown: int, rng: np.random.Generator) -> Tokens:
    """The batch, which is changed in place."""
    if share:
        is_real = np.arange(batch.tokens.shape[1])[None, :] < batch.lengths[:, None]
        batch.tokens[is_real & (rng.random(batch.tokens.shape) < share)] = unknown
    return batch


def _plain(texts: pl.Series) -> pl.Series:
    """Texts as they are compared: two that differ in case, or in spaces around them, are one."""
    return texts.str.strip_chars().str.to_lowercase()


def _name(source: TextSource) -> str:
    return source.name or Path(source.path).name.split(".")[0]


def _free(name: str, taken: Mapping[str, object]) -> str:
    return name if name not in taken else f"{name}_{len(taken) + 1}"


def _roles(data: TextData) -> dict[str, Sequence[TextSource]]:
    """The files of each table of `[data]`."""
    return {"train": data.train, "validation": data.validation, "test": data.test, "unlabelled": data.unlabelled}


def _frame(source: TextSource, folder: Path | None, contents: list[Content], *, has_labels: bool) -> pl.DataFrame:
    """Columns text, label, group, all strings; without a group column each distinct text is its own group.

    Without labels that column is empty, and a table need not have it.
    """
    content = read(source, folder)
    contents.append(content)
    if source.format == "lines" or (source.format == "auto" and not content.is_parquet and not _has_separator(content)):
        return _lines(content)
    table = content.table()
    label = source.label if has_labels else ""
    for option, column in (("text", source.text), ("label", label), ("group", source.group)):
        expect_columns(table, [column] if column else [], content.name, option)
    expect_rows(table, content.name)
    frame = table.select(
        text=pl.col(source.text).cast(pl.String),
        label=pl.col(label).cast(pl.String) if label else pl.lit("", pl.String),
        group=pl.col(source.group or source.text).cast(pl.String),
    )
    is_empty = frame["text"].is_null() | (frame["text"].str.strip_chars() == "")
    if is_empty.any():
        raise DataError(f"{content.name}: row {first_row(is_empty)}: the text is empty", option="text")
    if has_labels and frame["label"].null_count():
        raise DataError(f"{content.name}: row {first_row(frame['label'].is_null())}: the label is missing", option="label")
    return frame


def _has_separator(content: Content) -> bool:
    return any(ending in content.name for ending in (".csv", ".tsv", ".parquet"))


def _lines(content: Content) -> pl.DataFrame:
    try:
        text = content.payload.decode("utf-8")
    except UnicodeDecodeError:
        text = content.payload.decode("latin-1")
    labels, texts = [], []
    # Not splitlines: Latin-1 files hold U+0085 and the like inside a sentence.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        label, _, sentence = line.rstrip("\r").partition(" ")
        if not sentence.strip():
            raise DataError(f"{content.name}: line {number}: expected `label text`, got {line!r}")
        labels.append(label)
        texts.append(sentence.strip())
    return pl.DataFrame({"text": texts, "label": labels, "group": texts})


def _texts(frame: pl.DataFrame, values: Mapping[str, int], name: str) -> Texts:
    return Texts(tuple(frame["text"].to_list()), class_indices(frame["label"], values, name))
