"""Finding the model of a request, writing its answer, counting how it ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from service.api.disconnects import DisconnectMonitor
from service.api.errors import UnsupportedMediaType
from service.api.predict import API, PREDICTIONS_PER_PART, UNKNOWN, PredictEndpoint, RequestLimits, outcome_of
from service.api.request import AsgiRequest, ClientDisconnected
from service.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    InvalidReason,
    ModelNotFound,
    ModelNotReady,
    Outcome,
    Overloaded,
    PayloadTooLarge,
    ServiceError,
)


class Echo:
    """A model that answers each instance with itself, or raises."""

    name, version, task = "echo", "3", "forecast"

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.deadlines: list[float] = []

    async def predict(
        self, instances: Sequence[Any], parameters: Mapping[str, Any], *, deadline: float, is_plain: bool
    ) -> Sequence[Any]:
        self.deadlines.append(deadline)
        if self.error is not None:
            raise self.error
        return [*instances, *parameters.items()]


class Models:
    def __init__(self, model: Any) -> None:
        self.model = model

    def get(self, name: str, version: str | None = None) -> Any:
        if name != self.model.name:
            raise ModelNotFound("no")
        return self.model

    def choose(self, task: str, instances: Sequence[Any], parameters: Mapping[str, Any], *, purpose: str | None = None) -> Any:
        self.chosen = (task, instances, parameters, purpose)
        return self.model


class RecordingObserver:
    """Remembers how every request ended."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Outcome, InvalidReason | None]] = []

    def request_finished(
        self, api: str, model: str, version: str, outcome: Outcome, duration_s: float, reason: InvalidReason | None
    ) -> None:
        assert (api, duration_s >= 0) == (API, True)
        self.requests.append((model, version, outcome, reason))


async def post(endpoint: PredictEndpoint, content: object) -> Any:
    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps(content).encode(), "more_body": False}

    answer = await endpoint.answer(AsgiRequest({"type": "http", "method": "POST", "path": "/predict", "headers": []}, receive))
    assert answer.status == 200
    assert dict(answer.headers) == {b"content-type": b"application/json", b"content-length": b"%d" % len(answer.body)}
    return json.loads(answer.body)


def endpoint_of(model: Echo, observer: RecordingObserver, task: str | None = None) -> PredictEndpoint:
    return PredictEndpoint(Models(model), observer, RequestLimits(10_000, 1_000_000), task=task)


async def test_the_answer_names_the_model_that_gave_it() -> None:
    observer = RecordingObserver()
    answer = await post(endpoint_of(Echo(), observer, "forecast"), {"instances": [1, 2], "parameters": {"a": 1}})
    assert answer == {"model": "echo", "version": "3", "predictions": [1, 2, ["a", 1]]}
    assert observer.requests == [("echo", "3", "ok", None)]


@pytest.mark.parametrize("num", [PREDICTIONS_PER_PART, PREDICTIONS_PER_PART + 1, 3 * PREDICTIONS_PER_PART])
async def test_an_answer_written_in_parts_is_the_same_answer(num: int) -> None:
    instances = [{"n": number} for number in range(num)]
    answer = await post(endpoint_of(Echo(), RecordingObserver()), {"model": "echo", "instances": instances})
    assert answer == {"model": "echo", "version": "3", "predictions": instances}


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (InvalidInput("no", reason="length"), "invalid", "length"),
        (PayloadTooLarge("no"), "invalid", "payload"),
        (ModelNotFound("no"), "invalid", None),
        (UnsupportedMediaType("no"), "invalid", "json"),
        (Overloaded("no"), "rejected", None),
        (ModelNotReady("no"), "rejected", None),
        (DeadlineExceeded("no"), "timeout", None),
        (InferenceFailed("no"), "error", None),
        (ServiceError("no"), "error", None),
        (ZeroDivisionError("no"), "error", None),
        (asyncio.CancelledError(), "cancelled", None),
    ],
)
async def test_every_end_of_a_request_is_counted_once(
    error: BaseException, outcome: Outcome, reason: InvalidReason | None
) -> None:
    observer = RecordingObserver()
    with pytest.raises(type(error)):
        await post(endpoint_of(Echo(error), observer), {"model": "echo", "instances": [1]})
    assert observer.requests == [("echo", "3", outcome, reason)]
    if isinstance(error, ServiceError):
        assert outcome_of(error) == outcome


@pytest.mark.parametrize(
    ("content", "reason"),
    [({"model": "nobody", "instances": [1]}, None), ([], "json"), ({"model": "echo", "instances": []}, "shape")],
)
async def test_a_request_that_reached_no_model_is_counted_as_unknown(content: object, reason: InvalidReason | None) -> None:
    observer = RecordingObserver()
    with pytest.raises(ServiceError):
        await post(endpoint_of(Echo(), observer), content)
    assert observer.requests == [(UNKNOWN, UNKNOWN, "invalid", reason)]


async def test_a_client_that_disconnects_while_its_model_runs_is_counted_as_cancelled() -> None:
    class Slow(Echo):
        async def predict(self, *args: Any, **options: Any) -> Sequence[Any]:
            await asyncio.Event().wait()
            raise AssertionError("nothing sets it")

    messages = iter([{"type": "http.request", "body": b'{"model": "echo", "instances": [1]}', "more_body": False}])

    async def receive() -> Any:
        return next(messages, {"type": "http.disconnect"})

    observer = RecordingObserver()
    limits = RequestLimits(10, 1000)
    endpoint = PredictEndpoint(Models(Slow()), observer, limits, disconnects=DisconnectMonitor(watch_after_s=0.0))
    with pytest.raises(ClientDisconnected):
        await endpoint.answer(AsgiRequest({"type": "http", "method": "POST", "path": "/predict", "headers": []}, receive))
    assert observer.requests == [("echo", "3", "cancelled", None)]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
