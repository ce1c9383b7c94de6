"""The routes of the Open Inference Protocol beside `infer`: metadata, health, configuration, statistics, the repository.

Their bodies have the protocol's fields; nothing here is on the hot path.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol, Self

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service import __version__
from service.api.access.control import visible_models
from service.api.control import MAX_CONTROL_BYTES, RepositoryControl, expect_control
from service.api.draining import Drain
from service.api.request import AsgiRequest, receive_body
from service.api.v2.infer import INFER_ROUTES
from service.errors import MalformedRequest, ModelNotFound, ModelNotReady
from service.wire import read, write

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


class _Route(NamedTuple):
    method: str
    path: str
    endpoint: Callable[..., Any]


def v2_routes(
    catalog: Catalog,
    read_statistics: Statistics,
    *,
    max_rows: int,
    drain: Drain | None = None,
    control: RepositoryControl | None = None,
) -> list[_Route]:
    """Every route; `infer`'s are listed so that other methods are refused there. Without `control` nothing is loaded later."""
    drain = drain or Drain()

    def visible(request: Request) -> Catalog:
        return visible_models(catalog, request.scope.get("state", {}))

    async def server() -> Response:
        """The server's name, version and extensions."""
        return _json({"name": "sluice", "version": __version__, "extensions": EXTENSIONS})

    async def live() -> Response:
        """200 as long as the process answers."""
        return _json({"live": True})

    async def ready() -> Response:
        """200 when the server is ready, as at `/health/ready`; else 503."""
        is_ready = catalog.is_ready and not drain.is_active
        return _json({"ready": is_ready}, 200 if is_ready else 503)

    async def models(request: Request) -> Response:
        """The names of the models, as KServe lists them."""
        return _json({"models": sorted({entry["name"] for entry in visible(request).index()})})

    async def model(request: Request, name: str, version: str | None = None) -> Response:
        """A model's tensors."""
        return _json(visible(request).describe_tensors(name, _version(version)))

    async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
        """200 when the model answers, 503 when it does not, 404 when it is not there."""
        try:
            visible(request).get(name, _version(version))
        except ModelNotReady:
            return _json({"name": name, "ready": False}, 503)
        return _json({"name": name, "ready": True})

    async def config(request: Request, name: str, version: str | None = None) -> Response:
        """A model's configuration, in Triton's words."""
        return _json(visible(request).describe_config(name, _version(version), max_rows))

    async def statistics(request: Request, name: str | None = None, version: str | None = None) -> Response:
        """Counts and times since the start: of all models, of one, or of one version."""
        seen = visible(request)
        if name is not None:
            seen.get(name, _version(version))
        of_all = await read_statistics()
        there = {(entry["name"], entry.get("version", "")) for entry in seen.index()}
        wanted = [
            content
            for key, content in sorted(of_all.items())
            if key in there and name in (None, key[0]) and version in (None, key[1])
        ]
        return _json({"model_stats": wanted})

    async def index(request: Request) -> Response:
        """Every version with its state; with `ready` in the body those that are READY alone."""
        content = await _read_control(request)
        only_ready = content.get("ready", False)
        if type(only_ready) is not bool:
            raise MalformedRequest('"ready": expected true or false', where="ready")
        entries = [entry for entry in visible(request).index() if not only_ready or entry["state"] == "READY"]
        return _json([{"reason": "", **entry} for entry in entries])  # MLServer's client requires a reason of every entry

    async def load(request: Request, name: str) -> Response:
        """Load a model again, or for the first time."""
        content = await _read_control(request)
        if parameters := content.get("parameters"):
            raise MalformedRequest(
                f'"parameters": a model is loaded as its folder has it; got {sorted(map(str, parameters))[:5]}',
                where="parameters",
            )
        await expect_control(control, request, name).load(name)
        return Response()

    async def unload(request: Request, name: str) -> Response:
        """Stop serving a model."""
        await _read_control(request)
        with contextlib.suppress(ModelNotFound):  # as Triton has it
            await expect_control(control, request, name).unload(name)
        return Response()

    async def infer(name: str, version: str | None = None) -> Response:
        """Never called for a name that a model can have: those are answered before FastAPI."""
        raise ModelNotFound(f'there is no model "{name[:128]}"')

    of_models = (("", model), ("/ready", model_ready), ("/config", config), ("/stats", statistics))
    prefixes = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
    return [
        _Route("GET", "/v2", server),
        _Route("GET", "/v2/", server),
        _Route("GET", "/v2/health/live", live),
        _Route("GET", "/v2/health/ready", ready),
        _Route("GET", "/v2/models", models),
        _Route("GET", "/v2/models/stats", statistics),
        *(_Route("GET", prefix + path, endpoint) for prefix in prefixes for path, endpoint in of_models),
        *(_Route("POST", path, infer) for path in INFER_ROUTES),
        _Route("POST", "/v2/repository/index", index),
        _Route("POST", "/v2/repository/models/{name}/load", load),
        _Route("POST", "/v2/repository/models/{name}/unload", unload),
    ]


def v2_router(routes: list[_Route]) -> APIRouter:
    """The routes as FastAPI runs them; the protocol's own document describes them."""
    router = APIRouter()
    for method, path, endpoint in routes:
        methods = ["GET", "HEAD"] if method == "GET" else [method]
        router.add_api_route(path, endpoint, methods=methods, include_in_schema=False)
    return router


def _json(content: object, status: int = 200) -> Response:
    return Response(write(content), status, media_type="application/json")


def _version(version: str | None) -> str | None:
    """A version of a path: digits, as Triton's routes take them."""
    if version is not None and not (version.isascii() and version.isdigit() and len(version) < 10):
        raise ModelNotFound(f'"{version[:40]}" is no version: expected a whole number')
    return version


async def _read_control(request: Request) -> dict[str, Any]:
    """The JSON object that a request holds, empty where there is no body. Raises MalformedRequest and BodyTooLarge."""
    body = await receive_body(AsgiRequest(request.scope, request.receive), MAX_CONTROL_BYTES)
    try:
        content = read(body) if body else {}
    except ValueError as exc:
        raise MalformedRequest(f"the body is not JSON: {exc}") from exc
    if type(content) is not dict:
        raise MalformedRequest("the body is no JSON object")
    return content
