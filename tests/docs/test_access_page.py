"""docs/how-to/access.md: its commands run, its entries and settings are taken, and its table of routes is the server's."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from service.__main__ import main
from service.api.access.control import describe_refusals, route_scopes
from service.api.access.keys import KeyRing, read_keys
from service.api.access.wiring import AccessOptions, open_access
from service.app import create_app
from service.process.tls import Certificate
from service.settings import Settings, read_settings
from tests.heads import RecordingObserver

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "access.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.+)$", PAGE, re.MULTILINE)


def test_the_keys_that_the_page_makes_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.toml"
    made = []
    for command in COMMANDS:
        if command.startswith("sluice key "):
            words = shlex.split(command)
            assert words[-2:] == [">>", "keys.toml"]
            assert main(words[1:-2]) == 0
            out, err = capsys.readouterr()
            made += re.findall(r"sluice_\S{43}", err)
            with file.open("a") as keys:
                keys.write(out)
    found = read_keys(file)
    assert len(found) == len(made) == 3
    ring = KeyRing(found)
    assert [ring.find(key.encode()) for key in made] == found


def test_the_entry_of_the_page_is_one(tmp_path: Path) -> None:
    [block] = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "keys.toml").write_text(block)
    [key] = read_keys(tmp_path / "keys.toml")
    assert key.rate is not None
    assert (key.name, key.models, key.rate.text) == ("partner", frozenset({"forecast-hourly"}), "100/s")


def test_the_settings_of_the_page_exist_and_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "a"]) == 0
    (tmp_path / "keys.toml").write_text(capsys.readouterr().out)
    named = set(re.findall(r"SLUICE_[A-Z_]+", PAGE))
    assert {f"SLUICE_{field.upper()}" for field in Settings.model_fields} >= named
    given = dict(re.findall(r"(SLUICE_[A-Z_]+)=([^\s`]+)", PAGE))
    given["SLUICE_API_KEYS_FILE"] = str(tmp_path / "keys.toml")
    settings = read_settings(given)
    options = AccessOptions(
        settings.api_keys_file,
        rate_limit=settings.rate_limit,
        trusted_proxies=settings.trusted_proxies,
        cors_origins=settings.cors_origins,
    )
    assert len(open_access(options, RecordingObserver()).hooks) == 2


def test_the_certificate_that_the_page_makes_is_taken(tmp_path: Path) -> None:
    [command] = [command for command in COMMANDS if command.startswith("openssl ")]
    subprocess.run(shlex.split(command), cwd=tmp_path, check=True, capture_output=True)
    Certificate(tmp_path / "cert.pem", tmp_path / "key.pem")


def test_the_table_names_every_route_and_what_opens_it() -> None:
    rows = re.findall(r"^\| (`/.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    documented = {
        route: tuple(cells) for routes, *cells in rows for route in re.findall(r"`(/[^`]*)`", routes) if route != "/predict"
    }
    gateway = create_app(Settings())
    routes = {*gateway._exact, *(route.template for _, route in gateway._patterns)}
    assert {route for route in routes if not route.startswith("/predict")} == documented.keys()

    def opened_by(route: str, protects_operations: bool) -> str:
        scopes = route_scopes(protects_operations).get(route)
        if scopes is None:
            return "scope `predict`"
        return {frozenset(): "open", frozenset({"admin"}): "scope `admin`"}.get(scopes, "any key")

    assert documented == {route: (opened_by(route, False), opened_by(route, True)) for route in documented}
    assert [row[1:] for row in rows if "/predict" in row[0]] == [("scope `predict`",) * 2]
    assert 403 in describe_refusals("/predict", has_keys=True, protects_operations=False, has_rates=False)
