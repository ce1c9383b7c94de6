"""A call as parts of a request, and what to do after each answer: to take it, to wait and send again, to cut it, or to give up.

Pure: no connection and no clock. A call yields what should be done (`Send`, `Wait`) and is sent what came of it, so that the
client that blocks and the one of asyncio differ only in how they do it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sluice.client.errors import AccessDenied, ClientError, InvalidAnswer, InvalidInput, ModelNotFound, Refused, Unavailable

MAX_PART_BYTES = 1_000_000
"""Half of what a server takes by default. One that takes less says so, and the part is halved."""
MAX_PART_INSTANCES = 1000
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
SHARE_OF_WAIT = 0.5
"""A wait is drawn between this share of itself and the whole: clients that were refused together do not return together."""

Call = Generator["Send | Wait", "Answer | None", list[Any]]


class Send(NamedTuple):
    """Post this body; `Answer` is what came of it."""

    path: str
    body: bytes


class Wait(NamedTuple):
    """Wait so long, but no longer than the deadline."""

    seconds: float
    why: Unavailable
    """To be raised where the deadline is nearer."""


class Answer(NamedTuple):
    """What a server answered; status 0: it did not, and `content` says why."""

    status: int
    content: bytes
    retry_after: str | None = None


@dataclass(frozen=True)
class Request:
    """What is to be predicted."""

    path: str
    instances: Sequence[Any]
    model: str | None = None
    version: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    names: Sequence[str] | None = None
    """What the caller calls each instance."""


class Part(NamedTuple):
    """Instances from `start` on, as JSON each."""

    start: int
    texts: list[str]


def cut(request: Request) -> list[Part]:
    """The instances in parts that a server takes. Raises ValueError for what JSON cannot hold, NaN and infinity too."""
    parts: list[Part] = []
    size = 0
    for number, instance in enumerate(request.instances):
        try:
            text = json.dumps(instance, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        except (ValueError, TypeError) as exc:
            raise ValueError(f"instance {number} cannot be written as JSON: {exc}") from exc
        length = len(text.encode())
        if not parts or size + length > MAX_PART_BYTES or len(parts[-1].texts) >= MAX_PART_INSTANCES:
            parts.append(Part(number, []))
            size = 0
        parts[-1].texts.append(text)
        size += length
    return parts


def run_part(request: Request, part: Part, draw: float) -> Call:
    """The predictions of a part. `draw`, from 0 to 1, is random. Raises ClientError."""
    num_refused = 0
    while True:
        answer = yield Send(request.path, _body(request, part))
        assert answer is not None
        if answer.status == 200:
            return _read_predictions(answer, len(part.texts))
        if answer.status == 413 and len(part.texts) > 1:
            half = len(part.texts) // 2
            first = yield from run_part(request, Part(part.start, part.texts[:half]), draw)
            second = yield from run_part(request, Part(part.start + half, part.texts[half:]), draw)
            return first + second
        error = _error_of(request, part, answer)
        if not isinstance(error, Unavailable):
            raise error
        yield Wait(_wait_s(answer, num_refused, draw), error)
        num_refused += 1


def _wait_s(answer: Answer, num_refused: int, draw: float) -> float:
    """How long to wait: never less than what the server says."""
    growing: float = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**num_refused) * (SHARE_OF_WAIT + (1 - SHARE_OF_WAIT) * draw)
    try:
        least = float(answer.retry_after or 0)
    except ValueError:  # a date, which no server of this kind sends
        least = 0.0
    return max(growing, least) if math.isfinite(least) else growing


def _body(request: Request, part: Part) -> bytes:
    members = {"model": request.model, "version": request.version, "parameters": dict(request.parameters) or None}
    known = {name: value for name, value in members.items() if value is not None}
    head = json.dumps(known, allow_nan=False, ensure_ascii=False)[:-1]
    return f'{head}{", " if known else ""}"instances": [{",".join(part.texts)}]}}'.encode()


def _read_predictions(answer: Answer, num: int) -> list[Any]:
    try:
        predictions = json.loads(answer.content)["predictions"]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise InvalidAnswer(f"the answer has no predictions: {answer.content[:100]!r}") from exc
    if not isinstance(predictions, list) or len(predictions) != num:
        raise InvalidAnswer(f"expected {num} predictions, got {len(predictions) if isinstance(predictions, list) else 'no list'}")
    return predictions


def _error_of(request: Request, part: Part, answer: Answer) -> ClientError:
    """What an answer other than predictions means."""
    if answer.status == 0:
        return Unavailable(answer.content.decode(errors="replace"))
    try:
        facts = json.loads(answer.content)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or "code" not in facts:
        if answer.status in (429, 502, 503, 504):  # of a proxy in front
            return Unavailable(f"the server is not available: HTTP {answer.status}", status=answer.status)
        return InvalidAnswer(f"HTTP {answer.status}: {answer.content[:100]!r}")
    detail = str(facts.get("detail", facts.get("title", "")))
    if answer.status in (429, 503, 504, 408):
        return Unavailable(f"{facts['code']}: {detail}", status=answer.status)
    known = {"type", "title", "status", "detail", "code", "request_id", "instance_index"}
    rest: dict[str, Any] = {
        "status": answer.status,
        "code": str(facts["code"]),
        "request_id": facts.get("request_id"),
        "facts": {name: value for name, value in facts.items() if name not in known},
    }
    place = facts.get("instance_index")
    if type(place) is not int or not 0 <= place < len(part.texts):
        place = None
    if isinstance(place, int) or answer.status in (400, 413, 422):
        number = part.start + place if isinstance(place, int) else part.start if answer.status == 413 else None
        if isinstance(place, int):
            detail = detail.replace(f"instance {place}", f"instance {number}", 1)
        series = request.names[number] if request.names is not None and number is not None else None
        message = f'series "{series}": {detail}' if series is not None else detail
        return InvalidInput(message, instance=number, series=series, **rest)
    if answer.status in (401, 403):
        return AccessDenied(detail, **rest)
    return ModelNotFound(detail, **rest) if answer.status in (404, 409) else Refused(detail, **rest)
