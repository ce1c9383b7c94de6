"""When the fast path is taken, and when uvicorn's own protocol serves instead."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import uvicorn

from service.api.fast_path import FastPathProtocol
from service.api.regular_path import RegularPathProtocol
from service.api.transport import TESTED_UVICORN, choose_protocol, is_tested

ROOT = Path(__file__).parents[3]


def test_the_fast_path_is_taken_with_the_installed_uvicorn() -> None:
    assert choose_protocol(fast_path=True) is FastPathProtocol


def test_it_can_be_turned_off(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_protocol(fast_path=False) is RegularPathProtocol
    assert caplog.records == []


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.52.4", False),
        ("0.53.0", True),
        ("0.54.7", True),
        ("0.53", True),
        ("0.53.0.dev1+local", True),
        ("0.55.0", False),
        ("0.55.0rc1", False),
        ("1.53.0", False),
        ("0.x", False),
        ("0", False),
        ("", False),
    ],
)
def test_only_tested_versions_of_uvicorn_take_it(version: str, expected: bool) -> None:
    assert is_tested(version) is expected


def test_with_another_version_its_names_are_not_even_imported(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> type[asyncio.Protocol]:
        raise AssertionError("imported")

    assert choose_protocol(fast_path=True, uvicorn_version="0.99.0", load=load) == "auto"
    [record] = caplog.records
    facts = vars(record)
    assert (record.levelname, facts["uvicorn"], facts["tested"]) == ("WARNING", "0.99.0", ">=0.53,<0.55")


def test_where_it_cannot_be_imported_the_warning_says_why(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> type[asyncio.Protocol]:
        raise ImportError("No module named 'httptools'")

    assert choose_protocol(fast_path=True, load=load) == "auto"
    assert "No module named 'httptools'" in vars(caplog.records[0])["reason"]


def test_without_httptools_the_server_is_built_on_what_uvicorn_has() -> None:
    code = (
        "import sys\n"
        "sys.modules['httptools'] = None\n"
        "from service.server import uvicorn_config\n"
        "from service.settings import Settings\n"
        "async def app(scope, receive, send): ...\n"
        "config = uvicorn_config(app, Settings())\n"
        "config.load()\n"
        "print(config.http_protocol_class.__name__)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "H11Protocol\n"
    assert "the fast path and the bounds on request heads are off" in found.stderr


def test_the_versions_that_are_installed_are_tested_ones() -> None:
    """The lowest that the package accepts, the one that is pinned, and the one that runs here."""
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [lowest] = [found[1] for need in needs if (found := re.fullmatch(r"uvicorn>=([\d.]+).*", need))]
    [pinned] = re.findall(r"^uvicorn==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert [version for version in (lowest, pinned, uvicorn.__version__) if not is_tested(version)] == []
    assert lowest == ".".join(map(str, TESTED_UVICORN[0]))
