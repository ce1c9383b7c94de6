"""Texts ↔ token ids and the probabilities of labels. Pure; how a text is split is the tokenizer's affair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from service.errors import InvalidInput
from service.manifest import Classify as ClassifyFace
from service.runtime.tensors import LENGTHS, Array, Item, Signature, Tensors
from service.tasks.base import (
    HEAVY_NUM_INSTANCES,
    IS_FINITE,
    Dialogue,
    ItemLimits,
    Prediction,
    expect_finite,
    expect_instances,
    finite_rows,
    grouped,
    missing,
    unknown_fields,
    unknown_parameters,
    wrong_type,
)

TOKENS = "tokens"
HEAVY_CHARACTERS = 8_000
"""Beyond so many, splitting takes 2 ms and more, and belongs on a thread."""

MAX_CHARACTERS = 100_000
"""The longest text. Only its head and tail are read, but all of it is split into tokens first: 60 ms and 10 MB."""


class Encoder(Protocol):
    """What splits texts into token ids; `service.tasks.tokenization` has the real one."""

    @property
    def largest_id(self) -> int: ...

    def encode(self, texts: Sequence[str], max_length: int, head: int, tail: int) -> Sequence[tuple[Sequence[int], bool]]:
        """Per text its ids (at least one) and whether it was truncated. Raises InvalidInput for a text that has none."""
        ...


@dataclass(frozen=True)
class Classify:
    """Texts in, a label and the probability of every label out."""

    face: ClassifyFace
    signature: Signature
    tokenizer: Encoder
    limits: ItemLimits = field(default_factory=ItemLimits)

    def is_heavy(self, instances: Sequence[object], parameters: Mapping[str, object]) -> bool:
        if len(instances) > HEAVY_NUM_INSTANCES:
            return True
        texts = [instance.get("text") if isinstance(instance, dict) else instance for instance in instances]
        return sum(len(text) for text in texts if isinstance(text, str)) > HEAVY_CHARACTERS

    def dialogue(self, instances: Sequence[object], parameters: Mapping[str, object], *, is_plain: bool = False) -> Dialogue:
        encoded = self.encode(instances, parameters)
        groups = grouped([len(ids) for ids, _ in encoded], self.limits)
        predictions: list[Prediction] = [None] * len(encoded)
        outputs = yield [self._item([encoded[index][0] for index in group]) for group in groups]
        for group, output in zip(groups, outputs, strict=True):
            expect_finite(output, group)
            for index, probabilities in zip(group, output["probabilities"], strict=True):
                predictions[index] = self.decode(probabilities, encoded[index][1])
        return predictions

    def prepare(self, outputs: Tensors) -> Tensors:
        probabilities = outputs["probabilities"]
        is_finite = finite_rows([probabilities])
        return {"probabilities": probabilities} if is_finite is None else {"probabilities": probabilities, IS_FINITE: is_finite}

    def encode(self, instances: Sequence[object], parameters: Mapping[str, object]) -> list[tuple[Sequence[int], bool]]:
        """Check every instance; per text its token ids and whether it was truncated."""
        expect_instances(instances)
        if parameters:
            raise unknown_parameters(list(parameters), ())
        texts = [_text(instance, index) for index, instance in enumerate(instances)]
        truncation = self.face.truncation
        return list(self.tokenizer.encode(texts, self.face.max_length, truncation.head, truncation.tail))

    def decode(self, probabilities: Array, is_truncated: bool) -> Prediction:
        """The prediction of one text from the probabilities of the labels, FP32 (labels,)."""
        winner = int(probabilities.argmax())
        prediction: dict[str, object] = {
            "label": self.face.labels[winner],
            "score": probabilities[winner],
            "probabilities": dict(zip(self.face.labels, probabilities, strict=True)),
        }
        if is_truncated:
            prediction["truncated"] = True
        return prediction

    def last_token(self) -> Item:
        """An item of one row, which holds only the last token of the vocabulary: a sound graph takes it."""
        return self._item([[self.tokenizer.largest_id]])

    def _item(self, rows: Sequence[Sequence[int]]) -> Item:
        lengths = [len(ids) for ids in rows]
        if len(rows) == 1:
            return Item({TOKENS: np.array(rows, np.int64)}, 1, lengths[0], lengths)
        longest = max(lengths)
        padded = np.zeros((len(rows), longest), np.int64)  # (B, T)
        for row, ids in zip(padded, rows, strict=True):
            row[: len(ids)] = ids
        return Item({TOKENS: padded, LENGTHS: np.array(lengths, np.int64)}, len(rows), longest, lengths)


def _text(instance: object, index: int) -> str:
    text = instance
    if isinstance(instance, dict):
        if instance.keys() != {"text"}:
            if "text" not in instance:
                raise missing(index, "text")
            raise unknown_fields(index, set(instance) - {"text"}, {"text"})
        text = instance["text"]
    where = "text" if isinstance(instance, dict) else ""
    if not isinstance(text, str):
        raise wrong_type(index, where, "a string", text)
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
