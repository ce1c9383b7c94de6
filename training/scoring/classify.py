"""Probabilities of the test texts: by the graph, and by scikit-learn's baselines without any network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from training.data.series import Float32, Int64
from training.data.texts import Texts, collate
from training.scoring.evaluate import Graph

SMALLEST = 1e-7
"""The least probability of which the logarithm is taken."""


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


def join_pieces(probabilities: Float32, texts: Int64) -> Float32:
    """Probabilities (N, labels) of texts from those of their rows; `texts` (rows,) are the texts' numbers, ascending.

    Of a text in several pieces the logarithms are averaged, as the service does: the logits, with a sigmoid or a softmax.
    """
    counts = np.bincount(texts)
    if (counts == 1).all():
        return probabilities
    logarithms = np.log(np.maximum(probabilities, SMALLEST))
    sums = np.zeros((len(counts), probabilities.shape[1]))
    np.add.at(sums, texts, logarithms)
    joined = np.exp(sums / counts[:, None])
    joined /= joined.sum(1, keepdims=True)
    is_whole = counts == 1
    joined[is_whole] = probabilities[is_whole[texts]]
    return joined.astype(np.float32)


def classify_baseline(
    name: str, train: Texts, tests: Mapping[str, Texts], num_labels: int, replacements: Mapping[str, str]
) -> dict[str, npt.NDArray[np.float64]]:
    """Probabilities (N, labels) for each test set: of the labels' shares (`majority`), of TF-IDF and logistic regression, or of
    logistic regression on naive Bayes log-count ratios (`nb_logistic`). Neutral texts are left out.
    """
    if name == "majority":
        counts = np.bincount(train.labels[train.labels >= 0], minlength=num_labels)
        shares = counts / counts.sum()
        return {key: np.tile(shares, (len(test), 1)) for key, test in tests.items()}
    train = Texts(
        tuple(text for text, label in zip(train.texts, train.labels, strict=True) if label >= 0), train.labels[train.labels >= 0]
    )
    if name == "nb_logistic":
        found = _naive_bayes(
            _clean(train.texts, replacements),
            train.labels,
            [_clean(test.texts, replacements) for test in tests.values()],
            num_labels,
        )
        return dict(zip(tests, found, strict=True))
    # Words and pairs, as Wang and Manning (2012) found strong; characters where words are not separated by spaces.
    has_words = _has_words(train.texts)
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


def _naive_bayes(
    texts: Sequence[str], labels: Int64, tests: Sequence[Sequence[str]], num_labels: int
) -> list[npt.NDArray[np.float64]]:
    """Logistic regression on which n-grams a text has, times their log-count ratio (Wang and Manning 2012): of words up to three,
    or of characters up to two where words are not separated. More than two labels are each fitted against the rest.
    """
    has_words = _has_words(texts)
    vectorizer = CountVectorizer(
        analyzer="word" if has_words else "char",
        token_pattern=r"(?u)\b\w+\b|[^\w\s]" if has_words else None,
        ngram_range=(1, 3) if has_words else (1, 2),
        min_df=2 if len(texts) > 100 else 1,
        binary=True,
        dtype=np.float32,
    )
    features = vectorizer.fit_transform(texts)
    others = [vectorizer.transform(test) for test in tests]
    scores = [np.zeros((len(test), num_labels)) for test in tests]
    for label in range(1 if num_labels == 2 else 0, num_labels):
        is_label = labels == label
        counts = [1.0 + np.asarray(features[rows].sum(0), np.float64)[0] for rows in (is_label, ~is_label)]
        ratio = sparse.diags(np.log(counts[0] / counts[0].sum()) - np.log(counts[1] / counts[1].sum()))
        model = LogisticRegression(solver="liblinear", dual=True, max_iter=200).fit(features @ ratio, is_label)
        for score, other in zip(scores, others, strict=True):
            score[:, label] = model.predict_proba(other @ ratio)[:, 1]
    for score in scores:
        if num_labels == 2:
            score[:, 0] = 1 - score[:, 1]
        score /= score.sum(1, keepdims=True)
    return scores


def _has_words(texts: Sequence[str]) -> bool:
    return bool(np.mean([text.count(" ") / max(1, len(text)) for text in texts[:1000]]) > 0.05)


def _clean(texts: Sequence[str], replacements: Mapping[str, str]) -> list[str]:
    cleaned = list(texts)
    for old, new in replacements.items():
        cleaned = [text.replace(old, new) for text in cleaned]
    return cleaned
