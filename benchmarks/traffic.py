"""Realistic traffic for Sluice: series and texts of every length, some with several instances, and every kind of invalid request.

Builds requests, each with the check of its response; sends nothing (`client.py` does).
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORECAST, SENTIMENT = "forecast-hourly", "sentiment-en"
# The least that forecast-hourly accepts; a shorter history gets 422.
SHORTEST, LONGEST = 168, 512
FEWEST_WORDS, MOST_WORDS = 5, 400
# The server under test gets this as SLUICE_MAX_BODY_BYTES, so that a body which is too large costs the client little.
MAX_BODY_BYTES = 64 * 1024

Check = Callable[[int, bytes], bool]
"""(status, body) → whether this is the response that the request must get."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request as bytes, and the check of its response."""

    kind: str
    message: bytes
    is_expected: Check
    sent_share: float = 1.0
    """Below 1 the client disconnects in the middle of its request."""
    disconnect_after_s: float | None = None
    """The client closes the connection so long after sending, without waiting for the response; None: it waits."""

    @property
    def is_cancelled(self) -> bool:
        return self.disconnect_after_s is not None


def post(path: str, body: bytes, *, headers: str = "Content-Type: application/json") -> bytes:
    """The bytes of a POST on a keep-alive connection."""
    return f"POST {path} HTTP/1.1\r\nHost: sluice\r\n{headers}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def is_ok(status: int, _: bytes) -> bool:
    return status == 200


def expect_problem(status: int, code: str) -> Check:
    """The check for a problem response of this status and code."""
    written = b'"code":"' + code.encode() + b'"'

    def is_expected(found: int, body: bytes) -> bool:
        return found == status and written in body

    return is_expected


class RequestBodies:
    """Draws the bodies of valid requests; equal seeds draw equal bodies."""

    def __init__(self, models: Path, seed: int = 0) -> None:
        tokenizer = json.loads((models / SENTIMENT / "1" / "tokenizer.json").read_text(encoding="utf-8"))
        self._words = [word for word in tokenizer["model"]["vocab"] if word.isalpha()]
        self.random = random.Random(seed)

    def series(self, num_steps: int) -> list[float]:
        """An hourly series with a daily wave."""
        level, height = self.random.uniform(50, 500), self.random.uniform(5, 50)
        return [
            round(level + height * math.sin(2 * math.pi * step / 24) + self.random.gauss(0, height / 10), 2)
            for step in range(num_steps)
        ]

    def text(self, num_words: int) -> str:
        return " ".join(self.random.choices(self._words, k=num_words))

    def forecast(self, num_instances: int = 1, num_steps: int | None = None) -> dict[str, Any]:
        """Histories of SHORTEST to LONGEST steps, or of `num_steps`."""
        lengths = [num_steps or self.random.randint(SHORTEST, LONGEST) for _ in range(num_instances)]
        return {"model": FORECAST, "instances": [{"history": self.series(length)} for length in lengths]}

    def sentiment(self, num_instances: int = 1, num_words: int | None = None) -> dict[str, Any]:
        """Texts of FEWEST_WORDS to MOST_WORDS words, or of `num_words`."""
        lengths = [num_words or self.random.randint(FEWEST_WORDS, MOST_WORDS) for _ in range(num_instances)]
        return {"model": SENTIMENT, "instances": [self.text(length) for length in lengths]}

    def mixed(self, count: int) -> list[dict[str, Any]]:
        """Three forecasts to two texts; one request in ten has 2 to 12 instances."""
        made = []
        for _ in range(count):
            num_instances = self.random.randint(2, 12) if self.random.random() < 0.1 else 1
            made.append(self.forecast(num_instances) if self.random.random() < 0.6 else self.sentiment(num_instances))
        return made


def unique_requests(bodies: Sequence[dict[str, Any]]) -> Iterator[Request]:
    """The bodies in turn, without end, no two alike: each contains a number that was never sent before.

    A cache that is keyed by request content then never hits, and grows if it is unbounded.
    """
    mark = b"@@@@@@@@@"
    parts = []
    for body in bodies:
        first = body["instances"][0]
        if isinstance(first, dict):
            marked: object = {"history": ["@", *first["history"]]}
            content = json.dumps({**body, "instances": [marked, *body["instances"][1:]]}).encode().replace(b'"@"', b"100." + mark)
        else:
            content = json.dumps({**body, "instances": [f"{first} word{mark.decode()}", *body["instances"][1:]]}).encode()
        head, _, tail = post("/predict", content).partition(mark)
        parts.append((head, tail))
    for number, (head, tail) in enumerate(itertools.cycle(parts)):
        yield Request("valid", head + b"%09d" % number + tail, is_ok)


def _replaced(body: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps(body | fields).encode()


def invalid_requests(bodies: RequestBodies) -> list[Request]:
    """One request of each kind of mistake, in bodies of a usual size, with the problem that it must get."""
    forecast, sentiment = bodies.forecast(num_steps=336), bodies.sentiment(num_words=100)
    history = forecast["instances"][0]["history"]
    whole = json.dumps(forecast).encode()

    def with_history(values: object) -> bytes:
        return _replaced(forecast, instances=[{"history": values}])

    malformed, invalid = expect_problem(400, "malformed_request"), expect_problem(422, "invalid_input")
    too_large, unknown = expect_problem(413, "payload_too_large"), expect_problem(404, "model_not_found")
    return [
        Request("cut off in the middle", post("/predict", whole[: len(whole) // 2]), malformed),
        Request("not JSON", post("/predict", b"history=1,2,3"), malformed),
        Request("unknown field of the request", post("/predict", _replaced(forecast, inputs=[1])), malformed),
        Request(
            "unknown field of an instance",
            post("/predict", _replaced(forecast, instances=[{"history": history, "y": 1}])),
            malformed,
        ),
        Request("a word among the numbers", post("/predict", with_history([*history[:-1], "many"])), invalid),
        Request("history is a string", post("/predict", with_history("1, 2, 3")), invalid),
        Request("history too short", post("/predict", with_history(history[:24])), invalid),
        Request("NaN among the numbers", post("/predict", with_history([*history[:-1], math.nan])), invalid),
        Request("a number beyond float32", post("/predict", with_history([*history[:-1], 1e300])), invalid),
        Request("only gaps", post("/predict", with_history([None] * 336)), invalid),
        Request("empty text", post("/predict", _replaced(sentiment, instances=[" "])), invalid),
        Request("horizon out of range", post("/predict", _replaced(forecast, parameters={"horizon": 100_000})), invalid),
        Request("unknown model", post("/predict", _replaced(forecast, model="nobody")), unknown),
        Request("unknown version", post("/predict", _replaced(forecast, version="99")), unknown),
        Request(
            "too many instances", post("/predict", b'{"model":"x","instances":[%s]}' % b",".join([b"1"] * 10_001)), too_large
        ),
        Request("too many bytes", post("/predict", whole.ljust(MAX_BODY_BYTES + 1)), too_large),
        Request(
            "not declared as JSON",
            post("/predict", whole, headers="Content-Type: text/csv"),
            expect_problem(415, "unsupported_media_type"),
        ),
        Request("unknown path", post("/predictions", whole), expect_problem(404, "not_found")),
        Request(
            "GET where POST is meant", b"GET /predict HTTP/1.1\r\nHost: sluice\r\n\r\n", expect_problem(405, "method_not_allowed")
        ),
    ]


def cancel(requests: Sequence[Request]) -> list[Request]:
    """The same requests by clients that disconnect: in the middle of the body, right after it, and some milliseconds later."""
    timings = ((0.5, 0.001), (1.0, 0.0), (1.0, 0.002), (1.0, 0.01))
    return [
        Request("cancelled", request.message, request.is_expected, share, after_s)
        for request, (share, after_s) in zip(requests, itertools.cycle(timings), strict=False)
    ]


def mix(
    valid: Sequence[Request],
    invalid: Sequence[Request] = (),
    cancelled: Sequence[Request] = (),
    *,
    invalid_share: float = 0.1,
    cancelled_share: float = 0.05,
) -> Iterator[Request]:
    """Valid requests without end, and among them at random the shares of invalid and cancelled ones, where there are any."""
    next_valid, next_invalid, next_cancelled = (itertools.cycle(requests) for requests in (valid, invalid, cancelled))
    random_source = random.Random(1)
    while True:
        draw = random_source.random()
        if invalid and draw < invalid_share:
            yield next(next_invalid)
        elif cancelled and draw >= 1 - cancelled_share:
            yield next(next_cancelled)
        else:
            yield next(next_valid)
