"""The dashboard obeys Grafana's own schema. No Grafana runs here: `test_prometheus.py` runs its queries."""

from __future__ import annotations

import json
from typing import Any

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.deploy.promql import DASHBOARD, DEPLOY, read_dashboard

MAX_WIDTH = 24


def missing_from(value: Any, other: Any, path: str = "") -> list[str]:
    """The places of `value` that `other` does not have."""
    if isinstance(value, dict) and isinstance(other, dict):
        return [
            place
            for key, each in value.items()
            for place in ([f"{path}.{key}"] if key not in other else missing_from(each, other[key], f"{path}.{key}"))
        ]
    if isinstance(value, list) and isinstance(other, list):
        if len(value) != len(other):
            return [path]
        return [
            place
            for n, (one, two) in enumerate(zip(value, other, strict=True))
            for place in missing_from(one, two, f"{path}[{n}]")
        ]
    return []


def test_the_dashboard_is_one_by_grafanas_own_types() -> None:
    dashboard = read_dashboard()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    assert missing_from(dashboard, read) == [], "what Grafana's types do not know they drop"


def test_a_field_that_grafana_does_not_know_is_noticed() -> None:
    dashboard = read_dashboard()
    dashboard["panels"][1]["colour"] = "red"
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    assert missing_from(dashboard, read) == [".panels[1].colour"]


def test_panels_have_a_title_and_a_place_of_their_own() -> None:
    panels = read_dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"]
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= MAX_WIDTH
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_compose_mounts_files_that_exist() -> None:
    folder = DEPLOY / "compose"
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    sources = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    assert sources
    for source in sources:
        assert (folder / source).exists(), source
    assert (folder / services["sluice"]["build"] / "Dockerfile").exists()
    provider = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "dashboards" / "sluice.yml").read_text())["providers"][0]
    (target,) = (volume.split(":")[1] for volume in services["grafana"]["volumes"] if DASHBOARD.name in volume)
    assert target.startswith(provider["options"]["path"])
