"""Answers of the test rows by scikit-learn's baselines, and the scores of predicted numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training.data.rows import RowSplit
from training.scoring.evaluate import Scores


def score_numbers(truth: npt.NDArray[Any], answers: npt.NDArray[Any], targets: Sequence[str]) -> Scores:
    """mae, rmse and r2 of (N, targets), each the mean over the targets, and mae of each where there are several."""
    error = answers.astype(np.float64) - truth
    spread = np.maximum(truth.astype(np.float64).var(0), np.finfo(np.float64).tiny)
    scores = {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean(0)).mean()),
        "r2": float((1 - (error**2).mean(0) / spread).mean()),
    }
    if len(targets) > 1:
        scores |= {f"mae_{target}": float(found) for target, found in zip(targets, np.abs(error).mean(0), strict=True)}
    return scores


def row_baseline(name: str, split: RowSplit) -> npt.NDArray[np.float64]:
    """Probabilities (N, labels) or numbers (N, targets) of the test rows, by scikit-learn on standardised features."""
    train, num_rows = split.train, len(split.test)
    if name == "majority":
        shares = np.bincount(train.answers, minlength=len(split.labels)) / len(train)
        return np.tile(shares, (num_rows, 1))
    if name == "average":
        return np.tile(train.answers.mean(0, dtype=np.float64), (num_rows, 1))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000) if split.labels else Ridge())
    model.fit(train.values.astype(np.float64), train.answers)
    given = split.test.values.astype(np.float64)
    if not split.labels:
        return np.asarray(model.predict(given), dtype=np.float64).reshape(num_rows, -1)
    found = np.zeros((num_rows, len(split.labels)))
    found[:, model.classes_] = model.predict_proba(given)
    return found
