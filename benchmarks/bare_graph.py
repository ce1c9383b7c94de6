"""The graph of a model folder without a server: its own answers, and how many rows a second it does in a loop.

One thread, no JSON. What the graph answers is the truth that servers' answers are held against.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.questions import Instance
from service.runtime.onnx_runtime import open_runtime
from service.runtime.tensors import Array, Tensors
from service.tasks.tokenization import load_tokenizer

BATCH_SIZES = (1, 4, 8, 16, 32, 64, 128)


class BareGraph:
    """`model.onnx` of a version folder, whose task is forecast (of one feature) or classify."""

    def __init__(self, folder: Path) -> None:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.runtime = open_runtime(folder / "model.onnx", "cpu")
        self._face = manifest[manifest["task"]]
        self._tokenizer = load_tokenizer(folder / self._face["tokenizer"]) if manifest["task"] == "classify" else None

    def rows(self, instances: Sequence[Instance]) -> list[Array]:
        """What the graph reads of each instance: values (T, 1) or token ids (T,)."""
        if self._tokenizer is None:
            return [np.array(instance["history"], np.float32)[:, None] for instance in instances if isinstance(instance, dict)]
        texts = [instance for instance in instances if isinstance(instance, str)]
        cut = self._face["truncation"]
        encodings = self._tokenizer.encode(texts, self._face["max_length"], cut["head"], cut["tail"])
        return [np.array(ids, np.int64) for ids, _ in encodings]

    def answers(self, instances: Sequence[Instance]) -> list[Tensors]:
        """Per instance the outputs by name, without the batch axis; each instance is asked alone."""
        outputs = [self.runtime.run(self._batch([row])) for row in self.rows(instances)]
        return [{name: array[0] for name, array in output.items()} for output in outputs]

    def rows_per_s(self, rows: Sequence[Array], batch_size: int, duration_s: float) -> float:
        """Rows of these that the graph runs per second, `batch_size` at a time, again and again.

        Rows of similar length share a batch: no server, to which they come in any order, can choose so well.
        """
        ordered = sorted(rows, key=len)
        batches = [self._batch(ordered[start : start + batch_size]) for start in range(0, len(ordered), batch_size)]
        self.runtime.run(batches[-1])
        num_rows, started = 0, time.perf_counter()
        # Whole turns only: the short ones come first.
        while num_rows == 0 or time.perf_counter() - started < duration_s:
            for batch in batches:
                self.runtime.run(batch)
            num_rows += len(rows)
        return num_rows / (time.perf_counter() - started)

    def best(self, rows: Sequence[Array], duration_s: float) -> tuple[float, int]:
        """Rows per second at the best batch size, and that size; `duration_s` for each size."""
        return max((self.rows_per_s(rows, size, duration_s), size) for size in BATCH_SIZES)

    def _batch(self, rows: Sequence[Array]) -> Tensors:
        lengths = np.array([len(row) for row in rows], np.int64)
        padded = np.zeros((len(rows), lengths.max(), *rows[0].shape[1:]), rows[0].dtype)
        for place, row in zip(padded, rows, strict=True):
            place[: len(row)] = row
        tensors: Tensors = {"tokens" if self._tokenizer else "history": padded, "lengths": lengths}
        for spec in self.runtime.inputs:
            if spec.name not in tensors:  # a state, which starts from zeros
                tensors[spec.name] = np.zeros((len(rows), *(int(size) for size in spec.shape[1:])), np.float32)
        return tensors
