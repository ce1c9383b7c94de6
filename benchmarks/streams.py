"""What a step of a sequence costs: processor time of the server per request that goes on from a state, beside sending all again.

    python -m benchmarks.streams
    python -m benchmarks.streams --units 64 --rounds 15 --seconds 0.5

One connection, one request at a time, one process with the default settings; a forecasting LSTM with 9 quantiles of the next 24
steps. Each round sends every kind of request in turn: one new value after 10 and after 10,000 that came before, with the state in
the request, and the whole of what a server without state would need. A ratio is computed within each round; the table has the
medians. Linux only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.processes import cpu_seconds
from benchmarks.protocols import repeat
from benchmarks.servers import Server, sluice
from tests.streams import write_stream_folder
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network

MODEL, PATH = "stream", "/predict/forecast"
HORIZON, LEVELS = 24, tuple(round(0.1 * level, 1) for level in range(1, 10))
SHORT, LONG, WINDOW = 10, 10_000, 168
"""Values that came before, and those that are sent again where nothing is carried."""
AFTER_SHORT, AFTER_LONG = f"1 value after {SHORT}", f"1 value after {LONG:,}"
AGAIN = f"{WINDOW} values again"


class Kind(NamedTuple):
    """One kind of request."""

    name: str
    body: bytes


def write_model(models: Path, units: int) -> Path:
    """A forecasting LSTM of random weights that can stream."""
    torch.manual_seed(1)
    layers: list[dict[str, Any]] = [{"type": "lstm", "units": units}, {"type": "dense"}]
    scaling: dict[str, Any] = {"scaling": {"kind": "standard"}}
    network = Network(ForecastSpec(layers=tuple(layers), horizon=HORIZON, quantiles=LEVELS, **scaling)).eval()
    network.set_statistics(10 + torch.rand(50, 1))
    block = {
        "context_length": WINDOW,
        "min_length": 1,
        "horizon": HORIZON,
        "quantiles": list(LEVELS),
        "point": "median",
        "features": ["y"],
        "targets": ["y"],
    }
    return write_stream_folder(models, MODEL, network, block)


def series(length: int) -> list[float]:
    """A wave with noise."""
    noise = np.random.default_rng(0).normal(size=length)
    values: list[float] = (10 + np.sin(np.arange(length) / 4) + 0.1 * noise).round(3).tolist()
    return values


def body(**instance: Any) -> bytes:
    return json.dumps({"model": MODEL, "instances": [instance]}).encode()


def send(connection: http.client.HTTPConnection, content: bytes) -> Any:
    """The prediction."""
    connection.request("POST", PATH, content, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {text[:300]!r}")
    return json.loads(text)["predictions"][0]


def kinds(connection: http.client.HTTPConnection) -> list[Kind]:
    """The requests, once sequences have come as far as each needs."""
    short, long = (send(connection, body(history=series(length), state=None))["state"] for length in (SHORT, LONG))
    return [
        Kind(AFTER_SHORT, body(history=[10.5], state=short)),
        Kind(AFTER_LONG, body(history=[10.5], state=long)),
        Kind(AGAIN, body(history=series(WINDOW))),
        Kind("1 value, no state", body(history=[10.5])),
    ]


def measure(server: Server, num_rounds: int, seconds: float) -> dict[str, list[float]]:
    """Microseconds of processor time per request of each kind, one of each round."""
    pids = [process.pid for process in server.members()]
    found: dict[str, list[float]] = {}
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        requests = kinds(connection)

        def server_cpu_s() -> float:
            return sum(map(cpu_seconds, pids))

        for turn in range(num_rounds + 1):
            for kind in requests:
                cost = repeat(lambda kind=kind: send(connection, kind.body), server_cpu_s, seconds)  # type: ignore[misc]
                if turn > 0:  # the first warms up
                    found.setdefault(kind.name, []).append(cost)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=64, help="of the LSTM")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each kind in a round, at least")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name), options.units)
        with sluice(Path(name)) as server:
            found = measure(server, options.rounds, options.seconds)
    print(f"{'request':24} {'µs of processor':>15} {'beside ' + AFTER_SHORT:>24}")
    for kind, costs in found.items():
        ratios = [cost / least for cost, least in zip(costs, found[AFTER_SHORT], strict=True)]
        print(f"{kind:24} {statistics.median(costs):15.0f} {statistics.median(ratios):24.2f}")


if __name__ == "__main__":
    main()
