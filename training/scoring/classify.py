"""Probabilities of the test texts: by the graph, and by scikit-learn's baselines without any network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from training.data.series import Float32, Int64
from training.data.texts import Texts, collate
from training.scoring.evaluate import Graph


def classify_rows(graph: Graph, rows: Sequence[Int64], batch_size: int) -> Float32:
    """Probabilities (N, labels) of token rows, batched by length, in the order given."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    probabilities: Float32 | None = None
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([rows[i] for i in chosen], np.zeros(len(chosen), np.int64))
        answer = graph.run({"tokens": batch.tokens, "lengths": batch.lengths})["probabilities"]
        if probabilities is None:
            probabilities = np.empty((len(rows), answer.shape[1]), np.float32)
        probabilities[chosen] = answer
    assert probabilities is not None, "no rows"
    return probabilities


def classify_baseline(
    name: str, train: Texts, tests: Mapping[str, Texts], num_labels: int, replacements: Mapping[str, str]
) -> dict[str, npt.NDArray[np.float64]]:
    """Probabilities (N, labels) for each test set: of the labels' shares, or of TF-IDF and logistic regression."""
    if name == "majority":
        shares = np.bincount(train.labels, minlength=num_labels) / len(train)
        return {key: np.tile(shares, (len(test), 1)) for key, test in tests.items()}
    # Words and pairs, as Wang and Manning (2012) found strong; characters where words are not separated by spaces.
    has_words = np.mean([text.count(" ") / max(1, len(text)) for text in train.texts[:1000]]) > 0.05
    vectorizer = TfidfVectorizer(
        analyzer="word" if has_words else "char",
        token_pattern=r"(?u)\b\w+\b" if has_words else None,
        ngram_range=(1, 2),
        min_df=2 if len(train) > 100 else 1,
        sublinear_tf=True,
        max_features=200_000,
    )
    model = make_pipeline(vectorizer, LogisticRegression(C=10.0, max_iter=1000))
    model.fit(_clean(train.texts, replacements), train.labels)
    answers = {}
    for key, test in tests.items():
        probabilities = np.zeros((len(test), num_labels))
        probabilities[:, model.classes_] = model.predict_proba(_clean(test.texts, replacements))
        answers[key] = probabilities
    return answers


def _clean(texts: Sequence[str], replacements: Mapping[str, str]) -> list[str]:
    cleaned = list(texts)
    for old, new in replacements.items():
        cleaned = [text.replace(old, new) for text in cleaned]
    return cleaned
