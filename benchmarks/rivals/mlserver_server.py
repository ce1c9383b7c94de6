"""MLServer with its adaptive batching and a pool of inference workers, one per core. Runs in MLServer's environment.

As docs.seldon.ai/mlserver advises: user-guide/adaptive-batching (`max_batch_size` and `max_batch_time`, found by
measuring), user-guide/parallel-inference (`parallel_workers`), user-guide/custom. Settings are environment variables, see
`benchmarks.rivals.registry`.

MLServer joins the flat data of several requests and keeps the shape of the first, so that a history of shape [n, time] comes
out wrong when lengths differ. Sent flat with the lengths beside it, as here, ragged requests share a batch and are right:
how many instances a request has is taken from its last input, so `lengths` has to be that.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.rivals.graph import Graph, Prediction
from benchmarks.rivals.options import read_options


class GraphModel(MLModel):
    """The inputs are `history` and `lengths`, or `text`; the outputs are the graph's."""

    async def load(self) -> bool:
        self._graph = Graph(Path(self.settings.parameters.uri), read_options().num_threads)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        predictions = self._graph.predict(self._instances(payload))
        outputs = [NumpyCodec.encode_output(name, _column(name, predictions)) for name in predictions[0]]
        return InferenceResponse(model_name=self.name, outputs=outputs)

    def _instances(self, payload: InferenceRequest) -> list[Any]:
        inputs = {tensor.name: tensor for tensor in payload.inputs}
        if self._graph.task == "classify":
            texts: list[str] = StringCodec.decode_input(inputs["text"])
            return texts
        values = inputs["history"].data.root
        return [{"history": values[end - length : end]} for end, length in _ends(inputs["lengths"].data.root)]


def _ends(lengths: Iterable[int]) -> Iterable[tuple[int, int]]:
    """Where each history ends in the flat values, with its length."""
    end = 0
    for length in lengths:
        end += length
        yield end, length


def _column(name: str, predictions: list[Prediction]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([prediction[name] for prediction in predictions], np.float32)
