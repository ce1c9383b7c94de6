"""Sequences in pieces: the lines of one body, and the messages of a WebSocket, both nearly right; and what must come back.

Case number n of a seed is always the same one.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tests.fuzz.cases import Case
from tests.fuzz.trees import change, request, write_tree

LINES, WEBSOCKET = ("POST", "/predict/stream"), ("GET", "/predict/ws")
SWITCHED = b"HTTP/1.1 101 "
# What a WebSocket may be closed with: all but what failed (1011).
CLOSE_CODES = {1000, 1002, 1003, 1007, 1008, 1009, 1012, 1013}
# Codes with which a server may have refused a step although nothing is wrong with it.
EXPLAINED = {"overloaded", "model_not_ready", "deadline_exceeded"}
FIELDS = {"prediction", "error", "end"}
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Opening(NamedTuple):
    """A first line, and a piece that may follow."""

    head: dict[str, Any]
    piece: Any


def generate(seed: int, number: int, openings: Sequence[Opening]) -> Case:
    """Case `number`: a stream of lines or a WebSocket, some of whose lines are changed."""
    draw = random.Random(f"{seed}/streams/{number}")
    opening = draw.choice(openings)
    lines = [_line(draw, opening.head, 0.4)]
    lines += [_line(draw, opening.piece, 0.5) for _ in range(draw.choice((0, 1, 2, 3, 6)))]
    if draw.random() < 0.5:
        return _websocket(draw, number, lines)
    content = draw.choice((b"\n", b"\n", b"\n", b"\r\n", b"\n\n")).join(lines) + draw.choice((b"", b"\n"))
    headers = {b"Content-Type": draw.choice((b"application/x-ndjson",) * 5 + (b"application/json", b"text/csv", b""))}
    return request(f"streams/{number}", *LINES, content, headers)


def check_events(body: bytes) -> list[str]:
    """What is wrong with the events of a stream that was begun."""
    problems = []
    names = []
    for event in body.removesuffix(b"\n\n").split(b"\n\n"):
        name, _, data = event.partition(b"data: ")
        names.append(name)
        try:
            content = json.loads(data)
        except ValueError:
            return [f"an event is no JSON: {event[:200]!r}"]
        if name == b"event: error\n":
            problems += _check_error(content)
    if not body.endswith(b"\n\n") or names[-1] != b"event: end\n" or set(names) > {b"", b"event: error\n", b"event: end\n"}:
        problems.append(f"the events do not end as they should: {names[-3:]}")
    return problems


def check_frames(received: bytes, *, is_whole: bool) -> list[str]:
    """What is wrong with the frames behind the head of a WebSocket that was opened; `is_whole`: the client did nothing wrong
    in its framing, and read to the end."""
    problems: list[str] = []
    code = None
    _, _, rest = received.partition(b"\r\n\r\n")
    for opcode, content in _frames(rest):
        if opcode == TEXT:
            try:
                message = json.loads(content)
            except ValueError:
                return [f"a message is no JSON: {content[:200]!r}"]
            if not isinstance(message, dict) or len(message) != 1 or not message.keys() <= FIELDS:
                problems.append(f"a message of unknown form: {content[:200]!r}")
            elif "error" in message:
                problems += _check_error(message["error"])
        elif opcode == CLOSE:
            code = struct.unpack(">H", content[:2])[0] if len(content) >= 2 else 1000
        elif opcode not in (PING, PONG):
            problems.append(f"a frame of kind {opcode}")
    if code is not None and code not in CLOSE_CODES:
        problems.append(f"closed with {code}")
    if is_whole and code is None:
        problems.append("the WebSocket ended without a code")
    return problems


def _check_error(problem: Any) -> list[str]:
    if not isinstance(problem, dict) or not isinstance(problem.get("status"), int):
        return [f"an error is no problem: {str(problem)[:200]}"]
    is_explained = problem["status"] < 500 or problem.get("code") in EXPLAINED
    return [] if is_explained else [f"server error {problem['status']} {problem.get('code')}: {str(problem)[:300]}"]


def _frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(opcode, content) of the frames of a server; the last one may be cut off."""
    while len(data) >= 2:
        length, start = data[1], 2
        if length == 126:
            length, start = int.from_bytes(data[2:4]), 4
        elif length == 127:
            length, start = int.from_bytes(data[2:10]), 10
        if len(data) < start + length:
            return
        yield data[0] & 15, data[start : start + length]
        data = data[start + length :]


def _line(draw: random.Random, content: Any, share: float) -> bytes:
    root = [copy.deepcopy(content)]
    if draw.random() < share:
        for _ in range(draw.choice((1, 1, 2, 3))):
            change(draw, root)
        return write_tree(draw, root[0])
    return json.dumps(root[0]).encode()


def _websocket(draw: random.Random, number: int, lines: Sequence[bytes]) -> Case:
    lines = [*lines, b"null"]
    messages = b"".join(_frame(TEXT, line) for line in lines) + _frame(CLOSE, struct.pack(">H", 1000))
    head = [
        *(b"GET /predict/ws HTTP/1.1", b"Host: sluice", b"Upgrade: websocket", b"Connection: Upgrade"),
        *(b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", b"", b""),
    ]
    is_spoiled = draw.random() < 0.4
    if is_spoiled:
        messages = _spoil(draw, messages)
    sent = b"\r\n".join(head) + messages
    cut = draw.randrange(1, len(sent))
    return Case(
        f"streams/{number}",
        (sent[:cut], sent[cut:]),
        # What cannot be the end of a message is waited for until its time is over, which is not what is tested here.
        draw.choice(("half-close", "half-close", "close", "reset")) if is_spoiled else "wait",
        operation=WEBSOCKET,
    )


def _frame(opcode: int, content: bytes) -> bytes:
    """One whole frame, masked with zeros."""
    size = len(content)
    if size < 126:
        length = bytes([0x80 | size])
    else:
        length = b"\xfe" + struct.pack(">H", size) if size < 1 << 16 else b"\xff" + struct.pack(">Q", size)
    return bytes([0x80 | opcode]) + length + bytes(4) + content


def _spoil(draw: random.Random, messages: bytes) -> bytes:
    at = draw.randrange(len(messages))
    kind = draw.choice(("flip", "cut", "frame", "frame", "random", "double"))
    if kind == "flip":
        return messages[:at] + bytes([messages[at] ^ (1 << draw.randrange(8))]) + messages[at + 1 :]
    if kind == "cut":
        return messages[:at]
    if kind == "random":
        return messages[:at] + draw.randbytes(draw.choice((1, 4, 60))) + messages[at:]
    if kind == "double":
        return messages[:at] + messages
    frame = _frame(draw.choice((0, TEXT, BINARY, 3, 7, CLOSE, PING, PONG)), draw.randbytes(draw.choice((0, 1, 2, 125, 300))))
    return draw.choice((frame + messages, frame * 50 + messages, messages[:at] + frame + messages[at:]))
