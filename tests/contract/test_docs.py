"""The docs are read and held against the code: settings, routes, metrics, errors, commands, and every curl with its answer."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.openapi import describe_errors
from service.observability.metrics import Metrics
from service.settings import settings_table
from tests.serving import server_process

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")


def test_the_configuration_table_is_the_settings_own() -> None:
    begin, end = "<!-- settings:begin -->\n", "<!-- settings:end -->"
    assert README[README.index(begin) + len(begin) : README.index(end)] == settings_table()


@pytest.mark.parametrize("error", describe_errors(), ids=lambda error: str(error["code"]))
def test_every_error_is_in_the_readme_with_its_status(error: dict[str, Any]) -> None:
    assert re.search(rf"^\| `{error['code']}` \| {error['status']} \|", README, re.MULTILINE)


def test_every_metric_is_in_the_docs_and_no_other() -> None:
    text = Metrics(version="0", onnxruntime="0").render("")[0].decode()
    written = set(re.findall(r"^# TYPE (sluice_\w+)", text, re.MULTILINE))
    documented = set(re.findall(r"`(sluice_\w+)`", METRICS))
    assert documented == written


def test_every_make_target_of_the_docs_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {target for page in (README, METRICS) for target in re.findall(r"make ([a-z]+(?:-[a-z]+)*)`", page)}
    asked |= set(re.findall(r"^\$ make ([a-z-]+)$", README, re.MULTILINE))
    assert asked
    assert asked <= targets


@dataclass(frozen=True)
class Curl:
    """One `$ curl` of the README with the answer that stands under it; `…` in it stands for anything."""

    method: str
    path: str
    body: str | None
    answer: str


def curls(text: str) -> Iterator[Curl]:
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if not block.startswith("$ curl"):
            continue
        lines = block.splitlines()
        end = next(index for index, line in enumerate(lines) if not line.endswith("\\"))
        words = shlex.split("\n".join(lines[: end + 1]).replace("\\\n", " ").removeprefix("$ "))
        url = next(word for word in words if word.startswith("http://"))
        body = words[words.index("-d") + 1] if "-d" in words else None
        if body is not None and body.startswith("@"):
            body = (ROOT / body[1:]).read_text(encoding="utf-8")
        path = "/" + url.split("/", 3)[3] if url.count("/") > 2 else "/"
        yield Curl("GET" if body is None else "POST", path, body, "\n".join(lines[end + 1 :]).strip())


CURLS = list(curls(README))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with server_process(ROOT / "models") as process:
        yield process.url


def endpoints_of(server: str) -> dict[str, str]:
    found: dict[str, str] = httpx.get(server, headers={"accept": "application/json"}).json()["endpoints"]
    return found


def test_every_endpoint_is_in_the_readme(server: str) -> None:
    paths = [*endpoints_of(server), "/docs", "/docs/errors", "/openapi.json"]
    assert [path for path in paths if f"`{path}`" not in README] == []


def test_the_readme_calls_every_endpoint_that_predicts(server: str) -> None:
    predicting = {path for path, summary in endpoints_of(server).items() if summary.startswith("POST")}
    assert predicting <= {curl.path for curl in CURLS}


@pytest.mark.parametrize("curl", CURLS, ids=lambda curl: f"{curl.method} {curl.path}")
def test_a_curl_of_the_readme_gives_the_answer_of_the_readme(curl: Curl, server: str) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"} if curl.body else {}  # as curl -d declares it
    answer = httpx.request(curl.method, server + curl.path, content=curl.body, headers=headers, timeout=30)
    if curl.answer.startswith("{"):
        assert_agrees(answer.json(), json.loads(curl.answer), "answer")
    else:
        for line in curl.answer.splitlines():
            pattern = ".*".join(re.escape(part) for part in line.split("…"))
            assert re.search(pattern, answer.text), line


def assert_agrees(found: Any, written: Any, where: str) -> None:
    """Numbers may differ in the last digits that another processor rounds elsewhere; "…" stands for anything."""
    if written == "…":
        return
    if isinstance(written, dict):
        assert isinstance(found, dict), where
        if "…" not in written:
            assert found.keys() == written.keys(), where
        for key in written.keys() - {"…"}:
            assert_agrees(found[key], written[key], f"{where}.{key}")
    elif isinstance(written, list):
        assert isinstance(found, list), where
        cut = written.index("…") if "…" in written else None
        if cut is None:
            assert len(found) == len(written), where
        for index, value in enumerate(written[:cut]):
            assert_agrees(found[index], value, f"{where}[{index}]")
    elif isinstance(written, float):
        assert found == pytest.approx(written, rel=1e-3, abs=1e-4), where
    else:
        assert found == written, where
