"""The routes of the Open Inference Protocol beside `infer`: metadata, health, configuration, statistics, the repository.

Their bodies have the protocol's fields; nothing here is on the hot path.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, Self

from fastapi import Request
from fastapi.responses import Response

from service import __version__
from service.api.access.control import visible_models
from service.api.control import RepositoryControl, expect_control, read_object
from service.api.draining import Drain
from service.api.model_routes import expect_version, json_response, list_names
from service.api.protocol_routes import PREDICTION_STATUSES, UNKNOWN_MODEL, About, ProtocolRoute
from service.api.v2.schemas import (
    IndexEntry,
    IndexRequest,
    InferRequest,
    InferResponse,
    ModelConfiguration,
    ModelMetadata,
    ModelNames,
    ModelReady,
    ModelStatistics,
    ProtocolError,
    RepositoryRequest,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from service.errors import MalformedRequest, ModelNotFound, ModelNotReady

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "sequence",
    "sequence(string_id)",
    "statistics",
)

Statistics = Callable[[], Awaitable[Mapping[tuple[str, str], dict[str, Any]]]]
"""(model, version) → its statistics."""


class Catalog(Protocol):
    """The models as these routes describe them."""

    @property
    def is_ready(self) -> bool: ...

    def restricted_to(self, names: frozenset[str]) -> Self:
        """Those of these names, for a request that may see no others."""
        ...

    def get(self, name: str, version: str | None = None) -> Any:
        """The model that answers. Raises ModelNotFound and ModelNotReady."""
        ...

    def describe_tensors(self, name: str, version: str | None = None) -> dict[str, Any]: ...

    def describe_config(self, name: str, version: str | None, max_rows: int) -> dict[str, Any]: ...

    def index(self) -> list[dict[str, str]]: ...


def v2_routes(
    catalog: Catalog,
    read_statistics: Statistics,
    *,
    max_rows: int,
    drain: Drain | None = None,
    control: RepositoryControl | None = None,
) -> list[ProtocolRoute]:
    """Every route; `infer`'s are listed for the document, and so that other methods are refused there. Without
    `control` nothing is loaded later.
    """
    drain = drain or Drain()

    def visible(request: Request) -> Catalog:
        return visible_models(catalog, request.scope.get("state", {}))

    async def server() -> Response:
        """The server's name, version and extensions."""
        return json_response({"name": "sluice", "version": __version__, "extensions": EXTENSIONS})

    async def live() -> Response:
        """200 as long as the process answers."""
        return json_response({"live": True})

    async def ready() -> Response:
        """200 when the server is ready, as at `/health/ready`; else 503."""
        is_ready = catalog.is_ready and not drain.is_active
        return json_response({"ready": is_ready}, 200 if is_ready else 503)

    async def models(request: Request) -> Response:
        """The names of the models, as KServe lists them."""
        return json_response(list_names(visible(request)))

    async def model(request: Request, name: str, version: str | None = None) -> Response:
        """A model's tensors."""
        return json_response(visible(request).describe_tensors(name, expect_version(version)))

    async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
        """200 when the model answers, 503 when it does not, 404 when it is not there."""
        try:
            visible(request).get(name, expect_version(version))
        except ModelNotReady:
            return json_response({"name": name, "ready": False}, 503)
        return json_response({"name": name, "ready": True})

    async def config(request: Request, name: str, version: str | None = None) -> Response:
        """A model's configuration, in Triton's words."""
        return json_response(visible(request).describe_config(name, expect_version(version), max_rows))

    async def statistics_of_all(request: Request) -> Response:
        """Counts and times since the start, of all versions of all models."""
        return await describe_statistics(visible(request), None, None)

    async def statistics(request: Request, name: str, version: str | None = None) -> Response:
        """Counts and times since the start: of all versions of a model, or of one."""
        seen = visible(request)
        seen.get(name, expect_version(version))
        return await describe_statistics(seen, name, version)

    async def describe_statistics(seen: Catalog, name: str | None, version: str | None) -> Response:
        of_all = await read_statistics()
        there = {(entry["name"], entry.get("version", "")) for entry in seen.index()}
        wanted = [
            content
            for key, content in sorted(of_all.items())
            if key in there and name in (None, key[0]) and version in (None, key[1])
        ]
        return json_response({"model_stats": wanted})

    async def index(request: Request) -> Response:
        """Every version with its state; with `ready` in the body those that are READY alone."""
        content = await read_object(request)
        only_ready = content.get("ready", False)
        if type(only_ready) is not bool:
            raise MalformedRequest('"ready": expected true or false', where="ready")
        entries = [entry for entry in visible(request).index() if not only_ready or entry["state"] == "READY"]
        return json_response([{"reason": "", **entry} for entry in entries])  # MLServer's client requires a reason of every entry

    async def load(request: Request, name: str) -> Response:
        """Load a model again, or for the first time."""
        content = await read_object(request)
        if parameters := content.get("parameters"):
            raise MalformedRequest(
                f'"parameters": a model is loaded as its folder has it; got {sorted(map(str, parameters))[:5]}',
                where="parameters",
            )
        await expect_control(control, request, name).load(name)
        return Response()

    async def unload(request: Request, name: str) -> Response:
        """Stop serving a model."""
        await read_object(request)
        with contextlib.suppress(ModelNotFound):  # as Triton has it
            await expect_control(control, request, name).unload(name)
        return Response()

    async def infer(request: Request) -> Response:
        """Tensors in, tensors out, as JSON, binary data or both. Requests of all clients share batches, which changes no answer.

        The body as it is shown is JSON; binary data follows it as the binary tensor extension says.
        """
        # Never called for a name that a model can have: those are answered before FastAPI.
        raise ModelNotFound(f'there is no model "{request.path_params["name"][:128]}"')

    def of_models(method: str, path: str, endpoint: Callable[..., Any], about: About) -> list[ProtocolRoute]:
        of_version = about._replace(operation=f"{about.operation}_of_version", summary=f"{about.summary}: of one version")
        return [
            ProtocolRoute(method, f"/v2/models/{{name}}{path}", endpoint, about, ProtocolError),
            ProtocolRoute(method, f"/v2/models/{{name}}/versions/{{version}}{path}", endpoint, of_version, ProtocolError),
        ]

    def of_server(method: str, path: str, endpoint: Callable[..., Any], about: About | None = None) -> ProtocolRoute:
        return ProtocolRoute(method, path, endpoint, about, ProtocolError)

    not_ready = {**UNKNOWN_MODEL, 503: "It does not answer"}
    about_all = About("protocol_statistics_of_all", "Statistics of all models", ModelStatistics)
    return [
        of_server("GET", "/v2", server, About("protocol_server", "Describe the server", ServerMetadata)),
        of_server("GET", "/v2/", server),
        of_server("GET", "/v2/health/live", live, About("protocol_live", "Whether the process answers", ServerLive)),
        of_server(
            "GET",
            "/v2/health/ready",
            ready,
            About("protocol_ready", "Whether the server is ready", ServerReady, None, {503: "It is not ready"}, (503,)),
        ),
        of_server("GET", "/v2/models", models, About("protocol_models", "List the models by name", ModelNames)),
        of_server("GET", "/v2/models/stats", statistics_of_all, about_all),
        *of_models("GET", "", model, About("protocol_model", "Tensors of a model", ModelMetadata, None, not_ready)),
        *of_models(
            "GET",
            "/ready",
            model_ready,
            About("protocol_model_ready", "Whether a model answers", ModelReady, None, not_ready, (503,)),
        ),
        *of_models(
            "GET", "/config", config, About("protocol_config", "Configuration of a model", ModelConfiguration, None, not_ready)
        ),
        *of_models(
            "GET", "/stats", statistics, About("protocol_statistics", "Statistics of a model", ModelStatistics, None, not_ready)
        ),
        *of_models("POST", "/infer", infer, About("infer", "Infer with tensors", InferResponse, InferRequest, INFER_STATUSES)),
        of_server(
            "POST",
            "/v2/repository/index",
            index,
            About(
                "protocol_index",
                "List all versions",
                list[IndexEntry],
                IndexRequest,
                {400: "Not JSON, or another type", **_TOO_LARGE},
            ),
        ),
        of_server("POST", "/v2/repository/models/{name}/load", load, _control("protocol_load", "Load a model", 404, 409)),
        of_server("POST", "/v2/repository/models/{name}/unload", unload, _control("protocol_unload", "Unload a model")),
    ]


_TOO_LARGE = {413: "The body is too large"}
INFER_STATUSES = {status: text for status, text in PREDICTION_STATUSES.items() if status != 409}
_CONTROL = {
    400: "SLUICE_MODEL_CONTROL is not explicit, or the body holds what is not taken",
    404: "No such model folder",
    409: "The model cannot be loaded as its folder is",
    **_TOO_LARGE,
    503: "Too many models are being loaded",
    504: "Not finished in time; it goes on",
}


def _control(operation: str, summary: str, *more: int) -> About:
    """A route that changes what is served; `more` are the errors that not all of them have."""
    statuses = {status: text for status, text in _CONTROL.items() if status in (400, 413, 503, 504, *more)}
    return About(operation, summary, None, RepositoryRequest, statuses)
