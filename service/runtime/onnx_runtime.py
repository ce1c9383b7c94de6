"""Graphs that onnxruntime runs, and on what: the only file that imports it.

Knows nothing of asyncio, HTTP or model folders. The provider is always the real one: onnxruntime falls back to the CPU
without a word when CUDA is requested and absent.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from service.errors import FolderError, InferenceFailed, InvalidInput, StartError
from service.runtime.base import CPU, CUDA, TENSORRT, Device, Runtime
from service.runtime.tensors import Tensors, TensorSpec

log = logging.getLogger(__name__)

# What a graph may run on when a device is requested, the best first. What TensorRT does not take, CUDA runs.
PROVIDERS: Mapping[str, tuple[str, ...]] = MappingProxyType({"cuda": (CUDA, CPU), "tensorrt": (TENSORRT, CUDA, CPU)})

# Smaller weights stay within a packed graph.
MIN_MAPPED_BYTES = 1024
# A file of its sources, and behind it the function.
SOURCE_PLACE = re.compile(r"\S*/[\w.+-]+\.(?:cc|cpp|cu|cuh|h|hpp):\d+ (?:[^()]*::[^()]*\(.*?\)(?: const)? )?")
MEMORY_SETTING = "SLUICE_PROCESS_MEMORY_BYTES"
# As the arena says it, and what the C++ library throws without one, by its name and by that of Windows.
_OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")
# What is less is raised as an exception, too. onnxruntime would write it to stderr in colours, with names from the graph.
FATAL = 4

_DATATYPES: Mapping[str, str] = MappingProxyType(
    {
        "tensor(bool)": "BOOL",
        "tensor(uint8)": "UINT8",
        "tensor(uint16)": "UINT16",
        "tensor(uint32)": "UINT32",
        "tensor(uint64)": "UINT64",
        "tensor(int8)": "INT8",
        "tensor(int16)": "INT16",
        "tensor(int32)": "INT32",
        "tensor(int64)": "INT64",
        "tensor(float16)": "FP16",
        "tensor(float)": "FP32",
        "tensor(double)": "FP64",
        "tensor(string)": "BYTES",
    }
)


class Binding(Protocol):
    """The part of `onnxruntime.IOBinding` that is used here."""

    def bind_cpu_input(self, name: str, arr_on_cpu: Any) -> None: ...

    def bind_output(self, name: str, device_type: str, device_id: int) -> None: ...

    def copy_outputs_to_cpu(self) -> Sequence[Any]: ...


class Session(Protocol):
    """The part of `onnxruntime.InferenceSession` that is used here."""

    def get_inputs(self) -> Sequence[Any]: ...

    def get_outputs(self) -> Sequence[Any]: ...

    def get_providers(self) -> Sequence[str]: ...

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], /, *run_options: Any) -> Sequence[Any]: ...

    def io_binding(self) -> Any: ...

    def run_with_iobinding(self, iobinding: Any, /, *run_options: Any) -> None: ...


Provider = tuple[str, dict[str, str]]
"""A provider by onnxruntime's name, with its options."""
OpenSession = Callable[[bytes, Sequence[Provider], int], Session]
"""(graph, providers, number of threads) → session."""


@dataclass(frozen=True)
class GpuOptions:
    """Which card, and how much of it. Without a GPU they mean nothing."""

    device_id: int = 0
    memory_limit_bytes: int = 0
    """What onnxruntime may take of the card's memory per model and process; 0: as it needs."""
    engine_cache: Path | None = None
    """Where TensorRT keeps the engines that it built, each graph in a folder of its own; None: nowhere."""


def open_runtime(
    graph: Path | bytes,
    device: Device = "cpu",
    num_threads: int = 1,
    *,
    gpu: GpuOptions | None = None,
    packed: Path | None = None,
    open_session: OpenSession | None = None,
    available: Sequence[str] | None = None,
) -> Runtime:
    """Open an ONNX graph, given as its path or its bytes.

    `device="cuda"` and `"tensorrt"` are strict and raise StartError where they cannot be had; `"auto"` takes CUDA if it
    can be had, else the CPU, and `provider` is which. On the CPU weights are mapped where `write_packed` has put them into the
    folder `packed`. Raises FolderError when onnxruntime does not take the graph.
    `open_session` and `available` (the providers of this machine) stand in for onnxruntime in tests.
    """
    if isinstance(graph, Path):
        graph = _read(graph)
    if available is None:
        available = require_runtime().get_available_providers()
    gpu = gpu or GpuOptions()
    run_options = None if open_session is not None else _run_options()
    open_session = open_session or _open_session
    providers = PROVIDERS.get(device, (CUDA, CPU) if device == "auto" and CUDA in available else (CPU,))
    wanted = providers[0]
    if wanted not in available:
        hint = "pip install 'sluice-serving[gpu]'"
        raise StartError(f"device {device} was asked for, but this onnxruntime only has {list(available)}: {hint}")
    if wanted == CPU:
        session = None if packed is None else _open_packed(graph, packed, num_threads)
        session = session or _open(open_session, graph, [(CPU, {})], num_threads)
        return OnnxRuntime(session, device, run_options=run_options)
    reason = None
    try:
        session = open_session(graph, [(name, _options(name, gpu, graph)) for name in providers], num_threads)
    except Exception as exc:  # onnxruntime's exceptions have no common class but Exception
        # On the CPU it shows whether the device fails or the graph.
        session = _open(open_session, graph, [(CPU, {})], num_threads)
        reason = _first_line(exc)
    runtime = OnnxRuntime(session, device, gpu.device_id, run_options=run_options)
    if runtime.provider != wanted:
        reason = reason or f"onnxruntime fell back to {runtime.provider}"
        if device != "auto":
            raise StartError(f"device {device} was asked for, but cannot be used: {reason}")
        log.warning("CUDA is installed but cannot be used, the CPU is: %s", reason)
        runtime.fallback = reason
    return runtime


def write_packed(graph: bytes, packed: Path) -> None:
    """Write a graph with its weights as the kernels of this machine read them, for processes that map one file.

    A process that opens the graph as it is holds its weights twice, as they were read and packed. Raises FolderError.
    """
    file = _packed_file(graph, packed)
    options = _session_options(1)
    weights = {"file_name": f"{file.name}.weights", "min_size_in_bytes": str(MIN_MAPPED_BYTES)}
    for name, value in weights.items():
        options.add_session_config_entry(f"session.optimized_model_external_initializers_{name}", value)
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    options.optimized_model_filepath = str(file)
    try:
        packed.mkdir(parents=True, exist_ok=True)
        require_runtime().InferenceSession(graph, options, providers=[CPU], enable_fallback=0)
    except StartError:
        raise
    except Exception as exc:  # onnxruntime's exceptions have no common class but Exception
        remove_packed(file)
        raise FolderError(f"onnxruntime does not pack the graph: {_first_line(exc)}") from exc


def list_packed(packed: Path) -> dict[str, Path]:
    """sha256 of a graph → what `remove_packed` takes."""
    return {file.stem: file for file in packed.glob("*.onnx")}


def remove_packed(file: Path) -> None:
    """Remove a packed graph. Processes that have opened it keep it."""
    for each in file.parent.glob(f"{file.name}*"):
        each.unlink(missing_ok=True)


def _packed_file(graph: bytes, packed: Path) -> Path:
    return packed / f"{hashlib.sha256(graph).hexdigest()}.onnx"


def _open_packed(graph: bytes, packed: Path, num_threads: int) -> Session | None:
    file = _packed_file(graph, packed)
    if not file.exists():
        return None
    try:
        return _open_session(str(file), [(CPU, {})], num_threads)
    except Exception as exc:  # onnxruntime's exceptions have no common class but Exception
        log.warning("a packed graph cannot be opened, the graph itself is: %s", _first_line(exc))
        return None


def require_runtime() -> Any:
    """The module onnxruntime. Raises StartError that says how to install it."""
    # onnxruntime 1.29 and later report to their maker and leave an identifier under ~/.cache, from the import on. A server
    # sends nothing unasked; ORT_DISABLE_TELEMETRY=0 turns the reports on.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as exc:
        raise StartError(
            "no runtime is installed: pip install 'sluice-serving[cpu]' or, with an NVIDIA GPU, pip install 'sluice-serving[gpu]'"
        ) from exc


def may_use_gpu(device: Device, available: Sequence[str] | None = None) -> bool:
    """Whether a graph that is opened for this device may come to lie on a GPU. Raises StartError without a runtime."""
    return device != "cpu" and CUDA in (require_runtime().get_available_providers() if available is None else available)


class OnnxRuntime:
    """A Runtime on one onnxruntime session; on a GPU, inputs and outputs are bound."""

    def __init__(
        self,
        session: Session,
        requested: Device,
        device_id: int = 0,
        *,
        device_type: str | None = None,
        run_options: Any = None,
    ) -> None:
        """`device_type` is where outputs are bound, None: on the GPU if the provider is one. `run_options` are those of
        onnxruntime, shared by all runs; None: runs cannot be ended.
        """
        self._session = session
        self._run_options = () if run_options is None else (run_options,)
        self.requested: Device = requested
        self.provider: str = session.get_providers()[0]
        self.fallback: str | None = None
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]
        self._device_id = device_id
        device_type = device_type or (None if self.provider == CPU else "cuda")
        # Strings live on the CPU only.
        has_strings = any(spec.datatype == "BYTES" for spec in (*self.inputs, *self.outputs))
        self._device_type = None if has_strings else device_type

    def run(self, tensors: Tensors) -> Tensors:
        for name, array in tensors.items():
            # onnxruntime 1.31 aborts the whole process on an empty batch in LSTM and GRU: the last guard stands here.
            if 0 in array.shape:
                raise InvalidInput(f'tensor "{name}" is empty: {list(array.shape)}', where=name, found=list(array.shape))
        try:
            if self._device_type is None:
                values = self._session.run(self._output_names, tensors, *self._run_options)
            else:
                values = self._run_bound(tensors, self._device_type)
        except Exception as exc:  # onnxruntime's exceptions have no common class but Exception
            if self._device_type is None and _is_out_of_memory(exc):
                raise InferenceFailed(
                    "the model's graph takes more memory for this input than its process has", setting=MEMORY_SETTING
                ) from exc
            raise InferenceFailed("the model's graph failed on this input") from exc
        return dict(zip(self._output_names, values, strict=True))

    def terminate(self) -> None:
        for options in self._run_options:
            options.terminate = True

    def _run_bound(self, tensors: Tensors, device_type: str) -> Sequence[Any]:
        """Inputs go to the device when they are bound; outputs stay there until the run is over, and are copied once."""
        binding: Binding = self._session.io_binding()
        for name, array in tensors.items():
            # A split of a batch may be a view with strides, and what is bound is the memory as it lies.
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._output_names:
            binding.bind_output(name, device_type, self._device_id)
        self._session.run_with_iobinding(binding, *self._run_options)
        return binding.copy_outputs_to_cpu()

    def __repr__(self) -> str:
        return f"<OnnxRuntime {self.provider} (requested: {self.requested}) {[spec.name for spec in self.inputs]}>"


def _options(provider: str, gpu: GpuOptions, graph: bytes) -> dict[str, str]:
    """The options of a provider, named as in onnxruntime's pages on the CUDA and TensorRT execution providers."""
    if provider == CPU:
        return {}
    options = {"device_id": str(gpu.device_id)}
    if provider == CUDA:
        # Ragged batches have ever new sizes: an arena that grows by powers of two would soon hold several times what one
        # needs. Copies on the stream of the kernels wait for no other. TF32 would round products to 10 bits.
        options |= {"arena_extend_strategy": "kSameAsRequested", "do_copy_in_default_stream": "1", "use_tf32": "0"}
        if gpu.memory_limit_bytes:
            options["gpu_mem_limit"] = str(gpu.memory_limit_bytes)
    else:
        # No shapes of a profile: they would have to be given for every open input of every part that TensorRT is handed,
        # and a longer row would then be an error. The device check before READY shows it the smallest and the largest instead.
        options |= {"trt_fp16_enable": "False"}
        if gpu.memory_limit_bytes:
            options["trt_max_workspace_size"] = str(gpu.memory_limit_bytes)
        if gpu.engine_cache is not None:
            # Engines hold the weights but are named by the graph's structure: two models of one shape would share one
            # (microsoft/onnxruntime#6455, #32254).
            folder = gpu.engine_cache / hashlib.sha256(graph).hexdigest()[:16]
            options |= {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(folder)}
            options |= {"trt_timing_cache_enable": "True", "trt_timing_cache_path": str(folder)}
    return options


def _open_session(graph: bytes | str, providers: Sequence[Provider], num_threads: int) -> Session:
    """`graph` is its bytes, or the path of a packed one."""
    ort = require_runtime()
    for _, provider_options in providers:
        if folder := provider_options.get("trt_engine_cache_path"):
            Path(folder).mkdir(parents=True, exist_ok=True)
    options = _session_options(num_threads)
    if providers[0][0] != CPU:
        # CUDA and cuDNN come as packages with `sluice[gpu]`; the loader finds them only when they are loaded before.
        ort.preload_dlls(directory="")
    # Without this flag, onnxruntime's Python class replaces failing providers by the CPU and prints to stdout.
    session: Session = ort.InferenceSession(graph, options, providers=list(providers), enable_fallback=0)
    return session


def _session_options(num_threads: int) -> Any:
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
    options.log_severity_level = FATAL
    return options


def _run_options() -> Any:
    options = require_runtime().RunOptions()
    options.log_severity_level = FATAL
    return options


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise FolderError(f"{path.name} cannot be read: {exc.strerror}") from exc


def _open(open_session: OpenSession, graph: bytes, providers: Sequence[Provider], num_threads: int) -> Session:
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


def _is_out_of_memory(exc: Exception) -> bool:
    """Whether an allocation failed, Python's own or one of onnxruntime."""
    text = str(exc)
    return isinstance(exc, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY)


def _first_line(exc: Exception) -> str:
    """What an exception of onnxruntime says, without the place in its sources."""
    return SOURCE_PLACE.sub("", (str(exc).strip().splitlines() or [type(exc).__name__])[0])[:500]
