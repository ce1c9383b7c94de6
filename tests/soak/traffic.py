"""Mixed requests for a server of several models, each with the answer that it gets alone, and the comparison with what came.

Builds and compares; sends nothing (`clients.py` does).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.traffic import RequestBodies

RELATIVE = 1e-5
"""Of the largest value of a tensor: matrix products add up in another order at another batch size."""
# The toy's simple RNN amplifies a difference by a tenth with each step, and so its rounding.
MOST_STEPS = 30
MAX_BODY_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True)
class Message:
    """One request as bytes, and what its answer is alone: the status, and the predictions where that is 200.

    `is_exact`: the answer is promised to be the same number by number, not to rounding.
    """

    kind: str
    content: bytes
    status: int = 0
    predictions: Any = None
    is_exact: bool = False


def post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: sluice\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: sluice\r\n\r\n".encode()


def messages(models: Path, seed: int, num_each: int) -> list[Message]:
    """Requests to every model of `served_models` (tests/fuzz/campaign.py), of all lengths and shapes, and bad ones."""
    bodies = RequestBodies(models, seed)
    draw = bodies.random
    found: list[Message] = []

    def add(kind: str, path: str, **fields: Any) -> None:
        found.append(Message(kind, post(path, json.dumps(fields).encode())))

    def rows(num_steps: int, width: int) -> list[list[float]]:
        return [[round(draw.gauss(0, 1), 3) for _ in range(width)] for _ in range(num_steps)]

    for number in range(num_each):
        several = draw.randint(2, 8)
        add("forecast", "/predict/forecast", **bodies.forecast())
        add("sentiment", "/predict/sentiment", **bodies.sentiment())
        add("tensor", "/predict", model="toy-tensor", instances=[rows(draw.randint(1, MOST_STEPS), 2)])
        history = [{"history": rows(draw.randint(2, 40), 2), "horizon": draw.randint(1, 12)}]
        add("forecast, two features", "/predict", model="toy-forecast", instances=history)
        add(
            "words",
            "/predict/classify",
            model="toy-sentiment",
            instances=[draw.choice(["good film", "bad", "not a bad plot"])] * 2,
        )
        if number % 3 == 0:
            add("forecast, several", "/predict", **bodies.forecast(several))
            add("sentiment, several", "/predict", **bodies.sentiment(several))
            add(
                "tensor, several",
                "/predict",
                model="toy-tensor",
                instances=[rows(draw.randint(1, MOST_STEPS), 2) for _ in range(several)],
            )
        if number % 4 == 0:
            history_of_one = bodies.series(20)
            add("bad", "/predict/forecast", model="forecast-hourly", instances=[{"history": [*history_of_one, "x"]}])
            add("bad", "/predict/sentiment", model="sentiment-en", instances=["fine", ""])
            add("bad", "/predict", model="toy-tensor", instances=[[[1, 2], [3]]])
            found.append(Message("bad", post("/predict", b'{"instances": [NaN, {')))
            add("bad", "/predict", model="nobody", instances=[1])
    draw.shuffle(found)
    return found


def differences(found: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Where two predictions differ: numbers by more than RELATIVE of the largest in their tensor, anything else at all."""
    scale = _largest(expected) if isinstance(expected, list) else None
    if scale is not None:
        yield from _differing_numbers(found, expected, RELATIVE * scale, where)
    elif isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            yield f"{where}: {str(found)[:100]}"
            return
        for key in expected:
            yield from differences(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            yield f"{where}: {str(found)[:100]}"
            return
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from differences(one, other, f"{where}[{index}]")
    elif isinstance(expected, float):
        if not isinstance(found, int | float) or not math.isclose(found, expected, rel_tol=RELATIVE, abs_tol=1e-7):
            yield f"{where}: {found}, alone {expected}"
    elif found != expected:
        yield f"{where}: {str(found)[:100]}, alone {str(expected)[:100]}"


def _largest(tensor: Any) -> float | None:
    """The largest absolute value of a tensor as nested lists; None for anything else."""
    if isinstance(tensor, list) and tensor:
        found = [_largest(part) for part in tensor]
        return None if None in found else max(value for value in found if value is not None)
    return float(abs(tensor)) if isinstance(tensor, int | float) and not isinstance(tensor, bool) else None


def _differing_numbers(found: Any, expected: Any, allowed: float, where: str) -> Iterator[str]:
    if isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            yield f"{where}: {str(found)[:100]}"
            return
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from _differing_numbers(one, other, allowed, f"{where}[{index}]")
    elif not isinstance(found, int | float) or not abs(found - expected) <= allowed:
        yield f"{where}: {found}, alone {expected}"


def choose(draw: random.Random, pool: Sequence[Message]) -> Message:
    """A message of the pool: four of five times one that gets an answer."""
    while True:
        message = draw.choice(pool)
        if message.status == 200 or draw.random() < 0.3:
            return message
