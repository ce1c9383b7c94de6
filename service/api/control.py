"""The endpoints that load and unload models while the server runs.

Their bodies are small, and mean nothing but that a model is named; `api/v2/operations.py` has the routes of the protocol.
"""

from __future__ import annotations

from typing import Any, Protocol, Self

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.api.access.control import VISIBLE_MODELS, visible_models
from service.api.operations import IndentedJSONResponse
from service.api.request import AsgiRequest, receive_body
from service.api.schemas import ModelState
from service.errors import MalformedRequest, ModelNotFound
from service.wire import read

MAX_CONTROL_BYTES = 64 * 1024
"""Of the body of a request that changes what is served."""
CONTROL_ROUTES = ("/models/{name}/load", "/models/{name}/unload")


class RepositoryControl(Protocol):
    """Loads and unloads models while the server runs."""

    async def load(self, name: str) -> None: ...

    async def unload(self, name: str) -> None: ...


class Catalog(Protocol):
    """The models as these endpoints describe them."""

    def restricted_to(self, names: frozenset[str]) -> Self:
        """Those of these names, for a request that may see no others."""
        ...

    def describe(self) -> list[dict[str, Any]]:
        """Every model, as `ModelState`."""
        ...


def control_router(catalog: Catalog, control: RepositoryControl | None) -> APIRouter:
    """`POST /models/{name}/load` and `/unload`; without `control` both are refused."""

    async def load(request: Request, name: str) -> Response:
        """Load a model as its folder is now, for the first time or anew: beside what is served, in all processes or in none.

        Its versions are those that the folder holds, or SLUICE_VERSIONS names; what it holds no more is unloaded. Where one of
        them cannot be loaded the answer says why, and what was served before goes on being served.
        """
        await _expect_no_body(request)
        await expect_control(control, request, name).load(name)
        models = visible_models(catalog, request.scope.get("state", {})).describe()
        return IndentedJSONResponse(next((model for model in models if model["name"] == name), {"name": name}))

    async def unload(request: Request, name: str) -> Response:
        """Take all versions of a model out of service, in all processes. Requests that are being answered are answered."""
        await _expect_no_body(request)
        await expect_control(control, request, name).unload(name)
        return IndentedJSONResponse({"name": name, "version": None, "state": "UNLOADING", "versions": []})

    refusals: dict[int | str, dict[str, Any]] = {
        400: {"description": "SLUICE_MODEL_CONTROL is not explicit"},
        404: {"description": "No such model"},
        503: {"description": "Too many models are being loaded"},
        504: {"description": "Not finished in time; it goes on"},
    }
    broken: dict[int | str, dict[str, Any]] = {409: {"description": "The model cannot be loaded as its folder is"}}
    router = APIRouter()
    options: dict[str, Any] = {"methods": ["POST"], "tags": ["models"], "response_model": ModelState}
    router.add_api_route(CONTROL_ROUTES[0], load, summary="Load a model", responses=refusals | broken, **options)
    router.add_api_route(CONTROL_ROUTES[1], unload, summary="Unload a model", responses=refusals, **options)
    return router


def expect_control(control: RepositoryControl | None, request: Request, name: str) -> RepositoryControl:
    """What changes the model of this name. Raises MalformedRequest where nothing does, and ModelNotFound for a hidden one."""
    if control is None:
        raise MalformedRequest(
            "explicit model load / unload is not allowed: SLUICE_MODEL_CONTROL is not explicit", where="SLUICE_MODEL_CONTROL"
        )
    names: frozenset[str] | None = request.scope.get("state", {}).get(VISIBLE_MODELS)
    if names is not None and name not in names:
        raise ModelNotFound(f'there is no model "{name[:128]}"; there are {sorted(names)}', models=sorted(names))
    return control


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object that a small body holds, empty where there is none. Raises MalformedRequest and BodyTooLarge."""
    body = await receive_body(AsgiRequest(request.scope, request.receive), MAX_CONTROL_BYTES)
    try:
        content = read(body) if body else {}
    except ValueError as exc:
        raise MalformedRequest(f"the body is not JSON: {exc}") from exc
    if type(content) is not dict:
        raise MalformedRequest("the body is no JSON object")
    return content


async def _expect_no_body(request: Request) -> None:
    if await read_object(request):
        raise MalformedRequest("the body is empty, or an empty JSON object: a model is loaded as its folder has it")
