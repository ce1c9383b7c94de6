"""Which pages of other origins may read an answer, and what a preflight is told."""

from __future__ import annotations

from typing import Any

import pytest

from service.api.access.cors import Cors, parse_origins
from service.api.request import Headers
from tests.heads import request

APP = "https://app.example.com"


def headers_added(origins: str, *sent: tuple[bytes, bytes], present: Headers | None = None) -> dict[bytes, bytes]:
    headers: Headers = list(present or [])
    Cors(parse_origins(origins.split(","))).after(request("/predict", *sent), headers)
    names = [name for name, _ in headers]
    assert len(names) == len(set(names))
    return dict(headers)


def test_an_origin_of_the_list_may_read_the_answer_and_caches_keep_the_origins_apart() -> None:
    added = headers_added(f"{APP},http://localhost:3000", (b"origin", APP.encode()))
    assert added[b"access-control-allow-origin"] == APP.encode()
    assert added[b"vary"] == b"origin"
    assert b"retry-after" in added[b"access-control-expose-headers"]
    assert b"access-control-allow-credentials" not in added


@pytest.mark.parametrize(
    "origin",
    [b"https://app.example.com.evil.org", b"http://app.example.com", b"https://app.example.com:8443", b"null", b"*", b""],
)
def test_another_origin_may_not(origin: bytes) -> None:
    assert headers_added(APP, (b"origin", origin)) == {b"vary": b"origin"}


def test_an_answer_to_no_origin_varies_too() -> None:
    assert headers_added(APP) == {b"vary": b"origin"}
    assert headers_added(APP, present=[(b"vary", b"accept")]) == {b"vary": b"accept, origin"}


def test_with_a_star_any_origin_may() -> None:
    for sent in ((), ((b"origin", b"https://other.example"),)):
        added = headers_added("*", *sent)
        assert added[b"access-control-allow-origin"] == b"*"
        assert b"vary" not in added


@pytest.mark.parametrize(
    "text",
    [
        "",
        "app.example.com",
        "https://",
        "https://app.example.com/",
        "https://a b",
        "ftp://a",
        "HTTPS://A",
        "https://*.example.com",
        "null",
    ],
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an origin such as"):
        parse_origins([text])


async def messages_of(headers: Headers, method: str = "OPTIONS") -> list[dict[str, Any]]:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "inner"})

    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the body was read")

    app = Cors(parse_origins([APP])).wrap(inner)
    await app({"type": "http", "method": method, "path": "/predict", "headers": headers}, receive, send)
    return sent


PREFLIGHT = [(b"origin", APP.encode()), (b"access-control-request-method", b"POST")]


async def test_a_preflight_is_answered_with_what_a_page_may_send() -> None:
    start, body = await messages_of(PREFLIGHT)
    headers = dict(start["headers"])
    assert start["status"] == 204
    assert b"POST" in headers[b"access-control-allow-methods"]
    for needed in (b"content-type", b"authorization", b"x-api-key"):
        assert needed in headers[b"access-control-allow-headers"].split(b", ")
    assert body == {"type": "http.response.body", "body": b""}


@pytest.mark.parametrize(("headers", "method"), [([], "OPTIONS"), (PREFLIGHT[:1], "OPTIONS"), (PREFLIGHT, "POST")])
async def test_what_is_no_preflight_is_left_to_the_app(headers: Headers, method: str) -> None:
    assert await messages_of(headers, method) == [{"type": "inner"}]


async def test_what_is_no_request_is_left_to_the_app() -> None:
    called: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope["type"])

    await Cors(parse_origins([APP])).wrap(inner)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert called == ["lifespan"]
