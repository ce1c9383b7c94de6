"""Reading a request, finding its model, telling how it ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from service.api.errors import UnsupportedMediaType
from service.api.predict import PREDICTIONS_PER_PART, UNKNOWN, Asked, PredictEndpoint, outcome_of, parse
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


class Finished:
    """Remembers what was told of every request."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Outcome, InvalidReason | None]] = []

    def request_finished(
        self, model: str, version: str, outcome: Outcome, duration_s: float, reason: InvalidReason | None
    ) -> None:
        assert duration_s >= 0
        self.requests.append((model, version, outcome, reason))


async def ask(endpoint: PredictEndpoint, content: object) -> Any:
    async def body() -> bytes:
        return json.dumps(content).encode()

    return json.loads(await endpoint(body()))


def endpoint_of(model: Echo, finished: Finished, task: str | None = None) -> PredictEndpoint:
    return PredictEndpoint(Models(model), finished, task=task, request_timeout_s=10, max_instances=10_000)


def test_a_request_is_read_with_its_defaults() -> None:
    assert parse(b'{"instances": ["a"]}', 1) == Asked(None, None, ["a"], {})
    assert parse(b'{"model":"m","version":"2","instances":[1],"parameters":null}', 1) == Asked("m", "2", [1], {})


def test_a_number_beyond_every_float_is_named_by_its_place() -> None:
    with pytest.raises(InvalidInput, match=r"instance 1: history\[2\]: expected a number or null, got Infinity"):
        parse(b'{"instances": [{}, {"history": [1, 2, 1e999]}]}', 9)


def test_nan_in_a_text_is_a_text() -> None:
    assert parse(b'{"instances": ["NaN Infinity"]}', 1).instances == ["NaN Infinity"]


@pytest.mark.parametrize(
    ("instances", "index", "where", "found"),
    [
        ("[NaN]", 0, "", "NaN"),
        ('[{"history": [1, [2, -Infinity]]}]', 0, "history[1][1]", "Infinity"),
        ('["a", {"x": {"y": NaN}}]', 1, "x.y", "NaN"),
        ('[{"history": [1.5, null, "a", true, {"z": 2}, [3, NaN], Infinity]}]', 0, "history[5][1]", "NaN"),
    ],
)
def test_what_is_no_json_number_is_named_by_instance_and_place(instances: str, index: int, where: str, found: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(f'{{"instances": {instances}}}'.encode(), 10)
    facts = caught.value.facts
    assert (facts["instance"], facts["where"], facts["found"], caught.value.reason) == (index, where, found, "nonfinite")


async def test_the_answer_names_the_model_that_gave_it() -> None:
    finished = Finished()
    answer = await ask(endpoint_of(Echo(), finished, "forecast"), {"instances": [1, 2], "parameters": {"a": 1}})
    assert answer == {"model": "echo", "version": "3", "predictions": [1, 2, ["a", 1]]}
    assert finished.requests == [("echo", "3", "ok", None)]


@pytest.mark.parametrize("num", [PREDICTIONS_PER_PART, PREDICTIONS_PER_PART + 1, 3 * PREDICTIONS_PER_PART])
async def test_an_answer_written_in_parts_is_the_same_answer(num: int) -> None:
    instances = [{"n": number} for number in range(num)]
    answer = await ask(endpoint_of(Echo(), Finished()), {"model": "echo", "instances": instances})
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
async def test_every_end_of_a_request_is_told_once(error: BaseException, outcome: Outcome, reason: InvalidReason | None) -> None:
    finished = Finished()
    with pytest.raises(type(error)):
        await ask(endpoint_of(Echo(error), finished), {"model": "echo", "instances": [1]})
    assert finished.requests == [("echo", "3", outcome, reason)]
    if isinstance(error, ServiceError):
        assert outcome_of(error) == outcome


@pytest.mark.parametrize(
    ("content", "reason"),
    [({"model": "nobody", "instances": [1]}, None), ([], "json"), ({"model": "echo", "instances": []}, "shape")],
)
async def test_a_request_that_reached_no_model_is_told_as_unknown(content: object, reason: InvalidReason | None) -> None:
    finished = Finished()
    with pytest.raises(ServiceError):
        await ask(endpoint_of(Echo(), finished), content)
    assert finished.requests == [(UNKNOWN, UNKNOWN, "invalid", reason)]
