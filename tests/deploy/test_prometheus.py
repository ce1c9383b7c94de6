"""Rules, alerts and dashboard against the real programs: promtool, Prometheus, a server of two workers with traffic."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.promql import RULES, Query, dashboard_queries, read_rules, rule_queries
from tests.folders import edit_manifest, write_forecast_folder, write_text_folder
from tests.prometheus import running_prometheus
from tests.serving import server_process

PATIENCE_S = 90.0
COMPARISON = re.compile(r"(==|>) [\d.]+")
FEWEST_ALERTS = 10
# A server without a GPU has no such series; the rule's own test (rules_test.yml) has one.
WITHOUT_DATA = {"SluiceProviderFallback"}
METRIC = re.compile(r"\bsluice_[a-z0-9_]+\b")
METRICS_PAGE = RULES.parents[1] / "docs" / "reference" / "metrics.md"


def promtool(*arguments: str) -> None:
    binary = shutil.which("promtool")
    if binary is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    found = subprocess.run([binary, *arguments], cwd=RULES, capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_configuration_and_its_rules_are_valid() -> None:
    promtool("check", "config", "prometheus.yml")


def test_each_alert_fires_for_what_it_is_about_and_none_for_a_healthy_server() -> None:
    promtool("test", "rules", "rules_test.yml")


def test_each_alert_is_tested_and_says_what_to_do() -> None:
    alerts = {rule["alert"]: rule for rule in read_rules("alerts.yml")}
    tests = yaml.safe_load((RULES / "rules_test.yml").read_text())["tests"]
    firing = {one["alertname"] for test in tests for one in test["alert_rule_test"] if one["exp_alerts"]}
    quiet = {one["alertname"] for test in tests for one in test["alert_rule_test"] if not one["exp_alerts"]}
    assert len(alerts) >= FEWEST_ALERTS
    assert firing == quiet == set(alerts)
    for rule in alerts.values():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"].keys() == {"summary", "runbook"}


def alert_queries() -> Iterator[Query]:
    """What each alert compares; an alert itself has no value as long as all is well."""
    for rule in read_rules("alerts.yml"):
        if rule["alert"] not in WITHOUT_DATA:
            yield Query(rule["alert"], COMPARISON.sub(">= bool 0", rule["expr"]))


def test_every_metric_that_is_queried_is_documented() -> None:
    documented = set(METRIC.findall(METRICS_PAGE.read_text()))
    expressions = [query.expression for query in dashboard_queries()]
    for rule in (*read_rules("recording.yml"), *read_rules("alerts.yml")):
        expressions.append(re.sub(r"\b\w+:\w+:\w+", "", rule["expr"]))
    bases = [re.sub(r"_(bucket|sum|count)$", "", name) for expression in expressions for name in METRIC.findall(expression)]
    assert bases
    assert set(bases) <= documented


@contextmanager
def traffic(url: str) -> Iterator[None]:
    """A few good and bad requests over and over again, each over a connection of its own."""
    is_over = threading.Event()

    def send() -> None:
        bodies: list[tuple[str, Any]] = [
            ("forecast", {"instances": [{"history": [1.0, 2.0, 3.0, 4.0]}, {"history": [1.0, 2.0]}]}),
            ("forecast", {"instances": [{"history": ["x"]}]}),
            ("classify", {"instances": ["good film"] * 16}),
        ]
        while not is_over.is_set():
            for endpoint, body in bodies:
                httpx.post(f"{url}/predict/{endpoint}", json=body, timeout=PATIENCE_S)
            is_over.wait(0.05)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def has_data(prometheus: str, query: Query) -> bool:
    try:
        answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query.expression}, timeout=10).json()
    except (httpx.HTTPError, ValueError):  # it is not ready yet
        return False
    assert answer["status"] == "success", (query.name, answer)
    return any(not math.isnan(float(one["value"][1])) for one in answer["data"]["result"])


def test_every_query_of_dashboard_rules_and_alerts_has_data_of_a_real_server(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_forecast_folder(models)
    folder = write_text_folder(models)
    histogram = {"name": "score", "edges": [0.5], "shares": [0.5, 0.5]}
    edit_manifest(folder, lambda manifest: manifest.update(statistics={"num_rows": 10, "features": [histogram]}))
    queries = [*dashboard_queries(), *rule_queries(), *alert_queries()]
    for name in ("recording.yml", "alerts.yml"):
        shutil.copy(RULES / name, tmp_path)
    with server_process(models, SLUICE_WORKERS="2", SLUICE_DRIFT_MODELS="*") as server:
        target = server.url.removeprefix("http://")
        config = (RULES / "prometheus.yml").read_text().replace("sluice:8000", target).replace("15s", "1s")
        with running_prometheus(tmp_path, target, config=config) as prometheus, traffic(server.url):
            until = time.monotonic() + PATIENCE_S
            while (missing := [query for query in queries if not has_data(prometheus, query)]) and time.monotonic() < until:
                time.sleep(0.5)
    assert not missing, "\n".join(f"{query.name}: {query.expression}" for query in missing)
