"""Finding the model of a request, writing its answer, counting how it ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from service.api.disconnects import DisconnectMonitor
from service.api.errors import UnsupportedMediaType
from service.api.inference import UNKNOWN, Monitors, RequestLimits, outcome_of
from service.api.predict import FEW_PREDICTIONS, PredictEndpoint, find_model
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

    def count_rows(self, instances: Sequence[Any], parameters: Mapping[str, Any]) -> int:
        return len(instances)

    async def predict(
        self, instances: Sequence[Any], parameters: Mapping[str, Any], *, deadline: float, is_plain: bool, has_turn: bool
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

    def restricted_to(self, names: frozenset[str]) -> Models:
        raise AssertionError("no request here is restricted")


class RecordingObserver:
    """Remembers how every request ended."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Outcome, InvalidReason | None]] = []

    def request_finished(
        self, api: str, model: str, version: str, outcome: Outcome, duration_s: float, reason: InvalidReason | None
    ) -> None:
        assert (api, duration_s >= 0) == (PredictEndpoint.api, True)
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


@pytest.mark.parametrize("num", [FEW_PREDICTIONS, FEW_PREDICTIONS + 1, 9_999])
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
    monitors = Monitors.open(limits)._replace(disconnects=DisconnectMonitor(watch_after_s=0.0))
    endpoint = PredictEndpoint(Models(Slow()), observer, limits, monitors=monitors)
    with pytest.raises(ClientDisconnected):
        await endpoint.answer(AsgiRequest({"type": "http", "method": "POST", "path": "/predict", "headers": []}, receive))
    assert observer.requests == [("echo", "3", "cancelled", None)]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


class SpentBudget:
    """An event loop that has no time left until the test says so."""

    def __init__(self) -> None:
        self.is_over = asyncio.Event()
        self.is_awaited = asyncio.Event()

    def is_spent(self) -> bool:
        return True

    async def renewal(self) -> None:
        self.is_awaited.set()
        await self.is_over.wait()


class RecordingTicket:
    """The place of a request, as the admission control gives it."""

    def __init__(self) -> None:
        self.cancel: Callable[[], object] | None = None
        self.is_displaced = False
        self.models: list[str] = []

    def await_body(self) -> None:
        pass

    def receive(self, num_bytes: int) -> bool:
        return True

    def complete_body(self) -> None:
        pass

    def assign(self, model: str) -> None:
        self.models.append(model)

    def grow(self, factor: float, timeout_s: float) -> bool:
        return True

    def close(self) -> None:
        assert self.cancel is not None
        self.is_displaced = True
        self.cancel()


def waiting_request(body: bytes, ticket: RecordingTicket) -> AsgiRequest:
    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    request = AsgiRequest({"type": "http", "method": "POST", "path": "/predict", "headers": []}, receive)
    request.ticket = ticket
    return request


LIMITS = RequestLimits(10, 1000)


async def test_a_body_is_not_read_before_the_event_loop_has_time_and_its_model_is_guessed_meanwhile() -> None:
    model, budget, ticket = Echo(), SpentBudget(), RecordingTicket()
    endpoint = PredictEndpoint(Models(model), RecordingObserver(), LIMITS, monitors=Monitors.open(LIMITS, budget))
    request = waiting_request(b'{"model": "echo", "instances": [1]}', ticket)
    task = asyncio.create_task(endpoint.answer(request))
    await budget.is_awaited.wait()
    assert (request.num_instances, ticket.models) == (0, ["echo"])
    budget.is_over.set()
    assert (await task).status == 200
    assert (request.num_instances, request.model, ticket.models) == (1, "echo", ["echo", "echo"])


async def test_a_request_that_is_displaced_is_refused_and_its_task_goes_on() -> None:
    observer, budget, ticket = RecordingObserver(), SpentBudget(), RecordingTicket()
    endpoint = PredictEndpoint(Models(Echo()), observer, LIMITS, monitors=Monitors.open(LIMITS, budget))

    async def answer() -> str:
        with pytest.raises(Overloaded):
            await endpoint.answer(waiting_request(b'{"model": "echo", "instances": [1]}', ticket))
        await asyncio.sleep(0)  # is not cancelled any longer
        return "refused"

    task = asyncio.create_task(answer())
    await budget.is_awaited.wait()
    ticket.close()
    assert await task == "refused"
    assert observer.requests == [("_unknown", "_unknown", "rejected", None)]


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model": "a-b", "instances": [1]}', "a-b"),
        (b' {"model":"a","instances":[' + b"1," * 5000 + b"1]}", "a"),
        (b'{"instances": [' + b"1," * 5000 + b'1], "model": "a"}', "a"),
        (b'{"instances": [' + b"1," * 5000 + b"1]}", None),
        (b'{"model": 5, "instances": []}', None),
        (b'{"model": "\xff"}', "\ufffd"),
        (b"", None),
    ],
)
def test_the_model_is_found_at_the_begin_or_at_the_end_of_a_body(body: bytes, model: str | None) -> None:
    assert find_model(body) == model
