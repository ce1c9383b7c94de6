"""What loading and unloading models does to the requests beside it: their p99, their answers, and the server's memory.

    python -m benchmarks.reload
    python -m benchmarks.reload --changes 30 --rounds 2

A server of several processes gets forecasts without a pause over some connections. First windows without and with changes take
turns: the median of their p99 is compared. Then so many changes follow one after the other: a new version of the model that
answers replaces the old one, another model is unloaded and loaded. Every answer is compared with the first one. Exit status 1
where a request fails or is answered wrongly, where memory grows by more than 5 %, or p99 by more than a factor of 2.
Linux only.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

from benchmarks import http_client
from benchmarks.client import LoadResult, run_closed_loop
from benchmarks.memory import memory_of
from benchmarks.servers import ROOT, Server, sluice
from benchmarks.traffic import FORECAST, SENTIMENT, Request, post

ALLOWED_GROWTH = 0.05
ALLOWED_RATIO = 2.0
TOLERANCE = 1e-4
# Memory after so many changes is the baseline: the first ones fill the allocator's pools.
FIRST_CHANGES = 10
# The server checks once a second whether it is idle, and a model that was replaced ends soon after its last request.
IDLE_S = 4.0
CHANGE_TIMEOUT_S = 120


class Changes:
    """Models that come and go: each call makes the next change, and returns when all processes serve it."""

    def __init__(self, models: Path, url: str) -> None:
        self._models = models
        self._url = url
        self._version = 1
        self._steps = itertools.cycle([self._replace, self._unload, self._load])

    def __call__(self) -> None:
        next(self._steps)()

    def _replace(self) -> None:
        """The next version of the model that answers, in place of the last one."""
        folder = self._models / FORECAST
        old, new = folder / str(self._version), folder / str(self._version + 1)
        aside = shutil.copytree(old, folder / ".aside")
        manifest = json.loads((aside / "manifest.json").read_text())
        (aside / "manifest.json").write_text(json.dumps(manifest | {"version": new.name}))
        aside.rename(new)
        shutil.rmtree(old)
        self._version += 1
        self._post(f"{FORECAST}/load")

    def _unload(self) -> None:
        self._post(f"{SENTIMENT}/unload")

    def _load(self) -> None:
        self._post(f"{SENTIMENT}/load")

    def _post(self, path: str) -> None:
        with urlopen(HttpRequest(f"{self._url}/models/{path}", b""), timeout=CHANGE_TIMEOUT_S):
            pass


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


def forecasts(url: str) -> Iterator[Request]:
    """The same forecasts again and again, each expected to be answered as at first."""
    made = []
    for number in range(16):
        instance = {"history": [float((number * 7 + step * 3) % 24) for step in range(168 + 10 * number)]}
        body = json.dumps({"model": FORECAST, "instances": [instance] * (1 + number % 3)}).encode()
        expected = json.loads(http_client.post(f"{url}/predict", body))["predictions"]
        made.append(Request("forecast", post("/predict", body), functools.partial(is_equal, expected)))
    return itertools.cycle(made)


def is_equal(expected: object, status: int, answer: bytes) -> bool:
    """Whether these are the predictions, to the rounding of float32 in batches of other sizes."""
    return status == 200 and is_close(json.loads(answer)["predictions"], expected)


def is_close(found: object, expected: object) -> bool:
    """Whether two JSON values differ in their numbers by rounding alone."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return found.keys() == expected.keys() and all(is_close(found[key], value) for key, value in expected.items())
    if isinstance(expected, list) and isinstance(found, list):
        return len(found) == len(expected) and all(map(is_close, found, expected))
    if isinstance(expected, float | int) and isinstance(found, float | int):
        return abs(found - expected) <= TOLERANCE * max(1.0, abs(expected))
    return found == expected


def idle_bytes(server: Server) -> int:
    """Resident memory of the idle server, all its processes together."""
    time.sleep(IDLE_S)
    return memory_of(process.pid for process in server.members()).resident


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the models folder")
    parser.add_argument("--workers", type=int, default=2, help="server processes")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="windows without and with changes")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a window")
    parser.add_argument("--changes", type=int, default=100, help="models that are replaced, unloaded or loaded in a row")
    options = parser.parse_args()
    settings = {"SLUICE_WORKERS": str(options.workers), "SLUICE_MODEL_CONTROL": "explicit", "SLUICE_LOAD_MODELS": "*"}
    with tempfile.TemporaryDirectory() as name:
        models = Path(name)
        for model in (FORECAST, SENTIMENT):
            shutil.copytree(options.models / model, models / model)
        with sluice(models, **settings) as server:
            return report(server, models, options.connections, options.rounds, options.seconds, options.changes)


def report(server: Server, models: Path, connections: int, rounds: int, window_s: float, num_changes: int) -> int:
    """Measure and print; the exit status."""
    requests, change = forecasts(server.url), Changes(models, server.url)

    def change_times(count: int) -> None:
        for _ in range(count):
            change()

    num_answers = num_errors = 0
    errors: list[str] = []

    def measure(work: Callable[[], None]) -> LoadResult:
        nonlocal num_answers, num_errors
        result = under_load(server, requests, connections, work)
        num_answers += result.num_responses
        num_errors += result.num_errors
        errors.extend(result.errors)
        return result

    def change_for(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            change()

    quiet, changing = [], []
    for _ in range(rounds):
        quiet.append(measure(lambda: time.sleep(window_s)).quantile_ms("forecast", 0.99))
        changing.append(measure(lambda: change_for(window_s)).quantile_ms("forecast", 0.99))
    ratio = statistics.median(changing) / statistics.median(quiet)
    print(f"p99 without changes {statistics.median(quiet):.1f} ms, while models load {statistics.median(changing):.1f} ms")

    measure(lambda: change_times(FIRST_CHANGES))
    before = idle_bytes(server)
    started = time.monotonic()
    measure(lambda: change_times(num_changes))
    took_s = time.monotonic() - started
    growth = idle_bytes(server) / before - 1
    print(f"{num_changes} changes in {took_s:.0f} s; {num_answers} answers, {num_errors} failed or wrong {errors[:3]}")
    verdicts = [
        (num_errors == 0, f"requests that failed or were answered wrongly: {num_errors}"),
        (
            growth <= ALLOWED_GROWTH,
            f"memory after the changes, of {before / 1e6:.0f} MB: {growth:+.1%}, allowed {ALLOWED_GROWTH:+.0%}",
        ),
        (ratio <= ALLOWED_RATIO, f"p99 while models load: {ratio:.2f} x, allowed {ALLOWED_RATIO:g} x"),
    ]
    for passed, text in verdicts:
        print(f"{'passed' if passed else 'FAILED'}: {text}")
    return 0 if all(passed for passed, _ in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
