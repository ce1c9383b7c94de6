"""Whether bad requests stay alone: what valid ones get with and without them in the line, and what each kind of them costs.

    python -m benchmarks.isolation
    python -m benchmarks.isolation --rounds 7 --seconds 5

One server, mixed ragged requests over 64 connections. (a) all of them valid; (b) the same with one in ten refused for every
reason there is and one in twenty whose client leaves; (a) and (b) take turns. What is asked: valid answers per second in (b)
at least 0.95 of their share of (a), their 99th percentile at most 1.2 times that of (a). Every answer is checked: a bad one
to be the right problem, a good one to be what the server answers to this request alone.

Then each kind of bad request alone over one connection, beside the valid one it was made from: microseconds until the answer,
and of the server's processor. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
from pathlib import Path

from benchmarks.client import Seen, burst
from benchmarks.servers import ROOT, Server, sluice
from benchmarks.traffic import MAX_BODY_BYTES, Ask, Bodies, Check, bad_requests, blend, cancelled, post, succeeds

NUM_BODIES = 300
INVALID_SHARE, LEFT_SHARE = 0.1, 0.05
# Rows of a batch do not change each other; the last digits may differ by what surrounds them in a processor's registers.
TOLERANCE = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the models folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one burst")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--count", type=int, default=400, help="requests of each kind alone")
    options = parser.parse_args()

    bodies = Bodies(options.models)
    with sluice(options.models, SLUICE_MAX_BODY_BYTES=str(MAX_BODY_BYTES)) as server:
        port = server.port
        valid = checked(port, [json.dumps(body).encode() for body in bodies.mixed(NUM_BODIES)])
        invalid = bad_requests(bodies)
        rounds = []
        for number in range(options.rounds):
            cases = [blend(valid), blend(valid, invalid, cancelled(valid), invalid_share=INVALID_SHARE, left_share=LEFT_SHARE)]
            order = (0, 1) if number % 2 == 0 else (1, 0)
            seen = {
                case: burst("127.0.0.1", port, cases[case], options.connections, duration_s=options.seconds) for case in order
            }
            rounds.append((seen[0], seen[1]))
        is_fine = report(rounds)
        print()
        usual = [Ask("valid, a history of 336", post("/predict", json.dumps(bodies.forecast(num_steps=336)).encode()), succeeds)]
        usual.append(
            Ask("valid, a text of 100 words", post("/predict", json.dumps(bodies.sentiment(num_words=100)).encode()), succeeds)
        )
        is_fine &= report_kinds(server, [*usual, *invalid], options.count)
    return 0 if is_fine else 1


def checked(port: int, contents: list[bytes]) -> list[Ask]:
    """Valid requests that know their right answer: what the server says when it has nothing else to do."""
    answers: list[bytes] = []

    def remember(status: int, body: bytes) -> bool:
        answers.append(body)
        return status == 200

    seen = burst(
        "127.0.0.1",
        port,
        iter([Ask("alone", post("/predict", content), remember) for content in contents]),
        1,
        count=len(contents),
    )
    if seen.num_wrong:
        raise RuntimeError(f"a valid request was refused: {seen.wrong}")
    return [Ask("valid", post("/predict", content), equals(answer)) for content, answer in zip(contents, answers, strict=True)]


def equals(expected: bytes) -> Check:
    """The check for this very answer, but for the last digits of its numbers."""

    def is_right(status: int, body: bytes) -> bool:
        return status == 200 and (body == expected or _is_close(json.loads(body), json.loads(expected)))

    return is_right


def _is_close(found: object, expected: object) -> bool:
    if isinstance(found, float) and isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_is_close, found, expected))
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_is_close(found[key], expected[key]) for key in found)
    return found == expected and type(found) is type(expected)


def report(rounds: list[tuple[Seen, Seen]]) -> bool:
    """Print what valid requests got in both cases, as medians of the rounds; return whether it is what is asked."""
    share = 1 - INVALID_SHARE - LEFT_SHARE
    print("| | valid/s | all answers/s | clients that left/s | p50 ms | p99 ms | wrong |\n|---|---:|---:|---:|---:|---:|---:|")
    for name, bursts in (("valid ones only", [a for a, _ in rounds]), ("10 % refused, 5 % leave", [b for _, b in rounds])):
        cells = [
            f"{statistics.median(seen.rate('valid') for seen in bursts):.0f}",
            f"{statistics.median(seen.num_answered / seen.duration_s for seen in bursts):.0f}",
            f"{statistics.median(seen.num_left / seen.duration_s for seen in bursts):.0f}",
            f"{statistics.median(seen.quantile_ms('valid', 0.5) for seen in bursts):.1f}",
            f"{statistics.median(seen.quantile_ms('valid', 0.99) for seen in bursts):.1f}",
            f"{sum(seen.num_wrong for seen in bursts)}",
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    throughput = statistics.median(b.rate("valid") / (share * a.rate("valid")) for a, b in rounds)
    tail = statistics.median(b.quantile_ms("valid", 0.99) / a.quantile_ms("valid", 0.99) for a, b in rounds)
    wrong = [line for pair in rounds for seen in pair for line in seen.wrong]
    print(f"\nvalid answers per second, of their share of {share:.2f}: {throughput:.2f} (asked: at least 0.95)")
    print(f"their 99th percentile: {tail:.2f} times (asked: at most 1.2)")
    for line in wrong:
        print(f"WRONG: {line}")
    return throughput >= 0.95 and tail <= 1.2 and not wrong


def report_kinds(server: Server, asks: list[Ask], count: int) -> bool:
    """Print what one request of each kind costs; return whether all were answered as they deserve."""
    num_wrong = 0
    print("| alone, over one connection | µs to the answer, median | µs of the server's processor |\n|---|---:|---:|")
    for ask in asks:
        before = processor_s(server.process.pid)
        seen = burst("127.0.0.1", server.port, itertools.repeat(ask), 1, count=count)
        used_s = processor_s(server.process.pid) - before
        print(f"| {ask.kind} | {1000 * seen.quantile_ms(ask.kind, 0.5):.0f} | {1e6 * used_s / count:.0f} |", flush=True)
        for line in seen.wrong:
            print(f"WRONG: {line}")
        num_wrong += seen.num_wrong
    return num_wrong == 0


def processor_s(pid: int) -> float:
    """Seconds of processor time that a process used so far, its threads together; the kernel counts in hundredths."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
