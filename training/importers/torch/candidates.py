"""The ways from a module to a graph, in order: the first whose graph is verified wins. Publishes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.importers.torch.artifact import Artifact, Batching
from training.importers.torch.checks import Verdict, verify
from training.importers.torch.errors import ModuleRefused, Untranslatable
from training.importers.torch.export import EXPORTERS, OTHER, Exports
from training.importers.torch.program import unify
from training.importers.torch.translate import translate
from training.importers.torch.trial import Trial

Wanted = Literal["auto", "ragged", "equal", "none"]


def make_artifact(
    trial: Trial, batching: Wanted, tolerance: float, expected: Sequence[Mapping[str, NDArray[Any]]] | None
) -> tuple[Artifact, Verdict, list[str]]:
    """The first candidate that keeps the contract, and what stood in the way of those before it."""
    tried: list[str] = []
    last: Verdict | None = None
    for make in _candidates(trial, batching):
        try:
            artifact = make()
            verdict = verify(artifact, trial.subject, trial.names, tolerance=tolerance, expected=expected)
        except Untranslatable as exc:
            tried.append(f"not translated: {exc}" if not str(exc).startswith(EXPORTERS) else f"not exported: {exc}")
            continue
        if not verdict.broken:
            return artifact, verdict, tried
        tried.append(f"{route_of(artifact)}, {artifact.batching} batches: {verdict.broken[0]}")
        last = verdict
        if verdict.overflow:
            raise ModuleRefused(verdict.overflow)
        if any(check.name == "expected answers" for check in verdict.broken) and len(verdict.broken) == 1:
            raise ModuleRefused(f"the expected answers are not the module's: {verdict.broken[0]}")
    reason = "no graph keeps the contract" if last else "no way to a graph was found"
    raise ModuleRefused("\n  ".join([f"{reason}:", *tried]))


def _candidates(trial: Trial, batching: Wanted) -> Iterator[Any]:
    subject = trial.subject
    exports = Exports(subject, trial.names, trial.outputs)
    if batching == "none":
        for exporter in EXPORTERS:
            yield lambda exporter=exporter: _export(trial, exports, exporter, "none")
        return
    for kind in ("ragged", "equal"):
        if (subject.is_open and batching not in ("auto", kind)) or (kind == "equal" and not subject.is_open):
            continue
        if kind == "ragged" and (crossed := _crossed_output(trial)):
            yield lambda crossed=crossed: _refuse_ragged(crossed)
            continue
        if kind == "ragged" or subject.lengths_argument is None:
            yield lambda kind=kind: translate_trial(trial, kind)
        for exporter in EXPORTERS:
            # Bound now: the loop goes on before the candidate is made.
            yield lambda exporter=exporter, kind=kind: _export(trial, exports, exporter, kind)


def translate_trial(trial: Trial, batching: Literal["ragged", "equal"] = "ragged") -> Artifact:
    """The graph of the recorded calls. Raises Untranslatable with the line that has no rule."""
    subject = trial.subject
    program = unify(trial.recordings)
    translation = translate(program, subject.graph_inputs(), trial.outputs, is_equal=batching == "equal")
    model = translation.model
    opset = max(entry.version for entry in model.opset_import)
    return Artifact(model.SerializeToString(), translation.inputs, translation.outputs, "translate", batching, opset)


def _crossed_output(trial: Trial) -> str | None:
    """An output of steps by steps, as attention's weights; rows of a batch are cut to their length along one axis."""
    return next((output.name for output in trial.outputs if output.shape.count("time") > 1), None)


def _refuse_ragged(output: str) -> Artifact:
    raise Untranslatable(f'output "{output}" has several axes of steps: rows of other lengths do not share a batch')


def _export(trial: Trial, exports: Exports, exporter: Any, batching: Batching) -> Artifact:
    others = [output.name for output in trial.outputs if any(str(axis).startswith(OTHER) for axis in output.shape)]
    if others and batching != "equal":
        raise Untranslatable(
            f'{exporter} exporter: output "{others[0]}" has an axis whose size is neither the rows nor the steps'
        )
    return exports.artifact(exporter, batching)


def route_of(artifact: Artifact) -> str:
    return "translated" if artifact.route == "translate" else f"exported ({', '.join(artifact.notes)})"


def read_expected(expected: Sequence[Any], trial: Trial) -> list[dict[str, NDArray[Any]]]:
    names = [output.name for output in trial.outputs if output.name not in {part.output for part in trial.subject.states}]
    if len(expected) != len(trial.subject.rows):
        raise ModuleRefused(f"expected: {len(expected)} answers for {len(trial.subject.rows)} example rows")
    read = []
    for answer in expected:
        given = (
            answer
            if isinstance(answer, Mapping)
            else dict(zip(names, answer if isinstance(answer, tuple) else (answer,), strict=False))
        )
        unknown = [name for name in given if name not in names]
        if unknown:
            raise ModuleRefused(f'expected: no output is called "{unknown[0]}"; the outputs are {names}')
        read.append({str(name): np.asarray(value) for name, value in given.items()})
    return read
