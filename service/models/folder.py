"""What a version folder holds: its manifest compared with its files and its graph. Runs nothing but the device check of a GPU.

Reads the folder it is given and nothing else. Knows nothing of event loops, batches or HTTP.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from pydantic import ValidationError

from service.errors import FolderError
from service.manifest import EXAMPLE_FILE, MANIFEST_FILE, Graph, Manifest, Statistics, TensorEntry, read_file
from service.models.device_check import find_difference
from service.models.graph_scan import GraphScan, scan_graph
from service.models.plain_graph import Identity, identity_of, is_plain_folder, open_plain
from service.models.precision import RequestedPrecision, choose_graph
from service.models.streaming import NO_STATE, why_not_streaming
from service.runtime.base import CPU, Device, FallbackRuntime, OpenRuntime, Runtime
from service.runtime.onnx_runtime import open_runtime
from service.runtime.tensors import Array, Signature, TensorSpec
from service.scheduling.planning import RequestedLimits
from service.scheduling.tuning import Tuning
from service.tasks.base import Task, TaskDefinition
from service.tasks.registry import TaskRegistry, built_in_tasks

log = logging.getLogger(__name__)

NOTHING_KNOWN: Mapping[str, GraphScan] = MappingProxyType({})


class Sampler(Protocol):
    """Samples batches, to measure their drift (`observability/drift.py`)."""

    def offer(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """A batch ran, on this thread."""
        ...

    def describe(self) -> dict[str, Any]:
        """What `GET /models/{name}` says of the drift."""
        ...


OpenSampler = Callable[[str, str, Statistics, Callable[[Mapping[str, Array], Mapping[str, Array]], Mapping[str, Array]]], Sampler]
"""Model, version, what its training part looked like, what measures the rows of a batch → what samples its batches."""


@dataclass(frozen=True)
class ModelOptions:
    """How a model is run: what the operator decides, the same for every folder."""

    device: Device = "auto"
    num_workers: int = 1
    """Threads that run this model's graph, each on one core."""
    limits: RequestedLimits = field(default_factory=RequestedLimits)
    latency_target_ms: float = 50.0
    """How long a batch of chosen size may take, by the cost that was measured."""
    measure_s: float = 0.0
    """How long the cost of the graph may be measured at load. 0: not at all, it is taken for a small LSTM."""
    precision: RequestedPrecision = "auto"
    """Which of a folder's graphs runs."""
    max_run_s: float = math.inf
    """How long one run of a graph may take before it is ended, and the model with it."""
    tasks: TaskRegistry = field(default_factory=built_in_tasks)
    """What folders may be for."""
    drift_models: frozenset[str] = frozenset()
    """The models whose drift is measured; `*` for all."""
    open_sampler: OpenSampler | None = None
    """What measures drift; None: nothing does."""

    def watches(self, model: str) -> bool:
        """Whether the drift of this model is to be measured."""
        return self.open_sampler is not None and not self.drift_models.isdisjoint((model, "*"))


@dataclass(frozen=True)
class Parts:
    """What a valid folder holds, opened."""

    manifest: Manifest
    graph: Graph
    runtime: Runtime
    signature: Signature
    definition: TaskDefinition
    task: Task
    example: bytes | None = None
    """`example.json` as it was read with the rest, so that a process that is forked later needs the folder no more."""
    precision_note: str | None = None
    """Why another graph runs than could be expected."""
    tuning: Tuning | None = None
    """What its graph costs, where that was measured already (see `loading.with_tuning`)."""
    is_bounded: bool = True
    """The graph has no loops or branches, so the time of a run follows from the size of its inputs."""
    is_verified: bool = False
    """Its example was replayed and its graph measured already (see `verification.py`)."""
    is_plain: bool = False
    """Whether the folder holds a graph alone: it has no example, and its manifest was made from the graph."""
    why_not_streaming: str = NO_STATE
    """Why no sequence can come in pieces, by its manifest and its graph; empty where it can."""
    is_batched: bool = True
    """Whether axis 0 of its tensors is the batch. Else each run takes the tensors of one request, as they are, and the
    signature shows them with a batch of one in front."""
    scan: GraphScan | None = None
    """What the bytes of its graph say; None for a folder that holds a graph alone."""

    @property
    def longest_row(self) -> int | None:
        """How many time steps a row may have; None where the manifest does not say."""
        return self.definition.longest_row(self.manifest)


class Examination(NamedTuple):
    """What could be opened of a folder, None where that is nothing, and what is wrong with it, in sentences."""

    parts: Parts | None
    findings: list[str]


def examine(
    folder: Path,
    options: ModelOptions,
    open_graph: OpenRuntime = open_runtime,
    identity: Identity | None = None,
    *,
    is_batched: bool | None = None,
    known: Mapping[str, GraphScan] = NOTHING_KNOWN,
) -> Examination:
    """Open a version folder and compare its manifest with its files and its graph. A graph on the CPU is not run yet.

    `identity` is what it has to be, None: what its path says, `<name>/<version>`. `known` is what another process has found in
    graphs of this folder, by their sha256: only the graph that runs is then read, the others were.
    Raises StartError where the device cannot be had.
    """
    if is_plain_folder(folder):
        return _examine_plain(folder, options, open_graph, identity, is_batched)
    try:
        manifest = options.tasks.read_manifest(folder)
    except FolderError as exc:
        return Examination(None, manifest_findings(exc))
    definition = options.tasks[manifest.task]
    findings = _name_mismatches(identity_of(folder, identity), manifest)
    if mismatches := definition.mismatches(manifest):
        return Examination(None, [*findings, *mismatches])
    try:
        choice = choose_graph(manifest.graphs, options.precision)
    except FolderError as exc:
        return Examination(None, [*findings, exc.message])
    chosen = manifest.graphs[choice.index]
    graph: bytes | None = None
    scan: GraphScan | None = None
    for entry in [chosen] if known else manifest.graphs:
        try:
            content = read_file(folder, entry.file)
        except FolderError as exc:
            findings.append(exc.message)
            continue
        digest = hashlib.sha256(content).hexdigest()
        if digest != entry.sha256:
            findings.append(f"{entry.file}: its sha256 is {digest}, the manifest says {entry.sha256}")
        try:
            found = known.get(digest) or scan_graph(content)
        except FolderError as exc:
            findings.append(f"{entry.file}: {exc.message}")
            continue
        if found.precision not in (entry.precision, None):
            findings.append(f"{entry.file}: it is an {found.precision} graph, the manifest says {entry.precision}")
        if entry is chosen:
            graph, scan = content, found
    runtime: Runtime | None = None
    signature = signature_of(manifest)
    if graph is not None:
        try:
            runtime = open_graph(graph, options.device)
        except FolderError as exc:
            findings.append(f"{chosen.file}: {exc.message}")
        else:
            mismatches = _tensor_mismatches("input", signature.inputs, runtime.inputs)
            mismatches += _tensor_mismatches("output", signature.outputs, runtime.outputs)
            mismatches += _state_mismatches(manifest)
            findings += mismatches
            runtime = None if mismatches else runtime
    if graph is not None and runtime is not None and runtime.provider != CPU:
        if chosen.precision == "int8" and any(entry.precision == "fp32" for entry in manifest.graphs):
            note = f"int8 operators run on the CPU alone, this graph runs on {runtime.provider}"
            parts, findings = examine(folder, replace(options, precision="fp32"), open_graph, identity)
            return Examination(parts and replace(parts, precision_note=note), findings)
        try:
            runtime = _check_device(runtime, graph, signature, definition.longest_row(manifest), open_graph)
        except FolderError as exc:
            findings.append(f"{chosen.file}: {exc.message}")
            runtime = None
    task: Task | None = None
    try:
        task = definition.build(manifest, signature, functools.partial(read_file, folder))
    except FolderError as exc:
        findings.append(exc.message)
    if runtime is None or task is None:
        return Examination(None, findings)
    example: bytes | None = None
    with contextlib.suppress(FolderError):  # the replay says what is wrong with it
        example = read_file(folder, EXAMPLE_FILE)
    assert scan is not None
    task.reads_one_way = scan.reads_one_way
    parts = Parts(
        manifest,
        chosen,
        runtime,
        signature,
        definition,
        task,
        example,
        choice.note,
        is_bounded=scan.is_bounded,
        why_not_streaming=why_not_streaming(manifest, scan.directions),
        scan=scan,
    )
    return Examination(parts, findings)


def _examine_plain(
    folder: Path, options: ModelOptions, open_graph: OpenRuntime, identity: Identity | None, is_batched: bool | None
) -> Examination:
    """A folder with a graph alone, as a model of the task `tensor`."""
    try:
        plain = open_plain(folder, options.device, open_graph, identity, is_batched=is_batched)
    except FolderError as exc:
        return Examination(None, [exc.message])
    manifest = plain.manifest
    signature = signature_of(manifest)
    definition = options.tasks[manifest.task]
    task = definition.build(manifest, signature, functools.partial(read_file, folder))
    runtime = plain.runtime
    return Examination(
        Parts(
            manifest,
            manifest.graphs[0],
            runtime,
            signature,
            definition,
            task,
            is_plain=True,
            is_batched=plain.is_batched,
            is_bounded=plain.is_bounded,
        ),
        [],
    )


def manifest_findings(exc: FolderError) -> list[str]:
    """All that is wrong with a manifest that could not be read."""
    cause = exc.__cause__
    if not isinstance(cause, ValidationError):
        return [exc.message]
    return [
        f"{MANIFEST_FILE}: {'.'.join(str(part) for part in error['loc']) or 'manifest'}: {error['msg']}"
        for error in cause.errors(include_url=False)
    ]


def _name_mismatches(identity: Identity, manifest: Manifest) -> list[str]:
    findings = []
    name, version = identity
    if manifest.version != version:
        findings.append(f'{MANIFEST_FILE}: version is "{manifest.version}", the folder is named "{version}"')
    if manifest.name != name:
        findings.append(f'{MANIFEST_FILE}: name is "{manifest.name}", the folder is named "{name}"')
    return findings


def signature_of(manifest: Manifest) -> Signature:
    """The tensors of a manifest."""

    def specs(tensors: Sequence[TensorEntry]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in tensors)

    state = tuple((pair.input, pair.output) for pair in manifest.state)
    return Signature(specs(manifest.inputs), specs(manifest.outputs), state, manifest.min_length)


def _tensor_mismatches(kind: str, expected: Sequence[TensorSpec], real: Sequence[TensorSpec]) -> list[str]:
    """Where the manifest says something else than the graph."""
    mismatches = []
    remaining = {spec.name: spec for spec in real}
    for spec in expected:
        found = remaining.pop(spec.name, None)
        if found is None:
            names = [other.name for other in real]
            mismatches.append(f'{kind} "{spec.name}": the manifest says {spec}, the graph has no such {kind}, only {names}')
        elif found.datatype != spec.datatype or not _can_have_shape(found.shape, spec.shape):
            mismatches.append(f'{kind} "{spec.name}": the manifest says {spec}, the graph has {found}')
    mismatches += [
        f'{kind} "{name}": the graph has it as {spec}, the manifest does not name it' for name, spec in remaining.items()
    ]
    return mismatches


def _can_have_shape(real: Sequence[int | str], expected: Sequence[int | str]) -> bool:
    """An open axis must be open in the graph too; a fixed one may be open there: then the example has to show it."""
    return len(expected) == len(real) and all(
        isinstance(found, str) or wanted == found for wanted, found in zip(expected, real, strict=True)
    )


def _state_mismatches(manifest: Manifest) -> list[str]:
    inputs = {tensor.name: tensor for tensor in manifest.inputs}
    outputs = {tensor.name: tensor for tensor in manifest.outputs}
    mismatches = []
    for pair in manifest.state:
        before, after = inputs[pair.input], outputs[pair.output]
        if (
            before.datatype != "FP32"
            or before.shape != after.shape
            or not all(isinstance(size, int) for size in before.shape[1:])
        ):
            mismatches.append(
                f'state "{pair.input}" → "{pair.output}": expected FP32 ["batch", units] on both sides, '
                f"got {before.datatype} {before.shape} and {after.datatype} {after.shape}"
            )
    return mismatches


def _check_device(
    runtime: Runtime, graph: bytes, signature: Signature, longest_row: int | None, open_graph: OpenRuntime
) -> Runtime:
    """The runtime, if it answers ragged batches as it should; under `auto` else the CPU's. Raises FolderError otherwise."""
    reference = open_graph(graph, "cpu")
    found = find_difference(runtime, reference, signature, longest_row)
    if found is None:
        return runtime
    reason = f"{runtime.provider} answers wrongly: {found}"
    if runtime.requested != "auto":
        raise FolderError(reason)
    log.warning("the device is not used for this model, the CPU is: %s", reason)
    return FallbackRuntime(reference, runtime.requested, reason)
