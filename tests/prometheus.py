"""A real Prometheus beside a test."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from benchmarks.servers import free_port

CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs: [{{job_name: sluice, static_configs: [{{targets: ['{target}']}}]}}]
"""


@contextmanager
def running_prometheus(folder: Path, target: str, *options: str, config: str | None = None) -> Iterator[str]:
    """Prometheus with these options that scrapes `target` (host:port) every second, or does what `config` says; gives its URL.

    Skips the test where none is installed.
    """
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed (Debian's package prometheus)")
    port = free_port()
    config_file = folder / "prometheus.yml"
    config_file.write_text(config if config is not None else CONFIG.format(target=target))
    command = [
        binary,
        f"--config.file={config_file}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
        *options,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def query_value(prometheus: str, query: str) -> float | None:
    """The value of a query that has one; None while Prometheus has nothing yet."""
    try:
        answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}, timeout=5).json()
    except (httpx.HTTPError, ValueError):  # it is not ready yet
        return None
    found = answer["data"]["result"]
    return float(found[0]["value"][1]) if found else None
