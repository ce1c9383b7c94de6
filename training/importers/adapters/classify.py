"""Task `classify`: texts in, probabilities of labels out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from training.export.answers import format_classify
from training.importers.adapters.base import LENGTHS, SEED, ExampleRow, Target
from training.importers.model import ModelImportError, SourceLayer, SourceModel
from training.importers.options import ImportOptions, Name
from training.importers.tokenizer_file import read_tokenizer
from training.network.heads.classify import ClassifySpec
from training.network.network import Network

TOKENIZER_FILE = "tokenizer.json"
MAX_EXAMPLE_WORDS = 12


class ClassifyOptions(ImportOptions):
    """Options of task `classify`."""

    task: Literal["classify"]
    labels: tuple[Name, ...]
    tokenizer: Path | None = None
    max_length: PositiveInt | None = None
    padding: Literal["pre", "post"] = "pre"
    truncating: Literal["pre", "post"] = "pre"
    language: str = "und"
    subject: str = ""

    @property
    def tokenizer_path(self) -> Path:
        """Raises ModelImportError where none is given; a model that reads texts has its own."""
        if self.tokenizer is None:
            raise ModelImportError("--task classify needs --tokenizer")
        return self.tokenizer


class ClassifyAdapter:
    """A model that begins with an embedding of token ids and ends in a layer of logits or probabilities."""

    Options: ClassVar[type[ImportOptions]] = ClassifyOptions

    def __init__(self, model: SourceModel, options: ClassifyOptions) -> None:
        self.options = options
        first = model.layers[0]
        if not model.has_tokens:
            raise ModelImportError(f"--task classify reads texts: the first layer must be an Embedding, it is {first.place}")
        if model.max_length is None and options.max_length is None:
            raise ModelImportError("--task classify needs --max-length for a model that reads any number of tokens")
        if model.max_length is not None and options.max_length not in (None, model.max_length):
            raise ModelImportError(f"--max-length: the model reads {model.max_length} tokens, got {options.max_length}")
        self.max_length = model.max_length or options.max_length or 1
        self.tokenizer, self.unknown_id = read_tokenizer(options.tokenizer_path)
        vocabulary = first.table["input_dim"]
        largest = max(self.tokenizer.get_vocab(with_added_tokens=True).values())
        if largest >= vocabulary:
            bounds = f"{first.place} has {vocabulary}: 0 to {vocabulary - 1}"
            raise ModelImportError(f"--tokenizer: its ids go up to {largest}, {bounds}")
        labels = options.labels
        if len(set(labels)) != len(labels) or len(labels) < 2:
            raise ModelImportError(f"--labels: two or more different ones, got {', '.join(labels)}")
        changed, note = _merge_last_activation(_pad_rows(model, options))
        spec = ClassifySpec(layers=changed.tables, vocabulary_size=vocabulary, labels=labels)
        self.target = Target(changed, spec, (note,) if note else (), {TOKENIZER_FILE: self.tokenizer.to_str()})

    def draw_instances(self, network: Network) -> list[Any]:
        rng = np.random.default_rng(SEED)
        words = sorted(word for word in self.tokenizer.get_vocab() if word.isalnum()) or sorted(self.tokenizer.get_vocab())
        counts = (max(1, self.max_length // 2), self.max_length + 1)
        return [" ".join(rng.choice(words, min(count, MAX_EXAMPLE_WORDS))) for count in counts]

    def read_instance(self, network: Network, instance: Any, place: str) -> ExampleRow:
        text = instance.get("text") if isinstance(instance, Mapping) and set(instance) == {"text"} else instance
        if not isinstance(text, str) or not text.strip():
            raise ModelImportError(f'{place}: expected a text or {{"text": "..."}}')
        ids = self.tokenizer.encode(text).ids or [self.unknown_id]
        head, tail = self._truncation
        kept = ids if len(ids) <= self.max_length else ids[:head] + ids[len(ids) - tail :]
        inputs = {"tokens": np.array([kept], np.int64), LENGTHS: np.array([len(kept)], np.int64)}
        return ExampleRow(inputs, is_truncated=len(ids) > self.max_length)

    def format_prediction(self, network: Network, answer: Mapping[str, NDArray[Any]], row: ExampleRow) -> Any:
        return format_classify(answer["probabilities"][0], self.options.labels, row.is_truncated)

    def manifest_block(self, network: Network) -> dict[str, Any]:
        head, tail = self._truncation
        return {
            "labels": list(self.options.labels),
            "tokenizer": TOKENIZER_FILE,
            "max_length": self.max_length,
            "truncation": {"head": head, "tail": tail},
            "language": self.options.language,
            **({"subject": self.options.subject} if self.options.subject else {}),
        }

    @property
    def _truncation(self) -> tuple[int, int]:
        """How many ids are kept of the beginning and of the end of a longer text; Keras cuts off the beginning by default."""
        return (0, self.max_length) if self.options.truncating == "pre" else (self.max_length, 0)


def _pad_rows(model: SourceModel, options: ClassifyOptions) -> SourceModel:
    """Rows are padded in the graph where the model reads a fixed number of steps and does not mask the padding."""
    if model.is_open:
        return model
    table = {
        "type": "pad_sequences",
        "maxlen": model.max_length,
        "padding": options.padding,
        "truncating": options.truncating,
    }
    return replace(model, layers=(SourceLayer(table, "the padding"), *model.layers))


def _merge_last_activation(model: SourceModel) -> tuple[SourceModel, str]:
    """A last activation as an option of the dense layer before it; and a note where there is none at all."""
    *body, last = model.layers
    before = body[-1].table if body else {}
    if last.table["type"] == "activation" and before.get("type") == "dense" and "activation" not in before:
        merged = replace(body[-1], table={**before, "activation": last.table["activation"]})
        return replace(model, layers=(*body[:-1], merged)), ""
    if last.table["type"] == "dense" and "activation" not in last.table:
        kind = "sigmoid" if last.table["units"] == 1 else "softmax"
        return model, f"{last.place} gives logits: the served probabilities are their {kind}"
    return model, ""
