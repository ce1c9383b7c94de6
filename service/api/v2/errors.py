"""Errors as the Open Inference Protocol has them: `{"error": "..."}`, and its statuses."""

from __future__ import annotations

from service.api.errors import InternalError, MethodNotAllowed, NotFound, Problem, find_row, problem
from service.errors import InvalidInput, ServiceError
from service.wire import write

# Triton's words, which its clients show.
_TEXTS: dict[type[ServiceError], str] = {MethodNotAllowed: "Method Not Allowed", NotFound: "Not Found"}


def describe_error(exc: ServiceError) -> Problem:
    """`exc` as JSON with one member, `error`; the headers are those of the other routes."""
    row = find_row(type(exc))
    status, headers, _ = problem(exc)
    text = _TEXTS.get(type(exc), exc.message)
    if row.error is InternalError and not isinstance(exc, InternalError):
        text = "an unexpected error; the log says more"
    body = write({"error": text})
    kept = [(name, value) for name, value in headers if name not in (b"content-type", b"content-length")]
    # The protocol knows no 422: what does not fit the model is a bad request.
    status = 400 if isinstance(exc, InvalidInput) else status
    return Problem(status, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *kept], body)
