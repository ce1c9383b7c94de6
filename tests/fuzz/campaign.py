"""One run of all fuzzers against one real server process, and its report.

The rules: no 5xx but an explained 503 or 504; every answer is whole HTTP and as documented; `/health/live` answers throughout;
afterwards the same processes run, the gauges of work are zero, memory and open files are where they were.
"""

from __future__ import annotations

import collections
import json
import shutil
import struct
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.folders import write_forecast_folder, write_tensor_folder, write_text_folder
from tests.fuzz import messages, monitor, streams, trees
from tests.fuzz.cases import Case
from tests.fuzz.contract import Contract
from tests.fuzz.streams import SWITCHED, WEBSOCKET, Opening
from tests.fuzz.trees import Body
from tests.fuzz.wire import Exchange, MalformedResponse, parse_responses, send
from tests.serving import ROOT, ServerProcess, server_process

NUM_SENDERS = 8
# A run that finds more is stopped: the rest would be more of the same.
MAX_FINDINGS = 20
KEPT_CASES = 200
REQUEST_TIMEOUT_MS = 5000
VERTEX_PATH = "/vertex/predict"
SETTINGS: dict[str, Any] = {"SLUICE_VERTEX_PREDICT_ROUTE": VERTEX_PATH, "SLUICE_VERTEX_HEALTH_ROUTE": "/vertex/health"}


@dataclass(frozen=True)
class Bounds:
    """What the server may take at most. Memory and open files: of the idle server, after the first tenth and at the end."""

    stall_s: float = 5.0
    """Of a probe; probes share the machine with the senders."""
    growth_mb: float = 80.0
    """Caches and pools are filled by the first tenth, up to what the largest bodies leave."""
    open_files: int = 8
    patience_s: float = 30.0
    """Until the gauges are zero."""
    rest_s: float = 3.0
    """Until the idle server has given memory back."""


DEFAULT_BOUNDS = Bounds()


@dataclass
class Findings:
    """What was sent and what broke a rule, in all threads; each broken case is written into `folder`."""

    contract: Contract
    folder: Path
    num_cases: collections.Counter[str] = field(default_factory=collections.Counter)
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: collections.deque[Case] = collections.deque(maxlen=KEPT_CASES)

    @property
    def is_full(self) -> bool:
        return len(self.problems) >= MAX_FINDINGS

    def begin(self, case: Case) -> None:
        self._recent.append(case)

    def record(self, case: Case, exchange: Exchange, others: Sequence[str] = ()) -> None:
        """Check what came back, and count it."""
        problems = [*self.contract.check(case, exchange), *others]
        if case.operation == WEBSOCKET and exchange.received.startswith(SWITCHED):
            statuses = ["101"]  # what follows are frames
        else:
            try:
                found = parse_responses(exchange.received, may_be_head=True, was_reset=True)
                statuses = [str(each.status) for each in found]
            except MalformedResponse:
                statuses = ["malformed"]
        with self._lock:
            self.num_cases[case.name.split("/")[0]] += 1
            self.statuses.update(statuses or ["none"])
            if problems and not self.is_full:
                path = case.write(self.folder, problems)
                self.problems.append(f"{case.name}: {'; '.join(problems)} (make fuzz REPLAY={path})")

    def add(self, problem: str) -> None:
        """A rule of the server itself is broken: write the latest cases, one of which may be the reason."""
        with self._lock:
            if len(self.problems) == 0:
                for case in list(self._recent):
                    case.write(self.folder / "latest", [problem])
            self.problems.append(problem)


@dataclass(frozen=True)
class Report:
    """The outcome of one run."""

    name: str
    seed: int
    duration_s: float
    num_cases: dict[str, int]
    statuses: dict[str, int]
    probe: dict[str, float]
    memory_mb: dict[str, float]
    problems: list[str]

    @property
    def total(self) -> int:
        return sum(self.num_cases.values())

    def __str__(self) -> str:
        def counts(of: dict[str, int]) -> str:
            return ", ".join(f"{name} {count:,}" for name, count in sorted(of.items()))

        lines = [
            f"{self.name}: {self.total:,} cases in {self.duration_s:.0f} s, seed {self.seed}",
            f"  cases      {counts(self.num_cases)}",
            f"  answers    {counts(self.statuses)}",
            f"  live       {self.probe['count']:.0f} probes of /health/live, ms: "
            + ", ".join(f"{name} {self.probe[f'{name}_ms']:.1f}" for name in ("p50", "p99", "max")),
            f"  memory     {self.memory_mb['before']:.1f} MB after the first tenth, {self.memory_mb['after']:.1f} at the end",
            *(f"  FAILED     {problem}" for problem in self.problems),
            f"  {'passed' if not self.problems else 'FAILED'}",
        ]
        return "\n".join(lines)


@contextmanager
def served_models() -> Iterator[Path]:
    """The bundled models beside a tensor model, another forecaster and another classifier, so that names must be given."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in ("forecast-hourly", "sentiment-en", "sensor-stream"):
            shutil.copytree(ROOT / "models" / model, folder / model)
        write_tensor_folder(folder)
        write_forecast_folder(folder, features=("a", "b"), frequencies=("D",))
        write_text_folder(folder)
        yield folder


def valid_bodies(models: Path) -> list[Body]:
    """Bodies that the models accept, from their own examples; one per endpoint, model and shape."""
    bodies: list[Body] = []
    for folder in sorted(models.glob("*/1")):
        name = folder.parent.name
        instances = json.loads((folder / "example.json").read_text())["request"]["instances"]
        task = json.loads((folder / "manifest.json").read_text())["task"]
        endpoint = {"forecast": "/predict/forecast", "classify": "/predict/classify"}.get(task)
        for path in ["/predict", *([endpoint] if endpoint else [])]:
            bodies.append(Body(path, {"model": name, "instances": instances[:1]}))
            bodies.append(Body(path, {"model": name, "version": "1", "instances": instances * 2, "timeout_ms": 3000}))
            if task == "forecast":
                parameters = {"horizon": 5, "quantiles": [0.3, 0.5], "start": "2026-03-09T00:00:00Z"}
                bodies.append(Body(path, {"model": name, "instances": instances[:1], "parameters": parameters}))
                bodies.append(Body(path, {"model": name, "instances": [{**instances[0], "horizon": 3, "frequency": "H"}]}))
    if (models / "sentiment-en").is_dir():
        bodies.append(Body("/predict/sentiment", {"model": "sentiment-en", "instances": ["A quiet film.", {"text": "Dull."}]}))
        bodies.append(_v2_body("sentiment-en", "text", [2], "BYTES", ["A quiet film.", "Dull."]))
        bodies.append(_v2_body("forecast-hourly", "history", [1, 168, 1], "FP32", [float(step % 24) for step in range(168)]))
        bodies.append(_v2_body("toy-tensor", "x", [2, 3, 2], "FP32", [0.5] * 12))
        bodies.append(_v2_body("toy-tensor", "x", [2, 3, 2], "FP32", struct.pack("<12f", *range(12))))
    return bodies


TENSOR_ROW = [[0.5, 1.0], [2.0, -1.0]]
# What continues a series, and a sequence of rows.
PIECES: dict[str, Any] = {"toy-tensor": {"x": TENSOR_ROW}, "sensor-stream": {"history": [20.5, None, 21.0]}}


def states_of(url: str) -> dict[str, str]:
    """A state of each model that can stream, as clients carry it."""
    found = {}
    for model, piece in PIECES.items():
        body = json.dumps({"model": model, "instances": [{**piece, "state": None}]}).encode()
        sent = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(sent, timeout=30) as response:
            found[model] = json.load(response)["predictions"][0]["state"]
    return found


def make_openings(tokens: Mapping[str, str]) -> list[Opening]:
    """First lines of streams, with pieces that may follow: with states and without."""
    openings = []
    for model, piece in PIECES.items():
        parameters = {"horizon": 3, "quantiles": [0.5]} if model == "sensor-stream" else {}
        for state in ({}, {"state": None}, {"state": tokens[model]}):
            openings.append(Opening({"model": model, "version": "1", "parameters": parameters, **state}, piece))
    return openings


def sequence_bodies(tokens: Mapping[str, str]) -> list[Body]:
    """Steps of sequences whose states clients carry, or the server keeps; and what is done to those."""
    bodies = []
    for model, piece in PIECES.items():
        paths = ["/predict", *(["/predict/forecast"] if model == "sensor-stream" else [])]
        for path in paths:
            bodies.append(
                Body(path, {"model": model, "instances": [{**piece, "state": tokens[model]}, {**piece, "state": None}]})
            )
            step = {"sequence_id": 7, "sequence_start": True, "sequence_end": False}
            bodies.append(Body(path, {"model": model, "instances": [piece], "parameters": step}))
            bodies.append(Body(path, {"model": model, "instances": [{**piece, **step, "sequence_id": "seven"}]}))
        bodies.append(Body("/sequences/7", {"state": tokens[model], "model": model}, method="PUT", template="/sequences/{id}"))
    for method in ("GET", "DELETE"):
        bodies.append(Body("/sequences/7?model=toy-tensor", {}, method=method, template="/sequences/{id}"))
    infer = _v2_body("toy-tensor", "x", [1, 2, 2], "FP32", [0.5] * 4)
    step = {"sequence_id": 9, "sequence_start": True, "sequence_end": False}
    bodies.append(Body(infer.path, {**infer.content, "parameters": step}))
    return bodies


def adapted_bodies() -> list[Body]:
    """Requests in the wire formats of other servers, and one that wants an explanation."""
    history = [float(step % 24) for step in range(48)]
    texts = {"instances": ["good film", {"text": "bad plot"}]}
    frame = {"columns": ["text"], "index": [0, 1], "data": [["good film"], ["bad plot"]]}
    params = {"model": "toy-sentiment"}
    series = {"y": history + history, "sizes": [48, 48]}
    options = {"horizon": 5, "quantiles": [0.1, 0.9]}
    inputs = [{"type": "univariate_time_series", "name": "a", "series": history, "frequency": "H"}]
    predict_v1 = "/v1/models/{name}:predict"
    words = len(b"good film").to_bytes(4, "little") + b"good film"
    binary = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(words)}}
    return [
        Body("/v1/models/toy-sentiment:predict", texts, template=predict_v1),
        Body("/v1/models/forecast-hourly:predict", {"instances": [{"history": history}]}, template=predict_v1),
        Body("/v1/models/toy-tensor:predict", {"instances": [TENSOR_ROW]}, template=predict_v1),
        Body("/invocations", {"dataframe_split": frame, "params": params}),
        Body("/invocations", {"dataframe_records": [{"text": "good film"}], "params": params}),
        Body("/invocations", {"inputs": {"text": ["good film", "bad plot"]}, "params": params}),
        Body("/invocations", {"instances": [{"history": history}], "params": {"model": "forecast-hourly", "horizon": 3}}),
        Body("/v1/timeseries/forecast", {"model": "forecast-hourly", "inputs": inputs, "options": options}),
        Body("/v2/forecast", {"model": "forecast-hourly", "series": series, "h": 6, "freq": "h", "level": [80]}),
        Body(VERTEX_PATH, {"instances": ["good film"], "parameters": params}),
        Body("/v2/models/toy-sentiment/infer", {"inputs": [binary], "parameters": {"binary_data_output": True}}, words),
        Body(
            "/predict/classify", {"model": "sentiment-en", "instances": ["A quiet film."], "parameters": {"explain": "occlusion"}}
        ),
    ]


def _v2_body(model: str, name: str, shape: list[int], datatype: str, data: list[Any] | bytes) -> Body:
    """A request of the Open Inference Protocol with one tensor, as JSON or as bytes."""
    tensor: dict[str, Any] = {"name": name, "shape": shape, "datatype": datatype}
    content = {"id": "1", "inputs": [tensor]}
    path = f"/v2/models/{model}/infer"
    if isinstance(data, bytes):
        tensor["parameters"] = {"binary_data_size": len(data)}
        return Body(path, content | {"parameters": {"binary_data_output": True}}, data)
    tensor["data"] = data
    return Body(path, content)


def run(
    name: str,
    seed: int,
    counts: dict[str, int],
    folder: Path,
    *,
    environ: dict[str, str] | None = None,
    bounds: Bounds = DEFAULT_BOUNDS,
    progress: Callable[[str], None] = lambda line: None,
) -> Report:
    """Start a server, send `counts` cases of `messages`, `trees`, `streams` and `operations`, and report.

    Failing cases go to `folder`.
    """
    settings: dict[str, Any] = {"SLUICE_REQUEST_TIMEOUT_MS": str(REQUEST_TIMEOUT_MS), **SETTINGS, **(environ or {})}
    with served_models() as models, server_process(models, **settings) as server:
        tokens = states_of(server.url)
        bodies = [*valid_bodies(models), *adapted_bodies(), *sequence_bodies(tokens)]
        return attack(
            server, bodies, name, seed, counts, folder, openings=make_openings(tokens), bounds=bounds, progress=progress
        )


def attack(
    server: ServerProcess,
    bodies: Sequence[Body],
    name: str,
    seed: int,
    counts: dict[str, int],
    folder: Path,
    *,
    openings: Sequence[Opening] = (),
    bounds: Bounds = DEFAULT_BOUNDS,
    progress: Callable[[str], None] = lambda line: None,
) -> Report:
    """The run of `run` against a server that is there."""
    began_at = time.monotonic()
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    assert parts.port is not None
    address = parts.hostname, parts.port
    with urllib.request.urlopen(f"{server.url}/openapi.json", timeout=30) as response:
        document: dict[str, Any] = json.load(response)
    findings = Findings(Contract(document), folder)
    probe = monitor.LivenessProbe(address, timeout_s=30.0)
    processes = monitor.processes_of(server.process.pid)
    memory: dict[str, float] = {}

    def exchange(case: Case) -> Exchange:
        findings.begin(case)
        return send(address, case)

    def send_one(case: Case) -> None:
        if findings.is_full:
            return
        try:
            findings.record(case, exchange(case))
        except OSError as exc:
            findings.add(f"{case.name}: the server cannot be reached: {exc!r}")

    probe.start()
    try:
        with ThreadPoolExecutor(NUM_SENDERS, "sender") as pool:
            for share, label in ((0.1, "before"), (1.0, "after")):
                kinds: tuple[tuple[str, Callable[[int, int], Case]], ...] = (
                    ("messages", lambda seed, n: messages.generate(seed, n, bodies)),
                    ("trees", lambda seed, n: trees.generate(seed, n, bodies)),
                    ("streams", lambda seed, n: streams.generate(seed, n, openings)),
                )
                for kind, generate in kinds:
                    first = int(0.1 * counts.get(kind, 0)) if label == "after" else 0
                    last = int(share * counts.get(kind, 0))
                    for _ in pool.map(lambda n, generate=generate: send_one(generate(seed, n)), range(first, last)):
                        pass
                    progress(f"{kind}: {last:,}")
                if label == "after" and counts.get("operations"):
                    from tests.fuzz import operations

                    operations.run(document, seed, counts["operations"], exchange, findings.record)
                    progress("operations")
                if gauges := monitor.wait_until_idle(address, bounds.patience_s):
                    findings.add(f"not zero when all is answered: {gauges}")
                time.sleep(bounds.rest_s)
                memory[label] = monitor.resident_mb(processes)
                memory[f"{label}_files"] = monitor.num_open_files(processes)
    except OSError as exc:
        findings.add(f"the server cannot be reached or its processes are gone: {exc!r}")
    finally:
        probe.stop()
    for problem in _check_server(server, address, processes, memory, probe, bounds):
        findings.add(problem)
    return Report(
        name,
        seed,
        time.monotonic() - began_at,
        dict(findings.num_cases),
        dict(findings.statuses),
        {
            "count": len(probe.latencies_s),
            "p50_ms": probe.quantile_ms(0.5),
            "p99_ms": probe.quantile_ms(0.99),
            "max_ms": probe.quantile_ms(1.0),
        },
        {"before": memory.get("before", 0.0), "after": memory.get("after", 0.0)},
        findings.problems,
    )


def _check_server(
    server: ServerProcess,
    address: tuple[str, int],
    processes: list[int],
    memory: dict[str, float],
    probe: monitor.LivenessProbe,
    bounds: Bounds,
) -> Iterator[str]:
    if server.process.poll() is not None:
        yield f"the server has ended with status {server.process.returncode}"
        return
    if (found := monitor.processes_of(server.process.pid)) != processes:
        yield f"the processes were {processes}, now they are {found}"
    try:
        yield from (f"a worker was replaced: {line}" for line in monitor.replaced_workers(monitor.read_metrics(address)))
    except OSError as exc:
        yield f"/metrics: {exc!r}"
    yield from (f"in the log: {line}" for line in monitor.unforeseen_lines(server.log)[:5])
    yield from probe.problems[:5]
    if probe.quantile_ms(1.0) > 1000 * bounds.stall_s:
        yield f"/health/live took {probe.quantile_ms(1.0):.0f} ms"
    if "after" in memory:
        if memory["after"] - memory["before"] > bounds.growth_mb:
            yield f"memory grew from {memory['before']:.1f} to {memory['after']:.1f} MB"
        if memory["after_files"] - memory["before_files"] > bounds.open_files:
            yield f"open files: {memory['before_files']:.0f}, then {memory['after_files']:.0f}"
