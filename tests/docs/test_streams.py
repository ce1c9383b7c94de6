"""The examples of docs/streams.md, against a real server."""

from __future__ import annotations

import functools
import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.browser import IS_THERE, open_browser
from tests.serving import server_process, wait_until

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "streams.md").read_text(encoding="utf-8")
MAX_LINES = 14


def block(language: str, title: str) -> str:
    """A block of the page."""
    found = re.search(rf'^```{language} title="{title}"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    assert len(found[1].splitlines()) <= MAX_LINES
    return found[1]


def example(title: str) -> dict[str, Any]:
    """What a block of Python defines."""
    names: dict[str, Any] = {}
    exec(block("python", title), names)
    return names


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder, and the origin from which its files are served: not that of the server."""
    folder = tmp_path_factory.mktemp("pages")
    handler = functools.partial(SilentHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url(pages: tuple[Path, str]) -> Iterator[str]:
    """A server with the bundled models that the examples name."""
    models = os.pathsep.join(str(ROOT / "models" / name) for name in ("sensor-stream", "sentiment-stream"))
    with server_process(Path(models), SLUICE_CORS_ORIGINS=pages[1]) as server:
        yield server.url


def test_a_sensor_gets_with_each_reading_the_forecast_of_all_its_readings(url: str) -> None:
    readings = [20.0, 20.5, 21.5, 21.0, 19.5]
    forecasts = list(example("sensor")["watch"](readings, url))
    instances = [{"history": readings[: end + 1], "state": None} for end in range(len(readings))]
    answer = httpx.post(f"{url}/predict/forecast", json={"instances": instances}, trust_env=False)
    assert forecasts == [each["forecast"] for each in answer.json()["predictions"]]


@pytest.mark.skipif(not IS_THERE, reason="chromium and chromedriver are not installed")
def test_a_page_shows_each_forecast_as_it_comes(url: str, pages: tuple[Path, str]) -> None:
    folder, origin = pages
    (folder / "index.html").write_text(block("html", "page").replace("http://localhost:8000", url), encoding="utf-8")
    with open_browser() as browser:
        browser.open(f"{origin}/index.html")
        wait_until(lambda: "event: end" in browser.texts("#out")[0], "the stream has ended")
        (text,) = browser.texts("#out")
    readings = [20.1, 20.4, 20.9, 21.5, 21.2]
    assert text.count("data: ") == len(readings) + 1
    answer = httpx.post(f"{url}/predict/forecast", json={"instances": [{"history": readings, "state": None}]}, trust_env=False)
    last = json.loads(text.split("\n\n")[len(readings) - 1].removeprefix("data: "))
    assert last["forecast"] == answer.json()["predictions"][0]["forecast"]


@pytest.mark.skipif(not IS_THERE, reason="chromium and chromedriver are not installed")
def test_a_page_sends_each_reading_over_a_websocket_and_shows_its_forecast(url: str, pages: tuple[Path, str]) -> None:
    folder, origin = pages
    page = block("html", "websocket").replace("ws://localhost:8000", url.replace("http", "ws", 1))
    (folder / "websocket.html").write_text(page, encoding="utf-8")
    with open_browser() as browser:
        browser.open(f"{origin}/websocket.html")
        wait_until(lambda: '{"end":' in browser.texts("#out")[0], "the sequence has ended")
        (text,) = browser.texts("#out")
    readings = [20.1, 20.4, 20.9, 21.5, 21.2]
    *messages, end = map(json.loads, text.splitlines())
    answer = httpx.post(f"{url}/predict/forecast", json={"instances": [{"history": readings, "state": None}]}, trust_env=False)
    (last,) = answer.json()["predictions"]
    assert len(messages) == len(readings)
    assert messages[-1]["prediction"]["forecast"] == last["forecast"]
    assert end == {"end": {"state": last["state"]}}


def test_a_chat_gets_with_each_message_the_label_of_all_its_messages(url: str) -> None:
    messages = ["I loved the first act.", "Then it got boring, slow and badly acted.", "A terrible, stupid ending."]
    labels = list(example("chat")["moods"](messages, "chat-1", url))
    instances = [" ".join(messages[: end + 1]) for end in range(len(messages))]
    answer = httpx.post(f"{url}/predict", json={"model": "sentiment-stream", "instances": instances}, trust_env=False)
    assert labels == [each["label"] for each in answer.json()["predictions"]]
    assert (labels[0], labels[-1]) == ("positive", "negative")
    assert httpx.get(f"{url}/sequences/chat-1", trust_env=False).status_code == 404
