"""FastAPI's own error handlers replaced: for the routes that it runs, every error is answered by the table of `errors.py`."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.api.errors import InternalError, MethodNotAllowed, NotFound, problem
from service.context import CURRENT
from service.errors import MalformedRequest, ServiceError


def add_error_handlers(api: FastAPI) -> None:
    """Have `api` answer its own errors, and those that its routes raise, as `application/problem+json`."""
    api.add_exception_handler(Exception, _answer_unexpected_error)
    api.add_exception_handler(ServiceError, _answer_service_error)
    api.add_exception_handler(HTTPException, _answer_http_exception)
    api.add_exception_handler(RequestValidationError, _answer_validation_error)


async def _answer_service_error(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, ServiceError)
    return _response(exc)


async def _answer_http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    path = request.url.path[:200]
    if exc.status_code == 405:
        allowed = set((exc.headers or {}).get("Allow", "").split(", "))
        # GET and HEAD are routes of their own, and Starlette names the first one's methods only.
        return _response(MethodNotAllowed(request.method, path, allowed | ({"HEAD"} if "GET" in allowed else set())))
    if exc.status_code == 404:
        return _response(NotFound(f'there is nothing at "{path}"', path=path))
    return _response(InternalError(str(exc.detail)))


async def _answer_validation_error(_: Request, exc: Exception) -> Response:
    return _response(MalformedRequest(str(exc)))


async def _answer_unexpected_error(_: Request, exc: Exception) -> Response:
    # Starlette raises it again after this answer, and the gateway logs it.
    return _response(InternalError("an unexpected error; the log says more"))


def _response(exc: ServiceError) -> Response:
    context = CURRENT.get()
    status, headers, body = problem(exc, None if context is None else context.request_id)
    return Response(body, status, {name.decode(): value.decode() for name, value in headers})
