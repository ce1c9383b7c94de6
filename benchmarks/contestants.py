"""Who takes part: Sluice, the rivals that can be installed here, and the server of canned answers. Starts none of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.answers import sluice_predictions
from benchmarks.cases import Case
from benchmarks.questions import Instance
from benchmarks.results import Entry, Family
from benchmarks.rivals import RIVALS, Rival
from benchmarks.rivals.environments import NotInstalledError, environment, is_complete, versions
from benchmarks.servers import sluice_command
from benchmarks.summary import ECHO
from service.process.machine import num_cores

HAND_WRITTEN = "hand-written"
READY_TIMEOUT_S = 180.0
"""Ray starts a cluster first."""

Command = tuple[Sequence[str], Mapping[str, str]]
"""Arguments, and what is added to the environment."""


@dataclass(frozen=True)
class Contestant:
    """One server as it is started and asked."""

    name: str
    family: Family
    num_processes: int
    command: Callable[[Path, int], Command]
    """(version folder, port) → how to start it with that one model."""
    body: Callable[[Case, Sequence[Instance]], bytes]
    predictions: Callable[[bytes], Sequence[Mapping[str, Any]]] | None
    """An answer → the graph's outputs, one dict per instance; None: it is no answer to what was asked."""
    path: Callable[[Case], str] = lambda case: "/predict"
    ready_path: str = "/health/ready"
    versions: str = ""

    @property
    def entry(self) -> Entry:
        """How the results call it."""
        return Entry(name=self.name, family=self.family, num_processes=self.num_processes, versions=self.versions)


def sluice(num_processes: int) -> Contestant:
    """Sluice as it comes."""

    def command(folder: Path, port: int) -> Command:
        return sluice_command(folder.parent.parent, port, num_processes)

    return Contestant(_named("Sluice", num_processes), "sluice", num_processes, command, _own_body, sluice_predictions)


def echo(answers: Path) -> Contestant:
    """The ceiling of HTTP: gets what Sluice gets, and answers the file of the case's name."""

    def command(folder: Path, port: int) -> Command:
        return [sys.executable, "-m", "benchmarks.echo", str(answers), str(port)], {}

    return Contestant(ECHO, "echo", 1, command, _own_body, None, path=lambda case: f"/{case.name}", ready_path="/")


def from_rival(rival: Rival, num_processes: int, python: Path) -> Contestant:
    """A rival of `benchmarks/rivals`, started by the interpreter of its environment."""
    return Contestant(
        name=_named(rival.name, num_processes),
        family="hand-written" if rival.name == HAND_WRITTEN else "packaged",
        num_processes=num_processes,
        command=lambda folder, port: rival.command(python, folder, port, num_processes),
        body=lambda case, instances: rival.body(case.task, instances),
        predictions=rival.predictions,
        path=lambda case: rival.path,
        ready_path=rival.ready_path,
        versions=versions(rival, python),
    )


def contestants(asked: Sequence[str]) -> tuple[list[Contestant], dict[str, str]]:
    """Those whose names begin as one of `asked` does (all, if that is empty), and per name why one was left out.

    Sluice and the hand-written server take part with one process and with one per core, packaged servers with one per core.
    Raises SystemExit that lists the names if one of `asked` is nobody's.
    """
    names = ["Sluice", *(rival.name for rival in RIVALS)]
    for start in asked:
        if not any(_begins(name, start) or _begins(start, name) for name in names):
            raise SystemExit(f"there is no contestant {start}; there are: {', '.join(names)}")
    counts = sorted({1, num_cores()})
    field: list[Contestant] = [sluice(count) for count in counts if _is_asked(_named("Sluice", count), asked)]
    left_out: dict[str, str] = {}
    for rival in RIVALS:
        chosen = [
            count
            for count in (counts if rival.name == HAND_WRITTEN else counts[-1:])
            if _is_asked(_named(rival.name, count), asked)
        ]
        if not chosen:
            continue
        if not is_complete(rival):
            print(f"installing {rival.name}", flush=True)
        try:
            python = environment(rival)
        except NotInstalledError as exc:
            left_out[rival.name] = exc.reason
            continue
        field += [from_rival(rival, count, python) for count in chosen]
    return field, left_out


def _own_body(case: Case, instances: Sequence[Instance]) -> bytes:
    return json.dumps({"model": case.model, "instances": instances}).encode()


def _named(name: str, num_processes: int) -> str:
    return f"{name}, {num_processes} process{'es' if num_processes > 1 else ''}"


def _is_asked(name: str, asked: Sequence[str]) -> bool:
    return not asked or any(_begins(name, start) for start in asked)


def _begins(name: str, start: str) -> bool:
    return name.lower().startswith(start.lower())
