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
    neutral: bool = Field(
        default=False,
        description="training files: the texts have no label, and the answer to them shall be the same probability of each",
    )


class TextData(Data):
    """The texts of a run. Whole groups of texts are held back for validation and test."""

    train: Annotated[Sequence[TextSource], Field(min_length=1)] = Field(description="files to learn from")
    validation: Sequence[TextSource] = Field(
        default=(), description="files that choose the best epoch; left out: a cut of the training files"
    )
    test: Sequence[TextSource] = Field(default=(), description="files that are scored; left out: see `test_share`")
    unlabelled: Sequence[TextSource] = Field(
        default=(),
        description="files of which only the texts are read: for the tokenizer, `[vectors]`, `[pretraining]` and "
        "`[self_training]`",
    )
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
    drop_shared_texts: bool | Literal["validation"] = Field(
        default=True,
        description="leave out training texts that also stand in validation or test files; `validation`: or in the former alone, "
        "to compare with scores of others, and what is right of the unseen test texts is scored too",
    )

    @property
    def sources(self) -> list[Source]:
        return [*self.train, *self.validation, *self.test, *self.unlabelled]

    @model_validator(mode="after")
    def _check_test_part(self) -> Self:
        if bool(self.test) == bool(self.test_share):
            raise ValueError("give [[data.test]] or data.test_share: scores are taken on texts that training never read")
        if any(source.neutral for source in (*self.validation, *self.test, *self.unlabelled)):
            raise ValueError("neutral is for [[data.train]]: there is no right answer to score")
        if self.train and all(source.neutral for source in self.train):
            raise ValueError("all of [[data.train]] is neutral: there is no label to learn")
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
    piece_length: Count | None = Field(
        default=None,
        description="longer texts are read whole, in pieces of equal length of at most so many tokens, over which the logarithms "
        "of the probabilities are averaged; left out: `head` and `tail` are read",
    )
    min_known: Share = Field(
        default=0.0,
        description="share of a text's tokens that must be known: answers say `known_tokens`, and `uncertain` below it; "
        "0: neither",
    )
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
        if self.piece_length is not None and self.model_fields_set & {"head", "tail"}:
            raise ValueError("piece_length reads texts whole, head and tail cut them: give one or the other")
        keras, others = {"num_words", "oov_token", "lower", "filters"}, {"vocabulary", "min_frequency", "lowercase"}
        for option in sorted(self.model_fields_set & (others if self.kind == "keras" else keras)):
            raise ValueError(f'{option} is not for kind "{self.kind}"')
        return self

    @property
    def max_tokens(self) -> int | None:
        """The bound of the ids; None: as many as the texts have words."""
        return self.num_words if self.kind == "keras" else self.vocabulary


class VectorSettings(RecipeTable):
    """Token vectors, with which the embedding starts: learned before the network from the training texts and
    `[[data.unlabelled]]`, each from the mean of its neighbours (CBOW with negative sampling, Mikolov et al. 2013).
    """

    epochs: Count = Field(default=5, description="passes over the texts")
    window: Count = Field(default=5, description="neighbours at most on either side")
    negatives: Count = Field(default=64, description="tokens drawn for each block, which the neighbours must not predict")
    block: Annotated[int, Field(ge=64)] = Field(default=4096, description="tokens of a step")
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        default=0.05, description="of Adagrad with one step size for each token; falls to zero over the run"
    )
    subsample: Annotated[float, Field(gt=0)] = Field(
        default=1e-4, description="share of the text above which a token is left out at random, the more often the more frequent"
    )
    scale: Annotated[float, Field(gt=0)] = Field(default=0.25, description="root mean square that all vectors together are given")


class PretrainingSettings(RecipeTable):
    """What the first recurrent layer learns before the fit, from the training texts and `[[data.unlabelled]]`: to say which
    tokens come soon after a step and, where it reads backward, which stood before it (Dai and Le 2015; Johnson and Zhang 2016).
    """

    epochs: Count = Field(default=1, description="passes over the texts")
    window: Count = Field(default=5, description="how far from a step the token may be that it predicts; 1: the very next one")
    negatives: Count = Field(default=512, description="tokens drawn for each step, with which the true one is compared")
    subsample: Annotated[float, Field(gt=0)] = Field(
        default=1e-3,
        description="share of the text above which a token is not always predicted, the more seldom the more frequent it is",
    )
    block: Annotated[int, Field(ge=64)] = Field(default=8192, description="tokens of a batch, padding included")
    max_length: Annotated[int, Field(ge=8)] = Field(default=400, description="longer texts are cut into parts of equal length")
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        default=0.002,
        description="of Adam, times the layer's factor in `fit.rates`; rises over 100 steps at most, falls by cosine",
    )


class NgramSettings(RecipeTable):
    """A linear classifier of the tokens' 1- to n-grams beside the layers, in the same graph: weighted by naive Bayes, fitted by
    logistic regression (Wang and Manning 2012), and one 8-bit weight per bucket. How much of its logits and of the layers' is
    answered is fitted on the validation part.
    """

    order: Annotated[int, Field(ge=1, le=5)] = Field(default=3, description="tokens of the longest n-gram")
    buckets: Annotated[int, Field(ge=16, le=2**24)] = Field(
        default=2**20, description="weights, by the remainder of the n-gram's hash; each takes a byte and logit"
    )
    smoothing: Annotated[float, Field(gt=0)] = Field(default=1.0, description="added to the naive Bayes counts")
    strength: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="how closely the regression follows the training part: the inverse of its L2 penalty"
    )


class SelfTrainingSettings(RecipeTable):
    """What follows the fit: the model, calibrated, says the labels' probabilities of the texts of `[[data.unlabelled]]`, and the
    layers and the n-grams learn on from these beside the training texts (Scudder 1965; Xie et al. 2020): the layers what the
    n-grams know of more texts, and the n-grams what the layers know.
    """

    epochs: Count = Field(default=1, description="epochs of the training texts and those without labels together")
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="the learning rate of these epochs, with a schedule of their own; left out: that of the fit"
    )


class ClassifyFit(Fit):
    """The training loop of a classifier."""

    loss: Literal["binary_crossentropy", "categorical_crossentropy"] = Field(
        description="the loss: `binary_crossentropy` for one sigmoid unit, `categorical_crossentropy` for a unit per label"
    )
    batch_tokens: Count | None = Field(
        default=None,
        description="tokens, padding included, up to which a batch of short texts holds more than `batch_size` of them",
    )
    word_dropout: Share = Field(default=0.0, description="share of a text's tokens that are replaced by the unknown token")
    label_smoothing: Share = Field(default=0.0, description="share of the probability that is spread over all labels")
    adversarial: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="learn from each text also with its vectors moved to where its loss grows fastest, by so many times their "
        "root mean square over all steps together (Miyato et al. 2017); twice the time; 0: not",
    )


class ClassifyEvaluation(Evaluation):
    """Beside what the test texts are scored."""

    baselines: Sequence[Literal["majority", "tfidf_logistic", "nb_logistic"]] | None = Field(
        default=None,
        description="baselines beside the model: `tfidf_logistic` and `nb_logistic` are logistic regression, of TF-IDF and of "
        "naive Bayes n-grams; left out: the first two",
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
    vectors: VectorSettings | None = Field(default=None, description="vectors that the embedding starts with; left out: none")
    pretraining: PretrainingSettings | None = Field(
        default=None, description="what the first recurrent layer learns without labels; left out: nothing"
    )
    ngrams: NgramSettings | None = Field(default=None, description="an n-gram classifier beside the layers; left out: none")
    calibrate: bool | Literal["by_length"] = Field(
        default=False,
        description="fit a factor and a shift of the logits to the validation part, so that probabilities are frequencies; with "
        "`[ngrams]` it always is; `by_length`: the shift depends on the logarithm of the number of tokens too, where short and "
        "long texts are learned together",
    )
    self_training: SelfTrainingSettings | None = Field(
        default=None, description="learn on from texts without labels, by the model's own answers; left out: do not"
    )
    fit: ClassifyFit
    evaluate: ClassifyEvaluation = ClassifyEvaluation()

    @model_validator(mode="after")
    def _check_cut(self) -> Self:
        if self.has_padding and self.tokenizer.model_fields_set & {"head", "tail", "piece_length"}:
            raise ValueError(
                "tokenizer.head, tail and piece_length are for recipes without pad_sequences, which cuts texts itself"
            )
        if self.data.unlabelled and not any((self.vectors, self.pretraining, self.self_training)):
            raise ValueError(
                "data.unlabelled is for [vectors], [pretraining] and [self_training]: nothing else learns without labels"
            )
        if self.self_training is not None and not self.data.unlabelled:
            raise ValueError("self_training needs [[data.unlabelled]]: texts that the model labels")
        if self.self_training is not None and self.ngrams is None and not self.calibrate:
            raise ValueError("self_training needs calibrate = true or [ngrams]: it learns from probabilities")
        if self.fit.adversarial and (self.ensemble.members > 1 or self.layers[0].get("type") != "embedding"):
            raise ValueError("fit.adversarial needs one network whose first layer is of type embedding: it moves the vectors")
        if self.calibrate == "by_length" and self.has_padding:
            raise ValueError('calibrate = "by_length" is for texts of different lengths: pad_sequences makes them equal')
        if self.vectors is not None and not any(table.get("type") == "embedding" for table in self.layers):
            raise ValueError("[vectors] needs a layer of type embedding, which begins with them")
        return self

    @property
    def has_padding(self) -> bool:
        """Whether the layers begin with `pad_sequences` of a fixed length, which also cuts longer texts."""
        return self.layers[0].get("type") == "pad_sequences" and isinstance(self.layers[0].get("maxlen"), int)

    @property
    def truncation(self) -> tuple[int, int]:
        """Of a longer text, how many tokens of its beginning and of its end are read, where it is not read in pieces."""
        if self.tokenizer.piece_length is not None:
            return -(-self.tokenizer.piece_length // 2), self.tokenizer.piece_length // 2
        if not self.has_padding:
            return self.tokenizer.head, self.tokenizer.tail
        maxlen = self.layers[0]["maxlen"]
        return (maxlen, 0) if self.layers[0].get("truncating") == "post" else (0, maxlen)
