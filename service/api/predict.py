"""The endpoints that predict: parse → resolve → (encode → submit → run → decode in the model) → answer.

HTTP only: which instances a model accepts is known to its task, how it is run to the model.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self

from fastapi.routing import APIRoute

from service.api.access.control import caller_of, visible_models
from service.api.carried import StateTokens, StreamingModel, holds_state, predict_carried
from service.api.inference import Call, InferenceEndpoint, Monitors, RequestLimits, RequestObserver
from service.api.large_bodies import write_large
from service.api.parsing import LARGE_BYTES, ParsedRequest, parse
from service.api.request import Answer, HttpRequest, expect_plain_json, json_answer
from service.api.schemas import PredictRequest, PredictResponse, predict_models
from service.api.sequences import KeptSequences, holds_sequences, predict_kept
from service.errors import InvalidInput, MalformedRequest
from service.wire import is_plain, write

# Up to this many predictions nobody looks how large their answer is: eight of the longest forecasts take 20 ms.
FEW_PREDICTIONS = 8
MAX_NAME_BYTES = 256
_MODEL = re.compile(rb'\s*\{\s*"model"\s*:\s*"([^"\\]{1,200})"')
_MODEL_AT_END = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')


class ServedModel(StreamingModel, Protocol):
    """What these endpoints need of a model."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def task(self) -> str: ...

    def count_rows(self, instances: Sequence[Any], parameters: Mapping[str, Any]) -> int:
        """How many rows the instances are for the graph, by the parameters."""
        ...

    def predict(
        self, instances: Sequence[Any], parameters: Mapping[str, Any], *, deadline: float, is_plain: bool, has_turn: bool = False
    ) -> Coroutine[Any, Any, Sequence[Any]]: ...


class Models(Protocol):
    """What these endpoints need of the repository."""

    def get(self, name: str, version: str | None = None) -> ServedModel: ...

    def restricted_to(self, names: frozenset[str]) -> Self:
        """Of these names, for a request that may see no others."""
        ...

    def choose(
        self, task: str, instances: Sequence[Any], parameters: Mapping[str, Any], *, purpose: str | None = None
    ) -> ServedModel:
        """The model for a request that names none."""
        ...


class TaskEndpoint(Protocol):
    """One endpoint of a task, and what OpenAPI says of it."""

    @property
    def path(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> str: ...

    @property
    def purpose(self) -> str | None: ...

    @property
    def summary(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def instance(self) -> Any: ...

    @property
    def examples(self) -> Sequence[Mapping[str, Any]]: ...

    @property
    def parameters(self) -> Any: ...

    @property
    def prediction(self) -> Any: ...


class Predictor:
    """The predictions of instances: each a whole, or the next piece of a sequence whose state is carried or kept."""

    def __init__(self, tokens: StateTokens | None = None, sequences: KeptSequences | None = None) -> None:
        """`tokens` reads and writes the states that clients carry; None: no instance carries one. `sequences` are those whose
        states are kept; None: no request names one.
        """
        self._tokens = tokens
        self._sequences = sequences

    def predict(
        self,
        call: Call,
        model: ServedModel,
        body: bytes,
        instances: Sequence[Any],
        parameters: Mapping[str, Any],
        *,
        has_turn: bool,
    ) -> Coroutine[Any, Any, Sequence[Any]]:
        """The predictions, in order, by the deadline of the call; `body` is where the instances were read from, decompressed.

        The call counts the rows that the parameters make of them. Sequences are those of the key that the request came with.
        Raises what the model raises, and what `predict_carried`, `predict_kept` and `Call.count_rows` raise.
        """
        plain, deadline = is_plain(body), call.deadline
        if self._tokens is not None and holds_state(instances) and not model.has_own_state_field:
            return predict_carried(
                model, self._tokens, instances, parameters, deadline=deadline, is_plain=plain, has_turn=has_turn
            )
        if self._sequences is not None and holds_sequences(body, instances, parameters):
            return predict_kept(
                model,
                self._sequences,
                instances,
                parameters,
                deadline=deadline,
                is_plain=plain,
                has_turn=has_turn,
                holder=caller_of(call.request.state),
            )
        if parameters:
            call.count_rows(model.count_rows(instances, parameters))
        return model.predict(instances, parameters, deadline=deadline, is_plain=plain, has_turn=has_turn)


class PredictEndpoint(InferenceEndpoint):
    """One endpoint that predicts. With `task`, the model may be left out, and must be of that task and fit the `purpose`."""

    api = "predict"

    def __init__(
        self,
        models: Models,
        observer: RequestObserver,
        limits: RequestLimits,
        *,
        task: str | None = None,
        purpose: str | None = None,
        monitors: Monitors | None = None,
        predictor: Predictor | None = None,
    ) -> None:
        """`monitors` as of InferenceEndpoint; without a `predictor` every instance is a whole."""
        super().__init__(observer, limits, monitors)
        self._models = models
        self._predictor = predictor or Predictor()
        self._task = task
        self._purpose = purpose

    def check_head(self, request: HttpRequest) -> None:
        """Raise UnsupportedMediaType for a body that is declared as something other than plain JSON."""
        expect_plain_json(request.headers)

    async def respond(self, call: Call) -> Answer:
        """The predictions for one request, as JSON."""
        body = call.body
        if len(body) <= LARGE_BYTES:
            if self._loop_budget is not None and self._loop_budget.is_spent():
                await self.renew_turn(call, find_model(body))
            parsed = parse(body, self._limits.max_instances)
        else:
            parsed = await self._large_bodies.parse(body, self._limits.max_instances)
            call.content = parsed.instances
        call.finish_parse(len(parsed.instances))
        call.shorten(parsed.timeout_s)
        model = self._resolve(parsed, visible_models(self._models, call.request.state))
        call.set_model(model)
        has_turn = self.has_turn(len(body))
        predictions = await self._predictor.predict(call, model, body, parsed.instances, parsed.parameters, has_turn=has_turn)
        written_from = time.monotonic()
        content = await _write(model.name, model.version, predictions)
        call.finish_write(written_from)
        return json_answer(content)

    def _resolve(self, parsed: ParsedRequest, models: Models) -> ServedModel:
        if parsed.model is None:
            if self._task is None:
                raise MalformedRequest('"model" is missing; GET /models lists what there is', where="model")
            if parsed.version is not None:
                raise MalformedRequest('"version" needs "model" beside it', where="version")
            return models.choose(self._task, parsed.instances, parsed.parameters, purpose=self._purpose)
        model = models.get(parsed.model, parsed.version)
        if self._task is not None and model.task != self._task:
            raise InvalidInput(
                f'model "{model.name}" is a {model.task} model, expected one for {self._task}; POST /predict accepts any',
                where="model",
                found=model.task,
                expected=self._task,
            )
        return model


def find_model(body: bytes) -> str | None:
    """The model that a body seems to name, at its begin or at its end, without reading it: good enough to guess its cost."""
    found = _MODEL.match(body) or _MODEL_AT_END.search(body, max(0, len(body) - MAX_NAME_BYTES))
    return found[1].decode(errors="replace") if found is not None else None


async def _write(name: str, version: str, predictions: Sequence[Any]) -> bytes:
    content = {"model": name, "version": version, "predictions": predictions}
    return write(content) if len(predictions) <= FEW_PREDICTIONS else await write_large(content)


# ----------------------------------------------------------------------------------------------------------- the routes

PREDICT_PATH = "/predict"


def predict_endpoints(
    models: Models,
    observer: RequestObserver,
    limits: RequestLimits,
    task_endpoints: Iterable[TaskEndpoint],
    monitors: Monitors | None = None,
    predictor: Predictor | None = None,
) -> dict[str, PredictEndpoint]:
    """What answers at each path: `/predict`, and the endpoints of the tasks."""
    monitors = monitors or Monitors.open(limits)

    def endpoint(task: str | None, purpose: str | None) -> PredictEndpoint:
        return PredictEndpoint(models, observer, limits, task=task, purpose=purpose, monitors=monitors, predictor=predictor)

    return {PREDICT_PATH: endpoint(None, None), **{each.path: endpoint(each.task, each.purpose) for each in task_endpoints}}


def documented_routes(task_endpoints: Iterable[TaskEndpoint]) -> list[APIRoute]:
    """The same paths as FastAPI documents them, and refuses other methods there. Their functions are never called."""
    options: dict[str, Any] = {"methods": ["POST"], "tags": ["predict"], "responses": _PROBLEMS}
    return [
        APIRoute(PREDICT_PATH, predict, summary="Predict with any model", **options),
        *(APIRoute(each.path, _document(each), summary=each.summary, **options) for each in task_endpoints),
    ]


async def predict(request: PredictRequest) -> PredictResponse:
    """Predict with one model, of whatever task: one prediction per instance. Requests of all clients share batches."""
    raise NotImplementedError


def _document(endpoint: TaskEndpoint) -> Callable[..., Any]:
    """A function whose name, docstring and types are what OpenAPI says of an endpoint."""
    request_type, response_type = predict_models(endpoint)

    async def documented(request: Any) -> Any:
        raise NotImplementedError

    documented.__name__, documented.__doc__ = f"predict_{endpoint.name}", endpoint.description
    documented.__annotations__ = {"request": request_type, "return": response_type}
    return documented


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    for status, text in {
        400: "Not JSON, or unknown fields or wrong types",
        404: "No such model, or no such sequence",
        409: "No model is named, and several fit; or the sequence was begun with another graph",
        413: "Too many bytes or instances",
        415: "The body is not declared as JSON",
        422: "Well-formed, but not what the model accepts; names the instance, the place in it, what was found and expected",
        500: "The model failed",
        503: "The queue is full, the model is loading, or no state can be reached; Retry-After says when to try again",
        504: "No answer in time",
    }.items()
}
