"""What a classifier read in a text, word by word: the texts that are classified for it, and what is said of their probabilities.

`prefix` is the running score: what the text is classified as after each of its words. `occlusion` is what it is classified as
without each of its words, by Li, Monroe and Jurafsky, "Understanding Neural Networks through Representation Erasure" (2016,
arXiv:1612.08220). Both classify ordinary texts, so each value is what a request of that text alone would get. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from service.errors import InvalidInput
from service.tasks.refusals import refuse_type, show

Method = Literal["prefix", "occlusion"]
METHODS: tuple[Method, ...] = get_args(Method)
EXPLAIN = "explain"
"""The parameter of a request that names the method."""
EXPLANATION = "explanation"
"""The field of a prediction."""

MAX_WORDS = 256
"""Of all texts of a request: each is a text more to classify."""
MAX_CHARACTERS = 4_000
"""Of one text: with the words, a million characters to split at most, half as many as a body may hold."""
MAX_VARIANT_CHARACTERS = 500_000
"""Of all texts that are classified for one request: as many words as may be of ordinary length, and not of 15 letters."""
MAX_VALUES = 100_000
"""Words times labels: 1 MB of JSON."""

# Scripts without spaces between words: kana and ideographs count as a word each.
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\s{_IDEOGRAPH}]+")


class Variant(NamedTuple):
    """A text that is classified to explain another one; `text` is empty where nothing is left of it."""

    instance: int
    text: str


class Explanation:
    """How the texts of one request are explained."""

    def __init__(self, method: Method, texts: Iterable[str]) -> None:
        self.method = method
        self.words: list[list[str]] = []
        """Of each text."""
        self.variants: list[Variant] = []
        """One for each word of the first text, then of the second, and so on."""
        for instance, text in enumerate(texts):
            found = list(_WORD.finditer(text))
            self.words.append([word[0] for word in found])
            for word in found:
                rest = text[: word.end()] if method == "prefix" else text[: word.start()] + text[word.end() :]
                self.variants.append(Variant(instance, "" if rest.isspace() else rest))

    def attach(self, predictions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The predictions of the texts with their explanations; `predictions` are those of the texts, then of the variants."""
        start = len(self.words)
        answers = []
        for prediction, words in zip(predictions, self.words, strict=False):
            found = [each["probabilities"] for each in predictions[start : start + len(words)]]
            start += len(words)
            probabilities = {
                label: np.array([each[label] for each in found], np.float32) for label in prediction["probabilities"]
            }
            answers.append({**prediction, EXPLANATION: {"method": self.method, "words": words, "probabilities": probabilities}})
        return answers


def read_method(parameters: Mapping[str, object], methods: Sequence[Method]) -> Method | None:
    """The method that a request wants, of those that its model has; None for no explanation. Raises InvalidInput."""
    value = parameters.get(EXPLAIN)
    if value is None:
        return None
    if not isinstance(value, str):
        raise refuse_type(None, EXPLAIN, f"one of {list(METHODS)}", value)
    for method in methods:
        if value == method:
            return method
    why = ", since the model reads texts from their end too" if value == "prefix" else ""
    raise InvalidInput(
        f"parameters: {EXPLAIN}: expected one of {list(methods)}{why}, got {show(value)}",
        where=EXPLAIN,
        found=show(value),
        expected=list(methods),
    )


def count_words(texts: Iterable[str], num_labels: int) -> int:
    """The number of words of all texts. Raises InvalidInput for so many that to explain them would be too much work."""
    most = max(1, min(MAX_WORDS, MAX_VALUES // num_labels))
    number = num_characters = 0
    for instance, text in enumerate(texts):
        before = number
        if len(text) > MAX_CHARACTERS:
            raise _too_long(instance, f"at most {MAX_CHARACTERS} characters to explain", len(text))
        for _ in _WORD.finditer(text):
            number += 1
            if number > most:
                raise _too_long(instance, f"at most {most} words to explain, in all instances", number)
        num_characters += (number - before) * len(text)
        if num_characters > MAX_VARIANT_CHARACTERS:
            expected = f"at most {MAX_VARIANT_CHARACTERS} for the words to explain times the characters of their texts"
            raise _too_long(instance, expected, num_characters)
    return number


def _too_long(instance: int, expected: str, found: int) -> InvalidInput:
    return InvalidInput(
        f"instance {instance}: expected {expected}, got {found} or more",
        reason="length",
        instance=instance,
        found=found,
        expected=expected,
    )
