"""What every endpoint that runs a model does around it, whatever its protocol."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.api.adapters.base import AdapterEndpoint
from service.api.adapters.kserve_v1 import KServeV1
from service.api.inference import InferenceEndpoint, Monitors, RequestLimits
from service.api.predict import PredictEndpoint
from service.api.v2.infer import InferEndpoint
from service.errors import MalformedRequest
from tests.service.api.test_predict import Echo, Models, RecordingTicket, SpentBudget, waiting_request

LIMITS = RequestLimits(10, 1000)


class Outcomes:
    """How requests ended."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def request_finished(self, api: str, model: str, version: str, outcome: str, duration_s: float, reason: object) -> None:
        self.found.append(outcome)


def endpoint_of(api: str, models: Any, observer: Any, monitors: Monitors) -> InferenceEndpoint:
    if api == "predict":
        return PredictEndpoint(models, observer, LIMITS, monitors=monitors)
    if api == "v2":
        return InferEndpoint(models, observer, LIMITS, monitors)
    return AdapterEndpoint(KServeV1(), models, observer, LIMITS, monitors)


@pytest.mark.parametrize("api", ["predict", "v2", "kserve_v1"])
async def test_no_api_reads_a_body_before_the_event_loop_has_time(api: str) -> None:
    budget, observer = SpentBudget(), Outcomes()
    endpoint = endpoint_of(api, Models(Echo()), observer, Monitors.open(LIMITS, budget))
    request = waiting_request(b"no JSON", RecordingTicket())
    request.path = "/v2/models/echo/infer"
    task = asyncio.create_task(endpoint.answer(request))
    await budget.is_awaited.wait()
    assert observer.found == []
    budget.is_over.set()
    with pytest.raises(MalformedRequest):
        await task
    assert observer.found == ["invalid"]
