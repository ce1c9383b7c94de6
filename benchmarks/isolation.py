"""Isolation: the effect of invalid and cancelled requests on valid ones, and the cost of each kind of invalid request.

    python -m benchmarks.isolation
    python -m benchmarks.isolation --rounds 7 --seconds 5

One server, mixed ragged requests over 64 connections. (a) all of them valid; (b) the same, with one in ten invalid for every
possible reason and one in twenty cancelled by its client; (a) and (b) alternate. Required: valid responses per second in (b)
at least 0.95 of their share of (a), their 99th percentile at most 1.2 times that of (a). Every response is checked: an invalid
request must get the right problem, a valid one the response to the same request on an idle server.

Then each kind of invalid request alone over one connection, beside the valid one it was made from: microseconds until the
response, and of the server's processor. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.client import LoadResult, run_closed_loop
from benchmarks.processes import cpu_seconds
from benchmarks.servers import ROOT, Server, sluice
from benchmarks.traffic import MAX_BODY_BYTES, Check, Request, RequestBodies, cancel, invalid_requests, is_ok, mix, post

NUM_BODIES = 300
INVALID_SHARE, CANCELLED_SHARE = 0.1, 0.05
MIN_THROUGHPUT, MAX_TAIL = 0.95, 1.2
# Rows of a batch do not change each other, but the last digits may differ with the batch's size.
TOLERANCE = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the models folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--count", type=int, default=400, help="requests of each kind alone")
    options = parser.parse_args()

    bodies = RequestBodies(options.models)
    with sluice(options.models, SLUICE_MAX_BODY_BYTES=str(MAX_BODY_BYTES)) as server:
        valid = with_expected_responses(server.port, [_encode(body) for body in bodies.mixed(NUM_BODIES)])
        invalid, cancelled = invalid_requests(bodies), cancel(valid)
        rounds = []
        for number in range(options.rounds):
            shares = {"invalid_share": INVALID_SHARE, "cancelled_share": CANCELLED_SHARE}
            traffic = [mix(valid), mix(valid, invalid, cancelled, **shares)]
            results = {}
            for case in (0, 1) if number % 2 == 0 else (1, 0):
                results[case] = run_closed_loop(
                    "127.0.0.1", server.port, traffic[case], options.connections, duration_s=options.seconds
                )
            rounds.append((results[0], results[1]))
        passed = report(rounds)
        print()
        usual = [
            Request("valid, a history of 336", post("/predict", _encode(bodies.forecast(num_steps=336))), is_ok),
            Request("valid, a text of 100 words", post("/predict", _encode(bodies.sentiment(num_words=100))), is_ok),
        ]
        passed &= report_kinds(server, [*usual, *invalid], options.count)
    return 0 if passed else 1


def with_expected_responses(port: int, bodies: list[bytes]) -> list[Request]:
    """Valid requests whose check compares with the response of an idle server to the same body."""
    responses: list[bytes] = []

    def record(status: int, body: bytes) -> bool:
        responses.append(body)
        return status == 200

    alone = iter([Request("alone", post("/predict", body), record) for body in bodies])
    result = run_closed_loop("127.0.0.1", port, alone, 1, count=len(bodies))
    if result.num_errors:
        raise RuntimeError(f"a valid request failed: {result.errors}")
    return [Request("valid", post("/predict", body), equals(expected)) for body, expected in zip(bodies, responses, strict=True)]


def _encode(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def equals(expected: bytes) -> Check:
    """The check for this very response, but for the last digits of its numbers."""

    def is_expected(status: int, body: bytes) -> bool:
        return status == 200 and (body == expected or _is_close(json.loads(body), json.loads(expected)))

    return is_expected


def _is_close(found: object, expected: object) -> bool:
    if isinstance(found, float) and isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_is_close, found, expected))
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_is_close(found[key], expected[key]) for key in found)
    return found == expected and type(found) is type(expected)


def report(rounds: list[tuple[LoadResult, LoadResult]]) -> bool:
    """Print the results of valid requests without and with the others, as medians of the rounds; return whether they pass."""
    share = 1 - INVALID_SHARE - CANCELLED_SHARE
    print("| | valid/s | all responses/s | cancelled/s | p50 ms | p99 ms | errors |\n|---|---:|---:|---:|---:|---:|---:|")
    for name, results in (("valid only", [a for a, _ in rounds]), ("10 % invalid, 5 % cancelled", [b for _, b in rounds])):
        cells = [
            f"{statistics.median(result.rate('valid') for result in results):.0f}",
            f"{statistics.median(result.num_responses / result.duration_s for result in results):.0f}",
            f"{statistics.median(result.num_disconnected / result.duration_s for result in results):.0f}",
            f"{statistics.median(result.quantile_ms('valid', 0.5) for result in results):.1f}",
            f"{statistics.median(result.quantile_ms('valid', 0.99) for result in results):.1f}",
            f"{sum(result.num_errors for result in results)}",
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    throughput = statistics.median(b.rate("valid") / (share * a.rate("valid")) for a, b in rounds)
    tail = statistics.median(b.quantile_ms("valid", 0.99) / a.quantile_ms("valid", 0.99) for a, b in rounds)
    errors = [line for pair in rounds for result in pair for line in result.errors]
    print(f"\nvalid responses per second, of their share of {share:.2f}: {throughput:.2f} (required: at least {MIN_THROUGHPUT})")
    print(f"their 99th percentile: {tail:.2f} times (required: at most {MAX_TAIL})")
    for line in errors:
        print(f"ERROR: {line}")
    return throughput >= MIN_THROUGHPUT and tail <= MAX_TAIL and not errors


def report_kinds(server: Server, requests: list[Request], count: int) -> bool:
    """Print the cost of one request of each kind; return whether every response was the expected one."""
    num_errors = 0
    print("| alone, over one connection | µs to the response, median | µs of the server's processor |\n|---|---:|---:|")
    for request in requests:
        before = cpu_seconds(server.process.pid)
        result = run_closed_loop("127.0.0.1", server.port, itertools.repeat(request), 1, count=count)
        used_s = cpu_seconds(server.process.pid) - before
        print(f"| {request.kind} | {1000 * result.quantile_ms(request.kind, 0.5):.0f} | {1e6 * used_s / count:.0f} |", flush=True)
        for line in result.errors:
            print(f"ERROR: {line}")
        num_errors += result.num_errors
    return num_errors == 0


if __name__ == "__main__":
    sys.exit(main())
