"""The queries of deploy/: those of the dashboard and those of the rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus"
DASHBOARD = DEPLOY / "grafana" / "sluice.json"
# What Grafana puts in place of its variables, for a server that was asked for some seconds.
VARIABLES = {"$__rate_interval": "1m", "$__range": "10m", "$instance": ".*", "$model": ".*"}


class Query(NamedTuple):
    name: str
    expression: str


def read_dashboard() -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return dashboard


def read_rules(name: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((RULES / name).read_text())["groups"] for rule in group["rules"]]


def dashboard_queries() -> Iterator[Query]:
    for panel in read_dashboard()["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            assert "$" not in expression, f"a variable that is not known: {expression}"
            yield Query(f"panel {panel['title']!r} {target['refId']}", expression)


def rule_queries() -> Iterator[Query]:
    for rule in read_rules("recording.yml"):
        yield Query(rule["record"], rule["expr"])
