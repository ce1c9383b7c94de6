"""The doors that predict: parse → resolve → (encode → submit → run → decode in the model) → answer.

HTTP only: which instances a model takes is known to its task, how it is run to the model.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pydantic_core import from_json

from service.api.direct import ClientLeft, DirectDoor, DirectRoute
from service.api.errors import UnsupportedMediaType
from service.api.schemas import PredictRequest, PredictResponse, predict_models
from service.errors import (
    DeadlineExceeded,
    InvalidInput,
    InvalidReason,
    MalformedRequest,
    ModelNotReady,
    Outcome,
    Overloaded,
    PayloadTooLarge,
    RequestError,
    ServiceError,
)
from service.wire import is_plain, read, write

UNKNOWN = "_unknown"
FIELDS = ("model", "version", "instances", "parameters")
# Beyond this many predictions the answer is written in parts, with a turn of the event loop between them: one part of
# 256 forecasts of 48 steps and 9 quantiles takes 5 ms.
PREDICTIONS_PER_PART = 256


class ServedModel(Protocol):
    """What these doors need of a model."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def task(self) -> str: ...

    async def predict(
        self, instances: Sequence[Any], parameters: Mapping[str, Any], *, deadline: float, is_plain: bool
    ) -> Sequence[Any]: ...


class Models(Protocol):
    """What these doors need of the repository."""

    def get(self, name: str, version: str | None = None) -> ServedModel: ...

    def choose(
        self, task: str, instances: Sequence[Any], parameters: Mapping[str, Any], *, purpose: str | None = None
    ) -> ServedModel: ...


class TaskEndpoint(Protocol):
    """What these doors need of a task that has one, and what OpenAPI says of it."""

    @property
    def path(self) -> str: ...

    @property
    def task(self) -> str: ...

    @property
    def purpose(self) -> str | None: ...

    @property
    def summary(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def instance(self) -> Any: ...

    @property
    def examples(self) -> Sequence[Mapping[str, Any]]: ...

    @property
    def parameters(self) -> Any: ...

    @property
    def prediction(self) -> Any: ...


class RequestObserver(Protocol):
    """Told once about every request to predict."""

    def request_finished(
        self, model: str, version: str, outcome: Outcome, duration_s: float, reason: InvalidReason | None
    ) -> None:
        """`model` and `version` are `_unknown` when the request did not get as far as a model.

        `reason` is set for invalid requests that held something wrong.
        """
        ...


class Asked(NamedTuple):
    """A parsed request."""

    model: str | None
    version: str | None
    instances: list[Any]
    parameters: dict[str, Any]


class PredictEndpoint:
    """Body bytes → answer bytes for one door. With `task`, the model may be left out, and must be of that
    task and for that `purpose`."""

    def __init__(
        self,
        models: Models,
        observer: RequestObserver,
        *,
        task: str | None = None,
        purpose: str | None = None,
        request_timeout_s: float,
        max_instances: int,
    ) -> None:
        self._models = models
        self._observer = observer
        self._task = task
        self._purpose = purpose
        self._request_timeout_s = request_timeout_s
        self._max_instances = max_instances

    async def __call__(self, body: Awaitable[bytes]) -> bytes:
        started = time.monotonic()
        name = version = UNKNOWN
        outcome: Outcome = "error"
        reason: InvalidReason | None = None
        try:
            content = await body
            started = time.monotonic()  # a slow line is not our time
            asked = parse(content, self._max_instances)
            model = self._resolve(asked)
            name, version = model.name, model.version
            predictions = await model.predict(
                asked.instances,
                asked.parameters,
                deadline=started + self._request_timeout_s,
                is_plain=is_plain(content),
            )
            answer = await _write(name, version, predictions)
            outcome = "ok"
            return answer
        except ServiceError as exc:
            outcome = outcome_of(exc)
            reason = _reason(exc)
            raise
        except (asyncio.CancelledError, ClientLeft):
            outcome = "cancelled"
            raise
        finally:
            self._observer.request_finished(name, version, outcome, time.monotonic() - started, reason)

    def _resolve(self, asked: Asked) -> ServedModel:
        if asked.model is None:
            if self._task is None:
                raise MalformedRequest('"model" is missing; GET /models lists what there is', where="model")
            if asked.version is not None:
                raise MalformedRequest('"version" needs "model" beside it', where="version")
            return self._models.choose(self._task, asked.instances, asked.parameters, purpose=self._purpose)
        model = self._models.get(asked.model, asked.version)
        if self._task is not None and model.task != self._task:
            raise InvalidInput(
                f'model "{model.name}" is a {model.task} model, expected one for {self._task}; POST /predict takes any',
                where="model",
                found=model.task,
                expected=self._task,
            )
        return model


def parse(body: bytes, max_instances: int) -> Asked:
    """Read a request strictly: no unknown fields, no wrong types, no NaN. What the instances hold is the task's affair.

    Raises MalformedRequest, PayloadTooLarge for too many instances, and InvalidInput for none or for NaN and Infinity.
    """
    try:
        content = read(body)
    except ValueError as exc:
        raise _not_json(body, exc) from exc
    if type(content) is not dict:
        raise MalformedRequest(
            f'the body is {_kind(content)}, expected an object such as {{"model": "...", "instances": [...]}}',
            found=_kind(content),
            expected="an object",
        )
    model = content.get("model")
    version = content.get("version")
    instances = content.get("instances")
    parameters = content.get("parameters")
    if type(instances) is not list:
        raise _wrong_field(content, "instances", "a list")
    if not content.keys() <= _FIELD_SET:
        unknown = next(field for field in content if field not in _FIELD_SET)[:100]
        raise MalformedRequest(
            f'"{unknown}" is not a field of a request; the fields are {", ".join(FIELDS)}', where=unknown, expected=FIELDS
        )
    if model is not None and type(model) is not str:
        raise _wrong_field(content, "model", "a string")
    if version is not None and type(version) is not str:
        raise _wrong_field(content, "version", 'a string such as "1"')
    if parameters is None:
        parameters = {}
    elif type(parameters) is not dict:
        raise _wrong_field(content, "parameters", "an object")
    if not instances:
        raise InvalidInput('"instances" is empty, expected at least one', where="instances", found=0, expected="at least 1")
    if len(instances) > max_instances:
        raise PayloadTooLarge(
            f"the request has {len(instances)} instances; SLUICE_MAX_INSTANCES is {max_instances}",
            found=len(instances),
            limit=max_instances,
            setting="SLUICE_MAX_INSTANCES",
        )
    return Asked(model, version, instances, parameters)


_FIELD_SET = frozenset(FIELDS)


def outcome_of(exc: ServiceError) -> Outcome:
    """How the metrics call a request that ended with `exc`."""
    if isinstance(exc, RequestError | UnsupportedMediaType):
        return "invalid"
    if isinstance(exc, Overloaded | ModelNotReady):
        return "rejected"
    return "timeout" if isinstance(exc, DeadlineExceeded) else "error"


def predict_routes(
    models: Models,
    observer: RequestObserver,
    task_endpoints: Sequence[TaskEndpoint],
    *,
    request_timeout_s: float,
    max_instances: int,
    max_body_bytes: int,
) -> list[DirectRoute]:
    """`/predict`, and the endpoints of the tasks."""

    def door(task: str | None = None, purpose: str | None = None) -> DirectDoor:
        endpoint = PredictEndpoint(
            models, observer, task=task, purpose=purpose, request_timeout_s=request_timeout_s, max_instances=max_instances
        )
        return DirectDoor(endpoint, max_body_bytes)

    about: dict[str, Any] = {"tags": ["predict"], "responses": _PROBLEMS}
    return [
        DirectRoute("/predict", predict, door(), summary="Predict with any model", **about),
        *(
            DirectRoute(each.path, _signature_of(each), door(each.task, each.purpose), summary=each.summary, **about)
            for each in task_endpoints
        ),
    ]


def _signature_of(endpoint: TaskEndpoint) -> Callable[..., Any]:
    """A function as FastAPI documents it: with the models of the request and the response as its annotations."""
    request, response = predict_models(endpoint)

    async def documented(request: Any) -> Any: ...

    documented.__name__, documented.__doc__ = f"predict_{endpoint.name}", endpoint.description
    documented.__annotations__ = {"request": request, "return": response}
    return documented


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    for status, text in {
        400: "Not JSON, or unknown fields or wrong types",
        404: "No such model",
        409: "No model is named, and several fit",
        413: "Too many bytes or instances",
        415: "The body is not declared as JSON",
        422: "Well-formed, but not what the model takes; says which instance, where, what was found and what expected",
        500: "The model failed",
        503: "The queue is full or the model is loading; Retry-After says when to come back",
        504: "No answer in time",
    }.items()
}


# Signatures for the documentation; the doors above answer.


async def predict(request: PredictRequest) -> PredictResponse:  # type: ignore[empty-body]
    """Ask one model, of whatever task, for one prediction per instance. Requests of all clients share batches."""


async def _write(name: str, version: str, predictions: Sequence[Any]) -> bytes:
    if len(predictions) <= PREDICTIONS_PER_PART:
        return write({"model": name, "version": version, "predictions": predictions})
    head = write({"model": name, "version": version})[:-1] + b',"predictions":['
    parts = []
    for start in range(0, len(predictions), PREDICTIONS_PER_PART):
        parts.append(write(predictions[start : start + PREDICTIONS_PER_PART])[1:-1])
        await asyncio.sleep(0)
    return head + b",".join(parts) + b"]}"


def _not_json(body: bytes, exc: ValueError) -> ServiceError:
    """What to say about a body that the reader refused: NaN and Infinity are named by instance and place."""
    try:
        content = from_json(body)
    except ValueError:
        return MalformedRequest(f"the body is not JSON: {exc}" if body else "the body is empty, expected JSON")
    instances = content.get("instances") if isinstance(content, dict) else None
    for index, instance in enumerate(instances if isinstance(instances, list) else ()):
        place = _find_nonfinite(instance, "")
        if place is not None:
            where, found = place
            return InvalidInput(
                f"instance {index}: {where + ': ' if where else ''}expected a number or null, got {found}",
                reason="nonfinite",
                instance=index,
                where=where,
                found=found,
                expected="a number or null",
            )
    return MalformedRequest("the body is not JSON: NaN and Infinity are no JSON numbers")


def _find_nonfinite(value: object, where: str) -> tuple[str, str] | None:
    """The place of the first number in `value` that is not finite.

    The event loop waits for it: only the find is worded, which makes 0.3 s of 1.1 for two million steps.
    """
    if isinstance(value, float):
        return None if math.isfinite(value) else (where, "NaN" if math.isnan(value) else "Infinity")
    if isinstance(value, dict):
        for key, child in value.items():
            if (found := _find_nonfinite(child, f"{where}.{key}" if where else str(key))) is not None:
                return found
    elif isinstance(value, list):
        for number, child in enumerate(value):
            is_fine = math.isfinite(child) if type(child) is float else not isinstance(child, dict | list)
            if not is_fine and (found := _find_nonfinite(child, f"{where}[{number}]")) is not None:
                return found
    return None


def _wrong_field(content: dict[str, Any], field: str, expected: str) -> MalformedRequest:
    if field not in content:
        return MalformedRequest(f'"{field}" is missing, expected {expected}', where=field, expected=expected)
    found = _kind(content[field])
    return MalformedRequest(f'"{field}" is {found}, expected {expected}', where=field, found=found, expected=expected)


def _kind(value: object) -> str:
    """What JSON calls the type of `value`."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _reason(exc: ServiceError) -> InvalidReason | None:
    """How the metrics call what was wrong with the request; None when nothing in it was."""
    if isinstance(exc, InvalidInput):
        return exc.reason
    if isinstance(exc, PayloadTooLarge):
        return "payload"
    return "json" if isinstance(exc, MalformedRequest | UnsupportedMediaType) else None
