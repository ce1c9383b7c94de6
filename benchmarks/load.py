"""Closed-loop load on one URL from `wrk` (Debian's package): so many connections, each sends again when it was answered."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}


@dataclass(frozen=True)
class Load:
    """What one burst saw: requests per second, latencies in milliseconds, and answers other than 2xx."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    num_failed: int


def burst(url: str, body: object, connections: int, duration_s: int) -> Load:
    """POST `body` as JSON to `url` over `connections` connections for `duration_s` seconds."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("the benchmark needs wrk: apt-get install wrk")
    # wrk speaks Lua: the body goes through a long bracket, which needs no escaping for JSON.
    script = f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [==[{json.dumps(body)}]==]\n'
    with tempfile.TemporaryDirectory() as folder:
        lua = Path(folder) / "post.lua"
        lua.write_text(script)
        command = [wrk, "-t1", f"-c{connections}", f"-d{duration_s}s", "--latency", "--timeout", "20s", "-s", str(lua), url]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return parse(text)


def parse(text: str) -> Load:
    """Read wrk's report."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    if rate is None:
        raise ValueError(f"wrk reported no rate:\n{text}")
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    num_failed = int(failed[1]) if failed else 0
    num_failed += sum(int(count) for count in errors.groups()) if errors else 0
    return Load(float(rate[1]), _percentile(text, "50%"), _percentile(text, "99%"), num_failed)


def _percentile(text: str, name: str) -> float:
    found = re.search(rf"^\s+{re.escape(name)}\s+([\d.]+)(us|ms|s|m)\s*$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"wrk reported no {name} latency:\n{text}")
    return float(found[1]) * _UNITS[found[2]]
