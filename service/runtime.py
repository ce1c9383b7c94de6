"""What runs a graph, and on what: the only file that imports onnxruntime.

Knows nothing of asyncio, HTTP or model folders. The provider is always the real one: onnxruntime falls back to the CPU
without a word when CUDA is asked for and absent.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

from service.errors import FolderError, InferenceFailed, InvalidInput, StartError
from service.tensors import Tensors, TensorSpec

log = logging.getLogger(__name__)

Device = Literal["cpu", "cuda", "auto"]
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

_DATATYPES: Mapping[str, str] = MappingProxyType(
    {
        "tensor(bool)": "BOOL",
        "tensor(uint8)": "UINT8",
        "tensor(int8)": "INT8",
        "tensor(int16)": "INT16",
        "tensor(int32)": "INT32",
        "tensor(int64)": "INT64",
        "tensor(float)": "FP32",
        "tensor(double)": "FP64",
        "tensor(string)": "BYTES",
    }
)


class Runtime(Protocol):
    """A loaded graph. `run` may be called from several threads at once and releases the GIL while it computes."""

    @property
    def requested(self) -> Device:
        """The device that was asked for."""
        ...

    @property
    def provider(self) -> str:
        """The provider that really runs the graph, by onnxruntime's name."""
        ...

    @property
    def fallback(self) -> str | None:
        """Why the graph runs on the CPU although this onnxruntime has CUDA and it was not ruled out; else None."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, tensors: Tensors) -> Tensors:
        """All outputs by name. Raises InvalidInput for an empty dimension, InferenceFailed when the graph raises."""
        ...


class Session(Protocol):
    """The part of `onnxruntime.InferenceSession` that is used here."""

    def get_inputs(self) -> Sequence[Any]: ...

    def get_outputs(self) -> Sequence[Any]: ...

    def get_providers(self) -> Sequence[str]: ...

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], /) -> Sequence[Any]: ...


OpenSession = Callable[[bytes, Sequence[str], int], Session]
"""(graph, providers, number of threads) → session."""


def open_runtime(
    graph: Path | bytes,
    device: Device = "cpu",
    num_threads: int = 1,
    *,
    open_session: OpenSession | None = None,
    available: Sequence[str] | None = None,
) -> Runtime:
    """Open an ONNX graph, given as its path or its bytes.

    `device="cuda"` is strict and raises StartError where CUDA cannot be had; `"auto"` takes CUDA if it can be had, else
    the CPU, and `provider` tells which. Raises FolderError when onnxruntime does not take the graph. `open_session` and
    `available` (the providers of this machine) stand in for onnxruntime in tests.
    """
    if isinstance(graph, Path):
        graph = _read(graph)
    if available is None:
        available = require_runtime().get_available_providers()
    if device == "cuda" and CUDA not in available:
        raise StartError(f"device cuda was asked for, but this onnxruntime only has {list(available)}: pip install 'sluice[gpu]'")
    open_session = open_session or _open_session
    if device == "cpu" or CUDA not in available:
        return OnnxRuntime(_open(open_session, graph, [CPU], num_threads), device)
    reason = None
    try:
        session = open_session(graph, [CUDA, CPU], num_threads)
    except Exception as exc:  # onnxruntime's exceptions have no common class but Exception
        # The CPU tells whether it is the device that fails or the graph.
        session = _open(open_session, graph, [CPU], num_threads)
        reason = _first_line(exc)
    runtime = OnnxRuntime(session, device)
    if runtime.provider != CUDA:
        reason = reason or f"onnxruntime fell back to {runtime.provider}"
        if device == "cuda":
            raise StartError(f"device cuda was asked for, but cannot be used: {reason}")
        log.warning("CUDA is installed but cannot be used, the CPU is: %s", reason)
        runtime.fallback = reason
    return runtime


def require_runtime() -> Any:
    """The module onnxruntime. Raises StartError that says how to install it."""
    # onnxruntime 1.29 and later report to their maker and leave an identifier under ~/.cache, from the import on. A server
    # tells nobody anything unasked; who wants to report sets ORT_DISABLE_TELEMETRY=0.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as exc:
        raise StartError(
            "no runtime is installed: pip install 'sluice[cpu]' or, with an NVIDIA GPU, pip install 'sluice[gpu]'"
        ) from exc


def may_use_gpu(device: Device, available: Sequence[str] | None = None) -> bool:
    """Whether a graph that is opened for this device may come to lie on a GPU. Raises StartError without a runtime."""
    return device != "cpu" and CUDA in (require_runtime().get_available_providers() if available is None else available)


class OnnxRuntime:
    """A Runtime on one onnxruntime session."""

    def __init__(self, session: Session, requested: Device) -> None:
        self._session = session
        self.requested: Device = requested
        self.provider: str = session.get_providers()[0]
        self.fallback: str | None = None
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, tensors: Tensors) -> Tensors:
        for name, array in tensors.items():
            # onnxruntime 1.31 aborts the whole process on an empty batch in LSTM and GRU: the last guard stands here.
            if 0 in array.shape:
                raise InvalidInput(f'tensor "{name}" is empty: {list(array.shape)}', where=name, found=list(array.shape))
        try:
            values = self._session.run(self._output_names, tensors)
        except Exception as exc:  # onnxruntime's exceptions have no common class but Exception
            raise InferenceFailed("the model's graph failed on this input") from exc
        return dict(zip(self._output_names, values, strict=True))

    def __repr__(self) -> str:
        return f"<OnnxRuntime {self.provider} (asked: {self.requested}) {[spec.name for spec in self.inputs]}>"


def _open_session(graph: bytes, providers: Sequence[str], num_threads: int) -> Session:
    ort = require_runtime()
    options = ort.SessionOptions()
    # Many small runs side by side: each on one thread, none of them spinning while it waits.
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # The default arena kept 128 MB for good after one large request (onnxruntime 1.31).
    options.enable_cpu_mem_arena = False
    # Memory patterns are remembered per set of input shapes, and ragged batches have ever new shapes.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    if CUDA in providers:
        # CUDA and cuDNN come as packages with `sluice[gpu]`; the loader finds them only when they are loaded before.
        ort.preload_dlls(directory="")
    # Without this flag, onnxruntime's Python class replaces failing providers by the CPU and prints to stdout.
    session: Session = ort.InferenceSession(graph, options, providers=list(providers), enable_fallback=0)
    return session


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise FolderError(f"{path.name} cannot be read: {exc.strerror}") from exc


def _open(open_session: OpenSession, graph: bytes, providers: Sequence[str], num_threads: int) -> Session:
    try:
        return open_session(graph, providers, num_threads)
    except StartError:
        raise
    except Exception as exc:  # onnxruntime's exceptions have no common class but Exception
        raise FolderError(f"onnxruntime does not take the graph: {_first_line(exc)}") from exc


def _spec(node: Any) -> TensorSpec:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        raise FolderError(f'tensor "{node.name}" has the type {node.type}; served are {sorted(_DATATYPES)}')
    # An axis without a name is open, and equal to no other axis.
    shape = tuple(size if isinstance(size, int) else size or f"{node.name}_{axis}" for axis, size in enumerate(node.shape))
    return TensorSpec(node.name, datatype, shape)


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:500]
