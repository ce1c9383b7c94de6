"""Texts and their sentiment: IMDB, SST-2 and ChnSentiCorp, asked of the service's sentiment model for their language."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from training.data.sources import DataError
from training.evaluation.benchmark import Benchmark, Evaluation, File, Row
from training.evaluation.client import EvaluationError, NotServed, Service

NUM_BINS = 15
"""Of the calibration error, as Guo et al. have it, and of the curve."""
POSITIVE = ("positive", "pos", "1", "正面")


@dataclass(frozen=True)
class TextSet:
    """A labelled test set: its file, and how its rows are read."""

    name: str
    language: str
    file: File
    read: Callable[[pl.DataFrame | str], tuple[list[str], list[int]]]
    published: Mapping[str, float]
    is_table: bool = True


def score_texts(text_set: TextSet, service: Service, folder: Path | None) -> Evaluation:
    """Accuracy, and the expected calibration error (Guo et al. 2017), in percent. Raises DataError and EvaluationError."""
    content = text_set.file.read(folder)
    given = content.table() if text_set.is_table else content.payload.decode("utf-8", errors="replace")
    try:
        texts, labels = text_set.read(given)
    except (pl.exceptions.PolarsError, ValueError) as exc:
        raise DataError(f"{text_set.file.path}: cannot be parsed: {exc}") from exc
    model = _find_model(service, text_set.language)
    instances = [{"text": text} for text in texts]
    predictions = service.predict("/predict/sentiment", instances, {}, model=model)
    probabilities = np.array([_positive(answer) for answer in predictions])
    truth = np.array(labels)
    accuracy = 100 * float(((probabilities > 0.5) == (truth == 1)).mean())
    majority = 100 * max(float(truth.mean()), 1 - float(truth.mean()))
    rows = [
        Row(text_set.name, "accuracy, %", accuracy, {"majority": majority}, text_set.published),
        Row(text_set.name, "expected calibration error, %", 100 * calibration_error(probabilities, truth)),
    ]
    curves = {text_set.name: calibration_curve(probabilities, truth)}
    return Evaluation(text_set.name, rows, list(service.models), service.rows, service.seconds, curves)


def calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """How far the probabilities of the answers are from how often these are right, over bins of equal width: the expected
    calibration error, as training scores it (`training/scoring/labels.py`).
    """
    confidence = np.maximum(probabilities, 1 - probabilities)
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    is_right = (probabilities > 0.5) == (truth == 1)
    return float(np.abs(np.bincount(bins, confidence - is_right)).sum() / len(truth))


def calibration_curve(probabilities: np.ndarray, truth: np.ndarray) -> list[list[float]]:
    """Of each bin of the positive probability, its mean and the share of texts that were positive."""
    bins = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    owns = [bins == number for number in range(NUM_BINS)]
    return [[float(probabilities[own].mean()), float(truth[own].mean())] for own in owns if own.any()]


def _find_model(service: Service, language: str) -> str:
    """The one sentiment model for a language; of several, the one that is not for streams, as where a request names none.

    Raises NotServed where there is none, EvaluationError where there are several.
    """
    found = {str(model.get("name")): model.get("classify") for model in service.describe_models("classify")}
    blocks = {name: block for name, block in found.items() if isinstance(block, dict)}
    names = [name for name, block in blocks.items() if block.get("language") == language and _is_sentiment(block)]
    names = [name for name in names if not blocks[name].get("streaming")] or names
    if not names:
        raise NotServed(f"{service.url}: no sentiment model for the language {language!r}")
    if len(names) > 1:
        raise EvaluationError(f"{service.url}: several sentiment models for the language {language!r}: {', '.join(names)}")
    return names[0]


def _is_sentiment(block: Mapping[str, object]) -> bool:
    labels = block.get("labels")
    return block.get("subject") == "sentiment" or (isinstance(labels, list) and set(labels) == {"negative", "positive"})


def _positive(answer: Mapping[str, object]) -> float:
    probabilities = answer.get("probabilities")
    if isinstance(probabilities, dict):
        for name in POSITIVE:
            share = probabilities.get(name)
            if isinstance(share, float | int) and 0 <= share <= 1:
                return float(share)
    raise EvaluationError("a prediction has no probability of a positive text")


def _columns(text: str, label: str) -> Callable[[pl.DataFrame | str], tuple[list[str], list[int]]]:
    def read(table: pl.DataFrame | str) -> tuple[list[str], list[int]]:
        assert isinstance(table, pl.DataFrame)
        missing = [name for name in (text, label) if name not in table.columns]
        if missing:
            raise ValueError(f"there is no column {missing[0]!r} among {table.columns}")
        return table[text].cast(pl.String).to_list(), table[label].cast(pl.Int64).to_list()

    return read


def _lines(content: pl.DataFrame | str) -> tuple[list[str], list[int]]:
    assert isinstance(content, str)
    pairs: Sequence[tuple[str, str, str]] = [line.partition(" ") for line in content.splitlines() if line.strip()]
    return [text for _, _, text in pairs], [int(label) for label, _, _ in pairs]


_IMDB = TextSet(
    "imdb",
    "en",
    File("imdb/imdb_test.parquet", "92f4e4862853323c8b985b65d635de5eae50a618391f646020b326a724d3874f", "imdb"),
    _columns("text", "label"),
    {"NB-SVM, trigrams": 91.9, "pre-trained LSTM": 92.8, "BiLSTM, mixed objective": 95.7},
)
_SST2 = TextSet(
    "sst2",
    "en",
    File("sst2/test.txt", "6a80dc9b9a0db2d3b37f2f809304febad31c90ab67a5b4157b7d9f881c53ef5b", "sst2"),
    _lines,
    {"NB-SVM, phrases": 82.7, "Tree-LSTM, GloVe": 88.0},
    is_table=False,
)
_CHNSENTICORP = TextSet(
    "chnsenticorp",
    "zh",
    File(
        "chnsenticorp/test.tsv",
        "34f9d71eba6096cd8689e18913d28cf9a5f3c18a6c2804cd13304a321738c4bc",
        origin="ChnSentiCorp (Tan Songbo)",
    ),
    _columns("text_a", "label"),
    {"NB log-count LR, characters": 93.1, "Bi-LSTM": 89.8, "BERT": 95.0},
)
BENCHMARKS = (
    Benchmark("imdb", "film reviews, 25,000 of the test part; accuracy", partial(score_texts, _IMDB)),
    Benchmark("sst2", "Stanford sentiment treebank, 1,821 sentences of the test part; accuracy", partial(score_texts, _SST2)),
    Benchmark("chnsenticorp", "Chinese reviews, 1,200 of the test part; accuracy", partial(score_texts, _CHNSENTICORP)),
)
