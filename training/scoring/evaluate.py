"""The graph itself, run as the service will run it, to be scored. Knows no task, fits nothing; needs onnxruntime alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

Scores = dict[str, float]


class Graph:
    """A serialised ONNX model, ready to run on the CPU."""

    def __init__(self, payload: bytes, *, num_threads: int = 0) -> None:
        """`num_threads` 0: as many as there are cores."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = num_threads
        self._session = onnxruntime.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        self._inputs = {entry.name: entry.shape for entry in self._session.get_inputs()}

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name; recurrent state, the inputs that are not given, starts from zeros."""
        num_rows = len(next(iter(inputs.values())))
        states = {name: np.zeros((num_rows, shape[1]), np.float32) for name, shape in self._inputs.items() if name not in inputs}
        return dict(zip(self._names, self._session.run(None, {**inputs, **states}), strict=True))
