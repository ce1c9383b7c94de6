"""Closed-loop load on one URL from `wrk` (Debian's package): each connection sends its next request once it has the response.

Requests cycle through the bodies of a folder. A server that stalls gets no requests meanwhile. wrk 4.1 corrects for that by an
estimate: beside a slow response it counts those that the connection would have had at its average rate (`stats_correct`), so
that its p99 lies above the measured one. The latency that a caller sees is measured by `open_loop.py`.
"""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}

# The requests are formatted once; wrk calls request() before every send.
_SCRIPT = """
local requests, number = {{}}, 0
function init(args)
  wrk.headers["Content-Type"] = "application/json"
  for index = 0, {num_bodies} - 1 do
    local file = assert(io.open("{folder}/" .. index, "rb"))
    requests[index] = wrk.format("POST", nil, nil, file:read("*a"))
    file:close()
  end
end
function request()
  number = (number + 1) % {num_bodies}
  return requests[number]
end
"""


@dataclass(frozen=True)
class Load:
    """One run of load: 2xx responses per second, latencies in milliseconds, and requests without such a response."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    num_failed: int


def write_bodies(bodies: Sequence[bytes], folder: Path) -> Path:
    """Write the bodies as files 0, 1, ... of a new folder."""
    folder.mkdir(parents=True)
    for number, body in enumerate(bodies):
        (folder / str(number)).write_bytes(body)
    return folder


def run_wrk(url: str, bodies: Path, connections: int, duration_s: float, headers: Mapping[str, str] | None = None) -> Load:
    """POST the bodies of a folder in turn over `connections` connections for `duration_s` (whole) seconds.

    Raises SystemExit when wrk is not installed or too few files may be open.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("the benchmark needs wrk: apt-get install wrk")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < connections + 64:
        raise SystemExit(f"{connections} connections need as many open files: ulimit -n {2 * connections}")
    with tempfile.TemporaryDirectory() as folder:
        lua = Path(folder) / "post.lua"
        lua.write_text(_SCRIPT.format(num_bodies=len(list(bodies.iterdir())), folder=bodies.resolve()))
        command = [wrk, "-t1", f"-c{connections}", f"-d{max(1, round(duration_s))}s"]
        command += ["--latency", "--timeout", "20s", "-s", str(lua)]
        command += [word for name, value in (headers or {}).items() for word in ("-H", f"{name}: {value}")]
        command.append(url)
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return parse(text)


def parse(text: str) -> Load:
    """Read wrk's report. Its rate counts non-2xx responses too; they are subtracted. Raises ValueError for anything else."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    num_requests = re.search(r"(\d+) requests in", text)
    if rate is None or num_requests is None:
        raise ValueError(f"wrk reported no rate:\n{text}")
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    num_refused = int(refused[1]) if refused else 0
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    num_broken = sum(int(count) for count in errors.groups()) if errors else 0
    share = 1 - num_refused / max(1, int(num_requests[1]))
    return Load(float(rate[1]) * share, _percentile(text, "50%"), _percentile(text, "99%"), num_refused + num_broken)


def _percentile(text: str, name: str) -> float:
    found = re.search(rf"^\s+{re.escape(name)}\s+([\d.]+)(us|ms|s|m)\s*$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"wrk reported no {name} latency:\n{text}")
    return float(found[1]) * _UNITS[found[2]]
