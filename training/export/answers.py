"""The graph's answers in the service's JSON, for `example.json`. The contract tests compare both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def format_forecast(answer: Mapping[str, Any], levels: list[float]) -> dict[str, Any]:
    """The graph's answer for one row as a prediction; flat lists where there is one target."""

    def plain(values: Any) -> Any:
        values = values[:, 0] if values.shape[1] == 1 else values
        return np.vectorize(lambda value: float(f"{value:.7g}"), otypes=[float])(values).tolist()

    prediction = {"forecast": plain(answer["forecast"][0])}
    if levels:
        prediction["quantiles"] = {f"{level:.12g}": plain(answer["quantiles"][0, ..., i]) for i, level in enumerate(levels)}
    return prediction


def format_stream(answer: Mapping[str, Any], levels: list[float], is_missing: Any) -> dict[str, Any]:
    """`format_forecast` with the anomaly scores of one row, None where `is_missing` (T, targets)."""

    def plain(scores: Any, missing: Any) -> list[Any]:
        return [None if gone else float(f"{score:.7g}") for score, gone in zip(scores.tolist(), missing.tolist(), strict=True)]

    scores = answer["anomaly"][0, : len(is_missing)]
    columns = [plain(*pair) for pair in zip(scores.T, np.asarray(is_missing).T, strict=True)]
    rows = columns[0] if len(columns) == 1 else [list(row) for row in zip(*columns, strict=True)]
    return {**format_forecast(answer, levels), "anomaly": rows}


def format_classify(
    probabilities: Any, labels: Sequence[str], is_truncated: bool, *, known: int | None = None, is_uncertain: bool = False
) -> dict[str, Any]:
    """One row of probabilities as a prediction of POST /predict; `known`: how many of its tokens are, where that is told."""
    values = [float(f"{value:.7g}") for value in probabilities]
    best = int(np.argmax(probabilities))
    prediction: dict[str, Any] = {
        "label": labels[best],
        "score": values[best],
        "probabilities": dict(zip(labels, values, strict=True)),
    }
    if is_truncated:
        prediction["truncated"] = True
    if known is not None:
        prediction["known_tokens"] = known
    if is_uncertain:
        prediction["uncertain"] = True
    return prediction
