"""Heads of requests, for tests of what decides by them alone, and an observer of the refusals."""

from __future__ import annotations

from service.api.request import Address, AsgiRequest, HttpRequest
from service.errors import RateScope


async def _never() -> dict[str, object]:
    raise AssertionError("the body was read")


def request(
    route: str = "/predict",
    *headers: tuple[bytes, bytes],
    method: str = "POST",
    client: Address | None = ("203.0.113.9", 4711),
) -> HttpRequest:
    """The head of a request, as the gateway hands it to hooks."""
    scope = {"method": method, "path": route, "headers": list(headers), "client": client, "server": None}
    made = AsgiRequest(scope, _never)
    made.route = route
    return made


class RecordingObserver:
    """Records which requests were beyond their rate."""

    def __init__(self) -> None:
        self.limited: list[tuple[str, str]] = []

    def rate_limited(self, scope: RateScope, key: str) -> None:
        self.limited.append((scope, key))
