"""A headless Chromium for tests, driven by chromedriver over the WebDriver protocol (plain HTTP and JSON)."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.serving import PATIENCE_S, wait_until

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
IS_THERE = CHROMIUM is not None and CHROMEDRIVER is not None
# No sandbox, because CI runs as root in a container; nothing that would look for another machine than the loopback.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,2000",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key of an element's id, as the WebDriver specification fixes it."""


class Browser:
    """One session with one window."""

    def __init__(self, client: httpx.Client, session: str) -> None:
        self._client = client
        self._session = session

    def open(self, url: str) -> None:
        """Load a page and wait for its `load` event."""
        self._post("url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """The value that a function body of JavaScript returns."""
        return self._post("execute/sync", {"script": script, "args": list(arguments)})

    def click(self, selector: str) -> None:
        """Click the first element that a CSS selector finds, once it is there."""
        wait_until(lambda: self.run("return document.querySelector(arguments[0]) !== null", selector), selector)
        element = self._post("element", {"using": "css selector", "value": selector})[ELEMENT]
        self._post(f"element/{element}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type into the first element that a CSS selector finds, key by key, behind what is there."""
        element = self._post("element", {"using": "css selector", "value": selector})[ELEMENT]
        self._post(f"element/{element}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._post("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def resize(self, width: int, height: int) -> None:
        """Make the window so large."""
        self._post("window/rect", {"width": width, "height": height})

    def screenshot(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self._client.get(f"/session/{self._session}/screenshot").json()["value"])

    def texts(self, selector: str) -> list[str]:
        """What the elements that a CSS selector finds hold, in the order of the page."""
        found: list[str] = self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)
        return found

    def console(self) -> list[str]:
        """The warnings and errors of the console since the last call: failed loads and breaches of the policy among them."""
        entries = self._post("se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]

    def _post(self, command: str, content: dict[str, Any]) -> Any:
        answer = self._client.post(f"/session/{self._session}/{command}", json=content)
        assert answer.status_code == 200, answer.text
        return answer.json()["value"]


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser with an empty profile; it and its driver end with the block."""
    assert CHROMIUM is not None
    assert CHROMEDRIVER is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        output = Path(name) / "chromedriver"
        with output.open("wb") as out:
            # A process group of its own: the browser's processes are ended with it, also where the session cannot be closed.
            driver = subprocess.Popen([CHROMEDRIVER, "--port=0"], stdout=out, stderr=out, start_new_session=True)
        try:
            found: list[str] = []

            def has_started() -> bool:
                found[:] = re.findall(r"started successfully on port (\d+)", output.read_text())
                assert driver.poll() is None, output.read_text()
                return bool(found)

            wait_until(has_started, "chromedriver listens")
            options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={name}/profile"]}
            capabilities = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            with httpx.Client(base_url=f"http://127.0.0.1:{found[0]}", timeout=PATIENCE_S, trust_env=False) as client:
                answer = client.post("/session", json={"capabilities": {"alwaysMatch": capabilities}})
                assert answer.status_code == 200, answer.text
                session = answer.json()["value"]["sessionId"]
                try:
                    yield Browser(client, session)
                finally:
                    client.delete(f"/session/{session}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait(PATIENCE_S)
