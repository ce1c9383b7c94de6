"""Scores of probabilities against true labels. The measures are torchmetrics'."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional import classification

from training.scoring.evaluate import Scores

Int64 = npt.NDArray[np.int64]
NUM_BINS = 15
"""Of the calibration error, as Guo et al. have it."""


def score_labels(labels: Int64, probabilities: npt.NDArray[Any]) -> Scores:
    """accuracy, f1 (mean over labels), auroc (mean over labels) and the expected calibration error `ece`, all 0 to 1."""
    num_labels = probabilities.shape[1]
    predicted, truth = torch.from_numpy(np.asarray(probabilities, np.float32)), torch.from_numpy(labels)
    scores = {
        "accuracy": classification.multiclass_accuracy(predicted, truth, num_labels, average="micro"),
        "f1": classification.multiclass_f1_score(predicted, truth, num_labels, average="macro"),
    }
    if len(torch.unique(truth)) == num_labels:  # else some label's curve is undefined
        scores["auroc"] = classification.multiclass_auroc(predicted, truth, num_labels, average="macro")
    return {**{name: float(score) for name, score in scores.items()}, "ece": calibration_error(labels, probabilities)}


def calibration_error(labels: Int64, probabilities: npt.NDArray[Any]) -> float:
    """How far the answers' probabilities are from how often they are right: the expected calibration error over bins of equal
    width (Guo et al. 2017, arXiv:1706.04599).
    """
    scores = np.asarray(probabilities.max(1), np.float64)
    bins = np.minimum((scores * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    distances = np.bincount(bins, scores - (probabilities.argmax(1) == labels), minlength=NUM_BINS)
    return float(np.abs(distances).sum() / len(labels))


def confusion_counts(labels: Int64, probabilities: npt.NDArray[Any]) -> Int64:
    """How many rows of each label (row) were taken for each label (column)."""
    num_labels = probabilities.shape[1]
    counts = np.bincount(labels * num_labels + probabilities.argmax(1), minlength=num_labels**2)
    return counts.reshape(num_labels, num_labels).astype(np.int64)
