"""What every answer must be, whatever was sent: whole HTTP, a documented status, a documented body, never an unexplained 5xx.

Pure: takes what came back, says what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

import jsonschema

from tests.fuzz.cases import Case
from tests.fuzz.streams import SWITCHED, WEBSOCKET, check_events, check_frames
from tests.fuzz.wire import Exchange, MalformedResponse, Response, parse_responses
from tests.json_schemas import validator

# The code that explains each of the two; `/health/ready` says 503 with its reasons, in its own form.
EXPLAINED = {503: {"overloaded", "model_not_ready"}, 504: {"deadline_exceeded"}}
READY = "/health/ready"
PROBLEM = "application/problem+json"
# What the paths of other wire formats hold, whose errors have shapes of their own.
ADAPTED = (b"/v1", b"/invocations", b"/v2/forecast", b"/vertex", b"/model_params", b"/validate_api_key", b"/ping")
# Of an error, and of a model or server that is not ready, below `/v2`.
V2_MEMBERS = {"error", "ready", "name"}
# What a static file or a preflight may add to the statuses of the document.
OTHER_STATUSES = {204, 206, 304, 416}
# Headers without which a client does not know what to do next.
REQUIRED_HEADERS = {405: "allow", 429: "retry-after", 503: "retry-after", 401: "www-authenticate"}


class Contract:
    """The answers that an OpenAPI document allows."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._operations: dict[tuple[str, str], Mapping[str, Any]] = {
            (method.upper(), path): about["responses"]
            for path, methods in document["paths"].items()
            for method, about in methods.items()
        }
        statuses = {int(status) for responses in self._operations.values() for status in responses}
        self._statuses = statuses | {error["status"] for error in document.get("x-errors", ())} | OTHER_STATUSES
        self._components = document["components"]
        self._validators: dict[str, jsonschema.protocols.Validator] = {}

    def check(self, case: Case, exchange: Exchange) -> list[str]:
        """What is wrong with the answer to a case; empty: nothing."""
        if case.ending in ("close", "reset"):
            return []
        if not exchange.has_ended:
            return [f"neither answered nor closed within {exchange.duration_s:.0f} s; so far {exchange.received[:200]!r}"]
        if case.operation == WEBSOCKET and exchange.received.startswith(SWITCHED):
            return check_frames(exchange.received, is_whole=case.ending == "wait" and not exchange.was_reset)
        try:
            responses = parse_responses(exchange.received, may_be_head=b"HEAD" in case.sent.upper(), was_reset=exchange.was_reset)
        except MalformedResponse as exc:
            return [f"malformed response: {exc}"]
        is_v2 = b"/v2" in case.sent
        has_own_errors = case.operation is None and any(path in case.sent for path in ADAPTED)
        problems = [
            problem for response in responses for problem in self._check_response(response, is_v2, has_own_errors, case.operation)
        ]
        if case.is_whole and len(responses) != 1 and not exchange.was_reset:
            return [*problems, f"{len(responses)} answers to one request"]
        if case.operation is not None:
            problems += [problem for response in responses for problem in self._check_operation(case.operation, response)]
        return problems

    def _check_response(
        self, response: Response, is_v2: bool, has_own_errors: bool, operation: tuple[str, str] | None
    ) -> list[str]:
        status = response.status
        if status not in self._statuses:
            return [f"status {status} is documented nowhere"]
        if response.is_head:
            return []
        value: Any = None
        if response.media_type in ("application/json", PROBLEM):
            try:
                value = json.loads(response.body, parse_constant=_refuse_constant)
            except ValueError as exc:
                return [f"status {status}: the body is no JSON ({exc}): {response.body[:200]!r}"]
        if is_v2 and isinstance(value, dict) and value.keys() <= V2_MEMBERS and not isinstance(value.get("error"), dict):
            return _check_v2_error(status, value)
        is_readiness = status == 503 and response.media_type == "application/json" and "models" in (value or {})
        if status < 400 or is_readiness:
            return []
        has_own_errors = has_own_errors and response.media_type == "application/json"
        if has_own_errors or (operation is not None and self._has_own_errors(operation, status)):
            return [] if status < 500 or status in EXPLAINED else [f"server error {status}: {response.body[:300]!r}"]
        if response.media_type != PROBLEM:
            return [f"status {status} as {response.media_type!r}: {response.body[:200]!r}"]
        problems = self._validate({"$ref": "#/components/schemas/Problem"}, value)
        if not problems and value["status"] != status:
            problems.append(f"status {status} with a problem of status {value['status']}")
        code = value.get("code") if isinstance(value, dict) else None
        if status >= 500 and code not in EXPLAINED.get(status, ()):
            problems.append(f"server error {status} {code}: {response.body[:300]!r}")
        if REQUIRED_HEADERS.get(status, "content-type") not in response.headers:
            problems.append(f"status {status} without the header {REQUIRED_HEADERS[status]}")
        return problems

    def _has_own_errors(self, operation: tuple[str, str], status: int) -> bool:
        """Whether the errors of an operation are those of another protocol, in its own shape."""
        return "application/json" in self._operations[operation].get(str(status), {}).get("content", {})

    def _check_operation(self, operation: tuple[str, str], response: Response) -> list[str]:
        documented = self._operations[operation].get(str(response.status))
        where = f"{operation[0]} {operation[1]}"
        if documented is None:
            return [f"{where}: status {response.status} is not documented there: {response.body[:300]!r}"]
        content = documented.get("content", {})
        if response.media_type not in content:
            return [f"{where}: {response.status} as {response.media_type!r}, documented is {sorted(content)}"]
        if response.media_type == "text/event-stream":
            return check_events(response.body)
        schema = content[response.media_type].get("schema")
        if schema is None or response.media_type not in ("application/json", PROBLEM):
            return []
        return self._validate(schema, json.loads(response.body))

    def _validate(self, schema: Mapping[str, Any], value: Any) -> list[str]:
        key = json.dumps(schema, sort_keys=True)
        if key not in self._validators:
            self._validators[key] = validator(schema, self._components)
        error = next(self._validators[key].iter_errors(value), None)
        return [] if error is None else [f"not as documented: {error.json_path}: {error.message[:300]}"]


def _check_v2_error(status: int, value: Mapping[str, Any]) -> list[str]:
    """The Open Inference Protocol's errors have a text and no code; its readiness is 503 without one."""
    if status >= 500 and status not in EXPLAINED:
        return [f"server error {status}: {value}"]
    if status >= 400 and "ready" not in value and not (isinstance(value.get("error"), str) and value["error"]):
        return [f"status {status} without a reason: {value}"]
    return []


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
