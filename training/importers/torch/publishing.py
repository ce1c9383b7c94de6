"""Any torch module as a model folder: `publish(net, "name", example=[row, row])`, one function from top to bottom.

The contract: the answer for a row is `model(row[None])` alone, unpadded, whatever batch the server puts it in. Nothing is
published that was not measured to keep it.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

import training
from training.export.publish import Publication, next_version, open_home, put_in_place, require_free
from training.export.publish import publish as write
from training.export.rounding import one_thread
from training.importers.torch.artifact import Artifact, Batching
from training.importers.torch.calling import Axis, Subject
from training.importers.torch.candidates import Wanted, make_artifact, read_expected, route_of
from training.importers.torch.checks import TOLERANCE, Reference, Verdict
from training.importers.torch.errors import ModuleRefused
from training.importers.torch.refusals import require_network
from training.importers.torch.tasks import Classify, Example, Forecast, Task, read_task
from training.importers.torch.translate import GraphTensor
from training.importers.torch.trial import Trial, try_module
from training.importers.torch.wrappers import Scaled, innermost, read_scaler
from training.scoring.evaluate import Scores

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NUM_EXAMPLES = 4
CHECK_TIMEOUT_S = 300
BATCHES: Mapping[Batching, str] = {
    "ragged": "batches of rows of any length",
    "equal": "batches of rows of equal length",
    "none": "one row at a time",
}


@dataclass(frozen=True)
class PublishedModel:
    """What came of a publication: the folder (None in a dry run), the route, and what was measured."""

    folder: Path | None
    route: str
    batching: Batching
    verdict: Verdict
    notes: tuple[str, ...]
    tried: tuple[str, ...]
    """Routes that came before, and what stood in their way."""

    def __str__(self) -> str:
        lines = [f"{self.folder or 'dry run'}: {self.route}, {BATCHES[self.batching]}"]
        lines += [f"  {line}" for line in self.tried]
        lines += [f"  {check.name:32} {check.error:8.1e}  (allowed {check.allowed:.0e})" for check in self.verdict.checks]
        lines.append(f"  at {', '.join(self.verdict.rows)}; the module's own rounding {self.verdict.rounding:.0e}")
        lines += [f"  {note}" for note in self.verdict.notes]
        lines.append(f"  shortest row {self.verdict.min_length}")
        lines.append(f"  one row {self.verdict.ms_per_row:.2f} ms, in torch {self.verdict.ms_per_row_torch:.2f} ms")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Form:
    """What the folder is of, in the place of a recipe."""

    name: str
    version: int | None
    task: str
    description: str
    licence: str
    options: Mapping[str, Any]
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        """The options that were given."""
        return dict(self.options)


def publish(
    model: nn.Module,
    name: str,
    *,
    example: Sequence[Any],
    task: Literal["tensor"] | Task = "tensor",
    inputs: Mapping[str, Sequence[Axis]] | None = None,
    lengths: str | None = None,
    batch_first: bool = True,
    state: Mapping[str, str] | None = None,
    scale: Any = None,
    unscale: Any = None,
    expected: Sequence[Any] | None = None,
    scores: Scores | None = None,
    batching: Wanted = "auto",
    tolerance: float = TOLERANCE,
    description: str = "",
    licence: str = "",
    version: int | None = None,
    replace: bool = False,
    dry_run: bool = False,
    models: str | Path = "models",
    origin: Mapping[str, Any] | None = None,
) -> PublishedModel:
    """Publish a module, unchanged, as `models/<name>/<version>`.

    `example` are rows of at least two lengths, without a batch axis: arrays, tuples of arrays in the order of `forward`'s
    arguments, or dicts by their names; texts for a classifier. What differs between the rows is time, unless `inputs` gives the
    axes of a row (numbers, and "time"). `lengths` names the argument that takes the rows' lengths, if there is one. `state` maps
    an argument to the output that carries it on; `scale` and `unscale` are fitted scalers for the first input and the first
    output. `expected` are answers that were recorded elsewhere, one for each example row. `batching` is what is found ("auto"),
    or has to be "ragged", "equal" (rows of one length) or "none": the module takes one row at a time, and the graph too.
    `origin` is what the manifest says of where the module comes from, where that is not its class.

    Raises ModuleRefused with the sentence that helps, and PublishError where the version exists. Writes nothing then.
    """
    network = require_network(model)
    require_options(batching, tolerance)
    chosen = read_task(task)
    options = {"inputs": inputs, "lengths": lengths, "batch_first": batch_first, "state": state, "batching": batching}
    about = description or f"a {type(network).__name__} of torch"
    form = Form(require_name(name), version, chosen.name, about, licence, _given(options | {"tolerance": tolerance}))
    root = Path(models)
    require_free(form, root, replace=replace)
    with one_thread(), _as_served(network) as served:
        scaled = _scaled(served, scale, unscale)
        wrapped, parameters, rows = chosen.prepare(scaled, _require_rows(example))
        wrapped = wrapped if wrapped is network else wrapped.eval()
        axes = inputs or chosen.axes(rows)
        one = batching == "none"
        trial = try_module(wrapped, parameters, rows, axes, lengths, batch_first, state, takes_one_row=one)
        answers = None if expected is None else read_expected(expected, trial)
        artifact, verdict, tried = make_artifact(trial, batching, tolerance, answers)
        result = PublishedModel(None, route_of(artifact), artifact.batching, verdict, artifact.notes, tuple(tried))
        if dry_run:
            return result
        publication = _publication(form, trial, artifact, result, chosen, example, scores or {}, origin)
        return changed(result, folder=write_folder(publication, form, root, replace=replace))


# ------------------------------------------------------------------------------------------------------------ the module


@contextmanager
def _as_served(model: nn.Module) -> Iterator[nn.Module]:
    """The module as it predicts: in eval mode, on the CPU, in float32. The caller's own is as it was afterwards."""
    parameters = list(model.parameters())
    if any(parameter.device.type != "cpu" or parameter.dtype == torch.float64 for parameter in parameters):
        yield copy.deepcopy(model).cpu().float().eval()
        return
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, was_training in training.items():
            module.training = was_training


def _scaled(model: nn.Module, scale: Any, unscale: Any) -> nn.Module:
    """The module between its scalers."""
    if scale is None and unscale is None:
        return model
    before = None if scale is None else read_scaler(scale, "scale")
    after = None if unscale is None else read_scaler(unscale, "unscale").inverse
    return Scaled(model, before, after).eval()


def _require_rows(example: Any) -> Sequence[Any]:
    if not isinstance(example, list | tuple) or len(example) < 2:
        raise ModuleRefused("example: expected a list of at least two rows, of different length, each without a batch axis")
    return example


def require_options(batching: str, tolerance: float) -> None:
    """Raise ModuleRefused for another word, and a tolerance that is none."""
    if batching not in get_args(Wanted):
        words = ", ".join(f'"{word}"' for word in get_args(Wanted))
        raise ModuleRefused(f"batching: expected one of {words}, got {batching!r}")
    if not 0 < tolerance < 1:
        raise ModuleRefused(f"tolerance: expected a number between 0 and 1, got {tolerance}")


# ------------------------------------------------------------------------------------------------------------ the folder


def require_name(name: str) -> str:
    """Raise ModuleRefused for what cannot name a folder."""
    if not NAME.fullmatch(name):
        raise ModuleRefused(f"name: expected letters, digits, '.', '_' and '-', got {name!r}")
    return name


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not left at their defaults, as JSON."""
    defaults = {"batch_first": True, "batching": "auto", "tolerance": TOLERANCE}

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(part) for key, part in value.items()}
        return list(value) if isinstance(value, tuple | list) else value

    return {name: plain(value) for name, value in options.items() if value != defaults.get(name)}


def _publication(
    form: Form,
    trial: Trial,
    artifact: Artifact,
    result: PublishedModel,
    task: Task,
    example: Sequence[Any],
    scores: Scores,
    origin: Mapping[str, Any] | None,
) -> Publication:
    subject, verdict = trial.subject, result.verdict
    reference = Reference(subject, trial.names, {entry.name: entry.shape for entry in artifact.outputs})
    states = {part.output for part in subject.states}
    rows = subject.rows[:NUM_EXAMPLES]
    answers = [{name: value for name, value in reference.answer(row).items() if name not in states} for row in rows]
    network = innermost(subject.model)
    described = describe_folder(
        form,
        subject,
        artifact,
        verdict,
        task.word(example, rows, answers, verdict),
        origin={**(origin or {"from": "torch", "class": type(network).__name__}), "route": result.route},
        tried=result.tried,
    )
    count = sum(parameter.numel() for parameter in network.parameters())
    return changed(described, metrics=scores, facts={**described.facts, "num_parameters": count})


def describe_folder(
    form: Form,
    subject: Subject,
    artifact: Artifact,
    verdict: Verdict,
    worded: Example,
    *,
    origin: Mapping[str, Any],
    tried: Sequence[str],
) -> Publication:
    """The folder of a verified graph; `origin` is what the manifest says of where it comes from, `tried` what came before it."""
    return Publication(
        recipe=form,
        graph=artifact.graph,
        tensors={
            "inputs": [_entry(tensor) for tensor in artifact.inputs],
            "outputs": [_entry(tensor) for tensor in artifact.outputs],
            "state": [{"input": part.input, "output": part.output} for part in subject.states],
        },
        spec=worded.block,
        instances=worded.instances,
        predictions=worded.predictions,
        metrics={},
        baselines={},
        data=[],
        facts={
            "import": {**origin, "batching": artifact.batching, "tried": list(tried)},
            "checks": _describe_checks(verdict),
        },
        files=worded.files,
        opset=artifact.opset,
        min_length=1 if worded.block or not subject.is_open else verdict.min_length,
    )


def _describe_checks(verdict: Verdict) -> dict[str, Any]:
    """What was measured, as the manifest keeps it."""
    errors = {check.name: {"error": _short(check.error), "allowed": _short(check.allowed)} for check in verdict.checks}
    return {**errors, "min_length": verdict.min_length, "rounding": _short(verdict.rounding)}


def _entry(tensor: GraphTensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _short(number: float) -> float:
    return float(f"{number:.3g}")


def write_folder(publication: Publication, form: Form, models: Path, *, replace: bool) -> Path:
    """Write the folder aside, let it answer its example through the service's own loader, and put it in place."""
    with open_home(form, models) as home:
        number = form.version or next_version(home)
        # A name that begins with a dot is no model: whoever lists the folders passes it over.
        with tempfile.TemporaryDirectory(dir=models, prefix=".new-", ignore_cleanup_errors=True) as aside:
            folder = write(changed(publication, recipe=changed(form, version=number)), Path(aside))
            _check_served(folder)
            require_free(form, models, replace=replace)
            put_in_place(folder, home / str(number))
    return home / str(number)


def _check_served(folder: Path) -> None:
    """Raise ModuleRefused unless the service, in a process of its own, serves the folder and answers its example."""
    home = str(Path(training.__file__).parent.parent)
    # Without the working folder on the path: a user's own "service" may lie there.
    command = [sys.executable, "-P", "-m", "service", "check", str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))}
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=CHECK_TIMEOUT_S, env=environment)
    if found.returncode:
        raise ModuleRefused(f"the service does not serve the folder: {(found.stdout + found.stderr).strip()[:500]}")


__all__ = ["Classify", "Forecast", "PublishedModel", "publish"]
