"""What a version folder holds, opened: its manifest held against its files and its graph. Runs nothing but a proof on a GPU.

Reads the folder it is given and nothing else. Knows nothing of event loops, batches or HTTP.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from service.errors import FolderError
from service.manifest import MANIFEST_FILE, Graph, Manifest, read_manifest
from service.manifest import Tensor as TensorEntry
from service.models.device_check import disagreement
from service.models.precision import Wish, choose, precision_of
from service.runtime.onnx_runtime import CPU, Device, FallenBack, Runtime, open_runtime
from service.runtime.tensors import Signature, TensorSpec
from service.scheduling.planning import Limits
from service.scheduling.tuning import Tuning, settled
from service.tasks.base import ItemLimits, Task
from service.tasks.classify import Classify
from service.tasks.forecast import Forecast
from service.tasks.tensor import TensorRows
from service.tasks.tokenization import load_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelOptions:
    """How a model is run: what the operator decides, the same for every folder."""

    device: Device = "auto"
    num_workers: int = 1
    """Threads that run this model's graph, each on one core."""
    limits: Limits = field(default_factory=Limits)
    """A bound of 0 is chosen by what the graph costs; where that is not measured, it is the default one."""
    max_horizon_multiple: int = 10
    """The longest forecast, in horizons of the model."""
    latency_target_ms: float = 50.0
    """How long a batch of chosen size may take, by the cost that was measured."""
    measure_s: float = 0.0
    """How long the cost of the graph may be measured at load. 0: not at all, it is taken for a small LSTM."""
    precision: Wish = "auto"
    """Which of a folder's graphs runs."""


@dataclass(frozen=True)
class Parts:
    """What a sound folder holds, opened."""

    manifest: Manifest
    graph: Graph
    runtime: Runtime
    signature: Signature
    task: Task
    precision_note: str | None = None
    """Why another graph runs than could be expected."""
    tuning: Tuning | None = None
    """What its graph costs, where that was measured already (see `measured`)."""


Examined = tuple[Parts | None, list[str]]
"""What could be opened of a folder, and what is wrong with it."""
OpenRuntime = Callable[[bytes, Device], Runtime]
"""(graph, device) → runtime. Raises FolderError for a graph that cannot be opened, StartError for a missing device."""


def examine(folder: Path, options: ModelOptions, open_graph: OpenRuntime = open_runtime) -> Examined:
    """Open a version folder and hold its manifest against its files and its graph. A graph on the CPU is not run yet.

    Returns what could be opened (None where the graph is not what the manifest says) and what is wrong.
    """
    try:
        manifest = read_manifest(folder)
    except FolderError as exc:
        return None, manifest_findings(exc)
    findings = _misnamed(folder, manifest)
    try:
        choice = choose(manifest.graphs, options.precision)
    except FolderError as exc:
        return None, [*findings, exc.message]
    chosen = manifest.graphs[choice.index]
    graph: bytes | None = None
    for number, entry in enumerate(manifest.graphs):
        try:
            content = read_file(folder, entry.file)
        except FolderError as exc:
            findings.append(exc.message)
            continue
        found = hashlib.sha256(content).hexdigest()
        if found != entry.sha256:
            findings.append(f"{entry.file}: its sha256 is {found}, the manifest says {entry.sha256}")
        precision = precision_of(content)
        if precision not in (entry.precision, None):
            findings.append(f"{entry.file}: it is an {precision} graph, the manifest says {entry.precision}")
        graph = content if number == choice.index else graph
    runtime: Runtime | None = None
    signature = _signature(manifest)
    if graph is not None:
        try:
            runtime = open_graph(graph, options.device)
        except FolderError as exc:
            findings.append(f"{chosen.file}: {exc.message}")
        else:
            lies = _lies("input", signature.inputs, runtime.inputs) + _lies("output", signature.outputs, runtime.outputs)
            lies += _state_lies(manifest)
            findings += lies
            runtime = None if lies else runtime
    if graph is not None and runtime is not None and runtime.provider != CPU:
        if chosen.precision == "int8" and any(entry.precision == "fp32" for entry in manifest.graphs):
            note = f"int8 operators run on the CPU alone, this graph runs on {runtime.provider}"
            parts, findings = examine(folder, replace(options, precision="fp32"), open_graph)
            return parts and replace(parts, precision_note=note), findings
        try:
            runtime = _proven(runtime, graph, signature, num_steps(manifest), open_graph)
        except FolderError as exc:
            findings.append(f"{chosen.file}: {exc.message}")
            runtime = None
    task: Task | None = None
    try:
        task = _task(folder, manifest, signature, options)
    except FolderError as exc:
        findings.append(exc.message)
    if runtime is None or task is None:
        return None, findings
    return Parts(manifest, chosen, runtime, signature, task, precision_note=choice.note), findings


def read_file(folder: Path, name: str) -> bytes:
    """A file of the folder. Raises FolderError when it is missing, or a link that leads out of the folder."""
    path = folder / name
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve()):
            raise FolderError(f"{name} leads out of the folder")
        return path.read_bytes()
    except OSError as exc:
        raise FolderError(f"{name} cannot be read: {exc.strerror}") from exc


def manifest_findings(exc: FolderError) -> list[str]:
    cause = exc.__cause__
    if not isinstance(cause, ValidationError):
        return [exc.message]
    return [
        f"{MANIFEST_FILE}: {'.'.join(str(part) for part in error['loc']) or 'manifest'}: {error['msg']}"
        for error in cause.errors(include_url=False)
    ]


def _misnamed(folder: Path, manifest: Manifest) -> list[str]:
    findings = []
    folder = folder.resolve()
    if manifest.version != folder.name:
        findings.append(f'{MANIFEST_FILE}: version is "{manifest.version}", the folder is named "{folder.name}"')
    if manifest.name != folder.parent.name:
        findings.append(f'{MANIFEST_FILE}: name is "{manifest.name}", the folder is named "{folder.parent.name}"')
    return findings


def _signature(manifest: Manifest) -> Signature:
    def specs(tensors: Sequence[TensorEntry]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in tensors)

    state = tuple((pair.input, pair.output) for pair in manifest.state)
    return Signature(specs(manifest.inputs), specs(manifest.outputs), state)


def _lies(kind: str, promised: Sequence[TensorSpec], real: Sequence[TensorSpec]) -> list[str]:
    """Where the manifest says something else than the graph."""
    lies = []
    there = {spec.name: spec for spec in real}
    for spec in promised:
        found = there.pop(spec.name, None)
        if found is None:
            names = [other.name for other in real]
            lies.append(f'{kind} "{spec.name}": the manifest says {spec}, the graph has no such {kind}, only {names}')
        elif found.datatype != spec.datatype or not _may_be(spec.shape, found.shape):
            lies.append(f'{kind} "{spec.name}": the manifest says {spec}, the graph has {found}')
    lies += [f'{kind} "{name}": the graph has it as {spec}, the manifest does not name it' for name, spec in there.items()]
    return lies


def _may_be(promised: Sequence[int | str], real: Sequence[int | str]) -> bool:
    """An open axis must be open in the graph too; a fixed one may be open there: then the example has to show it."""
    return len(promised) == len(real) and all(
        isinstance(found, str) or said == found for said, found in zip(promised, real, strict=True)
    )


def _state_lies(manifest: Manifest) -> list[str]:
    inputs = {tensor.name: tensor for tensor in manifest.inputs}
    outputs = {tensor.name: tensor for tensor in manifest.outputs}
    lies = []
    for pair in manifest.state:
        before, after = inputs[pair.input], outputs[pair.output]
        if (
            before.datatype != "FP32"
            or before.shape != after.shape
            or not all(isinstance(size, int) for size in before.shape[1:])
        ):
            lies.append(
                f'state "{pair.input}" → "{pair.output}": expected FP32 ["batch", units] on both sides, '
                f"got {before.datatype} {before.shape} and {after.datatype} {after.shape}"
            )
    return lies


def _proven(runtime: Runtime, graph: bytes, signature: Signature, num_steps: int | None, open_graph: OpenRuntime) -> Runtime:
    """The runtime, if it answers ragged batches as it should; under `auto` else the CPU's. Raises FolderError otherwise."""
    reference = open_graph(graph, "cpu")
    found = disagreement(runtime, reference, signature, num_steps)
    if found is None:
        return runtime
    reason = f"{runtime.provider} answers wrongly: {found}"
    if runtime.requested != "auto":
        raise FolderError(reason)
    log.warning("the device is not used for this model, the CPU is: %s", reason)
    return FallenBack(reference, runtime.requested, reason)


def num_steps(manifest: Manifest) -> int | None:
    """How long a row may be; None where the manifest does not say."""
    if manifest.forecast is not None:
        return manifest.forecast.context_length
    return manifest.classify.max_length if manifest.classify is not None else None


def _task(folder: Path, manifest: Manifest, signature: Signature, options: ModelOptions) -> Task:
    bounds = settled(options.limits)
    limits = ItemLimits(bounds.max_batch_size, bounds.max_padded_steps)
    if manifest.forecast is not None:
        return Forecast(manifest.forecast, signature, options.max_horizon_multiple, limits)
    if manifest.classify is not None:
        name = manifest.classify.tokenizer
        read_file(folder, name)
        return Classify(manifest.classify, signature, load_tokenizer(folder / name), limits)
    return TensorRows(signature, limits)
