"""Servers in containers of Vertex AI and SageMaker: their variables in the environment, their requests as the page has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.servers import free_port
from tests.peers.examples import EXAMPLES, at
from tests.serving import ROOT, server_process

PREDICT_ROUTE, HEALTH_ROUTE = "/v1/endpoints/7:predict", "/v1/endpoints/7"
# What the platform sets, with the name of the variable that holds the port.
PLATFORMS = {
    "vertex": ("AIP_HTTP_PORT", {"AIP_PREDICT_ROUTE": PREDICT_ROUTE, "AIP_HEALTH_ROUTE": HEALTH_ROUTE, "AIP_MODE": "PREDICTION"}),
    "sagemaker": ("SAGEMAKER_BIND_TO_PORT", {"SAGEMAKER_SAFE_PORT_RANGE": "8080-8090"}),
}
HEALTH = {"vertex": HEALTH_ROUTE, "sagemaker": "/ping"}
CHECK = """
same = {"model": "sentiment-en", "instances": body["instances"]}
expected = requests.post("http://127.0.0.1:8000/predict", json=same, timeout=30).json()["predictions"]
assert predictions == expected, predictions
"""


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_variables_of_a_platform_are_enough(platform: str, tmp_path: Path) -> None:
    name, environ = PLATFORMS[platform]
    port = free_port()
    variables: dict[str, Any] = {name: str(port), **environ}
    # The settings that the fixture has for every server are left to the platform.
    with server_process(ROOT / "models", SLUICE_PORT="", **variables) as server:
        assert server.url.endswith(f":{port}")
        script = tmp_path / "script.py"
        script.write_text(at(f"127.0.0.1:{port}", EXAMPLES[platform] + CHECK), encoding="utf-8")
        found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120)
        assert found.returncode == 0, found.stderr
        assert httpx.get(f"http://127.0.0.1:{port}{HEALTH[platform]}", timeout=30).status_code == 200
