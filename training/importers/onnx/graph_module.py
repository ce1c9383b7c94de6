"""A file's graph as a torch module that answers rows, batch first: what a served graph is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.importers.onnx.layout import FileInput


class GraphModule(nn.Module):
    """The graph by onnxruntime. Takes the inputs in their order and gives the outputs in theirs, one or a tuple of them.

    All tensors are batch first, in the types that are served; `output_axes` says where the graph has an output's rows, and
    None that it gives one row alone and has no axis for it. Inputs of state that are left out are zero, lengths those of the
    rows whole.
    """

    def __init__(self, graph: bytes, inputs: Sequence[FileInput]) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(inputs)
        self.output_names = [entry.name for entry in self.session.get_outputs()]
        self.output_axes: dict[str, int | None] = dict.fromkeys(self.output_names, 0)

    def forward(self, *tensors: Tensor) -> Any:
        arrays = {entry.name: tensor.numpy() for entry, tensor in zip(self.inputs, tensors, strict=False)}
        found = self.run(arrays)
        outputs = [torch.from_numpy(np.ascontiguousarray(_served(self._rows_first(found[name], name)))) for name in found]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The graph's own outputs for arrays that are batch first, by the inputs' served names."""
        return dict(zip(self.output_names, self.session.run(None, self.feed(arrays)), strict=True))

    def feed(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """What the graph is fed for arrays that are batch first."""
        return as_feed(self.inputs, arrays)

    def _rows_first(self, array: NDArray[Any], name: str) -> NDArray[Any]:
        axis = self.output_axes[name]
        return array[None] if axis is None else np.moveaxis(array, axis, 0)


def as_feed(inputs: Sequence[FileInput], arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Arrays that are batch first, by the inputs' served names, as a file's graph takes them."""
    num_rows = len(next(iter(arrays.values())))
    feed = {}
    for entry in inputs:
        if entry.name in arrays:
            array = np.moveaxis(arrays[entry.name], 0, entry.batch_axis)
        elif entry.role == "lengths":
            first = arrays[inputs[0].name]
            array = np.full(num_rows, first.shape[1] if first.ndim > 1 else 1)
        else:
            assert entry.role == "state"
            sizes = [size for size in entry.row_dims if isinstance(size, int)]
            array = np.moveaxis(np.zeros([num_rows, *sizes]), 0, entry.batch_axis)
        feed[entry.port.name] = np.ascontiguousarray(array.astype(entry.port.dtype))
    return feed


def _served(array: NDArray[Any]) -> NDArray[Any]:
    """In the type that is served."""
    wanted = np.bool_ if array.dtype.kind == "b" else np.int64 if array.dtype.kind in "iu" else np.float32
    return array.astype(wanted)
