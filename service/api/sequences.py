"""Sequences whose states are kept: what requests say of them, and the routes that show, restore and end them.

HTTP only: what a state is, and where it is kept, is known to `service/sequences`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.api.access.control import caller_of, visible_models
from service.api.carried import StateTokens, StreamingModel
from service.api.large_bodies import LargeBodyParser
from service.api.operations import IndentedJSONResponse
from service.api.parsing import LARGE_BYTES, read_json
from service.api.request import AsgiRequest, read_body
from service.api.schemas import SequenceDescription
from service.errors import (
    AmbiguousModel,
    DeadlineExceeded,
    InvalidInput,
    MalformedRequest,
    SequenceNotFound,
    StateError,
)

ID, START, END = "sequence_id", "sequence_start", "sequence_end"
_IN_ORDER = (ID, START, END)
FIELDS = frozenset(_IN_ORDER)
_MARK = b'"sequence_'
MAX_SEQUENCES = 1000
"""Of one request."""
MAX_ID_LENGTH = 128
MAX_NUMBER = 2**64 - 1
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
EXPECTED_ID = f"a whole number from 1 to 2^64 - 1, or a string of 1 to {MAX_ID_LENGTH} characters without control characters"


class SequenceStep(NamedTuple):
    """What a request says of the step of one sequence."""

    id: str
    is_start: bool = False
    is_end: bool = False


class StatefulModel(StreamingModel, Protocol):
    """A model, whether or not it can stream."""

    @property
    def name(self) -> str: ...

    @property
    def can_stream(self) -> bool: ...

    def expect_state(self, state: Any) -> None:
        """Raise StateError for a state that the model cannot go on from."""
        ...


class Catalog(Protocol):
    """The models as these routes see them."""

    @property
    def models(self) -> Sequence[Any]:
        """Every version that is READY."""
        ...

    def restricted_to(self, names: frozenset[str]) -> Self:
        """Of these names, for a request that may see no others."""
        ...

    def get(self, name: str, version: str | None = None) -> Any: ...


class KeptSequences(Protocol):
    """The steps of sequences, one at a time of each (`service/sequences/kept.py`)."""

    async def advance(
        self,
        model: Any,
        steps: Sequence[SequenceStep],
        run: Callable[[list[Any]], Awaitable[tuple[Any, Sequence[Any]]]],
        *,
        deadline: float,
        holder: str = "",
    ) -> Any:
        """What `run` answers for the states of the sequences of this holder; the states that it returns are kept."""
        ...

    async def find(self, model: str, id: str, holder: str = "") -> Any: ...

    async def put(self, id: str, state: Any, *, within_s: float, holder: str = "") -> None: ...

    async def delete(self, model: str, id: str, *, within_s: float, holder: str = "") -> bool: ...


# ------------------------------------------------------------------------------------------------- what requests say


FEW_INSTANCES = 8


def holds_sequences(body: bytes, instances: Sequence[Any], parameters: Mapping[str, Any]) -> bool:
    """Whether a request names a sequence.

    Of many instances the text is searched first, which costs less than to look at each (names may be in escapes); of few, more.
    """
    if len(instances) > FEW_INSTANCES and _MARK not in body and b"\\u" not in body:
        return False
    if not FIELDS.isdisjoint(parameters):
        return True
    for each in instances:  # noqa: SIM110  a generator costs more than the rest
        if type(each) is dict and not FIELDS.isdisjoint(each):
            return True
    return False


async def predict_kept(
    model: StreamingModel,
    sequences: KeptSequences,
    instances: Sequence[Any],
    parameters: Mapping[str, Any],
    *,
    deadline: float,
    is_plain: bool,
    has_turn: bool = False,
    holder: str = "",
) -> Sequence[Any]:
    """The predictions of instances that are the next steps of kept sequences, those of the `holder`.

    Raises InvalidInput and PayloadTooLarge for what they say of them, and what `KeptSequences.advance` and the model raise.
    """
    steps = read_steps(instances, parameters)
    pieces = [_without_fields(each) if type(each) is dict else each for each in instances]
    others = _without_fields(parameters)

    async def run(states: list[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        return await model.advance(pieces, states, others, deadline=deadline, is_plain=is_plain, has_turn=has_turn)

    predictions: Sequence[Any] = await sequences.advance(model, steps, run, deadline=deadline, holder=holder)
    return predictions


def read_steps(instances: Sequence[Any], parameters: Mapping[str, Any]) -> list[SequenceStep]:
    """The step of each instance; what an instance does not say, the parameters do.

    Raises InvalidInput for ids and flags that are none, an instance without a sequence, and a sequence that is named twice.
    """
    if len(instances) > MAX_SEQUENCES:
        raise InvalidInput(
            f"the request has {len(instances)} steps of sequences, at most {MAX_SEQUENCES} are run at once",
            where="instances",
            found=len(instances),
            expected=f"at most {MAX_SEQUENCES}",
        )
    steps = []
    seen: set[str] = set()
    common_id, common_start, common_end = [parameters.get(field) for field in _IN_ORDER]
    for index, instance in enumerate(instances):
        id, start, end = common_id, common_start, common_end
        if type(instance) is dict:
            id = common_id if (own := instance.get(ID)) is None else own
            start = common_start if (own := instance.get(START)) is None else own
            end = common_end if (own := instance.get(END)) is None else own
        step = _read_fields(id, start, end, instance=index)
        if step is None:
            raise _refuse(
                f'"{ID}" is missing: expected {EXPECTED_ID}, in the instance or in "parameters"', None, ID, EXPECTED_ID, index
            )
        if step.id in seen:
            raise _refuse(
                f'sequence "{step.id}" is there twice: its steps come one after the other, in requests of their own',
                step.id,
                ID,
                "each sequence once",
                index,
            )
        seen.add(step.id)
        steps.append(step)
    return steps


def read_step(parameters: Mapping[str, Any], *, instance: int | None = None, zero_is_none: bool = False) -> SequenceStep | None:
    """What parameters say of the step of a sequence; None where they name none and say nothing.

    With `zero_is_none`, as in Triton, 0 and "" are no ids. Raises InvalidInput.
    """
    return _read_fields(*[parameters.get(field) for field in _IN_ORDER], instance=instance, zero_is_none=zero_is_none)


def _read_fields(
    id: object, start: object, end: object, *, instance: int | None, zero_is_none: bool = False
) -> SequenceStep | None:
    """`read_step` of what the three fields hold."""
    if start is not None or end is not None:
        for field, flag in ((START, start), (END, end)):
            if flag is not None and type(flag) is not bool:
                raise _refuse(f'"{field}": expected true or false', flag, field, "true or false", instance)
    if id is None or (zero_is_none and (id == "" or (type(id) is int and id == 0))):
        if start or end:
            raise _refuse(f'"{ID}" is missing beside "{START if start else END}"', None, ID, EXPECTED_ID, instance)
        return None
    return SequenceStep(read_id(id, instance=instance), start is True, end is True)


def read_id(value: object, *, instance: int | None = None) -> str:
    """An id as a text: a number is the same as its digits. Raises InvalidInput."""
    if type(value) is int and 1 <= value <= MAX_NUMBER:
        return str(value)
    if type(value) is str and 1 <= len(value) <= MAX_ID_LENGTH and not _CONTROL.search(value):
        return value
    raise _refuse(f'"{ID}": expected {EXPECTED_ID}', value, ID, EXPECTED_ID, instance)


def _refuse(message: str, found: object, field: str, expected: str, instance: int | None) -> InvalidInput:
    shown = found[:40] if isinstance(found, str) else found if isinstance(found, bool | int | float) else None
    if isinstance(found, str) and len(found) > MAX_ID_LENGTH:
        message += f", got {len(found)} characters"
    elif shown is not None:
        message += f", got {shown!r}"
    if instance is not None:
        message = f"instance {instance}: {message}"
    return InvalidInput(message, reason="dtype", instance=instance, where=field, found=shown, expected=expected)


def _without_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    others = dict(content)
    for field in _IN_ORDER:
        others.pop(field, None)
    return others


# -------------------------------------------------------------------------------------------------------- the routes


def sequences_router(
    catalog: Catalog,
    sequences: KeptSequences,
    tokens: StateTokens,
    large_bodies: LargeBodyParser,
    *,
    timeout_s: float,
    max_body_bytes: int,
) -> APIRouter:
    """`GET`, `PUT` and `DELETE /sequences/{id}`, each answered within `timeout_s`. `large_bodies` are those of all endpoints."""

    def visible(request: Request) -> Catalog:
        return visible_models(catalog, request.scope.get("state", {}))

    def holder_of(request: Request) -> str:
        return caller_of(request.scope.get("state", {}))

    async def find(request: Request, id: str, model: str | None) -> Any:
        """The only sequence with this id of the models that the request may see, or of the one that it names."""
        seen = visible(request)
        names = sorted({each.name for each in seen.models if each.can_stream}) if model is None else [seen.get(model).name]
        found = await asyncio.gather(*(sequences.find(name, id, holder_of(request)) for name in names))
        there = [each for each in found if each is not None]
        if not there:
            raise SequenceNotFound(f'there is no sequence "{id}": it was not started, or has ended', sequence_id=id, model=model)
        if len(there) > 1:
            candidates = sorted(each.state.model for each in there)
            raise AmbiguousModel(
                f'several models have a sequence "{id}", "model" names one of {candidates}', candidates=candidates
            )
        return there[0]

    async def inspect(request: Request, id: str, model: str | None = None) -> Response:
        """What is kept of a sequence, with its state, as `PUT` takes it: on this server or on another one with the same model."""
        async with _deadline(timeout_s):
            return _describe(await find(request, read_id(id), model))

    async def restore(request: Request, id: str) -> Response:
        """Keep this state of a sequence, as `GET` or a prediction gave it, after the steps that came before; it may be new."""
        id = read_id(id)
        body = await read_body(AsgiRequest(request.scope, request.receive), max_body_bytes)
        content = _read_object(body) if len(body) <= LARGE_BYTES else await large_bodies.read(body, lambda: _read_object(body))
        state = _read_state(visible(request), tokens, content)
        async with _deadline(timeout_s):
            holder = holder_of(request)
            await sequences.put(id, state, within_s=timeout_s, holder=holder)
            return _describe(await sequences.find(state.model, id, holder) or _Restored(id, state))

    async def end(request: Request, id: str, model: str | None = None) -> Response:
        """End a sequence, after the steps that came before; the answer is what was kept of it when the request came."""
        id = read_id(id)
        async with _deadline(timeout_s):
            found = await find(request, id, model)
            name = found.state.model
            if not await sequences.delete(name, id, within_s=timeout_s, holder=holder_of(request)):
                raise SequenceNotFound(f'sequence "{id}" of model "{name}" has ended', sequence_id=id, model=name)
        return _describe(found)

    def _describe(found: Any) -> Response:
        state = found.state
        return IndentedJSONResponse(
            {
                "id": found.id,
                "model": state.model,
                "version": str(state.version),
                "steps": state.steps,
                "bytes": state.num_bytes,
                "idle_seconds": round(found.idle_s, 3),
                "is_busy": found.is_busy,
                "state": tokens.write(state),
            }
        )

    missing: dict[int | str, dict[str, Any]] = {404: {"description": "No such sequence, or no such model"}}
    several: dict[int | str, dict[str, Any]] = {409: {"description": "Several models have a sequence of this id"}}
    always: dict[int | str, dict[str, Any]] = {
        422: {"description": "This can be no id"},
        503: {"description": "What keeps the states cannot be reached"},
        504: {"description": "The steps that came before took too long"},
    }
    bodies: dict[int | str, dict[str, Any]] = {
        400: {"description": "Not JSON, or unknown fields or wrong types"},
        404: {"description": "No such model"},
        413: {"description": "Too many bytes"},
        415: {"description": "The body is not declared as JSON"},
        422: {"description": "This can be no id, or the model cannot go on from this state"},
    }
    router = APIRouter(tags=["sequences"])
    path = "/sequences/{id:path}"  # an id may have slashes, which the server decodes before it looks for a route
    router.add_api_route(
        path,
        inspect,
        methods=["GET"],
        summary="Show a sequence",
        response_model=SequenceDescription,
        responses=missing | several | always,
    )
    router.add_api_route(
        path,
        restore,
        methods=["PUT"],
        summary="Restore a sequence",
        response_model=SequenceDescription,
        responses=always | bodies,
        openapi_extra=RESTORE_BODY,
    )
    router.add_api_route(
        path,
        end,
        methods=["DELETE"],
        summary="End a sequence",
        response_model=SequenceDescription,
        responses=missing | several | always,
    )
    return router


RESTORE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["state"],
                    "properties": {
                        "state": {"type": "string", "description": "The `state` that `GET`, or a prediction, gave."},
                        "model": {"type": "string", "description": "The model of the state; if absent, the one that it names."},
                        "version": {"type": "string", "description": "Version of the model; needs `model` beside it."},
                    },
                }
            }
        },
    }
}


class _Restored(NamedTuple):
    """A sequence that was restored, and that another request has ended since."""

    id: str
    state: Any
    idle_s: float = 0.0
    is_busy: bool = False


class _deadline:  # noqa: N801  (reads as a statement)
    """A block that raises DeadlineExceeded when it takes longer."""

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *exc: Any) -> None:
        try:
            await self._timeout.__aexit__(*exc)
        except TimeoutError:
            raise DeadlineExceeded("there was no answer before the deadline") from None


def _read_object(body: bytes) -> dict[str, Any]:
    content = read_json(body)
    if type(content) is not dict:
        raise MalformedRequest('the body is no JSON object, expected {"state": "..."}')
    fields = {"state", "model", "version"}
    if not content.keys() <= fields:
        unknown = next(field for field in content if field not in fields)[:100]
        raise MalformedRequest(f'"{unknown}" is not a field; the fields are {", ".join(sorted(fields))}', where=unknown)
    for field in fields:
        value = content.get(field)
        if type(value) is not str and (field == "state" or value is not None):
            raise MalformedRequest(f'"{field}": expected a string', where=field)
    if content.get("version") is not None and content.get("model") is None:
        raise MalformedRequest('"version" needs "model" beside it', where="version")
    return content


def _read_state(models: Catalog, tokens: StateTokens, content: Mapping[str, Any]) -> Any:
    """The state of a token, of the model that is named or of the one that it belongs to. Raises StateError."""
    name = content.get("model")
    candidates: Sequence[StatefulModel] = [each for each in models.models if each.can_stream]
    if name is not None:
        candidates = [models.get(name, content.get("version"))]
    error = StateError("there is no model that can stream", problem="not_streaming")
    for model in candidates:
        try:
            model.expect_streaming()
            state = tokens.read(content["state"], model.identity, model.state_bytes)
            model.expect_state(state)
        except StateError as exc:
            error = exc
            if exc.problem not in ("model", "version"):
                break
        else:
            return state
    raise error
