"""The graph of a model folder, run as a user of the rivals would: numpy, onnxruntime, tokenizers. Nothing of Sluice.

Several rows share one run, padded with zeros to the longest; the graph gets their true `lengths`, so that ragged requests can
share a batch. Predictions are the graph's outputs as plain lists, one dict per instance.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

Prediction = dict[str, Any]
"""One row of each output of the graph by its name: {"forecast": [..], "quantiles": [..]} or {"probabilities": [..]}."""


class Graph:
    """The graph of a folder with model.onnx, manifest.json and, for texts, tokenizer.json.

    `num_threads` are onnxruntime's intra-op threads; None is its default, one per core.
    """

    def __init__(self, folder: Path, num_threads: int | None) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        self.task: str = manifest["task"]
        options = ort.SessionOptions()
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        self._session = ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        inputs = self._session.get_inputs()
        # The state of a network that can stream starts from zeros.
        self._states = {node.name: node.shape[1:] for node in inputs if node.name not in ("history", "tokens", "lengths")}
        if self.task == "classify":
            spec = manifest["classify"]
            self._tokenizer = Tokenizer.from_file(str(folder / spec["tokenizer"]))
            self._max_length: int = spec["max_length"]
            self._truncation: dict[str, int] = spec["truncation"]

    def predict(self, instances: Sequence[Any]) -> list[Prediction]:
        """Predictions for instances as they are in a request: {"history": [..]} or a text, by the folder's task."""
        if self.task == "classify":
            return self.run_texts(instances)
        return self.run([instance["history"] for instance in instances])

    def predict_arrays(self, instances: Sequence[Any]) -> list[dict[str, np.ndarray[Any, np.dtype[np.float32]]]]:
        """The same as arrays, which are rows of the run's outputs."""
        rows = self._encode(instances) if self.task == "classify" else [instance["history"] for instance in instances]
        outputs = self._run(rows)
        return [dict(zip(self._outputs, row, strict=True)) for row in zip(*outputs, strict=True)]

    def run(self, histories: Sequence[Sequence[float]]) -> list[Prediction]:
        """Forecast every history, in order."""
        return self._to_lists(self._run(histories))

    def run_texts(self, texts: Sequence[str]) -> list[Prediction]:
        """Classify every text, in order; of a long one the head and the tail are read."""
        return self._to_lists(self._run(self._encode(texts)))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._truncate(encoding.ids) for encoding in self._tokenizer.encode_batch(list(texts))]

    def _truncate(self, ids: list[int]) -> list[int]:
        if len(ids) <= self._max_length:
            return ids
        return ids[: self._truncation["head"]] + ids[len(ids) - self._truncation["tail"] :]

    def _run(self, rows: Sequence[Sequence[float]]) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        name, dtype = ("tokens", np.int64) if self.task == "classify" else ("history", np.float32)
        lengths = np.array([len(row) for row in rows], np.int64)
        padded = np.zeros((len(rows), lengths.max()), dtype)  # (B, T)
        for index, row in enumerate(rows):
            padded[index, : len(row)] = row
        states = {state: np.zeros((len(rows), *shape), np.float32) for state, shape in self._states.items()}
        values = padded[..., None] if name == "history" else padded
        outputs: list[np.ndarray[Any, np.dtype[np.float32]]] = self._session.run(
            None, {name: values, "lengths": lengths, **states}
        )
        return outputs

    def _to_lists(self, outputs: Sequence[np.ndarray[Any, np.dtype[np.float32]]]) -> list[Prediction]:
        columns = [output.tolist() for output in outputs]
        return [dict(zip(self._outputs, row, strict=True)) for row in zip(*columns, strict=True)]
