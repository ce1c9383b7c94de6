"""The recipe of a text classifier: labelled texts, and how they become tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from training.recipe.base import Count, Data, Evaluation, Fit, Labels, Recipe, RecipeTable, Share, Source

KERAS_FILTERS = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'


class TextSource(Source):
    """One file of labelled texts."""

    name: str = Field(default="", description="names this file's scores, as in `imdb_accuracy`; empty: the file's name")
    format: Literal["auto", "table", "lines"] = Field(
        default="auto", description="`table`: columns with a header (CSV, TSV, parquet); `lines`: `label text`"
    )
    text: str = Field(default="text", description="table: the column of texts")
    label: str = Field(default="label", description="table: the column of labels")
    group: str = Field(
        default="", description="table: a column whose equal values never stand on both sides of a cut; empty: equal texts"
    )
    validation_share: Share | None = Field(
        default=None, description="share of this file that is the validation part; left out: `data.validation_share`"
    )
    repeat: Count = Field(default=1, description="times that each epoch reads this file")


class TextData(Data):
    """The texts of a run. Whole groups of texts are held back for validation and test."""

    train: Annotated[Sequence[TextSource], Field(min_length=1)] = Field(description="files to learn from")
    validation: Sequence[TextSource] = Field(
        default=(), description="files that choose the best epoch; left out: a cut of the training files"
    )
    test: Sequence[TextSource] = Field(default=(), description="files that are scored; left out: see `test_share`")
    labels: Labels = Field(
        default_factory=list,
        description="names of the classes in order, or a table of value in the file = name; left out: the values in order",
    )
    validation_share: Share | None = Field(
        default=None,
        description="share of the training texts that is the validation part; left out: 0.1, or 0 with validation files",
    )
    test_share: Share | None = Field(
        default=None, description="share of the training texts that is the test part; needed where there are no test files"
    )
    drop_shared_texts: bool = Field(
        default=True, description="leave out training texts that also stand in validation or test files"
    )

    @property
    def sources(self) -> list[Source]:
        return [*self.train, *self.validation, *self.test]

    @model_validator(mode="after")
    def _check_test_part(self) -> Self:
        if bool(self.test) == bool(self.test_share):
            raise ValueError("give [[data.test]] or data.test_share: scores are taken on texts that training never read")
        return self


class TokenizerSettings(RecipeTable):
    """How texts become tokens. The tokenizer is learned from the training part only."""

    kind: Literal["words", "wordpiece", "bpe", "characters", "keras"] = Field(
        default="wordpiece", description="what a token is; `keras` is the `Tokenizer` of keras.preprocessing.text"
    )
    vocabulary: Annotated[int, Field(ge=16)] = Field(default=20_000, description="tokens at most; not for `keras`")
    min_frequency: Count = Field(default=2, description="times that a token must stand in the texts; not for `keras`")
    lowercase: bool = Field(default=True, description="lower case; not for `keras`")
    replacements: dict[str, str] = Field(default_factory=dict, description='replaced before anything else, as `"<br />" = " "`')
    head: Annotated[int, Field(ge=0)] = Field(default=200, description="tokens kept of the beginning of a longer text")
    tail: Annotated[int, Field(ge=0)] = Field(default=200, description="tokens kept of the end of a longer text")
    num_words: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="keras: ids below this one are given, so `num_words` - 1 words; left out: all words"
    )
    oov_token: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="keras: stands for every other word, as id 1; left out: other words are dropped"
    )
    lower: bool = Field(default=True, description="keras: lower case")
    filters: str = Field(default=KERAS_FILTERS, description="keras: characters that are read as spaces")

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.head + self.tail < 1:
            raise ValueError("head + tail must keep at least one token")
        keras, others = {"num_words", "oov_token", "lower", "filters"}, {"vocabulary", "min_frequency", "lowercase"}
        for option in sorted(self.model_fields_set & (others if self.kind == "keras" else keras)):
            raise ValueError(f'{option} is not for kind "{self.kind}"')
        return self

    @property
    def max_tokens(self) -> int | None:
        """The bound of the ids; None: as many as the texts have words."""
        return self.num_words if self.kind == "keras" else self.vocabulary


class ClassifyFit(Fit):
    """The training loop of a classifier."""

    loss: Literal["binary_crossentropy", "categorical_crossentropy"] = Field(
        description="the loss: `binary_crossentropy` for one sigmoid unit, `categorical_crossentropy` for a unit per label"
    )
    word_dropout: Share = Field(default=0.0, description="share of a text's tokens that are replaced by the unknown token")
    label_smoothing: Share = Field(default=0.0, description="share of the probability that is spread over all labels")


class ClassifyEvaluation(Evaluation):
    """Beside what the test texts are scored."""

    baselines: Sequence[Literal["majority", "tfidf_logistic"]] | None = Field(
        default=None, description="baselines beside the model; left out: both"
    )


class ClassifyRecipe(Recipe):
    """A run of task `classify`: the label of a text."""

    default_baselines: ClassVar[tuple[str, ...]] = ("majority", "tfidf_logistic")

    task: Literal["classify"] = Field(description="the task")
    language: str = Field(default="und", description="language of the texts, a BCP 47 tag")
    subject: str = Field(
        default="",
        description="what the labels are about: one of subject `sentiment` answers `/predict/sentiment`",
    )
    streaming: bool = Field(
        default=False,
        description="for texts in pieces: layers that cannot go on from piece to piece are refused; of several models that fit a "
        "request which names none, one that is not for streams answers",
    )
    data: TextData
    tokenizer: TokenizerSettings = TokenizerSettings()
    fit: ClassifyFit
    evaluate: ClassifyEvaluation = ClassifyEvaluation()

    @model_validator(mode="after")
    def _check_cut(self) -> Self:
        if self.has_padding and self.tokenizer.model_fields_set & {"head", "tail"}:
            raise ValueError("tokenizer.head and tail are for recipes without pad_sequences, which cuts texts itself")
        return self

    @property
    def has_padding(self) -> bool:
        """Whether the layers begin with `pad_sequences` of a fixed length, which also cuts longer texts."""
        return self.layers[0].get("type") == "pad_sequences" and isinstance(self.layers[0].get("maxlen"), int)

    @property
    def truncation(self) -> tuple[int, int]:
        """Of a longer text, how many tokens of its beginning and of its end are read."""
        if not self.has_padding:
            return self.tokenizer.head, self.tokenizer.tail
        maxlen = self.layers[0]["maxlen"]
        return (maxlen, 0) if self.layers[0].get("truncating") == "post" else (0, maxlen)
