"""How long the event loop stands still under each kind of load, and at which line of the code.

    python -m benchmarks.stall
    python -m benchmarks.stall --seconds 10 --only "8 MB"

Every request waits while the loop stands, so no stall should reach 10 ms. A stall is what the server's own
`sluice_event_loop_lag_seconds` sees, but the witness (`watched.py`) looks ten times as often, names the place, and leaves out
the time in which the loop's thread had no core: that is not the server's doing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.client import burst
from benchmarks.servers import ROOT, free_port
from benchmarks.traffic import FORECAST, SENTIMENT, Ask, Bodies, Check, post, refused, succeeds

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Scene:
    """One kind of load: the requests, over how many connections, and whether others ask for the metrics meanwhile."""

    name: str
    asks: Sequence[Ask]
    connections: int
    scrapes_per_s: float = 0.0


def scenes(bodies: Bodies) -> list[Scene]:
    """Every load under which the loop should keep moving."""

    def asks(contents: Sequence[Any], is_right: Check = succeeds) -> list[Ask]:
        return [Ask("valid", post("/predict", _bytes(content)), is_right) for content in contents]

    usual = asks([bodies.forecast(num_steps=336) for _ in range(50)])
    mixed = asks(bodies.mixed(200))
    million = {"model": FORECAST, "instances": [{"history": bodies.series(900_000)}]}
    thousands = {"model": FORECAST, "instances": [{"history": bodies.series(336)} for _ in range(3000)]}
    texts = {"model": SENTIMENT, "instances": [bodies.text(200) for _ in range(500)]}
    poisoned = json.dumps(million).encode()[:-4] + b", NaN]}]}"
    return [
        Scene("nothing", [], 0),
        Scene("64 connections, histories of 336", usual, 64),
        Scene("the same, scraped 5 times a second", usual, 64, scrapes_per_s=5),
        Scene("256 connections, histories of 336", usual, 256),
        Scene("64 connections, mixed", mixed, 64),
        Scene("64 connections, texts of 400 words", asks([bodies.sentiment(num_words=400) for _ in range(50)]), 64),
        Scene("4 connections, 256 histories each", asks([bodies.forecast(256, 336) for _ in range(4)]), 4),
        Scene("4 connections, 256 texts each", asks([bodies.sentiment(256, 50) for _ in range(4)]), 4),
        Scene("2 connections, one history of 7 MB", asks([million]), 2),
        Scene("2 connections, 3000 histories in 8 MB", asks([thousands]), 2),
        Scene("2 connections, 500 texts in 0.8 MB", asks([texts]), 2),
        Scene("1 connection, 7 MB with NaN at its end", asks([poisoned], refused(422, "invalid_input")), 1),
        Scene("1 connection, 7 MB cut off", asks([json.dumps(million).encode()[:-9]], refused(400, "malformed_request")), 1),
    ]


def _bytes(content: Any) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


@dataclass
class Log:
    """What the witness told, read as it comes."""

    process: subprocess.Popen[str]
    stalls: list[dict[str, Any]] = field(default_factory=list)
    collections: list[dict[str, Any]] = field(default_factory=list)
    is_ready: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                facts = json.loads(line)
                (self.stalls if "stall_ms" in facts else self.collections).append(facts)
            elif "is ready" in line:
                self.is_ready.set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the models folder")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one scene")
    parser.add_argument("--only", default="", help="only scenes with this in their name")
    options = parser.parse_args()

    port = free_port()
    command = [
        sys.executable,
        "-m",
        "benchmarks.watched",
        f"--models={options.models.resolve()}",
        f"--port={port}",
        "--device=cpu",
    ]
    process = subprocess.Popen(
        [*command, "--request-timeout-ms=60000", "--workers=1"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    log = Log(process)
    reader = threading.Thread(target=log.read)
    reader.start()
    try:
        if not log.is_ready.wait(PATIENCE_S):
            raise RuntimeError("the server was not ready")
        print("| load | requests/s | stalls above 10 ms, per s | longest, ms | garbage collector, ms | where, most often first |")
        print("|---|---:|---:|---:|---:|---|")
        for scene in scenes(Bodies(options.models)):
            if options.only in scene.name:
                print(play(scene, port, log, options.seconds), flush=True)
        print("\nas the server itself counted:")
        print(lag_buckets(port))
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        reader.join()


def play(scene: Scene, port: int, log: Log, seconds: float) -> str:
    """One row of the table."""
    time.sleep(0.2)
    log.stalls.clear()
    log.collections.clear()
    rate = 0.0
    ended = threading.Event()
    scraper = threading.Thread(target=_scrape, args=(port, scene.scrapes_per_s, ended))
    scraper.start()
    started = time.perf_counter()
    if scene.asks:
        seen = burst("127.0.0.1", port, itertools.cycle(scene.asks), scene.connections, duration_s=seconds)
        if seen.num_wrong:
            raise RuntimeError(f"{scene.name}: {seen.wrong}")
        rate = seen.rate("valid")
    else:
        time.sleep(seconds)
    took_s = time.perf_counter() - started
    ended.set()
    scraper.join()
    time.sleep(0.2)
    stalls = list(log.stalls)
    longest = max((stall["stall_ms"] for stall in stalls), default=0.0)
    collected = max((run["gc_ms"] for run in log.collections), default=0.0)
    figures = f"{rate:.0f} | {len(stalls) / took_s:.1f} | {longest:.0f} | {collected:.0f}"
    return f"| {scene.name} | {figures} | {'; '.join(where(stalls))} |"


def where(stalls: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The commonest places, each with its count and its median length."""
    lengths: dict[str, list[float]] = {}
    for stall in stalls:
        ours = [place for place in stall["place"] if place.startswith(("service/", "api/"))]
        lengths.setdefault((ours or stall["place"])[0], []).append(stall["stall_ms"])
    for place, count in Counter({place: len(some) for place, some in lengths.items()}).most_common(3):
        yield f"{count}x {place} ({statistics.median(lengths[place]):.0f} ms)"


def _scrape(port: int, per_s: float, ended: threading.Event) -> None:
    while per_s and not ended.wait(1 / per_s):
        _metrics(port)


def _metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text: str = answer.read().decode()
        return text


def lag_buckets(port: int) -> str:
    found = re.findall(r'sluice_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', _metrics(port))
    return ", ".join(f"{float(count):.0f} up to {bound} s" for bound, count in found)


if __name__ == "__main__":
    main()
