"""One loaded model folder: believed only after its manifest, its graph and its own example agree; then asked.

Reads the folder it is given and nothing else. Knows nothing of HTTP, of other models or of Prometheus.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.batching import Batcher, BatchObserver, Clock, Limits, SilentObserver, Work
from service.errors import FolderError, InferenceFailed, ServiceError
from service.manifest import MANIFEST_FILE, Graph, Manifest, Tolerance, read_manifest
from service.manifest import Tensor as TensorEntry
from service.precision import Wish, choose, precision_of
from service.proof import disagreement
from service.runtime import CPU, Device, FallenBack, Runtime, open_runtime
from service.tasks.base import Dialogue, ItemLimits, Prediction, Task
from service.tasks.classify import Classify
from service.tasks.forecast import Forecast
from service.tasks.rows import TensorRows
from service.tensors import Item, Signature, Tensors, TensorSpec, collate, split
from service.tokenization import load_tokenizer
from service.tuning import Tuning, settled, tune
from service.turns import Turns
from service.wire import read, write

log = logging.getLogger(__name__)

EXAMPLE_FILE = "example.json"
MAX_DIFFERENCES = 20


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


class ModelObserver(BatchObserver, Protocol):
    """What one model tells about itself, always on the event loop. Its example is not told: nobody asked for it."""

    def encoded(self, duration_s: float, lengths: Sequence[int]) -> None:
        """The instances of one request were checked and turned into rows of these lengths, in no order."""
        ...

    def decoded(self, duration_s: float) -> None:
        """The outputs of one request were turned into predictions."""
        ...


class SilentModelObserver(SilentObserver):
    """Hears everything, says nothing."""

    def encoded(self, duration_s: float, lengths: Sequence[int]) -> None:
        pass

    def decoded(self, duration_s: float) -> None:
        pass


class Model:
    """One version of a model, ready to be asked between `start` and `stop`."""

    def __init__(
        self,
        parts: Parts,
        options: ModelOptions,
        *,
        observer: ModelObserver | None = None,
        clock: Clock | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        self.manifest = parts.manifest
        self.name = parts.manifest.name
        self.version = parts.manifest.version
        self.task = parts.manifest.task
        self.graph = parts.graph
        self.precision_note = parts.precision_note
        self.runtime = parts.runtime
        self.signature = parts.signature
        self.options = options
        self.tuning = tuning
        self._task = parts.task
        self._turns = Turns()
        self._observer: ModelObserver = observer or SilentModelObserver()
        self.batcher: Batcher[Tensors, Tensors] = Batcher(
            self._run, options.limits, options.num_workers, clock, self._observer, name=f"{self.name}/{self.version}"
        )

    async def start(self) -> None:
        """Start the threads that run the graph."""
        await self.batcher.start()

    async def stop(self) -> None:
        """Answer what waits, then end the threads."""
        await self.batcher.stop()

    async def predict(
        self,
        instances: Sequence[object],
        parameters: Mapping[str, object] | None = None,
        *,
        deadline: float | None = None,
        is_plain: bool = False,
    ) -> list[Prediction]:
        """The predictions of JSON instances, in order; `deadline` in seconds of the batcher's clock (monotonic).

        Lists of numbers in them are arrays that `wire.write` takes. `is_plain` as in `Task.dialogue`. Raises
        MalformedRequest and InvalidInput for what the caller sent, Overloaded and DeadlineExceeded, and InferenceFailed
        when the graph fails or an output is not finite. One bad instance refuses the whole request before anything runs.
        """
        parameters = parameters or {}
        dialogue = self._task.dialogue(instances, parameters, is_plain=is_plain)
        # A large request would hold up every other one while its numbers are read: it is read on a thread.
        is_heavy = self._task.is_heavy(instances, parameters)
        if not is_heavy and self._turns.is_over():
            await self._turns.next()
        started = time.perf_counter()
        said = await asyncio.to_thread(_say, dialogue, None) if is_heavy else _say(dialogue, None)
        self._observer.encoded(time.perf_counter() - started, [n for item in said.items or () for n in item.lengths])
        decode_s = 0.0
        while said.items is not None:
            outputs = await self._submit(said.items, deadline)
            started = time.perf_counter()
            try:
                said = await asyncio.to_thread(_say, dialogue, outputs) if is_heavy else _say(dialogue, outputs)
            except InferenceFailed as exc:
                # What the graph itself raises is logged with its batch; this is only seen row by row.
                log.warning("the answer is not finite", extra={"model": self.name, "version": self.version, **exc.facts})
                raise
            decode_s += time.perf_counter() - started
        self._observer.decoded(decode_s)
        return said.predictions

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `GET /models` says of this version."""
        manifest = self.manifest
        return {
            "name": self.name,
            "version": self.version,
            "task": manifest.task,
            "description": manifest.description,
            "provider": self.runtime.provider,
            "device": self.runtime.requested,
            "precision": self.graph.precision,
            **({"precision_note": self.precision_note} if self.precision_note else {}),
            **({"fallback": self.runtime.fallback} if self.runtime.fallback else {}),
        }

    def describe(self) -> dict[str, Any]:
        """What `GET /models/{name}` says: the manifest's promises and how this server keeps them."""
        manifest, limits = self.manifest, self.options.limits
        training = manifest.training.model_dump(exclude_none=True)
        about: dict[str, Any] = {
            **self.summary,
            "licence": manifest.licence,
            "graph": self.graph.model_dump(exclude_none=True),
            "inputs": [tensor.model_dump() for tensor in manifest.inputs],
            "outputs": [tensor.model_dump() for tensor in manifest.outputs],
            "recurrent_state": [pair.model_dump() for pair in manifest.state],
            "training": training,
            "batching": {
                "max_batch_size": limits.max_batch_size,
                "max_padded_steps": limits.max_padded_steps,
                "max_queue_size": limits.max_queue_size,
                "max_queue_delay_ms": limits.max_queue_delay_s * 1000,
                "num_workers": self.options.num_workers,
                "latency_target_ms": self.options.latency_target_ms,
                "cost": asdict(limits.cost) | {"is_measured": self.tuning is not None},
                **({} if self.tuning is None else {"best": self.tuning.best.describe()}),
            },
        }
        if isinstance(self._task, Forecast):
            about["forecast"] = self._task.face.model_dump() | {"max_horizon": self._task.max_horizon}
        if manifest.classify is not None:
            about["classify"] = manifest.classify.model_dump()
        return about

    def __repr__(self) -> str:
        return f"<Model {self.name}/{self.version} {self.manifest.task} on {self.runtime.provider}: {self.batcher!r}>"

    def _run(self, items: Sequence[Tensors]) -> list[Tensors]:
        """One batch, on a worker thread: collate, run, prepare, split."""
        outputs = self.runtime.run(collate(items, self.signature))
        return split(self._task.prepare(outputs), items, self.signature)

    async def _submit(self, items: Sequence[Item], deadline: float | None) -> list[Tensors]:
        if len(items) > 1:
            works = [Work(item.tensors, item.rows, item.steps, sum(item.lengths), item.key) for item in items]
            return await self.batcher.submit_all(works, deadline=deadline)
        tensors, rows, steps, lengths, key = items[0]
        answer = await self.batcher.submit(tensors, rows=rows, steps=steps, true_steps=sum(lengths), deadline=deadline, key=key)
        return [answer]


class _Said(NamedTuple):
    """What a task said in its turn: items to run, or the predictions."""

    items: list[Item] | None
    predictions: list[Prediction]


def _say(dialogue: Dialogue, outputs: list[Tensors] | None) -> _Said:
    try:
        # A generator that has not begun takes only None.
        return _Said(next(dialogue) if outputs is None else dialogue.send(outputs), [])
    except StopIteration as stop:
        return _Said(None, stop.value)


# ----------------------------------------------------------------------------------------------------------- loading


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
        return _manifest_findings(exc)
    findings: list[str] = []
    for precision in precisions:
        wished = replace(options, precision=precision)
        parts, found = examine(folder, wished)
        findings += found
        if parts is not None:
            findings += asyncio.run(_rehearse(folder, parts, wished, is_strict=True))
    return list(dict.fromkeys(findings))


def examine(folder: Path, options: ModelOptions, open_graph: OpenRuntime = open_runtime) -> Examined:
    """Open a version folder and hold its manifest against its files and its graph. A graph on the CPU is not run yet.

    Returns what could be opened (None where the graph is not what the manifest says) and what is wrong.
    """
    try:
        manifest = read_manifest(folder)
    except FolderError as exc:
        return None, _manifest_findings(exc)
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
            runtime = _proven(runtime, graph, signature, _num_steps(manifest), open_graph)
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


def measured(examined: Examined, options: ModelOptions) -> Examined:
    """What was examined and found sound, with what its graph costs: for processes that share it and need not measure again."""
    parts, findings = examined
    if parts is None or findings or parts.runtime.provider != CPU or not options.measure_s:
        return examined
    return replace(parts, tuning=_tune(parts, options)), findings


def read_file(folder: Path, name: str) -> bytes:
    """A file of the folder. Raises FolderError when it is missing, or a link that leads out of the folder."""
    path = folder / name
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve()):
            raise FolderError(f"{name} leads out of the folder")
        return path.read_bytes()
    except OSError as exc:
        raise FolderError(f"{name} cannot be read: {exc.strerror}") from exc


def _manifest_findings(exc: FolderError) -> list[str]:
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


def _num_steps(manifest: Manifest) -> int | None:
    """How long a row may be; None where the manifest does not say."""
    if manifest.forecast is not None:
        return manifest.forecast.context_length
    return manifest.classify.max_length if manifest.classify is not None else None


def _tune(parts: Parts, options: ModelOptions) -> Tuning | None:
    return tune(
        parts.runtime,
        parts.signature,
        options.limits,
        num_steps=_num_steps(parts.manifest),
        latency_target_ms=options.latency_target_ms,
        budget_s=options.measure_s,
    )


def _resized(task: Task, limits: Limits) -> Task:
    """The task, cutting large requests into items that fit these batches."""
    assert isinstance(task, Forecast | Classify | TensorRows)
    return replace(task, limits=ItemLimits(limits.max_batch_size, limits.max_padded_steps))


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
