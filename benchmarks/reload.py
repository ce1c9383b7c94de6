"""What loading and unloading models does to the requests beside it: their p99, their answers, and the server's memory.

    python -m benchmarks.reload
    python -m benchmarks.reload --changes 30 --rounds 2
    python -m benchmarks.reload --changes 8 --rounds 0 --idle 0

A server of several processes gets requests of every API without a pause over some connections: forecasts and texts at `/predict`,
at `/v2` as JSON and as binary data, and in the wire formats of others. First windows without and with changes take turns: the
median of the p99 of the forecasts is compared. Then so many changes follow one after the other: a new version of the forecasting
model replaces the old one, the files of the classifier change, a third model is unloaded and loaded. Every answer is compared
with the first one; requests for the third model may be answered that it is not there. Exit status 1 where a request fails or is
answered wrongly, where memory grows by more than 5 %, or p99 by more than a factor of 2. Linux only.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

from benchmarks import http_client
from benchmarks.client import LoadResult, run_closed_loop
from benchmarks.memory import memory_of
from benchmarks.protocol_requests import every_kind
from benchmarks.servers import ROOT, Server, sluice
from benchmarks.traffic import FORECAST, SENTIMENT, Check, Request, expect_problem

ALLOWED_GROWTH = 0.05
ALLOWED_RATIO = 2.0
TOLERANCE = 1e-4
# Memory after so many changes is the baseline: the first ones fill the allocator's pools.
FIRST_CHANGES = 12
# The server checks once a second whether it is idle, and a model that was replaced ends soon after its last request.
IDLE_S = 4.0
CHANGE_TIMEOUT_S = 120
VISITOR = "visitor"
"""A copy of the forecasting model that comes and goes."""
NUM_BODIES = 8


class Changes:
    """Models that come, change and go: each call makes the next change, and returns when all processes serve it."""

    def __init__(self, models: Path, url: str) -> None:
        self._models = models
        self._url = url
        self._version = 1
        self._steps = itertools.cycle([self._replace, self._unload, self._load, self._touch])

    def __call__(self) -> None:
        next(self._steps)()

    def _replace(self) -> None:
        """The next version of the forecasting model, in place of the last one."""
        old, new = str(self._version), str(self._version + 1)
        copy_version(self._models / FORECAST, old, self._models / FORECAST, new)
        shutil.rmtree(self._models / FORECAST / old)
        self._version += 1
        self._post(f"{FORECAST}/load")

    def _touch(self) -> None:
        """The classifier anew, under its number: a file of it is another one."""
        manifest = self._models / SENTIMENT / "1" / "manifest.json"
        aside = manifest.with_name(".manifest.json")
        shutil.copy(manifest, aside)
        aside.rename(manifest)
        self._post(f"{SENTIMENT}/load")

    def _unload(self) -> None:
        self._post(f"{VISITOR}/unload")

    def _load(self) -> None:
        self._post(f"{VISITOR}/load")

    def _post(self, path: str) -> None:
        with urlopen(HttpRequest(f"{self._url}/models/{path}", b""), timeout=CHANGE_TIMEOUT_S):
            pass


def copy_version(source: Path, version: str, target: Path, new: str) -> None:
    """Copy a version to another model or number, aside first, so that nobody reads half of it."""
    target.mkdir(exist_ok=True)
    aside = shutil.copytree(source / version, target / ".aside")
    manifest = json.loads((aside / "manifest.json").read_text())
    (aside / "manifest.json").write_text(json.dumps(manifest | {"name": target.name, "version": new}))
    example = json.loads((aside / "example.json").read_text())
    example["request"]["model"] = target.name
    (aside / "example.json").write_text(json.dumps(example))
    aside.rename(target / new)


def under_load(server: Server, requests: Iterator[Request], connections: int, work: Callable[[], None]) -> LoadResult:
    """The requests that were answered while `work` ran."""
    results: list[LoadResult] = []
    end = threading.Event()

    def run() -> None:
        while not end.is_set():
            results.append(run_closed_loop("127.0.0.1", server.port, requests, connections, duration_s=0.5))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        work()
    finally:
        end.set()
        thread.join()
    total = LoadResult()
    for result in results:
        for kind, latencies in result.latencies_s.items():
            total.latencies_s.setdefault(kind, []).extend(latencies)
        for error in result.errors:
            total.record_error(error)
    return total


def mixed_requests(url: str, models: Path) -> Iterator[Request]:
    """Requests of every kind again and again, each expected to be answered as at first."""
    made = []
    for kind in every_kind(models, NUM_BODIES, {"forecast": FORECAST, "visitor": VISITOR, "texts": SENTIMENT}):
        status, answer = http_client.exchange(url, kind.message)
        if status != 200:
            raise RuntimeError(f"{kind.name}: {status}: {answer[:300]!r}")
        is_expected = functools.partial(is_equal, kind.read, kind.read(answer))
        made.append(Request(kind.name, kind.message, unless_gone(is_expected) if kind.model == VISITOR else is_expected))
    return itertools.cycle(made)


def is_equal(read: Callable[[bytes], object], expected: object, status: int, answer: bytes) -> bool:
    """Whether an answer holds this, to the rounding of float32 in batches of other sizes."""
    return status == 200 and is_close(read(answer), expected)


def unless_gone(is_expected: Check) -> Check:
    """The check of a request for a model that is unloaded now and then."""
    others = expect_problem(404, "model_not_found"), expect_problem(503, "model_not_ready")
    return lambda status, answer: any(check(status, answer) for check in (is_expected, *others))


def is_close(found: object, expected: object) -> bool:
    """Whether two JSON values differ in their numbers by rounding alone."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return found.keys() == expected.keys() and all(is_close(found[key], value) for key, value in expected.items())
    if isinstance(expected, list) and isinstance(found, list):
        return len(found) == len(expected) and all(map(is_close, found, expected))
    if isinstance(expected, float | int) and isinstance(found, float | int):
        return abs(found - expected) <= TOLERANCE * max(1.0, abs(expected))
    return found == expected


def idle_bytes(server: Server, idle_s: float) -> int:
    """Resident memory of the idle server, all its processes together."""
    time.sleep(idle_s)
    return memory_of(process.pid for process in server.members()).resident


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the models folder")
    parser.add_argument("--workers", type=int, default=2, help="server processes")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="windows without and with changes")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a window")
    parser.add_argument("--changes", type=int, default=100, help="models that are replaced, unloaded or loaded in a row")
    parser.add_argument("--idle", type=float, default=IDLE_S, help="seconds before memory is read; 0: it is not compared")
    options = parser.parse_args()
    settings = {"SLUICE_WORKERS": str(options.workers), "SLUICE_MODEL_CONTROL": "explicit", "SLUICE_LOAD_MODELS": "*"}
    with tempfile.TemporaryDirectory() as name:
        models = Path(name)
        for model in (FORECAST, SENTIMENT):
            shutil.copytree(options.models / model, models / model)
        copy_version(models / FORECAST, "1", models / VISITOR, "1")
        with sluice(models, **settings) as server:
            return report(server, models, options)


class Tally:
    """All answers, and what was wrong with some."""

    def __init__(self, server: Server, requests: Iterator[Request], connections: int) -> None:
        self._server = server
        self._requests = requests
        self._connections = connections
        self.kinds: Counter[str] = Counter()
        self.num_errors = 0
        self.errors: list[str] = []

    def under_load(self, work: Callable[[], None]) -> LoadResult:
        """Work while requests are sent."""
        result = under_load(self._server, self._requests, self._connections, work)
        self.kinds.update({kind: len(latencies) for kind, latencies in result.latencies_s.items()})
        self.num_errors += result.num_errors
        self.errors += result.errors
        return result


def report(server: Server, models: Path, options: argparse.Namespace) -> int:
    """Measure and print; the exit status."""
    change = Changes(models, server.url)
    tally = Tally(server, mixed_requests(server.url, models), options.connections)
    verdicts = []
    if options.rounds:
        ratio = compare_latency(tally, change, options.rounds, options.seconds)
        verdicts.append((ratio <= ALLOWED_RATIO, f"p99 while models load: {ratio:.2f} x, allowed {ALLOWED_RATIO:g} x"))
    if options.idle:
        tally.under_load(lambda: repeat(change, FIRST_CHANGES))
        before = idle_bytes(server, options.idle)
    started = time.monotonic()
    tally.under_load(lambda: repeat(change, options.changes))
    took_s = time.monotonic() - started
    if options.idle:
        growth = idle_bytes(server, options.idle) / before - 1
        limits = f"{growth:+.1%}, allowed {ALLOWED_GROWTH:+.0%}"
        verdicts.append((growth <= ALLOWED_GROWTH, f"memory after the changes, of {before / 1e6:.0f} MB: {limits}"))
    verdicts.insert(0, (tally.num_errors == 0, f"requests that failed or were answered wrongly: {tally.num_errors}"))
    print(f"{options.changes} changes in {took_s:.0f} s; {sum(tally.kinds.values())} answers {tally.errors[:3]}")
    print("; ".join(f"{kind} {count}" for kind, count in sorted(tally.kinds.items())))
    for passed, text in verdicts:
        print(f"{'passed' if passed else 'FAILED'}: {text}")
    return 0 if all(passed for passed, _ in verdicts) else 1


def compare_latency(tally: Tally, change: Callable[[], None], rounds: int, window_s: float) -> float:
    """The p99 of forecasts at `/predict` while models change, beside that while none does: medians of windows in turns."""
    quiet, changing = [], []
    for _ in range(rounds):
        quiet.append(tally.under_load(lambda: time.sleep(window_s)).quantile_ms("predict forecasts", 0.99))
        changing.append(tally.under_load(lambda: change_for(change, window_s)).quantile_ms("predict forecasts", 0.99))
    print(f"p99 without changes {statistics.median(quiet):.1f} ms, while models load {statistics.median(changing):.1f} ms")
    return statistics.median(changing) / statistics.median(quiet)


def change_for(change: Callable[[], None], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        change()


def repeat(change: Callable[[], None], count: int) -> None:
    for _ in range(count):
        change()


if __name__ == "__main__":
    sys.exit(main())
