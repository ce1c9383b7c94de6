"""The pages for people: their headers, what they load, what they escape; and Swagger UI in a real browser."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from service.api.errors import TABLE
from service.api.openapi import describe_errors
from service.api.page import FILES, PLAYGROUND, ROUTES, SECURITY_HEADERS, STATIC, WholeFileResponse, errors_page, index_page
from tests import browser
from tests.folders import write_forecast_folder, write_text_folder
from tests.serving import client_of, server_process, wait_until

ROOT = Path(__file__).parent.parent.parent.parent
PAGES = ("/", "/docs", "/docs/errors")
# The files of swagger-ui-dist as its makers publish them on npm. Whoever raises fastapi-swagger in constraints.txt compares its
# files with that package and writes the new sums here.
SWAGGER_UI = {
    "version": "0.4.64",
    "swagger-ui-bundle.js": "3f6abf70480db7e07914df4c98a77385f22ea585eaf457a3e6415ba0eae2d167",
    "swagger-ui.css": "c3cfe8248c4b0b89673600fb829924eafbac6de4bc4b2b06f5f5243483074d0a",
}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    write_forecast_folder(tmp_path)
    async with client_of(tmp_path) as client:
        yield client


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style"):
            self.inline += data.strip()


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_has_the_security_headers_and_no_inline_script_or_style(client: httpx.AsyncClient, path: str) -> None:
    page = await client.get(path, headers={"accept": "text/html"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert SECURITY_HEADERS.keys() == {"content-security-policy", "x-content-type-options", "x-frame-options", "referrer-policy"}
    assert {name: page.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
    elements = Elements(page.text)
    assert elements.inline == ""
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag


def test_the_policy_allows_nothing_inline_and_nobody_else() -> None:
    policy = dict(rule.split(" ", 1) for rule in SECURITY_HEADERS["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' data:"


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_loads_from_this_server_alone(client: httpx.AsyncClient, path: str) -> None:
    page = (await client.get(path, headers={"accept": "text/html"})).text
    assert "//" not in page
    links = {value for _, attributes in Elements(page).found for name, value in attributes.items() if name in ("src", "href")}
    for link in links - {"data:,"}:
        assert link is not None
        assert (await client.get(link)).status_code == 200, link


def test_our_own_files_name_no_other_server() -> None:
    for path in STATIC.iterdir():
        assert re.findall(r"(?:https?:)?//[a-z]+\.[a-z]", path.read_text()) == [], path
    assert {path.name for path in STATIC.iterdir()} <= FILES.keys() | {PLAYGROUND.name}


@pytest.mark.parametrize("name", FILES)
async def test_a_file_has_its_type_and_may_be_cached(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get(f"/static/{name}", headers={"range": "bytes=x"})
    assert (answer.status_code, answer.content) == (200, FILES[name][0].read_bytes())
    assert answer.headers["content-type"] == FILES[name][1] + "; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"].startswith("public, max-age=")
    head = await client.head(f"/static/{name}")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(answer.content)))


async def test_a_file_is_sent_in_parts_that_wait_for_the_client() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("a file needs no body")

    async def send(message: Message) -> None:
        sent.append(message)

    path, media_type = FILES["swagger-ui-bundle.js"]
    scope = {"type": "http", "method": "GET", "headers": [], "asgi": {"spec_version": "2.4"}}
    await WholeFileResponse(path, media_type=media_type)(scope, receive, send)
    start, *parts = sent
    assert start["status"] == 200
    assert b"".join(part["body"] for part in parts) == path.read_bytes()
    assert max(len(part["body"]) for part in parts) <= 2**16


@pytest.mark.parametrize(
    "name",
    ["", ".", "%2e%2e", "..%2fpage.py", "%2fetc%2fpasswd", "%00", "__init__.py", "sluice.css/", "a" * 5000, "SLUICE.CSS"],
)
async def test_no_other_file_is_served(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get(f"/static/{name}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert len(answer.content) < 6000


def test_the_files_of_swagger_ui_are_those_that_its_makers_published() -> None:
    assert version("fastapi-swagger") == SWAGGER_UI["version"]
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert hashlib.sha256(FILES[name][0].read_bytes()).hexdigest() == SWAGGER_UI[name], name


async def test_the_type_of_a_problem_leads_to_the_line_that_explains_it(client: httpx.AsyncClient) -> None:
    answer = await client.post("/predict/forecast", json={"instances": [{"history": []}]})
    path, _, anchor = answer.json()["type"].partition("#")
    page = await client.get(path)
    assert f'<tr id="{anchor}">' in page.text
    anchors = {attributes.get("id") for _, attributes in Elements(page.text).found} - {None}
    assert anchors == {entry.error.code for entry in TABLE}


async def test_the_pages_are_counted_by_their_routes(client: httpx.AsyncClient) -> None:
    for path in ("/docs", "/docs/errors", "/openapi.json", "/static/sluice.css"):
        await client.get(path)
    metrics = (await client.get("/metrics")).text
    assert [route for route in ROUTES if f'route="{route}"' not in metrics] == []


HOSTILE = "<script>alert(1)</script>\"'&"


def structure(text: str) -> list[tuple[str, list[str]]]:
    """The elements and names of attributes of the pages, where every text that is not ours is `text`."""
    models: list[dict[str, Any]] = [
        {"name": text, "state": text, "reason": text},
        {"name": "a", "state": "READY", "description": text},
        {"name": "b", "state": "READY", "description": None},
    ]
    index = index_page({f"/{text}": text, f"/{text}/": f"GET: {text}"}, models)
    errors = errors_page([{"code": text, "status": 400, "title": text, "description": text}])
    return [(tag, list(attributes)) for page in (index, errors) for tag, attributes in Elements(page).found]


def test_whatever_a_manifest_or_a_folder_holds_is_text_on_the_page() -> None:
    assert structure(HOSTILE) == structure("text")


def test_a_server_without_models_says_so_on_its_page() -> None:
    assert '<tr><td colspan="3">none</td></tr>' in index_page({"/models": "GET: List the models"}, [])


@pytest.fixture(scope="module")
def window() -> Iterator[browser.Browser]:
    if not browser.IS_THERE:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    with browser.open_browser() as window:
        yield window


def test_a_browser_sees_every_operation_and_sends_requests_from_the_page(window: browser.Browser, tmp_path: Path) -> None:
    write_forecast_folder(tmp_path, "forecast-hourly")  # what the examples of the document name
    write_text_folder(tmp_path, "sentiment-en")
    with server_process(tmp_path) as server:
        window.open(f"{server.url}/docs")
        wait_until(lambda: window.texts(".opblock-summary-path"), "Swagger UI lists the operations")
        shown = set(zip(window.texts(".opblock-summary-path"), window.texts(".opblock-summary-method"), strict=True))
        document = httpx.get(f"{server.url}/openapi.json").json()
        assert shown == {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
        assert {error["code"] for error in describe_errors()} <= set(window.texts(".info td code"))

        for path, methods in document["paths"].items():
            if "predict" not in methods.get("post", {}).get("tags", ()):
                continue
            block = f"#operations-predict-{methods['post']['operationId']}"
            window.click(f"{block} .opblock-summary-control")
            window.click(f"{block} .try-out__btn")
            window.click(f"{block} .execute")
            cell = f"{block} .live-responses-table tbody .response-col_status"
            wait_until(lambda cell=cell: window.texts(cell), f"{path} answers")
            assert window.texts(cell) == ["200"], path
            assert '"predictions"' in window.texts(f"{block} .live-responses-table code")[0]
        # Neither a breach of the policy nor a file that did not load.
        assert window.console() == []


def test_a_browser_shows_the_index_and_the_errors_without_complaint(window: browser.Browser, tmp_path: Path) -> None:
    with server_process(write_forecast_folder(tmp_path).parent.parent) as server:
        window.open(server.url)
        assert window.texts("h2") == ["Endpoints", "Models"]
        window.open(f"{server.url}/docs/errors#invalid_input")
        assert window.texts("tr:target code") == ["invalid_input"]
        assert window.console() == []
