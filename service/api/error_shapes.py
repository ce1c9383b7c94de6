"""Which shape errors have, by path: each protocol writes them as its own clients read them.

Knows no protocol: the application adds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from service.api.errors import Problem, problem
from service.errors import ServiceError

ErrorShape = Callable[[ServiceError], Problem]
"""An error as HTTP sends it."""


class ShapedPath(NamedTuple):
    """Where errors have a shape: at a path and below it, or with `is_exact` at that path alone."""

    path: str
    shape: ErrorShape
    is_exact: bool = False


class ErrorShapes:
    """The shapes of errors by path: that of the path itself, else of the longest path above; RFC 9457 where there is none."""

    def __init__(self, shaped_paths: Iterable[ShapedPath] = ()) -> None:
        """Of entries for one path, the last counts."""
        paths = list(shaped_paths)
        self._exact = {entry.path: entry.shape for entry in paths if entry.is_exact}
        above = {entry.path: entry.shape for entry in paths if not entry.is_exact}
        self._by_prefix = sorted(above.items(), key=lambda item: -len(item[0]))

    def describe(self, exc: ServiceError, path: str, request_id: str | None = None) -> Problem:
        """The answer to a request to this path that ended with `exc`; the id is in the bodies that have a place for it."""
        exact = self._exact.get(path)
        if exact is not None:
            return exact(exc)
        for prefix, shape in self._by_prefix:
            if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/"):
                return shape(exc)
        return problem(exc, request_id)
