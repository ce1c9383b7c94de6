"""A runtime that stands in for another."""

from __future__ import annotations

import numpy as np

from service.runtime.base import CPU, FallbackRuntime
from service.runtime.onnx_runtime import open_runtime
from service.runtime.tensors import Tensors
from tests.fakes import sum_graph


def test_a_runtime_that_stands_in_runs_the_graph_and_has_the_reason() -> None:
    real = open_runtime(sum_graph())
    runtime = FallbackRuntime(real, "auto", "wrong answers")
    assert (runtime.requested, runtime.provider, runtime.fallback) == ("auto", CPU, "wrong answers")
    assert (runtime.inputs, runtime.outputs) == (real.inputs, real.outputs)
    tensors: Tensors = {"history": np.ones((1, 2, 1), np.float32), "lengths": np.array([2])}
    assert runtime.run(tensors)["mean"].ravel().tolist() == [2.0]
