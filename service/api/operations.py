"""The doors for people and machines that look after the service: what is served, is it well, what did it count.

Asks the repository and the metrics; changes nothing.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from service import __version__
from service.api.errors import TABLE, NotFound
from service.api.schemas import Index, Live, ModelDescription, ModelList, Readiness

STATIC = Path(__file__).parent / "static"
STATIC_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
DOORS: Mapping[str, str] = {
    "/predict": "POST: predict with any model",
    "/models": "the models served here, broken ones too",
    "/models/{name}": "one model: what it takes, what it answers, how it was trained",
    "/health/live": "200 while the process answers",
    "/health/ready": "200 while requests should be sent here",
    "/metrics": "what is counted, for Prometheus",
    "/docs": "every door and field, with a form to try it",
    "/openapi.json": "the same for programs",
}


class Shelf(Protocol):
    """What these doors need of the repository."""

    @property
    def is_ready(self) -> bool: ...

    @property
    def reason(self) -> str | None: ...

    def describe(self) -> list[dict[str, Any]]: ...

    def describe_model(self, name: str) -> dict[str, Any]: ...


class _Json(JSONResponse):
    """JSON that a person can read in the browser: these doors are never in a hurry."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, indent=2).encode() + b"\n"


class _Door(NamedTuple):
    path: str
    endpoint: Callable[..., Any]
    about: dict[str, Any]


def operations_router(
    shelf: Shelf, render_metrics: Callable[[str], tuple[bytes, str]], task_endpoints: Mapping[str, str] | None = None
) -> APIRouter:
    """`/`, `/models`, `/health`, `/metrics` and `/docs`. `render_metrics` gets the Accept header.

    `task_endpoints` maps the paths of further endpoints under /predict to what they are for.
    """
    doors = _all_doors(task_endpoints or {})

    async def index(request: Request) -> Response:
        """What this is and where its doors are; JSON for `Accept: application/json`."""
        if "application/json" in request.headers.get("accept", ""):
            return _Json({"name": "sluice", "version": __version__, "doors": doors})
        return HTMLResponse(_index_page(shelf.describe(), doors))

    async def list_models() -> Response:
        """Every model of the models folder with its state; a broken folder says why it is not served."""
        return _Json({"models": shelf.describe()})

    async def describe_model(name: str) -> Response:
        """One model: its tensors, what its task takes, how it was trained and how it scored."""
        return _Json(shelf.describe_model(name))

    async def live() -> Response:
        """200 as long as the process answers. Says nothing of the models."""
        return _Json({"status": "live"})

    async def ready() -> Response:
        """200 once every model is READY, with SLUICE_STRICT_READINESS=false once one is; 503 before. The body has each state."""
        about = {"status": "ready" if shelf.is_ready else "not ready", "reason": shelf.reason, "models": shelf.describe()}
        return _Json({key: value for key, value in about.items() if value is not None}, 200 if shelf.is_ready else 503)

    async def metrics(request: Request) -> Response:
        """What is counted, in Prometheus's text format, or OpenMetrics where the scraper accepts it."""
        content, content_type = render_metrics(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": content_type})

    async def docs() -> Response:
        return HTMLResponse((STATIC / "docs.html").read_text(encoding="utf-8"))

    async def static(file: str) -> Response:
        path = STATIC / file
        if path.parent != STATIC or path.suffix not in STATIC_TYPES or not path.is_file():
            raise NotFound(f'there is nothing at "/static/{file[:100]}"')
        return Response(path.read_bytes(), headers={"content-type": STATIC_TYPES[path.suffix]})

    no_model: dict[int | str, dict[str, Any]] = {404: {"description": "No such model"}}
    not_ready: dict[int | str, dict[str, Any]] = {503: {"description": "A model is not READY", "model": Readiness}}
    plain: dict[int | str, dict[str, Any]] = {200: {"description": "The metrics", "content": {"text/plain": {}}}}
    routes = (
        _Door("/", index, {"tags": ["about"], "response_model": Index, "summary": "What this is"}),
        _Door("/models", list_models, {"tags": ["models"], "response_model": ModelList, "summary": "List the models"}),
        _Door(
            "/models/{name}",
            describe_model,
            {"tags": ["models"], "response_model": ModelDescription, "summary": "Describe a model", "responses": no_model},
        ),
        _Door("/health/live", live, {"tags": ["health"], "response_model": Live, "summary": "Is the process alive"}),
        _Door(
            "/health/ready",
            ready,
            {"tags": ["health"], "response_model": Readiness, "summary": "Is it ready for requests", "responses": not_ready},
        ),
        _Door(
            "/metrics",
            metrics,
            {"tags": ["about"], "summary": "Metrics for Prometheus", "response_class": Response, "responses": plain},
        ),
        _Door("/docs", docs, {"include_in_schema": False}),
        _Door("/static/{file}", static, {"include_in_schema": False}),
    )
    router = APIRouter()
    for path, endpoint, about in routes:
        router.add_api_route(path, endpoint, methods=["GET"], **about)
        router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    return router


def _all_doors(task_endpoints: Mapping[str, str]) -> dict[str, str]:
    """The paths of this server, those of the tasks behind `/predict`."""
    doors: dict[str, str] = {}
    for path, text in DOORS.items():
        doors[path] = text
        if path == "/predict":
            doors |= {path: f"POST: {text}" for path, text in task_endpoints.items()}
    return doors


def describe_errors() -> list[dict[str, Any]]:
    """The table of errors, as `/openapi.json` carries it for the documentation."""
    return [
        {
            "code": entry.error.code,
            "status": entry.status,
            "title": entry.title,
            "description": " ".join((entry.error.__doc__ or "").split()),
        }
        for entry in TABLE
    ]


def _index_page(models: list[dict[str, Any]], doors: Mapping[str, str]) -> str:
    """A page that can be read without styles, scripts or internet."""
    items = "\n".join(
        f"  <li>{_link(path, text)}: {html.escape(text.removeprefix('POST: '))}</li>" for path, text in doors.items()
    )
    rows = "\n".join(
        f'  <li><a href="/models/{html.escape(model["name"])}">{html.escape(model["name"])}</a>: '
        f"{html.escape(model['state'])}{html.escape(_aside(model))}</li>"
        for model in models
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sluice</title>
<link rel="stylesheet" href="/static/docs.css">
<main>
<h1>Sluice {__version__}</h1>
<p>This server answers forecasts and judgements of texts with recurrent networks, over plain HTTP and JSON.
Start at <a href="/docs">/docs</a>: every door, every field, and a form to try it.</p>
<h2>Doors</h2>
<ul>
{items}
</ul>
<h2>Models</h2>
<ul>
{rows or "  <li>none yet</li>"}
</ul>
</main>
</html>
"""


def _link(path: str, text: str) -> str:
    if text.startswith("POST: "):
        return f'<code>POST</code> <a href="/docs">{path}</a>'
    return f"<code>{path}</code>" if "{" in path else f'<a href="{path}">{path}</a>'


def _aside(model: dict[str, Any]) -> str:
    text = model.get("reason") or model.get("description") or ""
    return f", {text}" if text else ""
