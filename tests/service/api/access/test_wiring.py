"""From settings to hooks: what a setting switches on, and which values end the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.api.access.control import AccessControl
from service.api.access.cors import Cors
from service.api.access.keys import describe_entry, new_key
from service.api.access.wiring import AccessOptions, make_rate_tables, open_access
from service.errors import StartError
from tests.heads import RecordingObserver


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys.toml"
    file.write_text(describe_entry(new_key(), "a", scopes=["predict"]))
    return file


def kinds(options: AccessOptions) -> list[type[Any]]:
    return [type(hook) for hook in open_access(options, RecordingObserver()).hooks]


def test_without_settings_there_is_no_hook_and_nothing_to_watch() -> None:
    access = open_access(AccessOptions(), RecordingObserver())
    assert (access.hooks, access.cors, access.watches) == ([], None, [])
    assert make_rate_tables(AccessOptions()) is None
    assert access.refusals("/predict") == {}


def test_each_setting_switches_its_hook_on(keys_file: Path) -> None:
    assert kinds(AccessOptions(keys_file=keys_file)) == [AccessControl]
    assert kinds(AccessOptions(rate_limit="1/s")) == [AccessControl]
    # CORS first, so that pages can read refusals too.
    assert kinds(AccessOptions(rate_limit="1/s", cors_origins="*")) == [Cors, AccessControl]
    assert kinds(AccessOptions(trusted_proxies="10.0.0.0/8")) == []


def test_changed_keys_are_used_when_the_watch_has_seen_them_twice(keys_file: Path) -> None:
    access = open_access(AccessOptions(keys_file=keys_file), RecordingObserver())
    [hook] = access.hooks
    [watch] = access.watches
    assert isinstance(hook, AccessControl)
    ring = hook._keys
    assert ring is not None
    key = new_key()
    keys_file.write_text(describe_entry(key, "b", scopes=["predict"]))
    watch.look()
    assert ring.find(key.encode()) is None
    watch.look()
    found = ring.find(key.encode())
    assert found is not None
    assert found.name == "b"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (AccessOptions(keys_file=Path("missing.toml")), "missing.toml cannot be read: No such file or directory"),
        (AccessOptions(keys_file=Path("/dev/null")), "/dev/null is not a regular file"),
        (AccessOptions(protect_operations=True), "SLUICE_PROTECT_OPERATIONS needs keys"),
        (AccessOptions(rate_limit="fast"), 'SLUICE_RATE_LIMIT=fast: "fast" is not a rate such as'),
        (AccessOptions(trusted_proxies="10.0.0.0/8, 10.1.0.1"), "SLUICE_TRUSTED_PROXIES=10.0.0.0/8, 10.1.0.1: "),
        (AccessOptions(cors_origins="https://a.org,b.org"), 'SLUICE_CORS_ORIGINS=https://a.org,b.org: "b.org" is not an origin'),
    ],
)
def test_a_value_that_means_nothing_ends_the_start(options: AccessOptions, message: str) -> None:
    with pytest.raises(StartError) as caught:
        open_access(options, RecordingObserver())
    assert caught.value.message.startswith(message)


def test_what_is_refused_is_documented_by_route(keys_file: Path) -> None:
    access = open_access(AccessOptions(keys_file=keys_file, rate_limit="1/s"), RecordingObserver())
    statuses = {route: sorted(access.refusals(route)) for route in ("/predict", "/models", "/", "/metrics")}
    assert statuses == {"/predict": [401, 403, 429], "/models": [401, 429], "/": [429], "/metrics": []}
    protected = open_access(AccessOptions(keys_file=keys_file, protect_operations=True), RecordingObserver())
    assert [sorted(protected.refusals(route)) for route in ("/", "/metrics")] == [[401, 429], [401, 403]]
