"""Requests for tests of what looks at their heads alone."""

from __future__ import annotations

from service.api.request import Address, AsgiRequest, HttpRequest


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
