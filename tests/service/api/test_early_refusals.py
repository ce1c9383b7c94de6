"""Which bytes are taken for a whole, simple request without parsing: only those that no parser reads differently."""

from __future__ import annotations

import asyncio
import functools

import pytest

from service.api.early_refusals import MAX_HEAD_BYTES, MAX_HEADS, HeldRefusals, Recogniser, RefusalTemplate, SimpleRequest
from service.api.request_ids import new_context

BODY = b"x" * 40


def request(
    *headers: str, first: str = "POST /predict HTTP/1.1", length: str = "Content-Length: 40", body: bytes = BODY
) -> bytes:
    return "\r\n".join([first, "Host: x", *headers, *([length] if length else []), "", ""]).encode("latin-1") + body


@pytest.mark.parametrize(
    "received",
    [
        request(),
        request("Connection: keep-alive", "Content-Type: application/json", "User-Agent: a/1 (b; c)"),
        request("connection: Keep-Alive", length="content-LENGTH:40"),
        request(length="Content-Length:  40  "),
        request("X-Empty:"),
    ],
)
def test_a_whole_simple_request_is_recognised(received: bytes) -> None:
    assert Recogniser().recognise(received) == SimpleRequest("/predict", 40)


@pytest.mark.parametrize(
    "received",
    [
        b"",
        b"P",
        b"\r\n\r\n",
        request()[:-1],
        request() + b"x",
        request() + request(),
        request()[:60],
        request(first="GET /predict HTTP/1.1"),
        request(first="POST /predict HTTP/1.0"),
        request(first="POST  /predict HTTP/1.1"),
        request(first="POST /pre dict HTTP/1.1"),
        request(first="POST http://x/predict HTTP/1.1"),
        request(first=" POST /predict HTTP/1.1"),
        request("Transfer-Encoding: chunked"),
        request("Transfer-Encoding : chunked"),
        request("Expect: 100-continue"),
        request("Upgrade: h2c"),
        request("Connection: close"),
        request("Connection: keep-alive, Upgrade"),
        request("Proxy-Connection: close"),
        request("X-Request-Timeout-Ms: 5"),
        request("X-Request-Priority: 1"),
        request("X-Request-ID: 5"),
        request("traceparent: 00-1"),
        request("tracestate: a=b"),
        request("Content-Length: 40"),
        request("Content-Length: 39"),
        request(length=""),
        request(length="Content-Length : 40"),
        request(length="Content-Length: +40"),
        request(length="Content-Length: 4_0"),
        request(length="Content-Length: 40, 40"),
        request(length="Content-Length: " + "0" * 4300 + "40"),
        request(length="Content-Length: 0000000040"),
        request(length="Content-Length: \xb2"),
        request("X: a\nContent-Length: 40", length=""),
        request("X: a\n b"),
        request("X: a\r\n b"),
        request("X: a\r\n\tb"),
        request("X: a\rb"),
        request("X: a\0b"),
        request("X: \xe9"),
        request(": a"),
        request("X: " + "a" * MAX_HEAD_BYTES),
    ],
)
def test_whatever_is_unusual_is_left_to_the_parser(received: bytes) -> None:
    assert Recogniser().recognise(received) is None


def test_heads_are_remembered_within_bounds() -> None:
    recogniser = Recogniser()
    for number in range(3 * MAX_HEADS):
        assert recogniser.recognise(request(f"X-Number: {number}")) is not None
        assert recogniser.recognise(request(f"X-Number: {number}", body=BODY + b"x")) is None
    assert len(recogniser._heads) <= MAX_HEADS


def test_a_template_differs_in_its_ids_alone() -> None:
    first, second = new_context(), new_context()
    headers = [(b"x", b"100%"), (b"traceparent", first.traceparent.encode()), (b"x-request-id", first.request_id.encode())]
    template = RefusalTemplate(headers, b'{"share": "5 %", "id": "' + first.request_id.encode() + b'"}', first)
    written = template.render(first)
    assert written.startswith(b"x: 100%\r\ntraceparent: 00-")
    assert written.endswith(b'"}')
    assert first.request_id.encode() not in template.render(second)
    renamed = written.replace(first.traceparent.encode(), second.traceparent.encode())
    assert template.render(second) == renamed.replace(first.request_id.encode(), second.request_id.encode())
    assert template.body_bytes == len(written.partition(b"\r\n\r\n")[2])


async def test_held_refusals_are_sent_in_their_order() -> None:
    held, loop = HeldRefusals(), asyncio.get_running_loop()
    sent: list[int] = []
    is_last = loop.create_future()
    for number in range(20):
        held.add(loop, 0.001 * number, functools.partial(sent.append, number))
    held.add(loop, 0.02, lambda: is_last.set_result(None))
    await is_last
    assert sent == list(range(20))
    is_next = loop.create_future()
    held.add(loop, 0.0, lambda: is_next.set_result(None))
    await is_next
