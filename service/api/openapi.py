"""The OpenAPI document beyond what FastAPI derives from the routes: its texts, operation ids and table of errors.

Knows the routes of the app it is given, and nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.api.errors import PROBLEM_TYPE, TABLE
from service.api.protocol_routes import ProtocolRoute
from service.api.schemas import Problem

ERRORS_PAGE = "/docs/errors"
PROBLEM, JSON = PROBLEM_TYPE.decode(), "application/json"
REFERENCE = "#/components/schemas/{model}"
# What a request must hold that depends on the model or on the server: field → rule. A body that a schema accepts is refused
# for one of these reasons only; a test generates bodies and holds the service to it.
BEYOND_SCHEMA: Mapping[str, str] = {
    "model": "`GET /models` lists it as READY, and its task is that of the endpoint.",
    "version": "`GET /models` lists it, and `model` is given beside it.",
    "instances": "At most SLUICE_MAX_INSTANCES. In `/predict`: as in the endpoint of the model's task.",
    "parameters": "In `/predict`: those of the model's task.",
    "history": "Steps as wide as the model's `features`, at least `min_length` of them, at most 1,000,000 values; each feature "
    "has a number among the last `context_length` steps.",
    "horizon": "At most the model's `max_horizon`. Written without a decimal point: `24`, not `24.0`.",
    "quantiles": "Between the lowest and the highest of the model's own levels.",
    "frequency": "One of the model's `frequencies`, where it has any.",
    "point": "One of the model's `points`.",
    "start": "An ISO 8601 timestamp, with a frequency unless the model has just one, whose forecast ends before the year 10000. "
    "Needed by a model with a `calendar`.",
    "past": "For a model with `covariates`: each of them and no other, with a value for every step of `history`: a finite "
    "float32 number, or where the model has `categories` of it one of those texts; or one of these for all steps.",
    "future": "Likewise, with as many values as `horizon`.",
    "text": "Not only white space, of any script.",
    "explain": "One of the model's `classify.explain`, for texts of at most 4,000 characters and 256 words in all; not beside a "
    "`state`.",
    "sequence_id": "For a model that can stream. Each sequence once in a request, of at most 1,000; beside `sequence_start` and "
    "`sequence_end`, and in all instances or in none. Written without a decimal point, and not `null`.",
    "state": "For a model that can stream (`streaming` of `GET /models/{name}`): that of an answer of the same model, version "
    "and graph, or `null`, which is not the same as no `state`. In all instances of a request, or in none.",
}
TAGS = (
    {
        "name": "predict",
        "description": "Predictions. Requests of all clients share batches, which changes no answer.",
    },
    {"name": "sequences", "description": "Sequences whose states are kept from one request to the next."},
    {"name": "streams", "description": "A sequence in one connection, each piece of which is answered as it comes."},
    {"name": "models", "description": "The models of this server, and what each accepts and returns."},
    {"name": "health", "description": "Probes for load balancers and orchestrators."},
    {"name": "server", "description": "The server itself."},
    {
        "name": "open inference protocol",
        "description": 'What clients of Triton, KServe and MLServer speak. Its errors are `{"error": "..."}`.',
    },
    {"name": "other formats", "description": "What clients of other servers send, each with errors of its own shape."},
)


# Either of them: `security` lists alternatives.
SECURITY_SCHEMES: Mapping[str, Mapping[str, str]] = {
    "BearerKey": {"type": "http", "scheme": "bearer", "description": "An API key as `Authorization: Bearer KEY`."},
    "HeaderKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key in a header of its own."},
}


def complete_openapi(
    api: FastAPI,
    refusals: Callable[[str], Mapping[int, str]] = lambda path: {},
    protocol_routes: Sequence[ProtocolRoute] = (),
) -> None:
    """Complete the document of `api`, whose routes must all be there; `/openapi.json` then serves it.

    `refusals` are the statuses with which access to a path is refused, and when; where one is 401, the path needs an API key.
    `protocol_routes` are those of other protocols, whose errors have other shapes.
    """
    document: dict[str, Any] = api.openapi()
    document["info"]["description"] = description()
    document["info"]["license"] = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
    document["tags"] = list(TAGS)
    document["x-errors"] = describe_errors()
    schemas = document["components"]["schemas"]
    schemas["Problem"] = Problem.model_json_schema(ref_template=REFERENCE)
    requests = {route.about.request: None for route in protocol_routes if route.about is not None and route.about.request}
    errors = {route.path: route.error for route in protocol_routes if route.error is not None}
    _, definitions = models_json_schema(
        [(model, "validation") for model in (*requests, *dict.fromkeys(errors.values()))], ref_template=REFERENCE
    )
    schemas |= definitions.get("$defs", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            # Left is the function's name: FastAPI appends path and method, and generated clients take the id for a method's name.
            suffix = f"{re.sub(r'[^a-zA-Z0-9]', '_', path)}_{method}"
            operation["operationId"] = operation["operationId"].removesuffix(suffix)
            refused = refusals(path)
            error = errors.get(path)
            content = {} if error is None else {"content": {JSON: {"schema": {"$ref": REFERENCE.format(model=error.__name__)}}}}
            operation["responses"] |= {str(status): {"description": text, **content} for status, text in refused.items()}
            if 401 in refused:
                operation["security"] = [{name: []} for name in SECURITY_SCHEMES]
                document["components"]["securitySchemes"] = SECURITY_SCHEMES
            _complete_responses(operation)


def _complete_responses(operation: dict[str, Any]) -> None:
    responses: dict[str, Any] = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]  # FastAPI's, of path parameters that take any string
    success = next(response for status, response in responses.items() if int(status) < 300)
    success["description"] = success["description"].replace("Successful Response", "Success")
    for status, response in responses.items():
        if int(status) < 400:
            continue
        content = response.setdefault("content", {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}})
        if PROBLEM in content:
            content[PROBLEM]["example"] = _problem_of(int(status))


def _problem_of(status: int) -> dict[str, Any]:
    error = next(error for error in describe_errors() if error["status"] == status)
    return {
        "type": f"{ERRORS_PAGE}#{error['code']}",
        "title": error["title"],
        "status": status,
        "detail": error["description"],
        "code": error["code"],
    }


def describe_errors() -> list[dict[str, Any]]:
    """The table of errors as the document holds it in `x-errors`: code, status, title and description of each."""
    return [
        {
            "code": entry.error.code,
            "status": entry.status,
            "title": entry.title,
            "description": " ".join((entry.error.__doc__ or "").split()),
        }
        for entry in TABLE
    ]


def list_endpoints(document: Mapping[str, Any]) -> dict[str, str]:
    """Path → method and summary of every operation, as `GET /` lists them."""
    return {
        path: ", ".join(f"{_method(name, operation)}: {operation['summary']}" for name, operation in operations.items())
        for path, operations in document["paths"].items()
    }


def _method(name: str, operation: Mapping[str, Any]) -> str:
    """What a client has to speak: a GET that is answered by 101 opens a WebSocket, and no page."""
    return "GET (WebSocket)" if "101" in operation["responses"] else name.upper()


def description() -> str:
    """The description of the document, in Markdown."""
    rules = "\n".join(f"| `{field}` | {rule} |" for field, rule in BEYOND_SCHEMA.items())
    errors = "\n".join(
        f"| {error['status']} | [`{error['code']}`]({ERRORS_PAGE}#{error['code']}) | {error['title']}. {error['description']} |"
        for error in describe_errors()
    )
    return f"""Forecasts of series and classifications of texts by recurrent networks, batched across requests.

Bodies are JSON. Numbers are finite: NaN and Infinity are refused. A field that is not listed is refused; a field that is `null`
counts as absent, except `state`: `null` begins a sequence.

## Beyond the schemas

What a request must hold that depends on the model or the server; `GET /models/{{name}}` gives a model's values.

| Field | Rule |
|---|---|
{rules}

## Errors

Every error is `application/problem+json` (RFC 9457): `type`, `title` and `status`, `detail` for people, `code` for programs, and
the facts of the case beside them.

| Status | Code | Meaning |
|---|---|---|
{errors}
"""
