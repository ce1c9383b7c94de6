"""Requests as a server meets them: series and texts of every length, some several at once, and every kind of bad one.

Makes requests and says which answer is right; sends nothing (that is `client.py`).
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
# What forecast-hourly takes at least; a shorter history is refused with 422.
SHORTEST, LONGEST = 168, 512
FEWEST_WORDS, MOST_WORDS = 5, 400
# Servers under test get this as SLUICE_MAX_BODY_BYTES, so that a body which is too large costs the client little.
MAX_BODY_BYTES = 64 * 1024

Check = Callable[[int, bytes], bool]
"""(status, body) → whether this is the answer that the request deserves."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, ready to be sent."""

    kind: str
    request: bytes
    is_right: Check
    sent_share: float = 1.0
    """Below 1 the client leaves in the middle of its request."""
    leaves_after_s: float | None = None
    """How long after the request the client closes the connection without waiting for the answer; None: it waits."""

    @property
    def is_cancelled(self) -> bool:
        return self.leaves_after_s is not None


def post(path: str, body: bytes, *, headers: str = "Content-Type: application/json") -> bytes:
    """The bytes of a POST on a connection that is kept."""
    return f"POST {path} HTTP/1.1\r\nHost: sluice\r\n{headers}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def succeeds(status: int, _: bytes) -> bool:
    return status == 200


def refused(status: int, code: str) -> Check:
    """The check for a problem of this status and code."""
    written = b'"code":"' + code.encode() + b'"'

    def is_right(found: int, body: bytes) -> bool:
        return found == status and written in body

    return is_right


class Bodies:
    """Draws the bodies of valid requests; the same seed draws the same."""

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


def ever_new(bodies: Sequence[dict[str, Any]]) -> Iterator[Ask]:
    """The bodies in turn, for ever, no two alike: each has a number in it that was never sent before.

    A cache that is keyed by what callers send then has nothing to find, and grows if it can.
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
        yield Ask("valid", head + b"%09d" % number + tail, succeeds)


def _replaced(body: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps(body | fields).encode()


def bad_requests(bodies: Bodies) -> list[Ask]:
    """One of each kind of mistake, in bodies of a usual size, with the problem that is the right answer."""
    forecast, sentiment = bodies.forecast(num_steps=336), bodies.sentiment(num_words=100)
    history = forecast["instances"][0]["history"]
    whole = json.dumps(forecast).encode()

    def with_history(values: object) -> bytes:
        return _replaced(forecast, instances=[{"history": values}])

    not_json, misfit = refused(400, "malformed_request"), refused(422, "invalid_input")
    too_large, unknown = refused(413, "payload_too_large"), refused(404, "model_not_found")
    return [
        Ask("cut off in the middle", post("/predict", whole[: len(whole) // 2]), not_json),
        Ask("not JSON at all", post("/predict", b"history=1,2,3"), not_json),
        Ask("unknown field of the request", post("/predict", _replaced(forecast, inputs=[1])), not_json),
        Ask(
            "unknown field of an instance",
            post("/predict", _replaced(forecast, instances=[{"history": history, "y": 1}])),
            not_json,
        ),
        Ask("a word among the numbers", post("/predict", with_history([*history[:-1], "many"])), misfit),
        Ask("history is a string", post("/predict", with_history("1, 2, 3")), misfit),
        Ask("history too short", post("/predict", with_history(history[:24])), misfit),
        Ask("NaN among the numbers", post("/predict", with_history([*history[:-1], math.nan])), misfit),
        Ask("a number beyond float32", post("/predict", with_history([*history[:-1], 1e300])), misfit),
        Ask("only gaps", post("/predict", with_history([None] * 336)), misfit),
        Ask("empty text", post("/predict", _replaced(sentiment, instances=[" "])), misfit),
        Ask("horizon out of range", post("/predict", _replaced(forecast, parameters={"horizon": 100_000})), misfit),
        Ask("unknown model", post("/predict", _replaced(forecast, model="nobody")), unknown),
        Ask("unknown version", post("/predict", _replaced(forecast, version="99")), unknown),
        Ask("too many instances", post("/predict", b'{"model":"x","instances":[%s]}' % b",".join([b"1"] * 10_001)), too_large),
        Ask("too many bytes", post("/predict", whole.ljust(MAX_BODY_BYTES + 1)), too_large),
        Ask(
            "not declared as JSON",
            post("/predict", whole, headers="Content-Type: text/csv"),
            refused(415, "unsupported_media_type"),
        ),
        Ask("unknown path", post("/predictions", whole), refused(404, "not_found")),
        Ask("GET where POST is meant", b"GET /predict HTTP/1.1\r\nHost: sluice\r\n\r\n", refused(405, "method_not_allowed")),
    ]


def cancelled(asks: Sequence[Ask]) -> list[Ask]:
    """The same requests by clients that leave: in the middle of the body, at once after it, and some milliseconds later."""
    manners = ((0.5, 0.001), (1.0, 0.0), (1.0, 0.002), (1.0, 0.01))
    return [
        Ask("cancelled", ask.request, ask.is_right, share, after_s)
        for ask, (share, after_s) in zip(asks, itertools.cycle(manners), strict=False)
    ]


def blend(
    valid: Sequence[Ask],
    invalid: Sequence[Ask] = (),
    left: Sequence[Ask] = (),
    *,
    invalid_share: float = 0.1,
    left_share: float = 0.05,
) -> Iterator[Ask]:
    """Valid requests for ever, and among them the shares of bad ones, where there are any, in no order."""
    turns = {name: itertools.cycle(asks) for name, asks in (("valid", valid), ("invalid", invalid), ("left", left)) if asks}
    draw = random.Random(1)
    while True:
        place = draw.random()
        if invalid and place < invalid_share:
            yield next(turns["invalid"])
        elif left and place >= 1 - left_share:
            yield next(turns["left"])
        else:
            yield next(turns["valid"])
