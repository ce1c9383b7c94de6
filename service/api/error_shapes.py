"""Which shape errors have, by path: each protocol writes them as its own clients read them.

Knows no protocol: the application adds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from service.api.errors import Problem, problem
from service.errors import ServiceError

ErrorShape = Callable[[ServiceError], Problem]
"""An error as HTTP sends it."""


class ErrorShapes:
    """The shapes of errors by the first part of a path; RFC 9457 where nothing else is said."""

    def __init__(self, by_prefix: Mapping[str, ErrorShape] | None = None) -> None:
        """`by_prefix` maps paths such as "/v2" to what answers there and below."""
        self._by_prefix = sorted((by_prefix or {}).items(), key=lambda item: -len(item[0]))

    def describe(self, exc: ServiceError, path: str, request_id: str | None = None) -> Problem:
        """The answer to a request to this path that ended with `exc`; the id is in the bodies that have a place for it."""
        for prefix, shape in self._by_prefix:
            if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/"):
                return shape(exc)
        return problem(exc, request_id)
