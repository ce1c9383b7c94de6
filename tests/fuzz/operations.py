"""Requests that schemathesis makes from the OpenAPI document, by its schemas and against them; the only file that imports it."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, assume, given, seed, settings
from schemathesis.checks import CHECKS

from tests.fuzz.cases import Case
from tests.fuzz.trees import request
from tests.fuzz.wire import Exchange, MalformedResponse, parse_responses

Sender = Callable[[Case], Exchange]
Record = Callable[[Case, Exchange, list[str]], None]
"""Takes a case, what came back, and what schemathesis found wrong with it."""

# What a body must hold beyond its schema depends on the model (`BEYOND_SCHEMA`), so a valid one may be refused; the others look
# for authentication and for resources that are created and deleted.
CHECK_NAMES = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
NUM_WITHOUT_BODY = 20
# Too large, too busy, too late: whatever the schema says of the body. Schemathesis expects none of them.
REFUSED_FOR_OTHER_REASONS = (413, 503, 504)
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)


@schemathesis.serializer("application/x-ndjson")
def _lines(_: object, value: object) -> bytes:
    """Lines of JSON are a string to OpenAPI; what else is generated is one line."""
    return (value if isinstance(value, str) else json.dumps(value, default=str)).encode(errors="replace")


def run(document: Mapping[str, Any], run_seed: int, num_cases: int, send: Sender, record: Record) -> None:
    """Send about `num_cases` requests and hand what came back to `record`: as many for each operation with a body and each mode,
    and a few for the others.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of schemathesis's own dependencies
        schema = schemathesis.openapi.from_dict(dict(document))
        operations: list[Any] = [cast(Any, result).ok() for result in schema.get_all_operations()]
        num_with_body = sum(bool(operation.body) for operation in operations)
        num_each = max(1, num_cases // (num_with_body * len(MODES)))
        for operation in operations:
            for mode in MODES:
                num = num_each if operation.body else min(num_each, NUM_WITHOUT_BODY)
                _run_operation(operation, mode, run_seed, num, send, record)


def _run_operation(operation: Any, mode: Any, run_seed: int, num_cases: int, send: Sender, record: Record) -> None:
    numbers = iter(range(10**9))

    @seed(run_seed)
    @settings(
        max_examples=num_cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def check(generated: Any) -> None:
        try:
            prepared = requests.Request(**generated.as_transport_kwargs(base_url="http://sluice")).prepare()
            case = _as_case(f"operations/{operation.label}/{mode.value}/{next(numbers)}".replace(" ", ""), operation, prepared)
        except (ValueError, UnicodeError):  # what no HTTP client can send
            assume(False)
            return
        exchange = send(case)
        record(case, exchange, _validate(generated, prepared, exchange))

    try:
        check()
    except Exception as exc:
        if type(exc).__name__ not in ("Unsatisfiable", "Unsatisfied"):  # an operation without input cannot be wrong
            raise


def _as_case(name: str, operation: Any, prepared: requests.PreparedRequest) -> Case:
    body = prepared.body or b""
    content = body.encode() if isinstance(body, str) else cast(bytes, body)
    headers = {
        _latin(key): _latin(value)
        for key, value in prepared.headers.items()
        if key.lower() not in ("connection", "content-length")
    }
    if any(byte in part for part in (*headers, *headers.values()) for byte in (b"\r", b"\n", b"\0")):
        raise ValueError("a header of several lines")
    return request(name, prepared.method or "GET", prepared.path_url, content, headers, template=operation.path)


def _latin(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")


@functools.cache
def _checks() -> list[Any]:
    return list(CHECKS.get_by_names(list(CHECK_NAMES)))


def _validate(generated: Any, prepared: requests.PreparedRequest, exchange: Exchange) -> list[str]:
    """What the checks of schemathesis find; a response that is no HTTP is left to the contract."""
    try:
        responses = parse_responses(exchange.received, may_be_head=prepared.method == "HEAD", was_reset=exchange.was_reset)
    except MalformedResponse:
        return []
    if len(responses) != 1 or responses[0].status in REFUSED_FOR_OTHER_REASONS:
        return []
    [response] = responses
    headers = {name: [value] for name, value in response.headers.items()}
    answer = schemathesis.Response(
        status_code=response.status,
        headers=headers,
        content=response.body,
        request=prepared,
        elapsed=exchange.duration_s,
        verify=False,
    )
    try:
        generated.validate_response(answer, checks=_checks())
    except schemathesis.errors.SchemathesisError as exc:
        return [f"schemathesis: {str(exc)[:600]}"]
    except BaseExceptionGroup as exc:
        return [f"schemathesis: {str(inner)[:400]}" for inner in exc.exceptions]
    return []
