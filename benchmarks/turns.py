"""One contestant's turn under load: for each model start, wait until ready, warm up, every case, stop.

No two servers run at a time: some idle ones take a good part of a core. Keeps no results; gives back what it measured.
"""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from benchmarks.answers import WrongAnswer, check
from benchmarks.cases import SETTING_MAXIMUM, Case
from benchmarks.contestants import READY_TIMEOUT_S, Contestant
from benchmarks.load import Load, burst, write_bodies
from benchmarks.open_loop import OpenLoad, open_loop
from benchmarks.questions import Instance
from benchmarks.results import Failure, Measurement, Start
from benchmarks.servers import ROOT, Server, free_port, running
from service.runtime.tensors import Tensors

WARM_UP_S = 1
WARM_UP_CONNECTIONS = 64


@dataclasses.dataclass(frozen=True)
class Question:
    """What a case asks, request by request, and what the graph itself answers to the first of them."""

    requests: Sequence[Sequence[Instance]]
    truth: Sequence[Tensors]


class NothingAnswered(Exception):
    """Not one request of a case was answered 2xx."""


# What a server can do wrong: not start, not answer, answer wrongly. The others go on.
_TROUBLES = (WrongAnswer, NothingAnswered, RuntimeError, OSError, HTTPException, subprocess.SubprocessError)


@dataclasses.dataclass
class Turn:
    """One contestant's turn in one round; `tell` is given a line about each thing that is measured."""

    number: int
    contestant: Contestant
    seconds: float
    folders: Mapping[str, Path]
    questions: Mapping[str, Question]
    tell: Callable[[str], None]
    measurements: list[Measurement] = dataclasses.field(default_factory=list)
    starts: list[Start] = dataclasses.field(default_factory=list)
    failures: list[Failure] = dataclasses.field(default_factory=list)

    def take(self, cases: Iterable[Case]) -> None:
        """All cases, those of one model after each other; canned answers are a ceiling of closed loops alone."""
        wanted = [case for case in cases if case.load is None or self.contestant.predictions is not None]
        # Open loops last: they need the closed loops' rates.
        ordered = sorted(wanted, key=lambda case: (list(self.folders).index(case.model), case.load is not None))
        for model, some in itertools.groupby(ordered, key=lambda case: case.model):
            try:
                self._serve(model, list(some))
            except _TROUBLES as exc:
                self._failed(model, None, exc)

    def _serve(self, model: str, cases: Sequence[Case]) -> None:
        port = free_port()
        command, env = self.contestant.command(self.folders[model], port)
        with (
            tempfile.TemporaryDirectory() as name,
            running(
                self.contestant.name,
                command,
                port,
                dict(env),
                ready_path=self.contestant.ready_path,
                timeout_s=READY_TIMEOUT_S,
            ) as server,
        ):
            bodies = {case.name: self._bodies(case, Path(name) / case.name) for case in cases}
            first = cases[0]
            burst(self._url(server, first), bodies[first.name], WARM_UP_CONNECTIONS, WARM_UP_S)
            for case in cases:
                try:
                    self._measure(server, case, bodies[case.name])
                except _TROUBLES as exc:
                    self._failed(model, case.name, exc)
            held = server.resident_bytes()
            start = Start(
                round=self.number,
                contestant=self.contestant.name,
                model=model,
                ready_s=server.ready_s,
                resident_bytes=held,
            )
            self.starts.append(start)
            self.tell(f"{self.contestant.name}, {model}: ready in {server.ready_s:.2f} s, {held / 1e6:.0f} MB")

    def _measure(self, server: Server, case: Case, bodies: Path) -> None:
        url = self._url(server, case)
        answer = post(url, (bodies / "0").read_bytes())
        if self.contestant.predictions is not None:
            check(_read(self.contestant.predictions, answer), self.questions[case.name].truth)
        duration_s = self.seconds * case.num_bursts
        if case.load is None:
            load = burst(url, bodies, case.connections, duration_s)
            if not load.requests_per_s:
                raise NothingAnswered(f"nothing was answered 2xx within {duration_s:g} s, {load.num_failed} requests failed")
            found = self._record(case, load)
        else:
            asked_per_s = case.load * (self._maximum() or burst(url, bodies, case.connections, self.seconds).requests_per_s)
            found = self._record(case, open_loop(url, bodies, asked_per_s, duration_s))
        rate = f"{found.requests_per_s:,.0f}" if found.requests_per_s >= 100 else f"{found.requests_per_s:.1f}"
        times = f"p50 {found.p50_ms:.2f} ms, p99 {found.p99_ms:.2f} ms"
        self.tell(f"{self.contestant.name}, {case.name}: {rate} requests/s, {times}, {found.num_failed} failed")

    def _record(self, case: Case, load: Load | OpenLoad) -> Measurement:
        about = {"round": self.number, "contestant": self.contestant.name, "case": case.name}
        found = Measurement.model_validate(about | dataclasses.asdict(load))
        self.measurements.append(found)
        return found

    def _maximum(self) -> float | None:
        """The most requests per second of this turn's closed loops on the reference's standard request."""
        return max((one.requests_per_s for one in self.measurements if one.case in SETTING_MAXIMUM), default=None)

    def _bodies(self, case: Case, folder: Path) -> Path:
        return write_bodies([self.contestant.body(case, request) for request in self.questions[case.name].requests], folder)

    def _url(self, server: Server, case: Case) -> str:
        return server.url + self.contestant.path(case)

    def _failed(self, model: str, case: str | None, exc: Exception) -> None:
        reason = shortened(exc.stderr if isinstance(exc, subprocess.CalledProcessError) else str(exc)) or type(exc).__name__
        self.failures.append(Failure(round=self.number, contestant=self.contestant.name, model=model, case=case, reason=reason))
        self.tell(f"{self.contestant.name}, {case or model}: {reason}")


def _read(predictions: Callable[[bytes], Sequence[Mapping[str, Any]]], answer: bytes) -> Sequence[Mapping[str, Any]]:
    """Raises WrongAnswer where the answer has another form."""
    try:
        return predictions(answer)
    except (ValueError, LookupError, TypeError) as exc:
        raise WrongAnswer(f"unreadable: {answer[:200]!r}") from exc


def shortened(text: str) -> str:
    """The first and the last line of what was said, without this checkout's path: between them stand a traceback's frames."""
    lines = [line.strip().replace(f"{ROOT}/", "")[:250] for line in text.splitlines() if line.strip()]
    return " … ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))


def post(url: str, body: bytes) -> bytes:
    """The answer to one JSON body. Raises urllib's URLError, for a refusal too."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: bytes = answer.read()
        return content
