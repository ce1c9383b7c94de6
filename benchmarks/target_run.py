"""One target's run in one round: for each model start, wait until ready, warm up, measure every case, stop.

No two servers run at a time: some idle ones use a good part of a core. Writes no results; returns the measurements.
"""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from benchmarks.batch_invariance import NUM_ROWS, worst_difference
from benchmarks.cases import SATURATION_CASES, Case
from benchmarks.http_client import post, post_together
from benchmarks.load import Load, run_wrk, write_bodies
from benchmarks.open_loop import OpenLoad, run_open_loop
from benchmarks.responses import Prediction, ResponseMismatch, verify
from benchmarks.results import BatchInvariance, Failure, Measurement, Start
from benchmarks.servers import ROOT, Server, free_port, running
from benchmarks.targets import READY_TIMEOUT_S, Target
from benchmarks.workloads import Instance, Workload

WARM_UP_S = 1
WARM_UP_CONNECTIONS = 64


class NoResponses(Exception):
    """No request of a case got a 2xx response."""


# A target that does not start, does not respond or responds wrongly is recorded as a failure; the others are measured.
_TARGET_ERRORS = (ResponseMismatch, NoResponses, RuntimeError, OSError, HTTPException, subprocess.SubprocessError)


@dataclasses.dataclass
class TargetRun:
    """One target in one round; `log` gets a line about each measurement."""

    number: int
    target: Target
    seconds: float
    folders: Mapping[str, Path]
    workloads: Mapping[str, Workload]
    log: Callable[[str], None]
    measurements: list[Measurement] = dataclasses.field(default_factory=list)
    starts: list[Start] = dataclasses.field(default_factory=list)
    invariances: list[BatchInvariance] = dataclasses.field(default_factory=list)
    failures: list[Failure] = dataclasses.field(default_factory=list)

    def run(self, cases: Iterable[Case]) -> None:
        """Measure all cases, grouped by model; canned responses are a ceiling of closed loops only."""
        wanted = [
            case for case in cases if case.api in self.target.apis and (case.load is None or self.target.predictions is not None)
        ]
        # Open loops last: their rates are shares of the closed loops' rates.
        ordered = sorted(wanted, key=lambda case: (list(self.folders).index(case.model), case.load is not None))
        for model, group in itertools.groupby(ordered, key=lambda case: case.model):
            try:
                self._run_model(model, list(group))
            except _TARGET_ERRORS as exc:
                self._fail(model, None, exc)

    def _run_model(self, model: str, cases: Sequence[Case]) -> None:
        port = free_port()
        command, env = self.target.command(self.folders[model], port)
        options: dict[str, Any] = {"ready_path": self.target.ready_path, "timeout_s": READY_TIMEOUT_S}
        with (
            tempfile.TemporaryDirectory() as name,
            running(self.target.name, command, port, dict(env), **options) as server,
        ):
            bodies = {case.name: self._write_bodies(case, Path(name) / case.name) for case in cases}
            first = cases[0]
            headers = self.target.headers(first)
            run_wrk(self._url(server, first), bodies[first.name], WARM_UP_CONNECTIONS, WARM_UP_S, headers)
            for case in cases:
                try:
                    self._measure(server, case, bodies[case.name])
                    if case.is_ragged and self.target.predictions is not None:
                        self._measure_invariance(server, case, self.target.predictions)
                except _TARGET_ERRORS as exc:
                    self._fail(model, case.name, exc)
            resident = server.resident_bytes()
            start = Start(
                round=self.number,
                target=self.target.name,
                model=model,
                ready_s=server.ready_s,
                resident_bytes=resident,
            )
            self.starts.append(start)
            self.log(f"{self.target.name}, {model}: ready in {server.ready_s:.2f} s, {resident / 1e6:.0f} MB")

    def _measure(self, server: Server, case: Case, bodies: Path) -> None:
        url, headers = self._url(server, case), self.target.headers(case)
        response = post(url, (bodies / "0").read_bytes(), headers)
        if self.target.predictions is not None:
            verify(_parse(self.target.predictions, response), self.workloads[case.name].expected)
        duration_s = self.seconds * case.duration_factor
        if case.load is None:
            load = run_wrk(url, bodies, case.connections, duration_s, headers)
            if not load.requests_per_s:
                raise NoResponses(f"no 2xx response within {duration_s:g} s, {load.num_failed} requests failed")
            found = self._record(case, load)
        else:
            maximum_per_s = self._maximum_per_s() or run_wrk(url, bodies, case.connections, self.seconds).requests_per_s
            found = self._record(case, run_open_loop(url, bodies, case.load * maximum_per_s, duration_s))
        rate = f"{found.requests_per_s:,.0f}" if found.requests_per_s >= 100 else f"{found.requests_per_s:.1f}"
        times = f"p50 {found.p50_ms:.2f} ms, p99 {found.p99_ms:.2f} ms"
        self.log(f"{self.target.name}, {case.name}: {rate} requests/s, {times}, {found.num_failed} failed")

    def _measure_invariance(self, server: Server, case: Case, predictions: Callable[[bytes], Sequence[Prediction]]) -> None:
        url = self._url(server, case)

        def predict_together(requests: Sequence[Sequence[Instance]]) -> list[Sequence[Prediction]]:
            responses = post_together(url, [self.target.body(case, request) for request in requests])
            return [_parse(predictions, response) for response in responses]

        rows = [row for request in self.workloads[case.name].requests for row in request][:NUM_ROWS]
        worst = worst_difference(rows, predict_together)
        self.invariances.append(
            BatchInvariance(round=self.number, target=self.target.name, case=case.name, worst_difference=worst)
        )
        self.log(f"{self.target.name}, {case.name}: rows together and alone differ by {worst:.1e} at most")

    def _record(self, case: Case, load: Load | OpenLoad) -> Measurement:
        labels = {"round": self.number, "target": self.target.name, "case": case.name}
        found = Measurement.model_validate(labels | dataclasses.asdict(load))
        self.measurements.append(found)
        return found

    def _maximum_per_s(self) -> float | None:
        """The highest rate of this run's closed loops with the reference's standard request."""
        return max((one.requests_per_s for one in self.measurements if one.case in SATURATION_CASES), default=None)

    def _write_bodies(self, case: Case, folder: Path) -> Path:
        return write_bodies([self.target.body(case, request) for request in self.workloads[case.name].requests], folder)

    def _url(self, server: Server, case: Case) -> str:
        return server.url + self.target.path(case)

    def _fail(self, model: str, case: str | None, exc: Exception) -> None:
        reason = shorten(exc.stderr if isinstance(exc, subprocess.CalledProcessError) else str(exc)) or type(exc).__name__
        self.failures.append(Failure(round=self.number, target=self.target.name, model=model, case=case, reason=reason))
        self.log(f"{self.target.name}, {case or model}: {reason}")


def _parse(predictions: Callable[[bytes], Sequence[Prediction]], response: bytes) -> Sequence[Prediction]:
    """Raises ResponseMismatch where the response has another form."""
    try:
        return predictions(response)
    except (ValueError, LookupError, TypeError) as exc:
        raise ResponseMismatch(f"unreadable: {response[:200]!r}") from exc


def shorten(text: str) -> str:
    """The first and the last line of a message, without this checkout's path: between them stand a traceback's frames."""
    lines = [line.strip().replace(f"{ROOT}/", "")[:250] for line in text.splitlines() if line.strip()]
    return " … ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))
