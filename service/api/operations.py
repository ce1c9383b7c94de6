"""The endpoints for those who operate the service: the index, the models, health and metrics.

Reads the catalog of models and the metrics; changes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol, Self

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from service import __version__
from service.api.access.control import visible_models
from service.api.draining import Drain
from service.api.openapi import list_endpoints
from service.api.page import PageResponse, index_page, page_router
from service.api.schemas import Index, Live, ModelList, Readiness, model_description
from service.wire import write_indented


class Catalog(Protocol):
    """The models as these endpoints describe them."""

    @property
    def is_ready(self) -> bool: ...

    @property
    def reason(self) -> str | None:
        """Why it is not ready; None if it is."""
        ...

    def restricted_to(self, names: frozenset[str]) -> Self:
        """Those of these names, for a request that may see no others."""
        ...

    def describe(self) -> list[dict[str, Any]]:
        """Every model, as `ModelState`."""
        ...

    def describe_model(self, name: str) -> dict[str, Any]:
        """One model, as `ModelDescription`. Raises ModelNotFound."""
        ...


class IndentedJSONResponse(JSONResponse):
    """JSON that a person can read in the browser; none of these endpoints is on the hot path."""

    def render(self, content: Any) -> bytes:
        return write_indented(content)


class _Route(NamedTuple):
    path: str
    endpoint: Callable[..., Any]
    options: dict[str, Any]


def operations_router(
    catalog: Catalog,
    render_metrics: Callable[[str], Awaitable[tuple[bytes, str]]],
    descriptions: Mapping[str, Any] | None = None,
    drain: Drain | None = None,
    *,
    has_playground: bool = True,
) -> APIRouter:
    """`/`, `/models`, `/health`, `/metrics` and the pages. `render_metrics` gets the Accept header.

    `descriptions` are the types of what each task says of its models in `GET /models/{name}`, for the OpenAPI document.
    A server that drains is not ready.
    """
    drain = drain or Drain()

    def visible(request: Request) -> Catalog:
        return visible_models(catalog, request.scope.get("state", {}))

    async def index(request: Request) -> Response:
        """The server's version and its endpoints: a page, or JSON for `Accept: application/json`."""
        accept = request.headers.get("accept", "")
        endpoints = list_endpoints(request.app.openapi())
        if "application/json" in accept and "text/html" not in accept:
            content = {"name": "sluice", "version": __version__, "endpoints": endpoints}
            return IndentedJSONResponse(content, headers={"vary": "accept"})
        return PageResponse(
            index_page(endpoints, visible(request).describe(), has_playground=has_playground), headers={"vary": "accept"}
        )

    async def list_models(request: Request) -> Response:
        """Every model of the models folder with its state; a broken folder says why it is not served."""
        return IndentedJSONResponse({"models": visible(request).describe()})

    async def describe_model(request: Request, name: str) -> Response:
        """One model: what it accepts and returns, its tensors, training and scores, and how its requests are batched."""
        return IndentedJSONResponse(visible(request).describe_model(name))

    async def check_live() -> Response:
        """200 as long as the process answers, whatever the state of the models."""
        return IndentedJSONResponse({"status": "live"})

    async def check_ready(request: Request) -> Response:
        """200 once every model folder is READY, else 503, as when the server is about to end.

        The body has the state of each that the request may see. With SLUICE_STRICT_READINESS=false one READY model is enough,
        once loading is over.
        """
        seen = visible(request)
        is_ready = catalog.is_ready and not drain.is_active
        reason = catalog.reason if seen is catalog else None  # which names models
        readiness = {
            "status": "ready" if is_ready else "not ready",
            "reason": "the server is about to end" if drain.is_active else reason,
            "models": seen.describe(),
        }
        present = {key: value for key, value in readiness.items() if value is not None}
        return IndentedJSONResponse(present, 200 if is_ready else 503)

    async def get_metrics(request: Request) -> Response:
        """The metrics in Prometheus's text format, or in OpenMetrics where `Accept` asks for it."""
        content, content_type = await render_metrics(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": content_type})

    text = {"schema": {"type": "string"}}
    page: dict[int | str, dict[str, Any]] = {200: {"description": "The index", "content": {"text/html": text}}}
    no_model: dict[int | str, dict[str, Any]] = {404: {"description": "No such model"}}
    not_ready: dict[int | str, dict[str, Any]] = {503: {"description": "Not ready", "model": Readiness}}
    metrics: dict[int | str, dict[str, Any]] = {
        200: {"description": "The metrics", "content": {"text/plain": text, "application/openmetrics-text": text}}
    }
    routes = (
        _Route("/models", list_models, {"tags": ["models"], "summary": "List the models", "response_model": ModelList}),
        _Route(
            "/models/{name}",
            describe_model,
            {
                "tags": ["models"],
                "summary": "Describe a model",
                "response_model": model_description(descriptions or {}),
                "responses": no_model,
            },
        ),
        _Route(
            "/health/live",
            check_live,
            {"tags": ["health"], "summary": "Check that the process answers", "response_model": Live},
        ),
        _Route(
            "/health/ready",
            check_ready,
            {
                "tags": ["health"],
                "summary": "Check that requests are served",
                "response_model": Readiness,
                "responses": not_ready,
            },
        ),
        _Route(
            "/metrics",
            get_metrics,
            {"tags": ["server"], "summary": "Metrics for Prometheus", "response_class": Response, "responses": metrics},
        ),
        _Route("/", index, {"tags": ["server"], "summary": "Version and endpoints", "response_model": Index, "responses": page}),
    )
    router = APIRouter()
    for path, endpoint, options in routes:
        router.add_api_route(path, endpoint, methods=["GET"], **options)
        router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    router.include_router(page_router(has_playground=has_playground))
    return router
