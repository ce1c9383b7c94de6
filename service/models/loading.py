"""From a version folder to a model that is believed: it answered its own example through the path that requests take.

Reads the folder it is given and nothing else. Knows nothing of HTTP, of other models or of Prometheus.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.clock import Clock
from service.errors import FolderError, ServiceError
from service.manifest import Tolerance, read_manifest
from service.models.folder import Examined, ModelOptions, OpenRuntime, Parts, examine, manifest_findings, num_steps, read_file
from service.models.model import Model, ModelObserver
from service.runtime.onnx_runtime import CPU, open_runtime
from service.runtime.tensors import collate
from service.scheduling.planning import Limits
from service.scheduling.tuning import Tuning, settled, tune
from service.tasks.base import ItemLimits, Task
from service.tasks.classify import Classify
from service.tasks.forecast import Forecast
from service.tasks.tensor import TensorRows
from service.wire import read, write

EXAMPLE_FILE = "example.json"
MAX_DIFFERENCES = 20


async def load_model(
    folder: Path,
    options: ModelOptions | None = None,
    *,
    observer: ModelObserver | None = None,
    clock: Clock | None = None,
    open_graph: OpenRuntime = open_runtime,
    examined: Examined | None = None,
) -> Model:
    """Open a version folder, let it answer its own example, and start it. Reading happens on a thread.

    `examined` is what `examine` found, where that was done before.
    Raises FolderError that says what is wrong with the folder, and StartError where the device cannot be had.
    """
    wanted = options or ModelOptions()
    options = replace(wanted, limits=settled(wanted.limits))
    parts, findings = await _open(folder, options, open_graph, examined)
    if findings or parts is None:
        raise FolderError("; ".join(findings[:3]), findings=findings)
    tuning = parts.tuning
    if tuning is None and wanted.measure_s:
        tuning = await asyncio.to_thread(_tune, parts, wanted)
    if tuning is not None:
        options = replace(options, limits=tuning.limits)
        parts = replace(parts, task=_resized(parts.task, tuning.limits))
    model = Model(parts, options, observer=observer, clock=clock, tuning=tuning)
    await model.start()
    return model


async def _open(folder: Path, options: ModelOptions, open_graph: OpenRuntime, examined: Examined | None = None) -> Examined:
    """What `examine` opens, once it answered the example; for `auto` fp32 where the int8 graph answers wrongly here."""
    if examined is None:
        examined = await asyncio.to_thread(examine, folder, options, open_graph)
    parts, findings = examined
    if parts is None or findings:
        return parts, findings
    findings = await _rehearse(folder, parts, options)
    if not findings or options.precision != "auto" or parts.graph.precision != "int8":
        return parts, findings
    note = f"{parts.graph.file} does not answer the example on this machine: {findings[0]}"
    parts, findings = await _open(folder, replace(options, precision="fp32"), open_graph)
    return parts and replace(parts, precision_note=note), findings


def check_folder(folder: Path, options: ModelOptions | None = None) -> list[str]:
    """Everything that is wrong with a version folder, in sentences; empty if each of its graphs would be served.

    Runs its own event loop.
    """
    options = options or ModelOptions()
    options = replace(options, limits=settled(options.limits))
    try:
        precisions = sorted({graph.precision for graph in read_manifest(folder).graphs})
    except FolderError as exc:
        return manifest_findings(exc)
    findings: list[str] = []
    for precision in precisions:
        wished = replace(options, precision=precision)
        parts, found = examine(folder, wished)
        findings += found
        if parts is not None:
            findings += asyncio.run(_rehearse(folder, parts, wished, is_strict=True))
    return list(dict.fromkeys(findings))


def measured(examined: Examined, options: ModelOptions) -> Examined:
    """What was examined and found sound, with what its graph costs: for processes that share it and need not measure again."""
    parts, findings = examined
    if parts is None or findings or parts.runtime.provider != CPU or not options.measure_s:
        return examined
    return replace(parts, tuning=_tune(parts, options)), findings


def _tune(parts: Parts, options: ModelOptions) -> Tuning | None:
    return tune(
        parts.runtime,
        parts.signature,
        options.limits,
        num_steps=num_steps(parts.manifest),
        latency_target_ms=options.latency_target_ms,
        budget_s=options.measure_s,
    )


def _resized(task: Task, limits: Limits) -> Task:
    """The task, cutting large requests into items that fit these batches."""
    assert isinstance(task, Forecast | Classify | TensorRows)
    return replace(task, limits=ItemLimits(limits.max_batch_size, limits.max_padded_steps))


# ------------------------------------------------------------------------------------------------------- the example


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str
    version: str | None = None
    instances: list[Any] = Field(min_length=1)
    parameters: dict[str, Any] = Field(default_factory=dict)


class _Response(BaseModel):
    predictions: list[Any]


class Example(BaseModel):
    """`example.json`: a body for POST /predict, its answer, and how far a number may be from it."""

    model_config = ConfigDict(extra="forbid")
    request: _Request
    response: _Response
    tolerance: Tolerance


async def _rehearse(folder: Path, parts: Parts, options: ModelOptions, *, is_strict: bool = False) -> list[str]:
    """Ask the model the end of its vocabulary, and its example through the path that requests take; say what is wrong."""
    try:
        example = Example.model_validate(json.loads(await asyncio.to_thread(read_file, folder, EXAMPLE_FILE)))
    except FolderError as exc:
        return [exc.message]
    except ValidationError as exc:
        return [f"{EXAMPLE_FILE}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors(include_url=False)]
    except ValueError as exc:
        return [f"{EXAMPLE_FILE} is not JSON: {exc}"]
    findings = await asyncio.to_thread(_vocabulary_lies, parts)
    if example.request.model != parts.manifest.name:
        findings.append(f'{EXAMPLE_FILE}: request.model is "{example.request.model}", the model is "{parts.manifest.name}"')
    if is_strict and len(example.request.instances) < 2:
        findings.append(f"{EXAMPLE_FILE}: expected at least two instances, of different length, got one")
    # Alone, for no company will come: a queue that waits for some would only delay the start.
    model = Model(parts, replace(options, limits=replace(options.limits, max_queue_delay_s=0.0)))
    await model.start()
    try:
        found = read(write(await model.predict(example.request.instances, example.request.parameters)))
    except ServiceError as exc:
        return [*findings, f"{EXAMPLE_FILE}: the model did not answer: {exc.message}"]
    finally:
        await model.stop()
    tolerance = parts.graph.tolerance or example.tolerance
    different = differences(found, example.response.predictions, tolerance.absolute, tolerance.relative, "predictions")
    return findings + [f"{EXAMPLE_FILE}: {difference}" for difference in different[:MAX_DIFFERENCES]]


def _vocabulary_lies(parts: Parts) -> list[str]:
    """Whether the tokenizer has ids beyond the graph's embedding, which would fail in the middle of a batch.

    onnxruntime checks ids on the CPU; a GPU need not, and then nothing is found.
    """
    if not isinstance(parts.task, Classify):
        return []
    item = parts.task.last_token()
    try:
        parts.runtime.run(collate([item.tensors], parts.signature))
    except ServiceError:
        largest = parts.task.tokenizer.largest_id
        return [f"{parts.task.face.tokenizer} has token ids up to {largest}, the graph does not take them"]
    return []


def differences(found: object, expected: object, absolute: float, relative: float, where: str = "") -> list[str]:
    """Where two JSON values differ: numbers by more than absolute + relative x |expected|, everything else at all."""
    if _is_number(found) and _is_number(expected):
        allowed = absolute + relative * abs(expected)
        if abs(found - expected) <= allowed:  # false for NaN
            return []
        return [f"{where}: expected {expected:.7g}, found {found:.7g} ({abs(found - expected):.2g} apart, allowed {allowed:.2g})"]
    if isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            return [f"{where}: expected {len(expected)} entries, found {len(found)}"]
        pairs = enumerate(zip(found, expected, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, absolute, relative, f"{where}[{i}]")]
    if isinstance(found, dict) and isinstance(expected, dict):
        if found.keys() != expected.keys():
            return [f"{where}: expected the fields {sorted(expected)}, found {sorted(found)}"]
        return [line for k in expected for line in differences(found[k], expected[k], absolute, relative, f"{where}.{k}")]
    return [] if found == expected and type(found) is type(expected) else [f"{where}: expected {expected!r}, found {found!r}"]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
