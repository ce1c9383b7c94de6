"""What clients of the other wire formats read beside predictions: which models there are, whether they answer, health."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, Self

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel

from service.api.access.control import visible_models
from service.api.adapters import nixtla, timeseries
from service.api.adapters.base import Adapter
from service.api.adapters.schemas import (
    InvocationsError,
    KserveModel,
    NixtlaDetail,
    NixtlaParameters,
    Ping,
    TimeseriesError,
    TimeseriesModels,
)
from service.api.draining import Drain
from service.api.model_routes import expect_version, json_response, list_names
from service.api.protocol_routes import PREDICTION_STATUSES, UNKNOWN_MODEL, About, ProtocolRoute
from service.api.v2.schemas import ModelNames, ProtocolError
from service.errors import MalformedRequest, ModelNotFound, ModelNotReady

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


def adapter_routes(catalog: Catalog, *, health_path: str | None = None, drain: Drain | None = None) -> list[ProtocolRoute]:
    """The routes that run no model; `health_path` is where Vertex AI looks whether the container is ready."""
    drain = drain or Drain()

    def visible(request: Request) -> Catalog:
        return visible_models(catalog, request.scope.get("state", {}))

    async def ping() -> Response:
        """200 when the server is ready, as at `/health/ready`; else 503."""
        is_ready = catalog.is_ready and not drain.is_active
        return json_response({"status": "ready" if is_ready else "not ready"}, 200 if is_ready else 503)

    async def kserve_models(request: Request) -> Response:
        """The names of the models."""
        return json_response(list_names(visible(request)))

    async def kserve_model(request: Request, name: str, version: str | None = None) -> Response:
        """Whether a model answers, in KServe's words and in those of TensorFlow Serving."""
        seen = visible(request)
        try:
            seen.get(name, expect_version(version))
            is_ready = True
        except ModelNotReady:
            is_ready = False
        states = [
            _version_status(entry)
            for entry in seen.index()
            if entry["name"] == name and "version" in entry and version in (None, entry["version"])
        ]
        return json_response({"name": name, "ready": is_ready, "model_version_status": states}, 200 if is_ready else 503)

    async def timeseries_models(request: Request) -> Response:
        """The forecasting models that answer."""
        models = [
            {"id": model["name"], "object": "model", "created": 0, "owned_by": "sluice"}
            for model in visible(request).describe()
            if model["state"] == "READY" and model.get("task") == "forecast"
        ]
        return json_response({"object": "list", "data": models})

    async def model_parameters(request: Request, model: str = "", freq: str = "") -> Response:
        """How many steps the model for a frequency reads and forecasts, as Nixtla's client reads before it sends."""
        seen = visible(request)
        name = None if model.startswith(nixtla.OTHERS_MODELS) or not model else model[:200]
        found = seen.get(name) if name is not None else seen.choose("forecast", [], {"frequency": freq[:40]} if freq else {})
        about = seen.describe_model(found.name).get("forecast")
        if about is None:
            raise MalformedRequest(f'model "{found.name}" does not forecast', where="model")
        return json_response({"detail": {"input_size": about["context_length"], "horizon": about["horizon"]}})

    async def validate_key() -> Response:
        """200: whoever may not come here is refused before."""
        return json_response({"detail": "the API key is valid, or none is needed"})

    not_ready = {503: "It is not ready"}
    readiness = About("ping", "Whether the server is ready", Ping, None, not_ready, (503,))
    about_model = About("kserve_model", "Whether a model answers", KserveModel, None, {**UNKNOWN_MODEL, **not_ready}, (503,))
    about_version = about_model._replace(operation="kserve_model_of_version", summary="Whether a version of a model answers")
    parameters = {400: "The model does not forecast", 404: "No such model", 409: "Several models fit", 503: "It is not ready"}
    routes = [
        ProtocolRoute("GET", PING, ping, readiness, InvocationsError),
        ProtocolRoute(
            "GET", "/v1/models", kserve_models, About("kserve_models", "List the models by name", ModelNames), ProtocolError
        ),
        ProtocolRoute("GET", "/v1/models/{name}", kserve_model, about_model, ProtocolError),
        ProtocolRoute("GET", "/v1/models/{name}/versions/{version}", kserve_model, about_version, ProtocolError),
        ProtocolRoute(
            "GET",
            timeseries.MODELS_PATH,
            timeseries_models,
            About("timeseries_models", "List the forecasting models", TimeseriesModels),
            TimeseriesError,
        ),
        ProtocolRoute(
            "GET",
            nixtla.PARAMETERS_PATH,
            model_parameters,
            About("nixtla_parameters", "How far a model looks", NixtlaParameters, None, parameters),
            NixtlaDetail,
        ),
        ProtocolRoute(
            "GET", nixtla.KEY_PATH, validate_key, About("nixtla_key", "Whether the API key is valid", NixtlaDetail), NixtlaDetail
        ),
    ]
    if health_path is not None:
        routes.append(ProtocolRoute("GET", health_path, ping))
    return routes


def prediction_routes(adapters: Iterable[Adapter]) -> list[ProtocolRoute]:
    """The routes of the adapters: for the document, and so that other methods are refused there."""
    return [ProtocolRoute("POST", path, *_describe(adapter, path)) for adapter in adapters for path in adapter.paths]


def _describe(adapter: Adapter, path: str) -> tuple[Callable[..., Any], About, type[BaseModel]]:
    async def predict(request: Request) -> Response:
        # What a name that no model can have leads to: all others are answered before FastAPI.
        raise ModelNotFound(f'there is no model at "{request.url.path[:200]}"')

    described = adapter.described
    predict.__doc__ = described.description
    of_version = "_of_version" if "{version}" in path else ""
    summary = f"{described.summary}: with one version" if of_version else described.summary
    about = About(f"{described.operation}{of_version}", summary, described.response, described.request, PREDICTION_STATUSES)
    return predict, about, described.error


def _version_status(entry: dict[str, str]) -> dict[str, Any]:
    """One version as TensorFlow Serving's status has it."""
    reason = entry.get("reason", "")
    return {
        "version": entry["version"],
        "state": "AVAILABLE" if entry["state"] == "READY" else entry["state"],
        "status": {"error_code": "UNAVAILABLE" if reason else "OK", "error_message": reason},
    }
