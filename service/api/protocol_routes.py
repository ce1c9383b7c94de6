"""The routes of other protocols as FastAPI runs and documents them: what each takes and gives, and the shape of its errors.

Knows no protocol. Requests that run a model are answered before FastAPI; their routes stand here for the document, and so that
other methods are refused.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from fastapi import APIRouter
from pydantic import BaseModel

NO_STATUSES: Mapping[int, str] = MappingProxyType({})
UNKNOWN_MODEL: Mapping[int, str] = MappingProxyType({404: "No such model or version"})
PREDICTION_STATUSES: Mapping[int, str] = MappingProxyType(
    {
        400: "Malformed, or not what the model accepts",
        404: "No such model",
        409: "No model is named, and several fit",
        413: "Too many bytes or rows",
        415: "Of another type or coding than is accepted",
        500: "The model failed",
        503: "The queue is full or the model is not ready; Retry-After says when to try again",
        504: "No answer in time",
    }
)


class About(NamedTuple):
    """What the OpenAPI document says of a route, beside the docstring of its function."""

    operation: str
    """Its id."""
    summary: str
    response: Any
    """The type of the answer's body; None where it has none."""
    request: type[BaseModel] | None = None
    """The type of the body that it takes."""
    statuses: Mapping[int, str] = NO_STATUSES
    """The errors, and when."""
    is_answer: tuple[int, ...] = ()
    """Statuses of errors whose body is that of the answer."""


class ProtocolRoute(NamedTuple):
    """One route; without `about` the document leaves it out."""

    method: str
    path: str
    endpoint: Callable[..., Any]
    about: About | None = None
    error: type[BaseModel] | None = None
    """The type of the body of its errors."""


def protocol_router(routes: Iterable[ProtocolRoute], tag: str) -> APIRouter:
    """The routes as FastAPI runs them."""
    router = APIRouter()
    for route in routes:
        options: dict[str, Any] = {"include_in_schema": False}
        if route.about is not None:
            options = _options(route, route.about, tag)
        router.add_api_route(route.path, route.endpoint, methods=[route.method], **options)
        if route.method == "GET":
            router.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
    return router


def _options(route: ProtocolRoute, about: About, tag: str) -> dict[str, Any]:
    responses: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "model": about.response if status in about.is_answer else route.error}
        for status, text in about.statuses.items()
    }
    options: dict[str, Any] = {
        "tags": [tag],
        "operation_id": about.operation,
        "summary": about.summary,
        "responses": responses,
        "response_model": about.response,
    }
    if about.request is not None:
        schema = {"$ref": f"#/components/schemas/{about.request.__name__}"}
        is_required = any(field.is_required() for field in about.request.model_fields.values())
        body = {"required": is_required, "content": {"application/json": {"schema": schema}}}
        known = inspect.signature(route.endpoint).parameters
        names = [name for name in re.findall(r"{(\w+)}", route.path) if name not in known]
        parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
        options["openapi_extra"] = {"requestBody": body, "parameters": parameters}
    return options
