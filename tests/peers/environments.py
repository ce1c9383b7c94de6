"""Environments of libraries that cannot live in ours: `make test-peers` builds them, tests that need one skip without it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 900


def find_python(name: str) -> Path:
    """The python of a library's environment; skips the test where there is none."""
    python = Path(os.environ.get(f"SLUICE_TEST_{name.upper()}", ROOT / f".venv-{name}" / "bin" / "python"))
    if not python.exists():
        pytest.skip(f"no environment with {name}: `make test-peers` builds it, or SLUICE_TEST_{name.upper()} names its python")
    return python


def run_in(name: str, script: str, folder: Path) -> None:
    """Run a script in the environment of a library, in `folder`; skips the test where there is no such environment."""
    python = find_python(name)
    (folder / "script.py").write_text(script, encoding="utf-8")
    found = subprocess.run([str(python), "script.py"], cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert found.returncode == 0, found.stderr[-3000:]
