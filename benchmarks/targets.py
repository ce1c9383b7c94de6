"""The servers of a comparison: Sluice, the rivals that can be installed here, and the canned responses. Starts none of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.cases import Api, Case
from benchmarks.protocol_requests import JSON_LENGTH, infer_binary, infer_json, infer_path
from benchmarks.responses import Prediction, parse_sluice_predictions
from benchmarks.results import Family, TargetSpec
from benchmarks.rivals import RIVALS, Rival
from benchmarks.rivals.environments import NotInstalledError, environment, is_complete, versions
from benchmarks.rivals.options import Batching
from benchmarks.servers import sluice_command
from benchmarks.summary import ECHO
from benchmarks.workloads import Instance
from service.process.machine import num_cores, threads_per_worker
from service.settings import read_settings

# The rivals that are families of their own; those that come as packages are one family.
HAND_WRITTEN: dict[str, Family] = {"hand-written": "hand-written", "hand-written tuned": "hand-written tuned"}
READY_TIMEOUT_S = 180.0
"""Ray starts a cluster first."""

Command = tuple[Sequence[str], Mapping[str, str]]
"""Arguments, and additions to the environment."""


@dataclass(frozen=True)
class Target:
    """One server to measure: how it is started, what is sent to it, and how its responses are read."""

    spec: TargetSpec
    command: Callable[[Path, int], Command]
    """(version folder, port) → the command that serves this one model."""
    body: Callable[[Case, Sequence[Instance]], bytes]
    predictions: Callable[[bytes], Sequence[Prediction]] | None
    """A response → its numbers, one prediction per instance; None: responses are canned."""
    path: Callable[[Case], str] = lambda case: "/predict"
    ready_path: str = "/health/ready"
    apis: Sequence[Api] = ("predict",)
    """What it can be sent."""
    headers: Callable[[Case], Mapping[str, str]] = lambda case: {}
    """Of the requests of a case, beside their type."""

    @property
    def name(self) -> str:
        return self.spec.name


def sluice(num_processes: int) -> Target:
    """Sluice with its default settings."""

    def command(folder: Path, port: int) -> Command:
        return sluice_command(folder.parent.parent, port, num_processes)

    settings = read_settings(sluice_command(Path(), 0, num_processes)[1])
    spec = TargetSpec(
        name=_label("Sluice", num_processes),
        family="sluice",
        num_processes=num_processes,
        num_threads=settings.num_threads or threads_per_worker(num_cores(), num_processes),
        batching=Batching(settings.max_batch_size, "instances", settings.max_queue_delay_ms),
    )
    return Target(
        spec, command, _sluice_body, parse_sluice_predictions, path=_sluice_path, apis=get_args(Api), headers=_sluice_headers
    )


def echo(responses: Path) -> Target:
    """The upper bound of HTTP: gets Sluice's requests, and responds with the file of the case's name."""

    def command(folder: Path, port: int) -> Command:
        return [sys.executable, "-m", "benchmarks.echo", str(responses), str(port)], {}

    spec = TargetSpec(name=ECHO, family="echo", num_processes=1)
    return Target(
        spec,
        command,
        _sluice_body,
        None,
        path=lambda case: f"/{case.name}",
        ready_path="/",
        apis=get_args(Api),
        headers=_sluice_headers,
    )


def from_rival(rival: Rival, num_processes: int, python: Path) -> Target:
    """A rival of `benchmarks/rivals`, run by the interpreter of its environment."""
    spec = TargetSpec(
        name=_label(rival.name, num_processes),
        family=HAND_WRITTEN.get(rival.name, "packaged"),
        num_processes=num_processes,
        num_threads=rival.num_threads,
        batching=rival.batching,
        versions=versions(rival, python),
    )
    return Target(
        spec,
        command=lambda folder, port: rival.command(python, folder, port, num_processes),
        body=lambda case, instances: rival.body(case.task, instances),
        predictions=lambda response: [_arrays(prediction) for prediction in rival.predictions(response)],
        path=lambda case: rival.path,
        ready_path=rival.ready_path,
        apis=("predict", "v2 JSON") if rival.path.startswith("/v2/") else ("predict",),
    )


def select_targets(prefixes: Sequence[str]) -> tuple[list[Target], dict[str, str]]:
    """The targets whose names begin with one of `prefixes` (all, if that is empty), and per rival why it is not installed.

    Sluice and the hand-written servers are measured with one process and with one per core, packaged servers with one per core.
    Raises SystemExit that lists the names if one of `prefixes` matches none.
    """
    names = ["Sluice", *(rival.name for rival in RIVALS)]
    for prefix in prefixes:
        if not any(_has_prefix(name, prefix) or _has_prefix(prefix, name) for name in names):
            raise SystemExit(f"unknown target {prefix}; known targets: {', '.join(names)}")
    counts = sorted({1, num_cores()})
    targets: list[Target] = [sluice(count) for count in counts if _is_selected(_label("Sluice", count), prefixes)]
    unavailable: dict[str, str] = {}
    for rival in RIVALS:
        selected = [
            count
            for count in (counts if rival.name in HAND_WRITTEN else counts[-1:])
            if _is_selected(_label(rival.name, count), prefixes)
        ]
        if not selected:
            continue
        if not is_complete(rival):
            print(f"installing {rival.name}", flush=True)
        try:
            python = environment(rival)
        except NotInstalledError as exc:
            unavailable[rival.name] = exc.reason
            continue
        targets += [from_rival(rival, count, python) for count in selected]
    return targets, unavailable


def _arrays(prediction: Mapping[str, Any]) -> Prediction:
    """A rival's prediction: the graph's outputs by name, in the graph's order."""
    return [np.array(values, np.float64) for values in prediction.values()]


def _sluice_body(case: Case, instances: Sequence[Instance]) -> bytes:
    if case.api == "predict":
        return json.dumps({"model": case.model, "instances": instances}).encode()
    histories = [instance["history"] for instance in instances if isinstance(instance, dict)]
    return b"".join(infer_binary(histories)) if case.api == "v2 binary" else infer_json(histories)


def _sluice_path(case: Case) -> str:
    return "/predict" if case.api == "predict" else infer_path(case.model)


def _sluice_headers(case: Case) -> Mapping[str, str]:
    """The length of the JSON before binary data depends on how many numbers there are, not on which."""
    if case.api != "v2 binary":
        return {}
    steps, _ = case.lengths
    head, _ = infer_binary([[0.0] * steps] * case.num_instances)
    return {JSON_LENGTH: str(len(head))}


def _label(name: str, num_processes: int) -> str:
    return f"{name}, {num_processes} process{'es' if num_processes > 1 else ''}"


def _is_selected(name: str, prefixes: Sequence[str]) -> bool:
    return not prefixes or any(_has_prefix(name, prefix) for prefix in prefixes)


def _has_prefix(name: str, prefix: str) -> bool:
    return name.lower().startswith(prefix.lower())
