"""How HTTP calls each error: one table, and the RFC 9457 body that goes with it.

Decides no error itself: `service/errors.py` holds the tree, the rooms below raise.
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
    MalformedRequest,
    ModelNotFound,
    ModelNotReady,
    Overloaded,
    PayloadTooLarge,
    ServiceError,
)

PROBLEM_TYPE = b"application/problem+json"
# How long a client waits before it asks again for a model that is loading.
LOADING_RETRY_AFTER_S = 1


class HttpError(ServiceError):
    """The request fails before any model is asked."""

    code = "http_error"


class NotFound(HttpError):
    """No door has this path."""

    code = "not_found"


class MethodNotAllowed(HttpError):
    """The door exists, for other methods."""

    code = "method_not_allowed"

    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        self.allowed = sorted(allowed)
        super().__init__(f"{path} takes {', '.join(self.allowed)}, not {method}", allowed=self.allowed)


class UnsupportedMediaType(HttpError):
    """The body is not declared as JSON."""

    code = "unsupported_media_type"


class InternalError(HttpError):
    """Anything that nobody expected; what happened is in the log, not in the message."""

    code = "internal_error"


class Entry(NamedTuple):
    """One row of the table: what HTTP calls an error."""

    error: type[ServiceError]
    status: int
    title: str


# The whole table. An error without a row of its own is called by its nearest base, and at last InternalError.
TABLE: tuple[Entry, ...] = (
    Entry(MalformedRequest, 400, "Request is malformed"),
    Entry(ModelNotFound, 404, "No such model"),
    Entry(NotFound, 404, "No such path"),
    Entry(MethodNotAllowed, 405, "Method not allowed"),
    Entry(AmbiguousModel, 409, "Several models fit"),
    Entry(PayloadTooLarge, 413, "Request is too large"),
    Entry(UnsupportedMediaType, 415, "Body is not JSON"),
    Entry(InvalidInput, 422, "Input does not fit the model"),
    Entry(InferenceFailed, 500, "Model failed"),
    Entry(InternalError, 500, "Unexpected error"),
    Entry(ModelNotReady, 503, "Model is not ready"),
    Entry(Overloaded, 503, "Too busy"),
    Entry(DeadlineExceeded, 504, "Out of time"),
)
_ENTRIES = {entry.error: entry for entry in TABLE}
# Facts never take the place of a member that RFC 9457 defines.
_RESERVED = frozenset({"type", "title", "status", "detail", "instance", "code"})


class Problem(NamedTuple):
    """An error as HTTP says it."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def find_entry(error: type[ServiceError]) -> Entry:
    """The row of the table for `error`: its own, or that of its nearest base."""
    for base in error.__mro__:
        if base in _ENTRIES:
            return _ENTRIES[base]
    return _ENTRIES[InternalError]


def problem(exc: ServiceError) -> Problem:
    """Say `exc` as `application/problem+json`: type, title, status, detail, code, and the facts beside them."""
    entry = find_entry(type(exc))
    is_known = entry.error is not InternalError or isinstance(exc, InternalError)
    code, detail = (exc.code, exc.message) if is_known else (InternalError.code, "an unexpected error; the log says more")
    members: dict[str, object] = {
        "type": f"/docs/errors#{code}",
        "title": entry.title,
        "status": entry.status,
        "detail": detail,
        "code": code,
    }
    if is_known:
        # RFC 9457 keeps `instance` for a URI; which instance of the request it was stands in `instance_index`.
        facts = {"instance_index" if key == "instance" else key: fact for key, fact in exc.facts.items()}
        members |= {key: fact for key, fact in facts.items() if key not in _RESERVED}
    body = to_json(members, inf_nan_mode="strings", serialize_unknown=True)
    headers = [(b"content-type", PROBLEM_TYPE), (b"content-length", b"%d" % len(body))]
    if isinstance(exc, CapacityError) and entry.status == 503:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(exc.retry_after_s))))
    elif isinstance(exc, ModelNotReady):
        headers.append((b"retry-after", b"%d" % LOADING_RETRY_AFTER_S))
    elif isinstance(exc, MethodNotAllowed):
        headers.append((b"allow", ", ".join(exc.allowed).encode()))
    return Problem(entry.status, headers, body)
