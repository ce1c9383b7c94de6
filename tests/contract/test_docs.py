"""The README and the page of the HTTP API are held against a running server: every endpoint, and every curl with its answer."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.api.openapi import describe_errors
from service.observability.metrics import Metrics
from service.settings import Settings
from tests.docs.pages import Curl, assert_shows, curls
from tests.docs.test_links import PAGES
from tests.folders import write_tensor_folder
from tests.serving import server_process

ROOT = Path(__file__).parent.parent.parent
REFERENCE = ROOT / "docs" / "reference"
README = (ROOT / "README.md").read_text(encoding="utf-8")
API = (REFERENCE / "http-api.md").read_text(encoding="utf-8")
METRICS = (REFERENCE / "metrics.md").read_text(encoding="utf-8")
PLAYGROUND = (ROOT / "docs" / "how-to" / "playground.md").read_text(encoding="utf-8")
CURLS = [*curls(README), *curls(API), *curls(PLAYGROUND)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled models, and beside them `mine` of the page."""
    folder = tmp_path_factory.mktemp("documented") / "models"
    shutil.copytree(ROOT / "models", folder)
    write_tensor_folder(folder, "mine")
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[str]:
    with server_process(models) as process:
        yield process.url


def test_every_endpoint_is_on_the_page(server: str) -> None:
    endpoints = httpx.get(f"{server}/", headers={"accept": "application/json"}).json()["endpoints"]
    assert {"/predict", "/models", "/metrics"} <= endpoints.keys()
    for path, about in endpoints.items():
        method = re.split("[ :]", about)[0]
        assert f"`{method} {path}`" in API, path


def test_every_endpoint_that_predicts_is_shown_with_request_and_response(server: str) -> None:
    document = httpx.get(f"{server}/openapi.json").json()
    predicting = {path for path, methods in document["paths"].items() if "predict" in methods.get("post", {}).get("tags", ())}
    assert predicting <= {curl.path for curl in curls(API) if curl.method == "POST"}


@pytest.mark.parametrize("curl", CURLS, ids=lambda curl: f"{curl.method} {curl.path}")
def test_a_curl_of_a_page_gives_the_answer_of_the_page(curl: Curl, server: str) -> None:
    answer = httpx.request(curl.method, server + curl.path, content=curl.body, headers=curl.headers, timeout=30)
    assert curl.answer
    assert_shows(curl.answer, answer.text)


def test_the_readme_shows_a_forecast_and_a_sentiment_with_the_body_in_sight() -> None:
    bodies = {curl.path: curl.body for curl in curls(README)}
    assert bodies.keys() == {"/predict/forecast", "/predict/sentiment"}
    assert all(body and body in README for body in bodies.values())


def test_every_member_of_an_error_on_the_page_belongs_to_an_error_that_there_is() -> None:
    page = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    codes = {str(error["code"]) for error in describe_errors()}
    members = page.split("## What stands beside")[1]
    assert set(re.findall(r"^\| [^|]*\| `(\w+)` \|", members, re.MULTILINE)) <= codes


def test_every_metric_is_in_the_docs_and_no_other() -> None:
    text = Metrics(version="0", onnxruntime="0").render("")[0].decode()
    written = set(re.findall(r"^# TYPE (sluice_\w+)", text, re.MULTILINE))
    documented = set(re.findall(r"`(sluice_\w+)`", METRICS))
    assert documented == written


def test_every_metric_that_a_page_asks_prometheus_for_exists() -> None:
    text = Metrics(version="0", onnxruntime="0").render("")[0].decode()
    known = set(re.findall(r"^# TYPE (sluice_\w+)", text, re.MULTILINE))
    for page in PAGES:
        for block in re.findall(r"^```\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for name in re.findall(r"\b(sluice_[a-z]+_\w+)", block):
                assert name in known or re.sub(r"_(bucket|count|sum)$", "", name) in known, f"{page}: {name}"


def test_every_setting_that_a_page_names_exists() -> None:
    settings = {f"SLUICE_{field.upper()}" for field in Settings.model_fields} | {"SLUICE_DATA"}
    for page in PAGES:
        if page.name != "CHANGELOG.md":
            named = set(re.findall(r"\bSLUICE_[A-Z_]*[A-Z]\b", page.read_text(encoding="utf-8")))
            assert named <= settings, f"{page}: {named - settings}"


def test_every_make_target_of_the_pages_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target for page in PAGES for target in re.findall(r"(?:`|^\$ )make ([a-z]+(?:-[a-z]+)*)", page.read_text(), re.MULTILINE)
    }
    assert {"serve", "test", "docs"} <= named <= targets


def test_the_readme_is_short_and_in_its_order() -> None:
    titles = re.findall(r"^## (.+)$", README, re.MULTILINE)
    assert titles == ["Run it", "Bring your model", "Train", "Operate", "Speed", "Scores", "Limits", "Links"]
    assert len(README.splitlines()) <= 140
