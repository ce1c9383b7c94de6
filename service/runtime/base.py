"""What runs a graph, as the rest of the service sees it: named tensors in, named tensors out, on a device.

Knows no library: `onnx_runtime.py` is the one that is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from service.runtime.tensors import Tensors, TensorSpec

Device = Literal["cpu", "cuda", "tensorrt", "auto"]
# Providers, by onnxruntime's names.
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"


class Runtime(Protocol):
    """A loaded graph. `run` may be called from several threads at once and releases the GIL while it computes."""

    @property
    def requested(self) -> Device:
        """The device that was requested."""
        ...

    @property
    def provider(self) -> str:
        """The provider that really runs the graph, by onnxruntime's name."""
        ...

    @property
    def fallback(self) -> str | None:
        """Why the graph runs on the CPU although this onnxruntime has CUDA and the CPU was not requested; else None."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, tensors: Tensors) -> Tensors:
        """All outputs by name. Raises InvalidInput for an empty dimension, InferenceFailed when the graph raises."""
        ...

    def terminate(self) -> None:
        """End the runs that are under way, between two operators, inside of loops too; they and all later ones fail."""
        ...


OpenRuntime = Callable[[bytes, Device], Runtime]
"""(graph, device) → runtime. Raises FolderError for a graph that cannot be opened, StartError for a missing device."""


class FallbackRuntime:
    """A runtime that stands in for one that could not be used, with the reason."""

    def __init__(self, real: Runtime, requested: Device, fallback: str) -> None:
        self._real = real
        self.requested: Device = requested
        self.provider = real.provider
        self.fallback: str | None = fallback
        self.inputs = real.inputs
        self.outputs = real.outputs
        self.run = real.run
        self.terminate = real.terminate
