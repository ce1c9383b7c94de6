"""From a version folder to a model that is READY: opened, its example replayed, its graph measured, its threads started.

Reads the folder it is given and nothing else. Knows nothing of HTTP, of other models or of Prometheus.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from service.clock import Clock
from service.errors import FolderError
from service.models.example import replay_example
from service.models.folder import Examination, ModelOptions, Parts, Sampler, examine, manifest_findings
from service.models.model import Model, ModelObserver
from service.models.plain_graph import Identity, is_plain_folder
from service.runtime.base import CPU, OpenRuntime
from service.runtime.onnx_runtime import open_runtime
from service.scheduling.loop_budget import LoopBudget
from service.scheduling.tuning import Tuning, tune


async def load_model(
    folder: Path,
    options: ModelOptions | None = None,
    *,
    observer: ModelObserver | None = None,
    clock: Clock | None = None,
    loop_budget: LoopBudget | None = None,
    open_graph: OpenRuntime = open_runtime,
    examination: Examination | None = None,
    identity: Identity | None = None,
) -> Model:
    """Open a version folder, replay its example, and start the model. Reading happens on a thread.

    `examination` is what `examine` found, where that was done before; `identity` as there.
    Raises FolderError that says what is wrong with the folder, and StartError where the device cannot be had.
    """
    options = options or ModelOptions()
    parts, findings = await open_and_replay(folder, options, open_graph, examination, identity)
    if findings or parts is None:
        raise FolderError("; ".join(findings[:3]), findings=findings)
    tuning = parts.tuning
    if tuning is None and options.measure_s and not parts.is_verified:
        tuning = await asyncio.to_thread(_tune, parts, options)
    limits = options.limits.with_defaults() if tuning is None else tuning.limits
    if not parts.is_bounded:
        limits = replace(limits, max_inline_ms=0.0)  # on the event loop nothing could end it
    if not parts.is_batched:
        limits = replace(limits, max_batch_size=1)
    sampler = _open_sampler(parts, options)
    model = Model(parts, options, limits, observer=observer, clock=clock, tuning=tuning, loop_budget=loop_budget, sampler=sampler)
    await model.start()
    return model


def _open_sampler(parts: Parts, options: ModelOptions) -> Sampler | None:
    """What measures the model's drift; None where that is not wanted, or its manifest has nothing to compare with."""
    manifest = parts.manifest
    if options.open_sampler is None or manifest.statistics is None or not options.watches(manifest.name):
        return None
    return options.open_sampler(manifest.name, manifest.version, manifest.statistics, parts.task.measure)


async def open_and_replay(
    folder: Path,
    options: ModelOptions,
    open_graph: OpenRuntime = open_runtime,
    examination: Examination | None = None,
    identity: Identity | None = None,
) -> Examination:
    """What `examine` opens, once its example was replayed; for `auto` fp32 where the int8 graph answers wrongly here."""
    if examination is None:
        examination = await asyncio.to_thread(examine, folder, options, open_graph, identity)
    parts, findings = examination
    if parts is None or findings or parts.is_plain or parts.is_verified:
        return examination
    findings = await replay_example(folder, parts, options)
    if not findings or options.precision != "auto" or parts.graph.precision != "int8":
        return Examination(parts, findings)
    note = f"{parts.graph.file} does not answer the example on this machine: {findings[0]}"
    parts, findings = await open_and_replay(folder, replace(options, precision="fp32"), open_graph, identity=identity)
    return Examination(parts and replace(parts, precision_note=note), findings)


def check_folder(folder: Path, options: ModelOptions | None = None) -> list[str]:
    """Everything that is wrong with a version folder, in sentences; empty if each of its graphs would be served.

    Runs its own event loop.
    """
    options = options or ModelOptions()
    if is_plain_folder(folder):
        return examine(folder, options).findings
    try:
        precisions = sorted({graph.precision for graph in options.tasks.read_manifest(folder).graphs})
    except FolderError as exc:
        return manifest_findings(exc)
    findings: list[str] = []
    for precision in precisions:
        options = replace(options, precision=precision)
        parts, found = examine(folder, options)
        findings += found
        if parts is not None:
            findings += asyncio.run(replay_example(folder, parts, options, is_strict=True))
    return list(dict.fromkeys(findings))


def with_tuning(examination: Examination, options: ModelOptions) -> Examination:
    """The examination of a valid folder with what its graph costs: processes that share it need not measure again."""
    parts, findings = examination
    if parts is None or findings or parts.runtime.provider != CPU or not options.measure_s:
        return examination
    return Examination(replace(parts, tuning=_tune(parts, options)), findings)


def _tune(parts: Parts, options: ModelOptions) -> Tuning | None:
    return tune(
        parts.runtime,
        parts.signature,
        options.limits,
        num_steps=parts.longest_row,
        latency_target_ms=options.latency_target_ms,
        budget_s=options.measure_s,
    )
