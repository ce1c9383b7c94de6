"""How HTTP calls each error: one table, and the RFC 9457 body that goes with it.

Decides no error itself: `service/errors.py` holds the tree, the folders below raise them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from pydantic_core import to_json

from service.errors import (
    AmbiguousModel,
    CapacityError,
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    LoadFailed,
    MalformedRequest,
    ModelNotFound,
    ModelNotReady,
    Overloaded,
    PayloadTooLarge,
    SequenceConflict,
    SequenceNotFound,
    ServiceError,
    StateError,
    StoreUnavailable,
)

PROBLEM_TYPE = b"application/problem+json"
# How long a client waits before it tries again while a model is loading.
LOADING_RETRY_AFTER_S = 1


class HttpError(ServiceError):
    """The request fails before it reaches a model."""

    code = "http_error"


class NotFound(HttpError):
    """No endpoint has this path."""

    code = "not_found"


class MethodNotAllowed(HttpError):
    """The endpoint exists, for other methods."""

    code = "method_not_allowed"

    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        self.allowed = sorted(allowed)
        super().__init__(f"{path} takes {', '.join(self.allowed)}, not {method}", allowed=self.allowed)


class UnsupportedMediaType(HttpError):
    """The body is not declared as JSON."""

    code = "unsupported_media_type"


class RequestTimedOut(HttpError):
    """The head or the body of the request, or the next message of a WebSocket, did not come in time; the connection is closed."""

    code = "request_timeout"


class UrlTooLong(HttpError):
    """The URL has more bytes than are read; the connection is closed."""

    code = "url_too_long"


class HeadTooLarge(HttpError):
    """The request line and headers have more bytes than are read; the connection is closed."""

    code = "head_too_large"


class UpgradeRequired(HttpError):
    """The endpoint speaks WebSocket, and the request does not open one."""

    code = "upgrade_required"


class InternalError(HttpError):
    """An unexpected error; what happened is in the log, not in the message."""

    code = "internal_error"


class Unauthorized(HttpError):
    """The request needs an API key, and has none or one that is not valid."""

    code = "unauthorized"

    def __init__(self, message: str, *, has_credentials: bool) -> None:
        super().__init__(message)
        # RFC 6750: which error it was is told to those alone who presented a key.
        self.challenge = b'Bearer error="invalid_token"' if has_credentials else b"Bearer"


class Forbidden(HttpError):
    """The API key is valid and has not the scope for this endpoint, or a page of this origin may not open a WebSocket."""

    code = "forbidden"


class RateLimited(HttpError):
    """The client sends more requests than its rate; this one was not counted."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: float, **facts: object) -> None:
        super().__init__(message, **facts)
        self.retry_after_s = retry_after_s


class ErrorRow(NamedTuple):
    """One row of the table: what HTTP calls an error."""

    error: type[ServiceError]
    status: int
    title: str


# The whole table. An error without a row of its own is called by its nearest base, and at last InternalError.
TABLE: tuple[ErrorRow, ...] = (
    ErrorRow(MalformedRequest, 400, "Request is malformed"),
    ErrorRow(Unauthorized, 401, "API key needed"),
    ErrorRow(Forbidden, 403, "Not allowed"),
    ErrorRow(ModelNotFound, 404, "No such model"),
    ErrorRow(SequenceNotFound, 404, "No such sequence"),
    ErrorRow(NotFound, 404, "No such path"),
    ErrorRow(MethodNotAllowed, 405, "Method not allowed"),
    ErrorRow(RequestTimedOut, 408, "Request came too slowly"),
    ErrorRow(AmbiguousModel, 409, "Several models fit"),
    ErrorRow(LoadFailed, 409, "Model cannot be loaded"),
    ErrorRow(SequenceConflict, 409, "Sequence is of another graph"),
    ErrorRow(PayloadTooLarge, 413, "Request is too large"),
    ErrorRow(UrlTooLong, 414, "URL is too long"),
    ErrorRow(UnsupportedMediaType, 415, "Body is not JSON"),
    ErrorRow(InvalidInput, 422, "Input does not fit the model"),
    ErrorRow(StateError, 422, "State cannot be used"),
    ErrorRow(UpgradeRequired, 426, "WebSocket needed"),
    ErrorRow(RateLimited, 429, "Too many requests"),
    ErrorRow(HeadTooLarge, 431, "Request head is too large"),
    ErrorRow(InferenceFailed, 500, "Model failed"),
    ErrorRow(InternalError, 500, "Unexpected error"),
    ErrorRow(ModelNotReady, 503, "Model is not ready"),
    ErrorRow(Overloaded, 503, "Too busy"),
    ErrorRow(StoreUnavailable, 503, "States of sequences cannot be reached"),
    ErrorRow(DeadlineExceeded, 504, "Out of time"),
)
_ROWS = {row.error: row for row in TABLE}
# Facts never take the place of a member that RFC 9457 defines.
_RESERVED = frozenset({"type", "title", "status", "detail", "instance", "code", "request_id"})


class Problem(NamedTuple):
    """An error as HTTP sends it."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def find_row(error: type[ServiceError]) -> ErrorRow:
    """The row of the table for `error`: its own, or that of its nearest base."""
    for base in error.__mro__:
        if base in _ROWS:
            return _ROWS[base]
    return _ROWS[InternalError]


def problem(exc: ServiceError, request_id: str | None = None) -> Problem:
    """`exc` as `application/problem+json`: type, title, status, detail, code, the facts beside them, and the request's id."""
    row = find_row(type(exc))
    is_known = row.error is not InternalError or isinstance(exc, InternalError)
    code, detail = (exc.code, exc.message) if is_known else (InternalError.code, "an unexpected error; the log says more")
    members: dict[str, object] = {
        "type": f"/docs/errors#{code}",
        "title": row.title,
        "status": row.status,
        "detail": detail,
        "code": code,
    }
    if is_known:
        # RFC 9457 keeps `instance` for a URI; which instance of the request it was stands in `instance_index`.
        facts = {"instance_index" if key == "instance" else key: fact for key, fact in exc.facts.items()}
        members |= {key: fact for key, fact in facts.items() if key not in _RESERVED}
    if request_id is not None:
        members["request_id"] = request_id
    body = to_json(members, inf_nan_mode="strings", serialize_unknown=True)
    headers = [(b"content-type", PROBLEM_TYPE), (b"content-length", b"%d" % len(body))]
    if isinstance(exc, RateLimited) or (isinstance(exc, CapacityError) and row.status == 503):
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(exc.retry_after_s))))
    elif isinstance(exc, ModelNotReady):
        headers.append((b"retry-after", b"%d" % LOADING_RETRY_AFTER_S))
    elif isinstance(exc, UpgradeRequired):
        headers += [(b"upgrade", b"websocket"), (b"sec-websocket-version", b"13")]
    elif isinstance(exc, MethodNotAllowed):
        headers.append((b"allow", ", ".join(exc.allowed).encode()))
    elif isinstance(exc, Unauthorized):
        headers.append((b"www-authenticate", exc.challenge))
    return Problem(row.status, headers, body)
