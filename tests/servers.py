"""A real server process for tests that want one: started on a free port, ended by its own handle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import servers
from benchmarks.servers import running


@contextmanager
def running_server(models: Path, **settings: str) -> Iterator[str]:
    """`python -m service` on `models`, READY; gives its URL."""
    command, port, env = servers.sluice(models, **settings)
    with running("Sluice", command, port, env) as server:
        yield server.url
