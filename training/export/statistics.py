"""Statistics of the training part for the manifest: a histogram of each feature of its rows, to measure drift against.

What is measured of a row is measured by the service in the same way (`Task.measure` in `service/tasks`); a test holds the two to
the same numbers. Fits nothing and knows no network: it takes a graph, rows, and what the manifest says of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.scoring.evaluate import Graph

Array = NDArray[Any]
Tensors = Mapping[str, Array]

LEVELS = np.arange(1, 10) / 10
"""Deciles, as scorecards use them."""
MAX_FEATURES, MAX_LABELS, MAX_NAME = 32, 32, 300
"""Of a manifest. Of a classifier with more labels, which label is answered is not watched."""
DIGITS = 6


def collect_statistics(
    graph: Graph, batches: Iterable[Tensors], manifest: Mapping[str, Any], unknown_id: int | None = None
) -> dict[str, Any] | None:
    """The manifest's block `statistics` for batches of rows, as the graph takes them; None where nothing can be watched.

    `manifest` has `task`, `inputs`, `outputs`, `state` and the block of the task, `unknown_id` is the tokenizer's.
    """
    found: dict[str, list[Array]] = {}
    num_rows = 0
    for batch in batches:
        outputs = graph.run(batch)
        num_rows += len(next(iter(batch.values())))
        for name, values in measure(batch, outputs, manifest, unknown_id).items():
            found.setdefault(name, []).append(np.asarray(values, np.float64))
    features = []
    for name, parts in list(found.items())[:MAX_FEATURES]:
        values = np.concatenate(parts)
        values = values[np.isfinite(values)]
        num_labels = len(manifest["classify"]["labels"]) if name == "label" else 0
        if len(values) and len(name) <= MAX_NAME and num_labels <= MAX_LABELS:
            features.append(describe_feature(name, values, num_labels))
    return {"num_rows": num_rows, "features": features} if features else None


def measure(inputs: Tensors, outputs: Tensors, manifest: Mapping[str, Any], unknown_id: int | None = None) -> dict[str, Array]:
    """Feature → a value for each row of a batch."""
    task, block = manifest["task"], manifest.get(manifest["task"], {})
    if task == "classify":
        tokens, lengths, probabilities = inputs["tokens"], inputs["lengths"], outputs["probabilities"]
        is_own = np.arange(tokens.shape[1]) < lengths[:, None]
        return {
            "length": lengths,
            "unknown_tokens": (is_own & (tokens == unknown_id)).sum(axis=1) / lengths,
            "label": probabilities.argmax(axis=1),
            "score": probabilities.max(axis=1),
        }
    if task == "forecast":
        history, lengths = inputs["history"], inputs["lengths"]
        last, forecast = history[np.arange(len(history)), lengths - 1], outputs["forecast"].mean(axis=1)
        return {
            **({} if manifest.get("state") else {"length": lengths}),
            **{f"input.{name}": last[:, index] for index, name in enumerate(block["features"])},
            **{f"output.{name}": forecast[:, index] for index, name in enumerate(block["targets"])},
        }
    state = {pair[side] for pair in manifest.get("state", ()) for side in ("input", "output")}
    found = {}
    for kind, entries, tensors in (("input", manifest["inputs"], inputs), ("output", manifest["outputs"], outputs)):
        for entry in entries:
            name, shape = entry["name"], entry["shape"]
            if entry["datatype"] in ("FP16", "FP32", "FP64") and name not in state and name in tensors:
                found[f"{kind}.{name}"] = _row_means(tensors[name], inputs.get("lengths"), shape)
    return found


def describe_feature(name: str, values: Array, num_labels: int = 0) -> dict[str, Any]:
    """The histogram of a feature: its deciles, with bins for what is below and above all values; of labels, a bin for each."""
    if num_labels:
        edges = np.arange(num_labels - 1) + 0.5
    else:
        low, high = values.min(), values.max()
        rounded = [float(f"{edge:.{DIGITS}g}") for edge in np.quantile(values, LEVELS)]
        edges = np.unique([np.nextafter(low, -np.inf), *(edge for edge in rounded if low <= edge < high), high])
    counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
    return {"name": name, "edges": edges.tolist(), "shares": _shares(counts)}


def _shares(counts: Array) -> list[float]:
    return [round(float(share), DIGITS) for share in counts / counts.sum()]


def _row_means(values: Array, lengths: Array | None, shape: Sequence[int | str]) -> Array:
    if "time" not in shape or lengths is None:
        whole: Array = values.reshape(len(values), -1).mean(axis=1, dtype=np.float64)
        return whole
    axis = list(shape).index("time")
    moved = np.moveaxis(values, axis, 1).reshape(len(values), values.shape[axis], -1)  # (B, T, N)
    is_own = np.arange(moved.shape[1]) < lengths[:, None]
    means: Array = np.where(is_own[..., None], moved, 0).sum(axis=(1, 2), dtype=np.float64) / (lengths * moved.shape[2])
    return means
