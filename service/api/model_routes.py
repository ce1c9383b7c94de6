"""What the routes of several protocols share where they tell of models: the version of a path, the names, JSON."""

from __future__ import annotations

from typing import Protocol

from fastapi.responses import Response

from service.errors import ModelNotFound
from service.wire import write

MAX_VERSION_DIGITS = 9
SHOWN_VERSION_LENGTH = 40


class Index(Protocol):
    """Every version of every model."""

    def index(self) -> list[dict[str, str]]: ...


def json_response(content: object, status: int = 200) -> Response:
    """The content as JSON; none of these routes is on the hot path."""
    return Response(write(content), status, media_type="application/json")


def expect_version(version: str | None) -> str | None:
    """The version of a path, None where it has none. Raises ModelNotFound for one that is no number, as Triton does."""
    if version is not None and not (version.isascii() and version.isdigit() and len(version) <= MAX_VERSION_DIGITS):
        raise ModelNotFound(f'"{version[:SHOWN_VERSION_LENGTH]}" is no version: expected a whole number')
    return version


def list_names(catalog: Index) -> dict[str, list[str]]:
    """The names of the models, as KServe lists them in both its protocols."""
    return {"models": sorted({entry["name"] for entry in catalog.index()})}
