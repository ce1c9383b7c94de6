"""The same requests, simple and odd, through a server with the fast path and through one without: the same bytes come back.

Compared are the status line, the headers in their order (the date aside), the body, and whether the connection stays open. Of
the ids that the server makes, that there are any.
"""

from __future__ import annotations

import itertools
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from service.api.access.keys import describe_entry, new_key
from service.api.fast_path import FastPathProtocol
from service.api.regular_path import RegularPathProtocol
from service.app import create_app
from service.server import uvicorn_config
from service.settings import Settings
from tests.fakes import PATIENCE_S
from tests.folders import write_forecast_folder, write_text_folder

MAX_BODY_BYTES = 100_000
FAST_BYTES = 64 * 1024
FORECAST = b'{"instances": [{"history": [1, 2, 3]}]}'
TEXTS = b'{"instances": ["a good film", "not a good plot"]}'
JSON = "Content-Type: application/json"
FORECAST_PATH = "/predict/forecast"


@dataclass(frozen=True)
class Case:
    """Bytes to send, and how many answers come of them. Each part is written by itself."""

    name: str
    parts: tuple[bytes, ...]
    num_answers: int = 1
    is_head: bool = False
    """Answers have no body."""
    waits: bool = False
    """Each part is written when the part before it was answered."""
    half_closes: bool = False
    """The client then sends no more; otherwise it tries whether the connection takes another request."""


@dataclass(frozen=True)
class Answer:
    first_line: bytes
    headers: tuple[bytes, ...]
    body: bytes


@dataclass(frozen=True)
class Seen:
    """What one connection gave back."""

    answers: tuple[Answer, ...]
    is_open: bool


# --------------------------------------------------------------------------------------------------------- the table


def request(
    path: str = FORECAST_PATH,
    body: bytes = FORECAST,
    *,
    method: str = "POST",
    version: str = "HTTP/1.1",
    headers: Sequence[str] = (JSON,),
    length: str | None = "",
) -> bytes:
    """A request; `length` is the value of Content-Length, "" for the body's own, None for no such header."""
    lines = [f"{method} {path} {version}", "Host: sluice", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length or len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(*chunks: bytes, extension: str = "", trailer: str = "") -> bytes:
    sizes = [b"%x%s\r\n%s\r\n" % (len(chunk), extension.encode(), chunk) for chunk in chunks]
    return b"".join(sizes) + b"0\r\n" + trailer.encode() + b"\r\n"


def case(name: str, *parts: bytes, **options: Any) -> Case:
    return Case(name, parts, **options)


BODIES: dict[str, bytes] = {
    "forecast": FORECAST,
    "texts": TEXTS,
    "any model": b'{"model": "toy-forecast", "instances": [{"history": [1, 2.5, null, 4]}], "parameters": {"horizon": 2}}',
    "version": b'{"model": "toy-sentiment", "version": "1", "instances": ["bad"]}',
    "timestamps": b'{"instances": [{"history": [1, 2], "horizon": 9, "start": "2026-01-01", "frequency": "H"}]}',
    "quantiles": b'{"instances": [{"history": [1, 2], "quantiles": [0.5, 0.7]}], "parameters": {"quantiles": [0.1]}}',
    "several": b'{"instances": [{"history": [1, 2]}, {"history": [1, 2, 3]}, {"history": [3, 2, 1, 0]}]}',
    "empty": b"",
    "space": b"  \r\n ",
    "not JSON": b"{",
    "a list": b"[]",
    "a string": b'"x"',
    "null": b"null",
    "nothing": b"{}",
    "no instances": b'{"instances": []}',
    "unknown field": b'{"instances": [1], "inputs": 1}',
    "unknown model": b'{"model": "none", "instances": [1]}',
    "unknown version": b'{"model": "toy-forecast", "version": "7", "instances": [1]}',
    "other task": b'{"model": "toy-forecast", "instances": ["a"]}',
    "NaN": b'{"instances": [{"history": [1, NaN]}]}',
    "beyond float32": b'{"instances": [{"history": [1, 1e39]}]}',
    "wrong type": b'{"instances": [{"history": "x"}]}',
    "too short": b'{"instances": [{"history": [1]}]}',
    "an empty text": b'{"instances": [""]}',
    "too many instances": b'{"instances": [' + b"1," * 60 + b"1]}",
    "not UTF-8": b'{"model": "\xff"}',
    "UTF-8 mark": b"\xef\xbb\xbf" + FORECAST,
    "deep": b"[" * 3000,
    "zeros": b"\0" * 50,
    "two values": FORECAST + b"{}",
}
PATHS = ("/predict", FORECAST_PATH, "/predict/sentiment", "/predict/classify")


TRACE = "0af7651916cd43dd8448eb211c80319c"


def table() -> Iterator[Case]:
    for path, (name, body) in itertools.product(PATHS, BODIES.items()):
        yield case(f"{path}: {name}", request(path, body))
    yield from methods()
    yield from targets()
    yield from versions()
    yield from media_types()
    yield from lengths()
    yield from transfer_encodings()
    yield from connections()
    yield from header_lines()
    yield from framings()
    yield from sizes()
    yield from sequences()
    yield from splits()
    yield from half_closed()


def methods() -> Iterator[Case]:
    for method, path in itertools.product(
        ("GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"), (FORECAST_PATH, "/models", "/nothing")
    ):
        yield case(f"{method} {path}", request(path, b"", method=method), is_head=method == "HEAD")
        yield case(f"{method} {path} with a body", request(path, method=method), is_head=method == "HEAD")
    for method in ("BREW", "post", "Post", "P\x00ST", "POSTT", ""):
        yield case(f"method {method!r}", request(method=method))
    yield case("POST to what is only read", request("/models"))
    yield case("CONNECT", request("sluice:80", b"", method="CONNECT"), half_closes=True)


def targets() -> Iterator[Case]:
    for target in (
        f"{FORECAST_PATH}?x=1",
        f"{FORECAST_PATH}?",
        f"{FORECAST_PATH}#part",
        f"{FORECAST_PATH}?x=%00&y=%zz",
        f"{FORECAST_PATH}/",
        f"/{FORECAST_PATH}",
        "/predict/%66orecast",
        "/predict%2Fforecast",
        "/predict%2fforecast",
        "/%70%72edict",
        "/predict/forecast%20",
        "/predict/forecast%",
        "/predict/forecast%zz",
        "/predict/forecast%ff",
        "/predict/forecast%00",
        "/predict/./forecast",
        "/predict/../predict",
        "/predict;v=1",
        "/PREDICT",
        "/predict/forecasts",
        "/predic",
        "/",
        "*",
        "predict",
        "http://sluice/predict/forecast",
        "http://sluice:99999/predict/forecast",
        "HTTP://other.example/predict/forecast?x",
        "http://sluice",
        "https://user@sluice/predict",
        "//predict",
        "/predict/for\xe9cast",
        "/predict/fore\x01cast",
        "/predict /forecast",
        "/" + "a" * 9_000,
        f"{FORECAST_PATH}?" + "q" * 9_000,
    ):
        yield case(f"POST {target[:60]!r}", request(target))
    yield case("GET with a query", request("/models?x=1", b"", method="GET"))
    yield case("GET encoded", request("/models/no%2Dmodel", b"", method="GET"))


def versions() -> Iterator[Case]:
    yield case("HTTP/1.0", request(version="HTTP/1.0"))
    yield case("HTTP/1.0 that stays", request(version="HTTP/1.0", headers=[JSON, "Connection: keep-alive"]))
    for version in ("HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "HTTP/3", "HTTP/1.10", "http/1.1", "HTTP/1.1 ", "ICE/1.0", "", "1.1"):
        yield case(f"version {version!r}", request(version=version))
    yield case("HTTP/2 by prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    yield case("no version", b"GET /health/live\r\n\r\n")


def media_types() -> Iterator[Case]:
    for content_type in (
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=latin-1",
        "application/problem+json",
        "application/x-www-form-urlencoded",
        "text/plain",
        "text/json",
        "multipart/form-data; boundary=x",
        "application/jsonlines",
        "application/octet-stream",
        "json",
        "",
        ";",
        "\xff",
        "x" * 5_000,
    ):
        yield case(f"Content-Type: {content_type[:40]!r}", request(headers=[f"Content-Type: {content_type}"]))
    yield case("no Content-Type", request(headers=[]))
    yield case("two Content-Types", request(headers=[JSON, "Content-Type: text/plain"]))
    # Refused by its head, so answered while its body is still missing.
    refused = request(body=b"", headers=["Content-Type: a/b"], length="39")
    yield case("a refused Content-Type without its body", refused, half_closes=True)
    yield case("a refused Content-Type before its body", refused, b"x" * 39, waits=True)
    for encoding in ("identity", "Identity", "gzip", "br", "gzip, identity", ""):
        yield case(f"Content-Encoding: {encoding!r}", request(headers=[JSON, f"Content-Encoding: {encoding}"]))
    yield case("Accept", request(headers=[JSON, "Accept: text/html", "Accept-Encoding: gzip, br", "Accept-Language: xx"]))


def lengths() -> Iterator[Case]:
    size = len(FORECAST)
    for length in ("+5", "-1", "5, 5", "0x27", "1e2", "five", " ", f"{size}\t", f"0{size}"):
        yield case(f"Content-Length: {length!r}", request(length=length))
    for huge in (2**63, 2**64 + size, 10**30):
        yield case(f"Content-Length: {huge}", request(length=str(huge)), half_closes=True)
    yield case("no length", request(length=None))
    yield case("two equal lengths", request(headers=[JSON, f"Content-Length: {size}"]))
    yield case("two lengths", request(headers=[JSON, "Content-Length: 1"]))
    yield case("an empty length", request(headers=[JSON, "Content-Length:"], length=None))
    yield case("length 0", request(body=b""))
    yield case("a length that is too short", request(length="5"))
    yield case("a length in another case", request(headers=[JSON, f"CONTENT-LENGTH: {size}"], length=None))
    yield case("underscore", request(headers=[JSON, f"Content_Length: {size}"], length=None))
    yield case("length and chunks", request(headers=[JSON, "Transfer-Encoding: chunked"]))
    yield case("chunks and length", request(body=chunked(FORECAST), headers=["Transfer-Encoding: chunked", JSON]))


def transfer_encodings() -> Iterator[Case]:
    def sent(name: str, body: bytes, coding: str = "chunked", *more: str, **options: Any) -> Case:
        headers = [JSON, f"Transfer-Encoding: {coding}", *more]
        return case(f"chunked: {name}", request(body=body, headers=headers, length=None), **options)

    yield sent("one", chunked(FORECAST))
    yield sent("some", chunked(FORECAST[:3], FORECAST[3:9], FORECAST[9:]))
    yield sent("a byte each", chunked(*(FORECAST[place : place + 1] for place in range(len(FORECAST)))))
    yield sent("nothing", chunked())
    yield sent("extension", chunked(FORECAST, extension=";a=b;c"))
    yield sent("trailer", chunked(FORECAST, trailer="X-Sum: 1\r\n"))
    yield sent("a trailer that is a length", chunked(FORECAST, trailer="Content-Length: 1\r\n"))
    yield sent("a size that is none", b"zz\r\n" + FORECAST)
    yield sent("a negative size", b"-1\r\n" + FORECAST)
    yield sent("an endless size", b"f" * 40 + b"\r\n" + FORECAST)
    yield sent("wrong size", b"5\r\n" + FORECAST + b"\r\n0\r\n\r\n")
    yield sent("no line end", b"%x\r\n" % len(FORECAST) + FORECAST + b"0\r\n\r\n")
    yield sent("line feeds", b"%x\n" % len(FORECAST) + FORECAST + b"\n0\n\n")
    yield sent("too large", chunked(*[b" " * 10_000] * 11), num_answers=1)
    yield sent("upper case", chunked(FORECAST), "CHUNKED")
    yield sent("twice", chunked(FORECAST), "chunked", "Transfer-Encoding: chunked")
    yield sent("listed twice", chunked(FORECAST), "chunked, chunked")
    yield sent("gzip", chunked(FORECAST), "gzip, chunked")
    yield sent("gzip alone", FORECAST, "gzip", half_closes=True)
    yield sent("identity", FORECAST, "identity", half_closes=True)
    yield sent("chunked not last", chunked(FORECAST), "chunked, identity", half_closes=True)
    yield sent("vertical tab", chunked(FORECAST), "\x0bchunked", half_closes=True)


def connections() -> Iterator[Case]:
    for value in (
        "close",
        "Close",
        "close\t",
        "keep-alive",
        "Keep-Alive",
        "close, te",
        "te, close",
        "keep-alive, close",
        "x",
        "",
    ):
        yield case(f"Connection: {value!r}", request(headers=[JSON, f"Connection: {value}"]))
        yield case(f"GET, Connection: {value!r}", request("/models", b"", method="GET", headers=[f"Connection: {value}"]))
    yield case("Connection twice", request(headers=[JSON, "Connection: keep-alive", "Connection: close"]))
    yield case("Connection twice, close first", request(headers=[JSON, "Connection: close", "Connection: keep-alive"]))
    yield case("a refusal that closes", request(body=b"{", headers=[JSON, "Connection: close"]))
    yield case("Proxy-Connection", request(headers=[JSON, "Proxy-Connection: close"]))
    upgrade = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: eA==", "Sec-WebSocket-Version: 13"]
    yield case("GET, upgrade", request("/models", b"", method="GET", headers=upgrade, length=None))
    yield case("POST, upgrade", request(headers=[JSON, *upgrade]))
    to_http2 = request(headers=[JSON, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAA"])
    yield case("POST, upgrade to HTTP/2", to_http2)
    yield case("POST, upgrade to HTTP/2, in packets", to_http2[:50], to_http2[50:-20], to_http2[-20:-3], to_http2[-3:])
    yield case("POST, upgrade, between others", request() + to_http2 + request() + to_http2, num_answers=4)
    yield case("POST, upgrade and close", request(headers=[JSON, "Connection: close, upgrade", "Upgrade: h2c"]))
    in_chunks = [JSON, "Connection: Upgrade", "Upgrade: h2c", "Transfer-Encoding: chunked"]
    yield case("POST, upgrade, chunked", request(body=chunked(FORECAST), headers=in_chunks, length=None))
    yield case("Upgrade without Connection", request(headers=[JSON, "Upgrade: websocket"]))
    for value, num_answers in (("100-continue", 2), ("100-Continue", 2), ("200-ok", 1), ("100-continue, x", 1), ("", 1)):
        yield case(f"Expect: {value!r}", request(headers=[JSON, f"Expect: {value}"]), num_answers=num_answers)
    yield case(
        "the body follows 100 Continue",
        request(headers=[JSON, "Expect: 100-continue"], body=b"", length=str(len(FORECAST))),
        FORECAST,
        num_answers=2,
        waits=True,
    )
    yield case("a refusal instead of 100 Continue", request(headers=["Content-Type: a/b", "Expect: 100-continue"]))


def header_lines() -> Iterator[Case]:
    yield case("lower case", request().replace(b"Content", b"content").replace(b"Host", b"host").replace(b"Type", b"type"))
    yield case("upper case", request().replace(b"Content-Length", b"CONTENT-LENGTH").replace(b"Content-Type", b"CONTENT-TYPE"))
    yield case("no spaces", request().replace(b": ", b":", 3))
    yield case("many spaces", request().replace(b": ", b":   \t ", 3))
    yield case("no Host", request().replace(b"Host: sluice\r\n", b""))
    for name, line in {
        "two Hosts": "Host: other",
        "no value": "X-Empty:",
        "no name": ": value",
        "no colon": "X-Nothing",
        "space before the colon": "X-Space : 1",
        "space in the name": "X Space: 1",
        "folded": "X-Folded: 1\r\n  2",
        "a folded length": "Content-Length:\r\n 39",
        "zero byte": "X-Zero: a\x00b",
        "control": "X-Control: a\x01b",
        "carriage return": "X-Return: a\rb",
        "line feed": "X-Feed: a\nb",
        "latin": "X-Latin: \xe9\xff",
        "request id": "X-Request-ID: 00-abc",
        "two request ids": "X-Request-ID: a\r\nX-Request-ID: b",
        "an empty request id": "X-Request-ID: ",
        "a folded request id": "X-Request-ID: a\r\n b",
        "a request id of many bytes": f"X-Request-ID: {'a' * 5000}",
        "a request id that is not ASCII": "X-Request-ID: \xe9",
        "a request id with a line feed": "X-Request-ID: a%0aSet-Cookie:b",
        "a request id with a quotation mark": 'X-Request-ID: a"b',
        "trace": f"traceparent: 00-{TRACE}-b7ad6b7169203331-01",
        "trace with a state": f"traceparent: 00-{TRACE}-b7ad6b7169203331-00\r\ntracestate: a=1,b=2\r\ntracestate: c=3",
        "trace with a bad state": f"traceparent: 00-{TRACE}-b7ad6b7169203331-00\r\ntracestate: =",
        "trace of a later version": f"traceparent: cc-{TRACE}-b7ad6b7169203331-01-more",
        "trace of version ff": f"traceparent: ff-{TRACE}-b7ad6b7169203331-01",
        "trace of zeros": f"traceparent: 00-{'0' * 32}-b7ad6b7169203331-01",
        "two traces": f"traceparent: 00-{TRACE}-b7ad6b7169203331-01\r\ntraceparent: 00-{TRACE}-b7ad6b7169203331-01",
        "key": "Authorization: Bearer x",
        "for": "X-Forwarded-For: 1.2.3.4, 5.6.7.8",
        "range": "Range: bytes=0-1",
        "if": "If-None-Match: *",
        "origin": "Origin: https://example.org",
        "cookie": "Cookie: a=b; c=d",
    }.items():
        yield case(f"header: {name}", request(headers=[JSON, line]))
        yield case(f"GET, header: {name}", request("/models", b"", method="GET", headers=[line]))
    yield case("1000 headers", request(headers=[JSON, *(f"X-{number}: {number}" for number in range(1000))]))
    yield case("the same header 500 times", request(headers=[JSON, *["X-Same: 1"] * 500]))
    yield case("a header of 60 kB", request(headers=[JSON, "X-Large: " + "x" * 60_000]))
    yield case("a header of 500 kB", request(headers=[JSON, "X-Large: " + "x" * 500_000]))
    yield case("a long name", request(headers=[JSON, "X" * 20_000 + ": 1"]))


def framings() -> Iterator[Case]:
    whole = request()
    yield case("leading line end", b"\r\n" + whole)
    yield case("leading line ends", b"\r\n\r\n\n" + whole)
    yield case("leading space", b" " + whole)
    yield case("line feeds alone", whole.replace(b"\r\n", b"\n"))
    yield case("carriage returns alone", whole.replace(b"\r\n", b"\r"), half_closes=True, num_answers=1)
    yield case("line end after the request", whole + b"\r\n")
    yield case("garbage after the answer", whole, b"garbage\r\n\r\n", num_answers=2, waits=True)
    yield case("garbage behind the request", whole + b"garbage\r\n\r\n", num_answers=2)
    yield case("garbage behind three requests", whole * 3 + b"\0\0\0", num_answers=4)
    yield case(
        "a broken body behind a request",
        whole + request(body=b"zz", headers=["Transfer-Encoding: chunked"], length=None),
        num_answers=2,
    )
    yield case("garbage", b"garbage\r\n\r\n")
    yield case("binary garbage", bytes(range(256)))
    yield case("a TLS greeting", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64)
    yield case("nothing", b"", num_answers=0, half_closes=True)
    yield case("line ends and nothing", b"\r\n\r\n", num_answers=0, half_closes=True)


def sizes() -> Iterator[Case]:
    for size in (FAST_BYTES - 1, FAST_BYTES, FAST_BYTES + 1, MAX_BODY_BYTES - 1, MAX_BODY_BYTES):
        yield case(f"a body of {size} bytes", request(body=FORECAST + b" " * (size - len(FORECAST))))
        yield case(f"a refused body of {size} bytes", request(body=b"x" * size))
    for size in (MAX_BODY_BYTES + 1, 2 * MAX_BODY_BYTES, 4 * MAX_BODY_BYTES):
        yield case(f"a body of {size} bytes", request(body=b" " * size))
    for size in (4 * MAX_BODY_BYTES + 1, 10**12):
        yield case(f"a body declared as {size} bytes", request(length=str(size)))


def sequences() -> Iterator[Case]:
    """Several requests of one connection, at once and one after the other."""
    kinds = {
        "fast": request(),
        "text": request("/predict/sentiment", TEXTS),
        "query": request(f"{FORECAST_PATH}?x"),
        "chunks": request(body=chunked(FORECAST), headers=[JSON, "Transfer-Encoding: chunked"], length=None),
        "get": request("/models", b"", method="GET"),
        "bad": request(body=b"{"),
        "unknown": request("/nothing"),
    }
    for pair in itertools.product(kinds, repeat=2):
        parts = tuple(kinds[kind] for kind in pair)
        yield case(f"pipelined: {', '.join(pair)}", b"".join(parts), num_answers=2)
        yield case(f"one after the other: {', '.join(pair)}", *parts, num_answers=2, waits=True)
    for kind, whole in kinds.items():
        yield case(f"pipelined: 5 times {kind}", whole * 5, num_answers=5)
        yield case(f"pipelined: {kind} after close", request(headers=[JSON, "Connection: close"]) + whole, num_answers=1)
        yield case(f"after HTTP/1.0: {kind}", request(version="HTTP/1.0") + whole, num_answers=1)
        yield case(f"pipelined: {kind} and half of another", whole + request()[:30], half_closes=False, num_answers=1)
    yield case("all kinds, twice", b"".join(kinds.values()) * 2, num_answers=2 * len(kinds))
    yield case("all kinds, twice, one after the other", *kinds.values(), *kinds.values(), num_answers=2 * len(kinds), waits=True)


def splits() -> Iterator[Case]:
    whole = request(headers=[JSON, "X-Other: value"])
    for place in range(1, len(whole)):
        yield case(f"split at byte {place}", whole[:place], whole[place:])
    yield case("a byte at a time", *(whole[place : place + 1] for place in range(len(whole))))
    yield case("large, in parts", *(request(body=b"x" * 90_000)[start : start + 7_000] for start in range(0, 91_000, 7_000)))


def half_closed() -> Iterator[Case]:
    whole = request()
    for place in range(1, len(whole), 7):
        yield case(f"half-closed after {place} bytes", whole[:place], num_answers=0, half_closes=True)
    for kind, sent in {"fast": whole, "get": request("/models", b"", method="GET"), "bad": request(body=b"{")}.items():
        yield case(f"half-closed after the answer: {kind}", sent, half_closes=True)
        yield case(f"half-closed before the answer: {kind}", sent, num_answers=0, half_closes=True)
    yield case("half-closed after three and a half requests", whole * 3 + whole[:70], num_answers=0, half_closes=True)


CASES = list(table())


# ------------------------------------------------------------------------------------------------------- the servers


@contextmanager
def serving(models: Path, *, fast_path: bool, http: Any = None, **settings: Any) -> Iterator[int]:
    """A real server on a thread, ready; gives its port. `http` serves instead of the protocol that the settings choose."""
    chosen = Settings(models=models, device="cpu", num_threads=1, fast_path=fast_path, **settings)
    is_loaded = threading.Event()
    config = uvicorn_config(create_app(chosen, on_loaded=lambda _: is_loaded.set()), chosen)
    config.http = http or config.http
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert is_loaded.wait(PATIENCE_S)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_forecast_folder(folder)
    write_text_folder(folder)
    return folder


@pytest.fixture(scope="module")
def ports(models: Path) -> Iterator[tuple[int, int]]:
    limits = {"max_body_bytes": MAX_BODY_BYTES, "max_instances": 50}
    with serving(models, fast_path=True, **limits) as fast, serving(models, fast_path=False, **limits) as regular:
        yield fast, regular


def masked(text: bytes) -> bytes:
    """The text without the ids that the server makes, which differ from answer to answer."""
    text = re.sub(rb"00-(?!%s)[0-9a-f]{32}-[0-9a-f]{16}-00" % TRACE.encode(), b"TRACE", text)
    return re.sub(rb"\b(?!%s)[0-9a-f]{32}\b" % TRACE.encode(), b"ID", text)


class Connection:
    """A client that reads answers byte for byte."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def close(self) -> None:
        self._socket.close()

    def send(self, content: bytes) -> None:
        with suppress(ConnectionError):  # the server may have closed: what it had sent is still to be read
            self._socket.sendall(content)

    def half_close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def receive(self, *, is_head: bool = False) -> Answer | None:
        """The next answer; None when the connection ends before it. An answer that is cut off fails the test."""
        head = self._until(b"\r\n\r\n")
        if head is None:
            assert self._buffer == b"", "half an answer"
            return None
        first_line, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        headers = tuple(masked(line) for line in lines if not line.startswith(b"date:"))
        fields = dict(line.split(b": ", 1) for line in lines)
        if is_head or first_line.startswith(b"HTTP/1.1 1"):
            return Answer(first_line, headers, b"")
        return Answer(first_line, headers, masked(self._exactly(int(fields[b"content-length"]))))

    def _until(self, end: bytes) -> bytes | None:
        while end not in self._buffer:
            if not self._fill():
                return None
        place = self._buffer.index(end) + len(end)
        found, self._buffer = self._buffer[:place], self._buffer[place:]
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            assert self._fill(), "half an answer"
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def _fill(self) -> bool:
        try:
            received = self._socket.recv(1 << 16)
        except ConnectionError:
            return False
        self._buffer += received
        return bool(received)


PROBE = request("/predict/sentiment", TEXTS, headers=[JSON, "Connection: close"])


def exchange(port: int, sent: Case) -> Seen:
    """Send what the case says, and gather what comes back until the connection ends."""
    connection = Connection(port)
    answers: list[Answer] = []

    def receive(num_answers: int) -> bool:
        while len(answers) < num_answers:
            answer = connection.receive(is_head=sent.is_head)
            if answer is None:
                return False
            answers.append(answer)
        return True

    try:
        for number, part in enumerate(sent.parts, 1):
            connection.send(part)
            if sent.waits:
                receive(min(number, sent.num_answers))
            elif len(sent.parts) > 1:
                time.sleep(0.0002)  # so that most parts arrive by themselves; the answers are the same if they do not
        is_open = False
        if sent.half_closes:
            receive(sent.num_answers)
            connection.half_close()
        elif receive(sent.num_answers):
            connection.send(PROBE)
            probed = connection.receive()
            is_open = probed is not None and probed.first_line == b"HTTP/1.1 200 OK"
            answers += [probed] if probed is not None else []
        while (more := connection.receive()) is not None:
            answers.append(more)
    finally:
        connection.close()
    return Seen(tuple(answers), is_open)


# ---------------------------------------------------------------------------------------------------------- the tests


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 400


@pytest.mark.parametrize("sent", CASES, ids=lambda sent: sent.name)
def test_both_paths_answer_alike(sent: Case, ports: tuple[int, int]) -> None:
    fast, regular = (exchange(port, sent) for port in ports)
    assert fast == regular


def test_both_paths_answer_alike_with_keys_and_cors(models: Path, tmp_path: Path) -> None:
    keys = {name: new_key() for name in ("predict", "admin", "narrow")}
    options: dict[str, dict[str, Any]] = {
        "predict": {"scopes": ["predict"]},
        "admin": {"scopes": ["admin"]},
        "narrow": {"scopes": ["predict"], "models": ["toy-sentiment"]},
    }
    file = tmp_path / "keys.toml"
    file.write_text("".join(describe_entry(key, name, **options[name]) for name, key in keys.items()))
    presented = [f"X-API-Key: {key}" for key in keys.values()] + [f"Authorization: bearer  {key}" for key in keys.values()]
    headers = [[], ["X-API-Key: wrong"], ["Authorization: Basic x"], presented[:2], *([each] for each in presented)]
    sent = [
        case(f"{path} {credentials} {origin}", request(path, headers=[JSON, *credentials, *origin]))
        for path in (FORECAST_PATH, "/predict")
        for credentials in headers
        for origin in ([], ["Origin: https://a.example"], ["Origin: https://b.example"])
    ]
    access = {"api_keys_file": file, "cors_origins": "https://a.example"}
    with serving(models, fast_path=True, **access) as fast, serving(models, fast_path=False, **access) as regular:
        seen = {each.name: exchange(fast, each) for each in sent}
        assert seen == {each.name: exchange(regular, each) for each in sent}
    statuses = {answers.answers[0].first_line[9:12] for answers in seen.values()}
    assert statuses == {b"200", b"401", b"403", b"404", b"400"}


@pytest.mark.parametrize("protocol", [FastPathProtocol, RegularPathProtocol])
def test_a_client_that_closes_its_side_long_after_its_request_gets_nothing(
    models: Path, protocol: type[RegularPathProtocol]
) -> None:
    # It cannot be told from a client that has gone: the place in the queue is given up.
    impatient = type("Impatient", (protocol,), {"half_close_s": -1.0})
    with serving(models, fast_path=True, http=impatient, max_queue_delay_ms=60_000, request_timeout_ms=120_000) as port:
        seen = exchange(port, case("half-closed while it waits", request(), num_answers=0, half_closes=True))
    assert seen == Seen((), is_open=False)
