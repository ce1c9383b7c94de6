"""The graph of a model folder without a server: its outputs, which servers' responses are verified against, and its throughput.

One thread, no JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workloads import Instance
from service.runtime.onnx_runtime import open_runtime
from service.runtime.tensors import Array, Tensors
from service.tasks.tokenization import load_tokenizer

BATCH_SIZES = (1, 4, 8, 16, 32, 64, 128)


class BareGraph:
    """`model.onnx` of a version folder, whose task is forecast (of one feature) or classify."""

    def __init__(self, folder: Path) -> None:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.runtime = open_runtime(folder / "model.onnx", "cpu")
        self._spec = manifest[manifest["task"]]
        self._tokenizer = load_tokenizer(folder / self._spec["tokenizer"]) if manifest["task"] == "classify" else None

    def encode(self, instances: Sequence[Instance]) -> list[Array]:
        """The graph's input for each instance: values (T, 1) or token ids (T,)."""
        if self._tokenizer is None:
            return [np.array(instance["history"], np.float32)[:, None] for instance in instances if isinstance(instance, dict)]
        texts = [instance for instance in instances if isinstance(instance, str)]
        truncation = self._spec["truncation"]
        encodings = self._tokenizer.encode(texts, self._spec["max_length"], truncation["head"], truncation["tail"])
        return [np.array(ids, np.int64) for ids, _ in encodings]

    def run_each(self, instances: Sequence[Instance]) -> list[Tensors]:
        """Per instance the outputs by name, without the batch axis; each instance is a batch of its own."""
        outputs = [self.runtime.run(self._batch([row])) for row in self.encode(instances)]
        return [{name: array[0] for name, array in output.items()} for output in outputs]

    def measure_rows_per_s(self, rows: Sequence[Array], batch_size: int, duration_s: float) -> float:
        """Rows per second of the graph on these rows, `batch_size` at a time, over and over.

        Rows of similar length share a batch: no server, which gets them in any order, can group so well.
        """
        ordered = sorted(rows, key=len)
        batches = [self._batch(ordered[start : start + batch_size]) for start in range(0, len(ordered), batch_size)]
        self.runtime.run(batches[-1])
        num_rows, started = 0, time.perf_counter()
        # Whole passes only: the short rows come first.
        while num_rows == 0 or time.perf_counter() - started < duration_s:
            for batch in batches:
                self.runtime.run(batch)
            num_rows += len(rows)
        return num_rows / (time.perf_counter() - started)

    def measure_best(self, rows: Sequence[Array], duration_s: float) -> tuple[float, int]:
        """Rows per second at the best batch size, and that size; `duration_s` for each size."""
        return max((self.measure_rows_per_s(rows, size, duration_s), size) for size in BATCH_SIZES)

    def _batch(self, rows: Sequence[Array]) -> Tensors:
        lengths = np.array([len(row) for row in rows], np.int64)
        padded = np.zeros((len(rows), lengths.max(), *rows[0].shape[1:]), rows[0].dtype)
        for target, row in zip(padded, rows, strict=True):
            target[: len(row)] = row
        tensors: Tensors = {"tokens" if self._tokenizer else "history": padded, "lengths": lengths}
        for spec in self.runtime.inputs:
            if spec.name not in tensors:  # a state, which starts from zeros
                tensors[spec.name] = np.zeros((len(rows), *(int(size) for size in spec.shape[1:])), np.float32)
        return tensors
