"""HTTP messages that are nearly right: requests for every route with bytes, lines and framing changed, in several packets.

Case number n of a seed is always the same one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from tests.fuzz.cases import Case, Ending
from tests.fuzz.trees import LENGTH_HEADER, Body

READS: Sequence[bytes] = (
    *(b"/", b"/models", b"/models/forecast-hourly", b"/models/nobody", b"/health/live", b"/health/ready", b"/metrics"),
    *(b"/v2", b"/v2/health/ready", b"/v2/models", b"/v2/models/toy-tensor", b"/v2/models/nobody/config", b"/v2/models/stats"),
    *(b"/v2/models/toy-tensor/versions/1/ready", b"/v2/repository/index", b"/v2/repository/models/toy-tensor/load"),
    *(b"/sequences/7", b"/sequences/%00", b"/sequences/a%2Fb?model=toy-tensor", b"/sequences/" + b"9" * 30),
    *(b"/v1/models", b"/v1/models/toy-tensor", b"/v1/timeseries/models", b"/model_params", b"/validate_api_key", b"/ping"),
    *(
        b"/predict/ws",
        b"/predict/stream",
        b"/play",
        b"/openapi.json",
        b"/docs",
        b"/docs/errors",
        b"/nothing",
        b"/predict",
        b"*",
        b"http://sluice/health/live",
    ),
)
# What parsers of HTTP have disagreed about, or read too much of.
TOKENS: Sequence[bytes] = (
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\n\n", b"\0", b" ", b"\t", b":", b",", b"\xff", b"\x80", b"HTTP/1.1", b"HTTP/1.0"),
    *(
        b"HTTP/2.0",
        b"HTTP/0.9",
        b"HTTP/1.1 200 OK\r\n",
        b"GET / ",
        b"HEAD ",
        b"OPTIONS ",
        b"CONNECT sluice:80 ",
        b"PRI * HTTP/2.0",
    ),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding : chunked\r\n"),
    *(b"Content-Length: 0\r\n", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: 5, 5\r\n"),
    *(b"Content-Length: " + b"9" * 400 + b"\r\n", b"Content-Length: 18446744073709551616\r\n", b"Content-Length: 0x10\r\n"),
    *(b"Expect: 100-continue\r\n", b"Expect: 200-ok\r\n", b"Upgrade: h2c\r\nConnection: Upgrade\r\n", b"Upgrade: websocket\r\n"),
    *(
        b"Connection: close\r\n",
        b"Connection: keep-alive, close\r\n",
        b"Connection: \r\n",
        b"Host: \r\n",
        b"Host: a\r\nHost: b\r\n",
    ),
    *(
        b" folded: line\r\n",
        b": empty\r\n",
        b"A: " + b"a" * 9000 + b"\r\n",
        b"0\r\n\r\n",
        b"5\r\nhello\r\n",
        b"ffffffffffffffff\r\n",
    ),
    *(b"5;a=b\r\n", b"0\r\nTrailer: a\r\n\r\n", b"?a=%00&b=%ff", b"/../", b"%2e%2e/", b"//", b"#", b"a" * 9000),
)


def generate(seed: int, number: int, bodies: Sequence[Body]) -> Case:
    """Case `number`: one to three messages, changed in up to five places, in one to four packets."""
    draw = random.Random(f"{seed}/messages/{number}")
    sent = b"".join(_message(draw, bodies) for _ in range(draw.choice((1, 1, 1, 2, 3))))
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3, 5))):
        sent = _change(draw, sent)
    cuts = sorted(draw.randrange(len(sent) + 1) for _ in range(draw.choice((0, 0, 1, 3))))
    chunks = tuple(sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True) if end > start)
    endings: Sequence[Ending] = ("half-close",) * 8 + ("close", "reset")
    return Case(f"messages/{number}", chunks, draw.choice(endings))


def _message(draw: random.Random, bodies: Sequence[Body]) -> bytes:
    if draw.random() < 0.35:
        method = draw.choice((b"GET", b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"POST"))
        return b"%s %s HTTP/1.1\r\nHost: sluice\r\nAccept: */*\r\n\r\n" % (method, draw.choice(READS))
    body = draw.choice(bodies)
    content = json.dumps(body.content).encode()
    lines = [b"%s %s HTTP/1.1" % (body.method.encode(), body.path.encode()), b"Host: sluice", b"Content-Type: application/json"]
    if body.binary:
        lines.append(b"%s: %d" % (LENGTH_HEADER, len(content)))
        content += body.binary
    if draw.random() < 0.3:
        lines.append(b"Transfer-Encoding: chunked")
        at = draw.randrange(1, len(content))
        content = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (content[:at], content[at:], b""))
    else:
        lines.append(b"Content-Length: %d" % len(content))
    return b"\r\n".join([*lines, b"", content])


def _change(draw: random.Random, data: bytes) -> bytes:
    """One change, more often in the head than in the body: there are the bytes that frame what follows."""
    limit = len(data) if draw.random() < 0.3 else min(len(data), max(data.find(b"\r\n\r\n") + 8, 1))
    at = draw.randrange(limit + 1)
    end = min(len(data), at + draw.choice((1, 1, 2, 4, 16, 200)))
    kind = draw.choice(("flip", "token", "token", "cut", "drop", "double", "line", "swap", "random"))
    if kind == "flip" and at < len(data):
        return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
    if kind == "cut":
        return data[:at]
    if kind == "drop":
        return data[:at] + data[end:]
    if kind == "double":
        return data[:end] + data[at:end] * draw.choice((1, 1, 3, 50)) + data[end:]
    if kind == "random":
        return data[:at] + draw.randbytes(end - at) + data[end:]
    lines = data.split(b"\r\n")
    if kind == "line":
        return b"\r\n".join([*lines[: (place := draw.randrange(len(lines)))], draw.choice(lines), *lines[place:]])
    if kind == "swap":
        first, second = draw.randrange(len(lines)), draw.randrange(len(lines))
        lines[first], lines[second] = lines[second], lines[first]
        return b"\r\n".join(lines)
    if draw.random() < 0.6:  # a token that is a line of its own, where lines begin
        starts = [0, *(place + 2 for place in range(limit) if data[place : place + 2] == b"\r\n")]
        at = draw.choice(starts)
    return data[:at] + draw.choice(TOKENS) + data[at:]
