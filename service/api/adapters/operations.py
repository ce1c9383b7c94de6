"""What clients of the other wire formats ask beside predictions: which models there are, whether they answer, health."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.api.access.control import visible_models
from service.api.adapters import nixtla, timeseries
from service.api.draining import Drain
from service.errors import MalformedRequest, ModelNotFound, ModelNotReady
from service.wire import write

PING = "/ping"


class Catalog(Protocol):
    """The models as these routes describe them."""

    @property
    def is_ready(self) -> bool: ...

    def restricted_to(self, names: frozenset[str]) -> Self: ...

    def get(self, name: str, version: str | None = None) -> Any: ...

    def choose(self, task: str, instances: Any, parameters: Any, *, purpose: str | None = None) -> Any: ...

    def describe(self) -> list[dict[str, Any]]: ...

    def describe_model(self, name: str) -> dict[str, Any]: ...

    def index(self) -> list[dict[str, str]]: ...


class Route(NamedTuple):
    method: str
    path: str
    endpoint: Callable[..., Any]


def adapter_routes(catalog: Catalog, *, health_path: str | None = None, drain: Drain | None = None) -> list[Route]:
    """The routes that run no model; `health_path` is where Vertex AI looks whether the container is ready."""
    drain = drain or Drain()

    def visible(request: Request) -> Catalog:
        return visible_models(catalog, request.scope.get("state", {}))

    async def ping() -> Response:
        """200 when the server is ready, as at `/health/ready`; else 503."""
        is_ready = catalog.is_ready and not drain.is_active
        return _json({"status": "ready" if is_ready else "not ready"}, 200 if is_ready else 503)

    async def v1_models(request: Request) -> Response:
        """The names of the models."""
        return _json({"models": sorted({entry["name"] for entry in visible(request).index()})})

    async def v1_model(request: Request, name: str, version: str | None = None) -> Response:
        """Whether a model answers, in KServe's words and in those of TensorFlow Serving."""
        if version is not None and not (version.isascii() and version.isdigit() and len(version) < 10):
            raise ModelNotFound(f'"{version[:40]}" is no version: expected a whole number')
        seen = visible(request)
        try:
            seen.get(name, version)
            is_ready = True
        except ModelNotReady:
            is_ready = False
        states = [
            {
                "version": entry["version"],
                "state": "AVAILABLE" if entry["state"] == "READY" else entry["state"],
                "status": {
                    "error_code": "OK" if "reason" not in entry else "UNAVAILABLE",
                    "error_message": entry.get("reason", ""),
                },
            }
            for entry in seen.index()
            if entry["name"] == name and "version" in entry and version in (None, entry["version"])
        ]
        return _json({"name": name, "ready": is_ready, "model_version_status": states}, 200 if is_ready else 503)

    async def timeseries_models(request: Request) -> Response:
        """The forecasting models that answer."""
        models = [
            {"id": model["name"], "object": "model", "created": 0, "owned_by": "sluice"}
            for model in visible(request).describe()
            if model["state"] == "READY" and model.get("task") == "forecast"
        ]
        return _json({"object": "list", "data": models})

    async def model_parameters(request: Request, model: str = "", freq: str = "") -> Response:
        """How many steps the model for a frequency reads and forecasts, as Nixtla's client asks before it sends."""
        seen = visible(request)
        name = None if model.startswith(nixtla.OTHERS_MODELS) or not model else model[:200]
        found = seen.get(name) if name is not None else seen.choose("forecast", [], {"frequency": freq[:40]} if freq else {})
        about = seen.describe_model(found.name).get("forecast")
        if about is None:
            raise MalformedRequest(f'model "{found.name}" does not forecast', where="model")
        return _json({"detail": {"input_size": about["context_length"], "horizon": about["horizon"]}})

    async def validate_key() -> Response:
        """200: whoever may not come here is refused before."""
        return _json({"detail": "the API key is valid, or none is needed"})

    return [
        Route("GET", PING, ping),
        Route("GET", "/v1/models", v1_models),
        Route("GET", "/v1/models/{name}", v1_model),
        Route("GET", "/v1/models/{name}/versions/{version}", v1_model),
        Route("GET", timeseries.MODELS_PATH, timeseries_models),
        Route("GET", nixtla.PARAMETERS_PATH, model_parameters),
        Route("GET", nixtla.KEY_PATH, validate_key),
        *([Route("GET", health_path, ping)] if health_path is not None else []),
    ]


def adapter_router(routes: list[Route], direct: list[str]) -> APIRouter:
    """The routes as FastAPI runs them, and those of the adapters, so that other methods are refused there."""
    router = APIRouter()
    for method, path, endpoint in routes:
        router.add_api_route(path, endpoint, methods=[method, "HEAD"], include_in_schema=False)
    for path in direct:
        router.add_api_route(path, _never_called, methods=["POST"], include_in_schema=False)
    return router


def _version_status(entry: dict[str, str]) -> dict[str, Any]:
    """One version as TensorFlow Serving's status has it."""
    reason = entry.get("reason", "")
    return {
        "version": entry["version"],
        "state": "AVAILABLE" if entry["state"] == "READY" else entry["state"],
        "status": {"error_code": "UNAVAILABLE" if reason else "OK", "error_message": reason},
    }


async def _never_called(request: Request) -> Response:
    """What a name that no model can have leads to: all others are answered before FastAPI."""
    raise ModelNotFound(f'there is no model at "{request.url.path[:200]}"')


def _json(content: object, status: int = 200) -> Response:
    return Response(write(content), status, media_type="application/json")
