"""Sentiment benchmarks: the model is the one of the language, and calibration is measured over ten bins."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.evaluation.answering import Answer, answering
from training.data.sources import DataError
from training.evaluation.benchmark import File
from training.evaluation.client import EvaluationError, NotServed, Service
from training.evaluation.texts import TextSet, _columns, _lines, calibration_curve, calibration_error, score_texts
from training.scoring import labels

LINES = "1 good\n0 bad\n1 bad\n0 bad\n"


def text_set(folder: Path, text: str = LINES, language: str = "en") -> TextSet:
    (folder / "test.txt").write_text(text)
    return TextSet(
        "toy", language, File("test.txt", hashlib.sha256(text.encode()).hexdigest()), _lines, {"record": 99.0}, is_table=False
    )


def respond(path: str, body: Any) -> Answer:
    stream = {"language": "en", "subject": "sentiment", "streaming": True}
    blocks = {
        "stream": stream,
        "en": {"language": "en", "subject": "sentiment"},
        "topics": {"language": "en", "labels": ["a", "b"]},
    }
    if path == "/models":
        return 200, {"models": [{"name": name, "task": "classify"} for name in blocks]}
    if path.startswith("/models/"):
        name = path.rpartition("/")[2]
        return 200, {"name": name, "classify": blocks[name]}
    assert body["model"] == "en"
    positive = [0.9 if instance["text"] == "good" else 0.2 for instance in body["instances"]]
    predictions = [{"probabilities": {"negative": 1 - share, "positive": share}} for share in positive]
    return 200, {"model": "en", "version": "1", "predictions": predictions}


def test_accuracy_stands_beside_the_majority(tmp_path: Path) -> None:
    with answering(respond) as url, Service(url) as service:
        found = score_texts(text_set(tmp_path), service, tmp_path)
    accuracy, error = found.rows
    assert (accuracy.score, accuracy.baselines, accuracy.published) == (75, {"majority": 50}, {"record": 99.0})
    assert error.score == pytest.approx(100 * (0.25 * 0.1 + 0.75 * abs(0.2 - 1 / 3)))


def test_a_language_that_no_model_serves_is_said(tmp_path: Path) -> None:
    message = "no sentiment model for the language 'zh'"
    with answering(respond) as url, Service(url) as service, pytest.raises(NotServed, match=message):
        score_texts(text_set(tmp_path, language="zh"), service, tmp_path)


def test_a_file_that_cannot_be_parsed_is_refused(tmp_path: Path) -> None:
    with answering(respond) as url, Service(url) as service, pytest.raises(DataError, match=r"test\.txt: cannot be parsed"):
        score_texts(text_set(tmp_path, "good 1\n"), service, tmp_path)


@pytest.mark.parametrize(
    "prediction",
    [
        {},
        {"probabilities": [0.5]},
        {"probabilities": {"positive": "much"}},
        {"probabilities": {"positive": float("nan")}},
        {"probabilities": {"positive": 1.5}},
        {"probabilities": {"good": 0.5}},
    ],
)
def test_an_answer_without_probabilities_is_an_error(prediction: Any, tmp_path: Path) -> None:
    def without(path: str, body: Any) -> Answer:
        return respond(path, body) if body is None else (200, {"predictions": [prediction] * len(body["instances"])})

    with answering(without) as url, Service(url) as service, pytest.raises(EvaluationError, match="no probability"):
        score_texts(text_set(tmp_path), service, tmp_path)


def test_another_content_than_the_benchmarks_is_refused_and_a_missing_file_says_where_it_is_from(tmp_path: Path) -> None:
    given = text_set(tmp_path)
    (tmp_path / "test.txt").write_text(LINES.replace("1 good", "0 good"))
    with answering(respond) as url, Service(url) as service:
        with pytest.raises(DataError, match=r"test\.txt: is not the content that the recipe names: expected sha256"):
            score_texts(given, service, tmp_path)
        (tmp_path / "test.txt").unlink()
        with pytest.raises(DataError, match=r"no file .*test\.txt"):
            score_texts(given, service, tmp_path)
        assert service.rows == 0


def test_a_table_without_the_columns_is_refused() -> None:
    import polars as pl

    with pytest.raises(ValueError, match="there is no column 'text'"):
        _columns("text", "label")(pl.DataFrame({"label": [1]}))


def test_calibration_is_perfect_where_shares_are_as_probabilities() -> None:
    probabilities, truth = np.array([0.25] * 4), np.array([1, 0, 0, 0])
    assert calibration_error(probabilities, truth) == 0
    assert calibration_curve(probabilities, truth) == [[0.25, 0.25]]


def test_the_calibration_error_is_that_of_training() -> None:
    random = np.random.default_rng(0)
    probabilities = random.random(500).astype(np.float32).astype(np.float64)
    truth = (random.random(500) < probabilities**2).astype(np.int64)
    both = np.stack([1 - probabilities, probabilities], 1)
    assert calibration_error(probabilities, truth) == pytest.approx(labels.calibration_error(truth, both))
