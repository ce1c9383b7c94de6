"""The pages for people: the index, the playground, Swagger UI and the table of errors, with the files that they load.

Each page loads from this server alone and holds no inline script or style. Swagger UI (its files come with the package
fastapi-swagger) reads `/openapi.json`, the playground calls the API; the other pages need no scripts.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import fastapi_swagger.resources
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from service import __version__
from service.api.errors import NotFound
from service.api.openapi import ERRORS_PAGE, describe_errors

STATIC = Path(__file__).parent / "static"
# fastapi-swagger, because it holds the files of swagger-ui-dist and little else (1.8 MB), follows its releases within days and
# needs nothing but FastAPI; fastapi-offline adds Redoc (2.8 MB), swagger-ui-bundle ends at 4.15, swagger-ui-py has 25 MB. Only
# its files are used: its routes have an inline script and absolute addresses.
SWAGGER_UI = Path(fastapi_swagger.resources.__path__[0])
UPLOT = Path(__file__).parent / "third_party" / "uplot"
PLAYGROUND = STATIC / "play.html"
PLAYGROUND_PATH = "/play"
PLAYGROUND_FILES: Mapping[str, tuple[Path, str]] = {
    "play.css": (STATIC / "play.css", "text/css"),
    **{path.name: (path, "text/javascript") for path in sorted(STATIC.glob("play*.js"))},
    "uplot.css": (UPLOT / "uPlot.min.css", "text/css"),
    "uplot.js": (UPLOT / "uPlot.iife.min.js", "text/javascript"),
}
FILES: Mapping[str, tuple[Path, str]] = {
    "sluice.css": (STATIC / "sluice.css", "text/css"),
    "swagger-initializer.js": (STATIC / "swagger-initializer.js", "text/javascript"),
    "swagger-ui.css": (SWAGGER_UI / "swagger-ui.css", "text/css"),
    "swagger-ui-bundle.js": (SWAGGER_UI / "swagger-ui-bundle.js", "text/javascript"),
    **PLAYGROUND_FILES,
}
ROUTES = ("/docs", ERRORS_PAGE, "/openapi.json", "/static/{file}", PLAYGROUND_PATH)
"""The routes that the OpenAPI document does not list."""
SECURITY_HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
# Files change with a release; a page that was opened before is right again an hour later.
MAX_AGE_S = 3600


class PageResponse(HTMLResponse):
    """A page with the security headers."""

    def __init__(self, content: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(content, headers={**SECURITY_HEADERS, **(headers or {})})


def page_routes(*, has_playground: bool) -> tuple[str, ...]:
    """The routes of ROUTES that a server has."""
    return tuple(route for route in ROUTES if has_playground or route != PLAYGROUND_PATH)


class WholeFileResponse(FileResponse):
    """A file, read and sent in parts as the client takes them. Byte ranges are ignored: nothing here is worth resuming."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def page_router(*, has_playground: bool = True) -> APIRouter:
    """`/docs`, `/docs/errors`, `/static/{file}` and `/play`."""
    files = FILES if has_playground else {name: entry for name, entry in FILES.items() if name not in PLAYGROUND_FILES}

    async def docs() -> Response:
        return PageResponse(docs_page())

    async def errors() -> Response:
        return PageResponse(errors_page(describe_errors()))

    async def play(request: Request) -> Response:
        return _cached_file(request, PLAYGROUND, "text/html", {**SECURITY_HEADERS, "cache-control": "no-cache"})

    async def static(request: Request, file: str) -> Response:
        if file not in files:
            raise NotFound(f'there is nothing at "/static/{file[:100]}"')
        path, media_type = files[file]
        headers = {"cache-control": f"public, max-age={MAX_AGE_S}", "x-content-type-options": "nosniff"}
        return _cached_file(request, path, media_type, headers)

    router = APIRouter(include_in_schema=False)
    routes: dict[str, Callable[..., Awaitable[Response]]] = {"/docs": docs, ERRORS_PAGE: errors, "/static/{file}": static}
    if has_playground:
        routes[PLAYGROUND_PATH] = play
    for path, endpoint in routes.items():
        router.add_api_route(path, endpoint, methods=["GET", "HEAD"])
    return router


def _cached_file(request: Request, path: Path, media_type: str, headers: Mapping[str, str]) -> Response:
    """A file, or 304 to a client that has it."""
    headers = {**headers, "etag": _entity_tag(path)}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if known & {headers["etag"], "*"}:
        return Response(status_code=304, headers=headers)
    return WholeFileResponse(path, headers=headers, media_type=media_type)


@cache
def _entity_tag(path: Path) -> str:
    """Of the content, so that all servers of one release have the same."""
    return f'"{hashlib.sha256(path.read_bytes()).hexdigest()[:32]}"'


def index_page(endpoints: Mapping[str, str], models: Iterable[Mapping[str, Any]], *, has_playground: bool = True) -> str:
    """The first page: endpoints (path → method and summary) and models, as `GET /models` describes them."""
    playground = f'\n<a href="{PLAYGROUND_PATH}">The playground</a> shows answers as you type.' if has_playground else ""
    rows = "\n".join(
        f"<tr><td>{_path_link(path, summary)}</td><td>{html.escape(summary)}</td></tr>" for path, summary in endpoints.items()
    )
    served = "\n".join(
        f'<tr><td><a href="/models/{html.escape(model["name"])}"><code>{html.escape(model["name"])}</code></a></td>'
        f"<td>{html.escape(model['state'])}</td>"
        f"<td>{html.escape(str(model.get('reason') or model.get('description') or ''))}</td></tr>"
        for model in models
    )
    return _page(
        "Sluice",
        f"""<h1>Sluice {html.escape(__version__)}</h1>
<p>This server forecasts series and classifies texts with recurrent networks, over HTTP and JSON.
<a href="/docs">The API documentation</a> describes every endpoint and sends requests from the browser;
<a href="/openapi.json">openapi.json</a> is the same for programs.{playground}</p>
<h2>Endpoints</h2>
<table>
<thead><tr><th>Path</th><th>Method and summary</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
<h2>Models</h2>
<table>
<thead><tr><th>Name</th><th>State</th><th>Description</th></tr></thead>
<tbody>
{served or '<tr><td colspan="3">none</td></tr>'}
</tbody>
</table>""",
    )


def errors_page(errors: Iterable[Mapping[str, Any]]) -> str:
    """Every error (as `describe_errors` lists them), each under the anchor that the `type` of its problems points at."""
    rows = "\n".join(
        f'<tr id="{html.escape(error["code"])}"><td>{error["status"]}</td><td><code>{html.escape(error["code"])}</code></td>'
        f"<td>{html.escape(error['title'])}. {html.escape(error['description'])}</td></tr>"
        for error in errors
    )
    return _page(
        "Sluice: errors",
        f"""<h1>Errors</h1>
<p>Every error is <code>application/problem+json</code> (RFC 9457): <code>type</code>, <code>title</code> and <code>status</code>,
<code>detail</code> for people, <code>code</code> for programs, and the facts of the case beside them.
<a href="/docs">The API documentation</a> says which endpoint returns which.</p>
<table>
<thead><tr><th>Status</th><th>Code</th><th>Meaning</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>""",
    )


def docs_page() -> str:
    """Swagger UI, which `swagger-initializer.js` starts."""
    return _page(
        "Sluice: API documentation",
        f"""<noscript><p>This page needs JavaScript. Without it: <a href="/openapi.json">openapi.json</a>, which it shows,
and <a href="{ERRORS_PAGE}">the table of errors</a>.</p></noscript>
<div id="swagger-ui"></div>
<script src="/static/swagger-ui-bundle.js"></script>
<script src="/static/swagger-initializer.js"></script>""",
        style="swagger-ui.css",
    )


def _page(title: str, body: str, *, style: str = "sluice.css") -> str:
    # An empty icon, so that no browser looks for /favicon.ico.
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/static/{style}">
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _path_link(path: str, summary: str) -> str:
    """A link to what a browser can open."""
    shown = f"<code>{html.escape(path)}</code>"
    return shown if "{" in path or not summary.startswith("GET:") else f'<a href="{html.escape(path)}">{shown}</a>'
