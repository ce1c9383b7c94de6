"""Texts ↔ token ids and the probabilities of labels. Pure; how a text is split is the tokenizer's affair."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field, model_validator

from service.errors import InvalidInput, ServiceError
from service.manifest import FileName, Manifest, Spec, StrictModel
from service.runtime.tensors import LENGTHS, Array, Item, Signature, Tensors, TensorSpec
from service.tasks.base import (
    HEAVY_NUM_INSTANCES,
    Criterion,
    Endpoint,
    GroupRows,
    Prediction,
    PublicTensors,
    ReadFile,
    Steps,
    Task,
    TaskDefinition,
    expect_finite,
    expect_instances,
    with_finite_rows,
)
from service.tasks.classify_schema import (
    EXAMPLES,
    MAX_CHARACTERS,
    Classification,
    ClassifyDescription,
    ClassifyInstance,
    ClassifyParameters,
    Text,
)
from service.tasks.explanation import EXPLAIN, METHODS, Explanation, Method, count_words, read_method
from service.tasks.measures import Measures
from service.tasks.refusals import refuse_fields, refuse_missing, refuse_parameters, refuse_type
from service.tasks.tables import Columns, RowForm, TableOptions
from service.tasks.tokenization import parse_tokenizer

TOKENS, PROBABILITIES = "tokens", "probabilities"
TEXT, LABEL = "text", "label"
"""Public tensors, in place of token ids."""
SENTIMENT = "sentiment"
SENTIMENT_LABELS = {"negative", "positive"}
"""The labels of a sentiment model whose manifest has no `subject`, as those of the first release."""
HEAVY_CHARACTERS = 8_000
"""Beyond so many, splitting takes 2 ms and more, and belongs on a thread."""


CHINESE, OTHER = "zh", "other"
HAN = re.compile("[\u4e00-\u9fff]")
NUM_LOOKED_AT, LENGTH_LOOKED_AT = 16, 1000
"""Of a request that names no model: how many texts, and of each how many characters, decide which model answers."""
SMALLEST = 1e-7
"""The least probability of a piece of which the logarithm is taken: no piece alone decides a long text."""


class Truncation(StrictModel):
    """Which tokens of an over-long text are read: the first `head` and the last `tail`."""

    head: Annotated[int, Field(ge=0)]
    tail: Annotated[int, Field(ge=0)]


class ClassifySpec(Spec):
    """What a text classifier reads and predicts."""

    labels: Annotated[list[str], Field(min_length=2)]
    subject: str | None = Field(None, description="what the labels are about, such as `sentiment`")
    tokenizer: FileName = "tokenizer.json"
    max_length: Annotated[int, Field(ge=1, description="tokens of a row: all that are read of one text, or of a piece of it")]
    truncation: Truncation
    long_texts: Annotated[
        Literal["cut", "pieces"],
        Field(
            description="what becomes of a text of more than `max_length` tokens: `cut` by `truncation`, or read whole in the "
            "fewest `pieces` of that length, whose logarithms of probabilities are averaged"
        ),
    ] = "cut"
    min_known: Annotated[
        float | None,
        Field(
            gt=0, lt=1, description="share of a text's tokens that the tokenizer must know; below it the answer is `uncertain`"
        ),
    ] = None
    language: Annotated[str, Field(description="BCP 47 tag of the texts, or `und`")]
    streaming: bool = Field(default=False, description="made for texts in pieces")

    @model_validator(mode="after")
    def _truncation_keeps_max_length(self) -> ClassifySpec:
        if self.truncation.head + self.truncation.tail != self.max_length:
            raise ValueError(
                f"truncation keeps {self.truncation.head} + {self.truncation.tail} tokens, max_length is {self.max_length}"
            )
        return self


class Encoder(Protocol):
    """What splits texts into token ids; `service.tasks.tokenization` has the real one."""

    @property
    def largest_id(self) -> int: ...

    @property
    def adds_tokens(self) -> bool:
        """Whether each text gets tokens beside its own, such as one for its begin."""
        ...

    @property
    def unknown_id(self) -> int: ...

    def encode(self, texts: Sequence[str], max_length: int, head: int, tail: int) -> Sequence[tuple[Sequence[int], bool]]:
        """Per text its ids (at least one) and whether it was truncated. Raises InvalidInput for a text that has none."""
        ...


class ClassifyTask(Task):
    """Texts in, a label and the probability of every label out."""

    def __init__(self, spec: ClassifySpec, signature: Signature, tokenizer: Encoder) -> None:
        super().__init__(signature)
        self.spec = spec
        self.labels = spec.labels
        self.tokenizer = tokenizer

    @property
    def methods(self) -> Sequence[Method]:
        """How texts can be explained word by word: a prefix is what the network has read so far only where it reads one way."""
        return METHODS if self.reads_one_way else METHODS[1:]

    def is_heavy(self, instances: Sequence[object], parameters: Mapping[str, object]) -> bool:
        if len(instances) > HEAVY_NUM_INSTANCES or parameters.get(EXPLAIN) is not None:
            return True
        texts = [instance.get("text") if isinstance(instance, dict) else instance for instance in instances]
        return sum(len(text) for text in texts if isinstance(text, str)) > HEAVY_CHARACTERS

    def describe(self) -> dict[str, Any]:
        about = self.spec.model_dump(exclude_none=True, exclude=None if self.spec.streaming else {"streaming"})
        return about | {EXPLAIN: list(self.methods)}

    def count_rows(self, instances: Sequence[object], parameters: Mapping[str, object]) -> int:
        method = self._read_method(parameters)
        return len(instances) + (0 if method is None else count_words(_read_texts(instances), len(self.labels)))

    def why_not_streaming(self) -> str:
        return "its tokenizer adds tokens to each text, so also between its pieces" if self.tokenizer.adds_tokens else ""

    def run_steps(
        self,
        instances: Sequence[object],
        parameters: Mapping[str, object],
        group: GroupRows,
        *,
        is_plain: bool = False,
        steps_seen: Sequence[int] | None = None,
    ) -> Steps:
        explanation = self._explain(instances, parameters, is_piece=steps_seen is not None) if parameters else None
        encoded = self.encode(instances, is_piece=steps_seen is not None)
        owners: Sequence[int] = ()
        if explanation is not None:
            owners = [*range(len(encoded)), *(variant.instance for variant in explanation.variants)]
            encoded += self._encode_variants(explanation)
        if self.spec.long_texts == "pieces" and steps_seen is None and any(is_longer for _, is_longer in encoded):
            predictions = yield from self._run_pieces(encoded, group, owners)
        else:
            predictions = [None] * len(encoded)
            groups = group([len(ids) for ids, _ in encoded])
            outputs = yield [self._collate([encoded[index][0] for index in indices], indices) for indices in groups]
            for indices, output in zip(groups, outputs, strict=True):
                expect_finite(output, [owners[index] for index in indices] if owners else indices)
                for index, probabilities in zip(indices, output[PROBABILITIES], strict=True):
                    predictions[index] = self.decode(probabilities, *encoded[index])
        return predictions if explanation is None else explanation.attach(predictions)

    def _explain(self, instances: Sequence[object], parameters: Mapping[str, object], *, is_piece: bool) -> Explanation | None:
        """What explains the texts of a request; None where it wants nothing explained. Raises what `run_steps` does."""
        method = self._read_method(parameters)
        if method is None:
            return None
        if is_piece:
            raise InvalidInput(f"parameters: {EXPLAIN}: a piece of a text cannot be explained", where=EXPLAIN)
        count_words(_read_texts(instances), len(self.labels))
        return Explanation(method, _read_texts(instances))

    def _read_method(self, parameters: Mapping[str, object]) -> Method | None:
        if unknown := [name for name in parameters if name != EXPLAIN]:
            raise refuse_parameters(unknown, (EXPLAIN,))
        return read_method(parameters, self.methods)

    def _encode_variants(self, explanation: Explanation) -> list[tuple[Sequence[int], bool]]:
        """The token ids of the texts that explain others; of one of which nothing is left, a single unknown token."""
        texts = [variant.text for variant in explanation.variants]
        found = iter(self._encode_texts([text for text in texts if text]))
        return [next(found) if text else ([self.tokenizer.unknown_id], False) for text in texts]

    def _run_pieces(self, encoded: Sequence[tuple[Sequence[int], bool]], group: GroupRows, owners: Sequence[int]) -> Steps:
        """`run_steps` where some text is longer than a row: each piece is a row of its own.

        `owners` are the instances that the texts belong to; empty: each is one.
        """
        rows: list[Sequence[int]] = []
        texts: list[int] = []
        for number, (ids, _) in enumerate(encoded):
            pieces = cut_pieces(ids, self.spec.max_length)
            rows += pieces
            texts += [number] * len(pieces)
        instances = [owners[number] for number in texts] if owners else texts
        groups = group([len(row) for row in rows])
        outputs = yield [self._collate([rows[index] for index in indices]) for indices in groups]
        found: list[list[Array]] = [[] for _ in encoded]
        for indices, output in zip(groups, outputs, strict=True):
            expect_finite(output, [instances[index] for index in indices])
            for index, probabilities in zip(indices, output[PROBABILITIES], strict=True):
                found[texts[index]].append(probabilities)
        return [self.decode(join_pieces(parts), ids, False) for parts, (ids, _) in zip(found, encoded, strict=True)]

    def prepare(self, outputs: Tensors) -> Tensors:
        probabilities = outputs[PROBABILITIES]
        return with_finite_rows({PROBABILITIES: probabilities}, [probabilities])

    def measure(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Measures:
        """The tokens of each row, the share of those that are unknown, the label's number and its probability."""
        tokens, lengths, probabilities = inputs[TOKENS], inputs[LENGTHS], outputs[PROBABILITIES]
        is_own = np.arange(tokens.shape[1]) < lengths[:, None]
        return {
            "length": lengths,
            "unknown_tokens": (is_own & (tokens == self.tokenizer.unknown_id)).sum(axis=1) / lengths,
            "label": probabilities.argmax(axis=1),
            "score": probabilities.max(axis=1),
        }

    def encode(self, instances: Sequence[object], *, is_piece: bool = False) -> list[tuple[Sequence[int], bool]]:
        """Check every instance; per text its token ids and whether it was truncated, or is to be read in pieces.

        With `is_piece` the texts are pieces of streams, which are read whole.
        """
        expect_instances(instances)
        texts = list(_read_texts(instances))
        return list(self.tokenizer.encode(texts, sys.maxsize, sys.maxsize, 0)) if is_piece else self._encode_texts(texts)

    def _encode_texts(self, texts: Sequence[str]) -> list[tuple[Sequence[int], bool]]:
        max_length, truncation = self.spec.max_length, self.spec.truncation
        if self.spec.long_texts == "pieces":
            whole = self.tokenizer.encode(texts, sys.maxsize, sys.maxsize, 0)
            return [(ids, len(ids) > max_length) for ids, _ in whole]
        return list(self.tokenizer.encode(texts, max_length, truncation.head, truncation.tail))

    def decode(self, probabilities: Array, ids: Sequence[int], is_truncated: bool) -> Prediction:
        """The prediction of one text from the probabilities of the labels, FP32 (labels,), and the token ids that were read."""
        winner = int(probabilities.argmax())
        prediction: dict[str, object] = {
            "label": self.spec.labels[winner],
            "score": probabilities[winner],
            "probabilities": dict(zip(self.spec.labels, probabilities, strict=True)),
        }
        if is_truncated:
            prediction["truncated"] = True
        if self.spec.min_known is not None:
            known = len(ids) - ids.count(self.tokenizer.unknown_id)
            prediction["known_tokens"] = known
            if known < self.spec.min_known * len(ids):
                prediction["uncertain"] = True
        return prediction

    def encode_tensors(self, tensors: Tensors, steps_seen: int | None = None) -> Tensors:
        """`text` BYTES (B) as token ids, a row for each: of a text longer than that, what `truncation` keeps."""
        texts = tensors.get(TEXT)
        if texts is None or tensors.keys() != {TEXT} or texts.ndim != 1:
            raise InvalidInput(f'expected one tensor "{TEXT}", BYTES [batch], got {sorted(tensors)}', where=TEXT)
        is_piece = steps_seen is not None
        keep, max_length = self.spec.truncation, self.spec.max_length
        rows = [ids for ids, _ in self.encode(texts.tolist(), is_piece=is_piece)]
        if self.spec.long_texts == "pieces" and not is_piece:
            # An answer has a row for each text, and cannot be made of several.
            rows = [ids if len(ids) <= max_length else [*ids[: keep.head], *ids[len(ids) - keep.tail :]] for ids in rows]
        return self._collate(rows).tensors

    def decode_tensors(self, outputs: Tensors) -> Tensors:
        probabilities = outputs[PROBABILITIES]
        labels = np.array(self.spec.labels, np.object_)[probabilities.argmax(axis=1)]
        return {LABEL: labels, PROBABILITIES: probabilities}

    def open_table(self, options: TableOptions) -> RowForm:
        """A column `text`; predictions as `label`, `score`, a column `p(LABEL)` for each label, and `truncated`."""
        return RowForm((TEXT,), options, self.run_steps, self._write_columns, texts=(TEXT,))

    def _write_columns(self, predictions: Sequence[Prediction]) -> Columns:
        columns: Columns = {
            "label": [prediction["label"] for prediction in predictions],
            "score": np.array([prediction["score"] for prediction in predictions], np.float32),
        }
        for label in self.labels:
            values = [prediction["probabilities"][label] for prediction in predictions]
            columns[f"p({label})"] = np.array(values, np.float32)
        columns["truncated"] = np.array([prediction.get("truncated", False) for prediction in predictions], np.bool_)
        if self.spec.min_known is not None:
            columns["known_tokens"] = np.array([prediction["known_tokens"] for prediction in predictions], np.int64)
            columns["uncertain"] = np.array([prediction.get("uncertain", False) for prediction in predictions], np.bool_)
        return columns

    def check_graph(self, run: Callable[[Tensors], Tensors]) -> list[str]:
        """Whether the tokenizer has ids beyond the graph's embedding, which would fail in the middle of a batch.

        onnxruntime checks ids on the CPU; a GPU need not, and then nothing is found.
        """
        largest = self.tokenizer.largest_id
        try:
            run(self._collate([[largest]]).tensors)
        except ServiceError:
            return [f"{self.spec.tokenizer} has token ids up to {largest}, the graph does not take them"]
        return []

    def _collate(self, rows: Sequence[Sequence[int]], instances: Sequence[int] = ()) -> Item:
        lengths = [len(ids) for ids in rows]
        if len(rows) == 1:
            return Item({TOKENS: np.array(rows, np.int64)}, 1, lengths[0], lengths, (), instances)
        longest = max(lengths)
        padded = np.zeros((len(rows), longest), np.int64)  # (B, T)
        for row, ids in zip(padded, rows, strict=True):
            row[: len(ids)] = ids
        tensors: Tensors = {TOKENS: padded, LENGTHS: np.array(lengths, np.int64)}
        return Item(tensors, len(rows), longest, lengths, (), instances)


class ClassifyDefinition(TaskDefinition):
    """The task `classify`: `tokens` INT64 [batch, time] → `probabilities` FP32 [batch, labels]."""

    name: ClassVar = "classify"
    spec: ClassVar = ClassifySpec
    description: ClassVar = ClassifyDescription
    endpoints: ClassVar = (
        Endpoint(
            "/predict/sentiment",
            "classify",
            "Classify texts by sentiment",
            "The sentiment of texts. Without `model`, the one that SLUICE_DEFAULT_SENTIMENT_MODEL names answers, or the only one "
            "whose manifest says that it classifies sentiment; of several, a Chinese one answers texts with Chinese characters "
            "and no others. Where several fit: 409.",
            purpose=SENTIMENT,
            default_setting="default_sentiment_model",
            instance=Text | ClassifyInstance,
            parameters=ClassifyParameters,
            prediction=Classification,
            examples=EXAMPLES,
        ),
        Endpoint(
            "/predict/classify",
            "classify",
            "Classify texts",
            "Classify texts by any text model. Without `model`, the only one answers. Where there are several: 409.",
            instance=Text | ClassifyInstance,
            parameters=ClassifyParameters,
            prediction=Classification,
            examples=EXAMPLES,
        ),
    )

    def mismatches(self, manifest: Manifest) -> list[str]:
        spec = manifest.spec_of(ClassifySpec)
        return [
            *manifest.mismatch("inputs", TOKENS, "INT64", ["batch", "time"]),
            *manifest.mismatch("outputs", PROBABILITIES, "FP32", ["batch", len(spec.labels)]),
        ]

    def build(self, manifest: Manifest, signature: Signature, read_file: ReadFile) -> ClassifyTask:
        spec = manifest.spec_of(ClassifySpec)
        return ClassifyTask(spec, signature, parse_tokenizer(read_file(spec.tokenizer), spec.tokenizer))

    def longest_row(self, manifest: Manifest) -> int:
        return manifest.spec_of(ClassifySpec).max_length

    def public_tensors(self, manifest: Manifest, signature: Signature) -> PublicTensors:
        num_labels = len(manifest.spec_of(ClassifySpec).labels)
        return PublicTensors(
            (TensorSpec(TEXT, "BYTES", ("batch",)),),
            (TensorSpec(LABEL, "BYTES", ("batch",)), TensorSpec(PROBABILITIES, "FP32", ("batch", num_labels))),
        )

    def example_instance(self, manifest: Manifest) -> object:
        return "A quiet, moving film."

    def is_special(self, manifest: Manifest) -> bool:
        return manifest.spec_of(ClassifySpec).streaming

    def serves(self, manifest: Manifest, purpose: str) -> bool:
        spec = manifest.spec_of(ClassifySpec)
        if spec.subject is not None:
            return spec.subject == purpose
        return purpose == SENTIMENT and set(spec.labels) == SENTIMENT_LABELS

    def criterion(self, instances: Sequence[object], parameters: Mapping[str, object]) -> Criterion | None:
        """Whether texts are Chinese, by their characters; only the beginning of a request is looked at."""
        found: dict[str, None] = {}
        for instance in instances[:NUM_LOOKED_AT]:
            text = instance.get("text") if isinstance(instance, dict) else instance
            if isinstance(text, str):
                found[CHINESE if HAN.search(text, 0, LENGTH_LOOKED_AT) else OTHER] = None
        return Criterion("language", tuple(found), is_preference=True) if found else None

    def fits(self, manifest: Manifest, criterion: Criterion) -> bool:
        language = manifest.spec_of(ClassifySpec).language.partition("-")[0].lower()
        if language in ("und", "mul"):
            return True
        return all((value == CHINESE) == (language == CHINESE) for value in criterion.values)


TASK = ClassifyDefinition()


def cut_pieces(ids: Sequence[int], max_length: int) -> list[Sequence[int]]:
    """All tokens in order, in the fewest pieces of at most `max_length` whose lengths differ by one at most, as in training."""
    count = -(-len(ids) // max_length)
    ends = [len(ids) * number // count for number in range(count + 1)]
    return [ids[start:end] for start, end in pairwise(ends)]


def join_pieces(parts: Sequence[Array]) -> Array:
    """The probabilities of a text from those of its pieces (labels,): their geometric mean, which averages logits."""
    if len(parts) == 1:
        return parts[0]
    joined = np.exp(np.log(np.maximum(np.stack(parts), SMALLEST)).mean(axis=0, dtype=np.float64))
    return np.asarray(joined / joined.sum(), np.float32)


def _read_texts(instances: Sequence[object]) -> Iterator[str]:
    """The text of each instance, as far as it is asked for. Raises what is wrong with one."""
    return (_read_text(instance, index) for index, instance in enumerate(instances))


def _read_text(instance: object, index: int) -> str:
    text = instance
    if isinstance(instance, dict):
        if instance.keys() != {"text"}:
            if "text" not in instance:
                raise refuse_missing(index, "text")
            raise refuse_fields(index, set(instance) - {"text"}, {"text"})
        text = instance["text"]
    where = "text" if isinstance(instance, dict) else ""
    if not isinstance(text, str):
        raise refuse_type(index, where, "a string", text)
    if len(text) > MAX_CHARACTERS:
        raise InvalidInput(
            f"instance {index}: the text has {len(text)} characters, expected at most {MAX_CHARACTERS}",
            reason="length",
            instance=index,
            where=where or None,
            found=len(text),
            expected=f"at most {MAX_CHARACTERS} characters",
        )
    return text
