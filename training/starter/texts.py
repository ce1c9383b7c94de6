"""A starter recipe for a text classifier: a column of texts and a column of labels.

Looks at the labels and at the length of the texts, and chooses a tokenizer and a network that trains in about a minute on one
core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from training.data.columns import expect_columns, first_row
from training.data.sources import DataError
from training.starter.recipe_text import RecipeText

MIN_ROWS = 50
MIN_ROWS_PER_LABEL = 5
MAX_LABELS = 100
MAX_TOKENS = 200
BATCH_SIZE = 32
# What an epoch reads at most: some ten seconds on one core.
TOKENS_PER_EPOCH = 640_000


@dataclass(frozen=True)
class TextStarter:
    """The columns of a table of labelled texts."""

    text: str
    label: str

    def compose(self, table: pl.DataFrame, path: str, name: str, command: str) -> str:
        """The recipe in TOML. Raises DataError: a missing column, an empty text, labels that are none, too few rows."""
        file = path.rsplit("/", 1)[-1]
        for option, column in (("--text", self.text), ("--label", self.label)):
            expect_columns(table, [column], f"{option}: {file}", "")
        texts = table[self.text].cast(pl.String)
        is_empty = texts.is_null() | (texts.str.strip_chars() == "")
        if is_empty.any():
            raise DataError(f"{file}: row {first_row(is_empty)}: the text is empty")
        labels = table[self.label].cast(pl.String)
        if labels.null_count():
            raise DataError(f"{file}: row {first_row(labels.is_null())}: the label is missing")
        counts = dict(sorted(labels.value_counts().iter_rows()))
        self._check_labels(counts, table.height, file)

        has_words = bool(np.mean([text.count(" ") / max(1, len(text)) for text in texts.head(1000)]) > 0.05)
        sizes = [len(text.split()) if has_words else len(text.replace(" ", "")) for text in texts]
        # Punctuation is a token too: some texts have a fifth more tokens than words.
        longest = int(1.2 * np.quantile(sizes, 0.95)) + 1
        num_tokens = min(MAX_TOKENS, -(-longest // 10) * 10)
        return self._text(path, name, command, counts, num_tokens, has_words)

    def _check_labels(self, counts: dict[str, int], num_rows: int, file: str) -> None:
        if len(counts) < 2:
            raise DataError(f'{file}: column "{self.label}" has one value, {next(iter(counts))!r}: a classifier needs two labels')
        if len(counts) > MAX_LABELS:
            raise DataError(f'{file}: column "{self.label}" has {len(counts):,} values in {num_rows:,} rows: is it the labels?')
        if num_rows < MIN_ROWS:
            raise DataError(f"{file}: {MIN_ROWS} rows are the fewest to learn from, there are {num_rows}")
        rarest = min(counts, key=counts.__getitem__)
        if counts[rarest] < MIN_ROWS_PER_LABEL:
            raise DataError(
                f"{file}: label {rarest!r} has {counts[rarest]} row(s), {MIN_ROWS_PER_LABEL} are the fewest to learn it from: "
                "leave its rows out, or give it the name of another label"
            )

    def _text(self, path: str, name: str, command: str, counts: dict[str, int], num_tokens: int, has_words: bool) -> str:
        num_rows, is_binary = sum(counts.values()), len(counts) == 2
        head, tail = (num_tokens, 0) if num_tokens < MAX_TOKENS else (MAX_TOKENS * 3 // 4, MAX_TOKENS // 4)
        recipe = RecipeText()
        listed = ", ".join(f"{label} {count:,}" for label, count in counts.items())
        recipe.comment(f"The {self.label} of a text. {path} holds {num_rows:,} texts: {listed}.")
        share = 100 * max(counts.values()) / num_rows
        recipe.comment(f"The most frequent label alone is right for {share:.0f} %: that is the baseline majority.")
        recipe.comment(f"Train and publish it: {command}")
        recipe.comment("`--set fit.epochs=5` changes a value for one run. All keys: docs/reference/recipe.md")
        recipe.key("task", "classify")
        recipe.key("name", name)
        recipe.key("description", f"The {self.label} of a text.")
        recipe.key("licence", "", "of the data; it is published with the model")
        recipe.key("language", "und", 'of the texts, as "en"')
        recipe.key("seed", 1)

        recipe.table("[[data.train]]")
        recipe.key("path", path)
        recipe.key("format", "table")
        recipe.key("text", self.text)
        recipe.key("label", self.label)

        recipe.table("[data]")
        recipe.key("labels", list(counts), 'a table gives them other names: { "0" = "bad", "1" = "good" }')
        recipe.key("validation_share", 0.1, "of the texts, to choose the best epoch")
        recipe.key("test_share", 0.15, "of the texts, for the scores; equal texts never stand on both sides")

        recipe.table("[tokenizer]")
        if has_words:
            recipe.key("kind", "wordpiece", 'parts of words; or "words", "bpe", "characters"')
        else:
            recipe.key("kind", "characters", 'for texts without spaces; or "wordpiece"')
        recipe.key("vocabulary", 20_000, "tokens at most")
        recipe.key("head", head, f"tokens read of the beginning: 95 of 100 texts are whole; {MAX_TOKENS} with tail at most")
        recipe.key("tail", tail, "tokens read of the end of a longer text")

        recipe.table("[[layers]]")
        recipe.key("type", "embedding")
        recipe.key("output_dim", 64)
        recipe.table("[[layers]]")
        recipe.key("type", "spatial_dropout1d")
        recipe.key("rate", 0.2)
        recipe.table("[[layers]]")
        recipe.key("type", "bidirectional", "reads in both directions")
        recipe.key("layer", {"type": "lstm", "units": 32, "return_sequences": True})
        recipe.table("[[layers]]")
        recipe.key("type", "concat_pooling", "maximum and mean over the text")
        recipe.table("[[layers]]")
        recipe.key("type", "dropout")
        recipe.key("rate", 0.4)
        recipe.table("[[layers]]")
        recipe.key("type", "dense")
        recipe.key("activation", "sigmoid" if is_binary else "softmax", "one unit" if is_binary else "one unit for each label")

        recipe.table("[fit]")
        recipe.key("loss", "binary_crossentropy" if is_binary else "categorical_crossentropy")
        recipe.key("learning_rate", 0.002)
        recipe.key("clip_norm", 1.0)
        recipe.key("epochs", 8, "at most")
        recipe.key("patience", 2, "epochs without a smaller validation error before it stops")
        recipe.key("batch_size", BATCH_SIZE)
        one_pass = -(-int(0.75 * num_rows) // BATCH_SIZE)
        num_steps = max(50, TOKENS_PER_EPOCH // (BATCH_SIZE * num_tokens))
        if num_steps < one_pass:
            recipe.key("steps_per_epoch", num_steps, f"a pass over the texts has {one_pass:,}: fewer, to train in minutes")
        recipe.key("word_dropout", 0.1, "share of the tokens that are hidden in training")
        return str(recipe)
