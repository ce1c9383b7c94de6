"""Bodies, read within their limits however they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from service.api.errors import UnsupportedMediaType
from service.api.request import MAX_DROPPED_BODIES, AsgiRequest, BodyTooLarge, ClientDisconnected, read_body
from service.errors import ServiceError

LIMIT = 100


class Client:
    """Sends a body in these chunks, then disconnects or stays; counts what was read of it."""

    def __init__(self, *chunks: bytes, disconnects: bool = False, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.num_read = 0
        self._messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": chunk, "more_body": disconnects or number + 1 < len(chunks)}
            for number, chunk in enumerate(chunks)
        ]
        if disconnects:
            self._messages.append({"type": "http.disconnect"})
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": list(headers)}
        self.request = AsgiRequest(scope, self._receive)

    async def _receive(self) -> dict[str, Any]:
        self.num_read += 1
        return self._messages[self.num_read - 1]


@pytest.mark.parametrize("chunks", [[b"x" * LIMIT], [b"x" * 99, b"x"], [b"", b"x" * LIMIT, b""], [b"x"] * LIMIT])
async def test_a_body_within_the_limit_is_read_however_it_arrives(chunks: list[bytes]) -> None:
    assert await read_body(Client(*chunks).request, LIMIT) == b"x" * LIMIT


@pytest.mark.parametrize("chunks", [[b"x" * 101], [b"x" * LIMIT, b"x"], [b"x"] * 101])
async def test_a_body_beyond_the_limit_is_dropped_to_its_end(chunks: list[bytes]) -> None:
    client = Client(*chunks)
    with pytest.raises(BodyTooLarge) as caught:
        await read_body(client.request, LIMIT)
    assert (caught.value.code, caught.value.facts["limit"], caught.value.facts["found"]) == ("payload_too_large", LIMIT, 101)
    assert client.num_read == len(chunks)


async def test_an_endless_body_is_not_read_to_its_end() -> None:
    client = Client(*[b"x" * LIMIT] * 1000)
    with pytest.raises(BodyTooLarge):
        await read_body(client.request, LIMIT)
    assert client.num_read == MAX_DROPPED_BODIES + 1


async def test_a_body_declared_far_too_large_is_not_read_at_all() -> None:
    declared = LIMIT * MAX_DROPPED_BODIES + 1
    client = Client(b"x", headers=[(b"content-length", b"%d" % declared)])
    with pytest.raises(BodyTooLarge) as caught:
        await read_body(client.request, LIMIT)
    assert (client.num_read, caught.value.facts["found"]) == (0, declared)


@pytest.mark.parametrize(
    ("content_type", "is_accepted"),
    [
        (b"application/json", True),
        (b"application/json; charset=utf-8", True),
        (b"Application/JSON", True),
        (b"application/vnd.api+json", True),
        (b"application/x-www-form-urlencoded", True),
        (b"text/plain", False),
        (b"application/jsonlines", False),
        (b"multipart/form-data; boundary=x", False),
    ],
)
async def test_only_json_is_accepted(content_type: bytes, is_accepted: bool) -> None:
    client = Client(b"{}", headers=[(b"content-type", content_type)])
    if is_accepted:
        assert await read_body(client.request, LIMIT) == b"{}"
        return
    with pytest.raises(UnsupportedMediaType) as caught:
        await read_body(client.request, LIMIT)
    assert (client.num_read, caught.value.facts["found"]) == (0, content_type.decode())


@pytest.mark.parametrize(("encoding", "error"), [(b"identity", None), (b"Identity", None), (b"gzip", UnsupportedMediaType)])
async def test_a_compressed_body_is_refused(encoding: bytes, error: type[ServiceError] | None) -> None:
    client = Client(b"{}", headers=[(b"content-encoding", encoding)])
    if error is None:
        assert await read_body(client.request, LIMIT) == b"{}"
    else:
        with pytest.raises(error):
            await read_body(client.request, LIMIT)


async def test_a_body_of_no_declared_type_is_read_as_json() -> None:
    assert await read_body(Client(b"{}").request, LIMIT) == b"{}"


async def test_a_client_that_disconnects_amid_its_body_is_no_request() -> None:
    with pytest.raises(ClientDisconnected):
        await read_body(Client(b"x", disconnects=True).request, LIMIT)


@pytest.mark.parametrize(
    ("headers", "size"),
    [([], 0), ([(b"content-length", b"12")], 12), ([(b"content-length", b"x")], 0), ([(b"transfer-encoding", b"chunked")], 0)],
)
def test_the_size_of_a_request_is_what_its_head_declares(headers: list[tuple[bytes, bytes]], size: int) -> None:
    assert Client(headers=headers).request.request_bytes == size
