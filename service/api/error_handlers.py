"""FastAPI's own error handlers replaced: for the routes that it runs, every error is answered by the table of `errors.py`."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.api.error_shapes import ErrorShapes
from service.api.errors import InternalError, MethodNotAllowed, NotFound
from service.context import CURRENT
from service.errors import MalformedRequest, ServiceError


def add_error_handlers(api: FastAPI, shapes: ErrorShapes | None = None) -> None:
    """Have `api` answer its own errors, and those that its routes raise, in the shape of their paths."""
    shapes = shapes or ErrorShapes()

    def respond(request: Request, exc: ServiceError) -> Response:
        context = CURRENT.get()
        request_id = None if context is None else context.request_id
        status, headers, body = shapes.describe(exc, request.url.path, request_id)
        return Response(body, status, {name.decode(): value.decode() for name, value in headers})

    async def answer_service_error(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, ServiceError)
        return respond(request, exc)

    async def answer_http_exception(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        path = request.url.path[:200]
        if exc.status_code == 405:
            allowed = set((exc.headers or {}).get("Allow", "").split(", "))
            # GET and HEAD are routes of their own, and Starlette names the first one's methods only.
            return respond(request, MethodNotAllowed(request.method, path, allowed | ({"HEAD"} if "GET" in allowed else set())))
        if exc.status_code == 404:
            return respond(request, NotFound(f'there is nothing at "{path}"', path=path))
        return respond(request, InternalError(str(exc.detail)))

    async def answer_validation_error(request: Request, exc: Exception) -> Response:
        return respond(request, MalformedRequest(str(exc)))

    async def answer_unexpected_error(request: Request, exc: Exception) -> Response:
        # Starlette raises it again after this answer, and the gateway logs it.
        return respond(request, InternalError("an unexpected error; the log says more"))

    api.add_exception_handler(Exception, answer_unexpected_error)
    api.add_exception_handler(ServiceError, answer_service_error)
    api.add_exception_handler(HTTPException, answer_http_exception)
    api.add_exception_handler(RequestValidationError, answer_validation_error)
