"""Bodies that are JSON, or nearly: valid trees with a few changes, sent as whole requests to the endpoints that take a body.

Case number n of a seed is always the same one.
"""

from __future__ import annotations

import copy
import functools
import gzip
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tests.fuzz.cases import Case


class Body(NamedTuple):
    """A path, and a body that is accepted there: JSON, and behind it the bytes of tensors where `binary` has any."""

    path: str
    content: dict[str, Any]
    binary: bytes = b""
    method: str = "POST"
    template: str | None = None
    """The path in the document where it is not `path` itself."""


LENGTH_HEADER = b"Inference-Header-Content-Length"
"""Of the JSON in front of bytes, in the Open Inference Protocol."""

NESTED: Any = json.loads("[" * 60 + "]" * 60)
# What parsers, float32, timestamps and tokenizers stumble over.
ODD_VALUES: Sequence[Any] = (
    *(None, True, False, 0, -0.0, -1, 1, 2, 0.5, 1e-320, 3.4e38, 3.5e38, 1e300, float("nan"), float("inf"), float("-inf")),
    *(2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400),
    *("", " ", "\0", "\ufeff", "\u2028", "\ud800", "\udfff\ud800", "é" * 50, "🜁" * 20, "a" * 10_000, "NaN", "1e5", "null", "{}"),
    *("2026-03-09T00:00:00Z", "2026-02-30", "9999-12-31T23:59:59+14:00", "0000-00-00", "H", "hourly", "../../etc/passwd", "1"),
    *([], {}, [[]], [{}], [None], {"": None}, {"history": []}, [1, "a", None], [[1], [1, 2]], NESTED),
    *(list(range(300)), [None] * 300, [0.0] * 5_000, [[1.0, 2.0]] * 200, ["a"] * 50),
)
ODD_KEYS = (
    *("", "instances", "model", "history", "text", "__proto__", "constructor", "\0", "🜁", "instance", "status", "a" * 300),
    *("inputs", "outputs", "shape", "datatype", "data", "parameters", "binary_data_size", "classification", "id"),
    *("state", "sequence_id", "sequence_start", "sequence_end", "explain", "params", "dataframe_split", "series", "sizes", "h"),
)
# Written into the text of the body, where no tree can hold them.
ODD_TEXTS = (
    b"NaN",
    b"Infinity",
    b"-",
    b"01",
    b"1.",
    b"1e",
    b"0x1",
    b"\\u00",
    b'"',
    b"\xff",
    b"\x00",
    b"\xed\xa0\x80",
    b"//",
    b",,",
)
HEADERS: Sequence[tuple[bytes, Sequence[bytes]]] = (
    (
        b"Content-Type",
        (b"text/plain", b"application/json; charset=latin-1", b"multipart/form-data", b"", b"application/problem+json"),
    ),
    (b"X-Request-Timeout-Ms", (b"1", b"0", b"5000", b"1e400", b"-1", b"9" * 400, b"\xff", b"nan")),
    (b"X-Request-Priority", (b"1", b"9", b"0", b"10", b"+5", b"\xb2", b"")),
    (b"X-Request-ID", (b"a", b"a" * 3000, b"\xe9", b'"<script>', b"")),
    (b"traceparent", (b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"00-0-0-0", b"ff" * 40, b"")),
    (b"Accept", (b"text/html", b"*/*;q=9", b"application/openmetrics-text", b"a/b" * 500)),
    (b"Content-Encoding", (b"gzip", b"identity", b"br")),
)


def generate(seed: int, number: int, bodies: Sequence[Body]) -> Case:
    """Case `number`: one whole POST whose body is one of `bodies`, changed in one to four places."""
    draw = random.Random(f"{seed}/trees/{number}")
    body = draw.choice(bodies)
    root = [copy.deepcopy(body.content)]
    for _ in range(draw.choice((0, 1, 1, 1, 2, 2, 3, 4))):
        change(draw, root)
    content = write_tree(draw, root[0])
    headers = {b"Content-Type": b"application/json"}
    if body.binary:
        length = (
            len(content) if draw.random() < 0.8 else draw.choice((0, -1, 1, len(content) - 1, len(content) + 1, 10**9, 10**30))
        )
        headers = {b"Content-Type": b"application/octet-stream", LENGTH_HEADER: b"%d" % length}
        content += body.binary if draw.random() < 0.6 else draw.choice((b"", body.binary[:-1], body.binary * 3, b"\xff" * 48))
    if draw.random() < 0.15:
        name, values = draw.choice(HEADERS)
        headers[name] = draw.choice(values)
    if draw.random() < 0.05:
        headers[b"Content-Encoding"], content = b"gzip", _compress(draw, content)
    is_documented = not body.path.startswith("/v2/models")
    return request(
        f"trees/{number}", body.method, body.path, content, headers, template=body.template, is_documented=is_documented
    )


def request(
    name: str,
    method: str,
    path: str,
    content: bytes,
    headers: Mapping[bytes, bytes],
    *,
    template: str | None = None,
    is_documented: bool = True,
) -> Case:
    """One whole request on a connection of its own; `template` is the path in the document where it is not `path` itself."""
    lines = [b"%s %s HTTP/1.1" % (method.encode(), path.encode()), b"Host: sluice", b"Connection: close"]
    lines += [b"%s: %s" % header for header in headers.items()]
    if content or method == "POST":
        lines.append(b"Content-Length: %d" % len(content))
    message = b"\r\n".join([*lines, b"", content])
    return Case(name, (message,), "wait", is_whole=True, operation=(method, template or path) if is_documented else None)


def write_tree(draw: random.Random, value: Any) -> bytes:
    """The text of a tree: compact or not, escaped or not, sometimes with damage that no tree can have."""
    text = json.dumps(value, ensure_ascii=draw.random() < 0.5, separators=(",", ":") if draw.random() < 0.5 else None)
    content = text.encode("utf-8", errors="surrogatepass")
    if draw.random() < 0.15:
        at = draw.randrange(len(content) + 1)
        content = content[:at] + draw.choice(ODD_TEXTS) + content[at + draw.choice((0, 0, 1, 3)) :]
    if draw.random() < 0.05:
        content = content[: draw.randrange(len(content) + 1)]
    return content


def _compress(draw: random.Random, content: bytes) -> bytes:
    """The content, compressed; sometimes damaged, sometimes many times as large as its compressed form."""
    if draw.random() < 0.1:
        return bomb()
    compressed = gzip.compress(content, mtime=0)
    at = draw.randrange(len(compressed))
    return compressed if draw.random() < 0.5 else compressed[:at] + draw.randbytes(2) + compressed[at + draw.choice((0, 2)) :]


@functools.cache
def bomb() -> bytes:
    """50 MB of spaces as 50 KB."""
    return gzip.compress(b" " * 50_000_000, mtime=0)


def change(draw: random.Random, root: list[Any]) -> None:
    """Change the tree that the list holds in one place."""
    container, key = _pick(draw, root)
    value = container[key]
    kind = draw.choice(("odd", "odd", "odd", "wrap", "drop", "repeat", "rename", "move", "add"))
    if kind == "wrap":
        container[key] = draw.choice(([value], {"text": value}, {"history": value}, [value, value]))
    elif kind == "drop" and container is not root:
        del container[key]
    elif kind == "repeat" and isinstance(value, list) and len(value) < 1000:
        container[key] = value * draw.choice((0, 2, 3, 10, 50 if len(value) < 100 else 2))
    elif kind == "rename" and isinstance(container, dict):
        container[draw.choice(ODD_KEYS)] = container.pop(key)
    elif kind == "move":
        other, place = _pick(draw, root)
        container[key] = copy.deepcopy(other[place])
    elif kind == "add" and isinstance(value, dict):
        value[draw.choice(ODD_KEYS)] = copy.deepcopy(draw.choice(ODD_VALUES))
    elif kind == "add" and isinstance(value, list):
        value.insert(draw.randrange(len(value) + 1), copy.deepcopy(draw.choice(ODD_VALUES)))
    else:
        container[key] = copy.deepcopy(draw.choice(ODD_VALUES))


def _pick(draw: random.Random, root: list[Any]) -> tuple[Any, Any]:
    """A place of the tree as container and key; those near the root as likely as the many numbers far from it."""
    depth = draw.choice((0, 1, 1, 2, 2, 3, 4, 6))
    container, key = root, 0
    for _ in range(depth):
        inner = container[key]
        keys = list(_keys(inner))
        if not keys:
            break
        container, key = inner, draw.choice(keys)
    return container, key


def _keys(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
    elif isinstance(value, list):
        yield from range(len(value))
