"""What the access log says of a request to the whole app."""

from __future__ import annotations

from typing import Any

import pytest

from service.api.access.addresses import ClientAddresses, parse_networks
from service.api.access_log import AccessLog, outcome_of_status
from service.api.request import AsgiRequest, Headers
from service.context import RequestContext, Timing
from service.errors import Outcome

IDS = {"request_id": "a", "trace_id": "0af7651916cd43dd8448eb211c80319c"}


async def never() -> dict[str, Any]:
    raise AssertionError("the body was read")


def entry_of(
    path: str = "/predict", headers: Headers | None = None, timing: Timing | None = None, **facts: Any
) -> dict[str, object]:
    scope = {"method": "POST", "path": path, "headers": headers or [], "client": ("192.0.2.1", 4711)}
    request = AsgiRequest(scope, never)
    request.context = RequestContext("a", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    request.context.timing = timing
    request.status, request.response_bytes, request.duration_s = 200, 120, 0.0123456
    for name, value in facts.items():
        setattr(request, name, value)
    entries: list[dict[str, object]] = []
    AccessLog(entries.append, ClientAddresses(parse_networks(["192.0.2.1"])), lambda: "now").finished(request)
    (entry,) = entries
    return entry


def test_an_entry_holds_what_is_known_and_nothing_else() -> None:
    assert entry_of("/models") == {
        "time": "now",
        **IDS,
        "client": "192.0.2.1",
        "method": "POST",
        "path": "/models",
        "status": 200,
        "outcome": "ok",
        "bytes_in": 0,
        "bytes_out": 120,
        "duration_us": 12345,
    }


def test_an_entry_of_a_prediction_holds_its_model_its_key_and_its_stages() -> None:
    timing = Timing()
    timing.model, timing.version = "m", "2"
    timing.add("queue", 1.0, 1.5)
    timing.add("run", 1.5, 1.75)
    timing.add("queue", 2.0, 2.25)
    entry = entry_of(headers=[(b"content-length", b"17")], timing=timing, num_instances=3, state={"caller": "partner"})
    assert (
        entry.items()
        >= {
            "key": "partner",
            "rows": 3,
            "model": "m",
            "version": "2",
            "bytes_in": 17,
            "queue_us": 750_000,
            "run_us": 250_000,
        }.items()
    )


def test_the_client_is_the_one_that_a_trusted_proxy_names() -> None:
    assert entry_of(headers=[(b"x-forwarded-for", b"10.9.9.9, 2001:db8::7")])["client"] == "2001:db8::7"


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        *((status, "ok") for status in (200, 304)),
        *((status, "invalid") for status in (400, 404, 422)),
        *((status, "rejected") for status in (401, 403, 429, 503)),
        *((499, "cancelled"), (504, "timeout"), (500, "error")),
    ],
)
def test_the_outcome_follows_from_the_status(status: int, outcome: Outcome) -> None:
    assert outcome_of_status(status) == outcome
