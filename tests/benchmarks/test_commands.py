"""Every `python -m benchmarks.NAME` that a page, the Makefile or a docstring names is a command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.servers import ROOT

PAGES = [ROOT / "README.md", ROOT / "Makefile", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [path for path in sorted((ROOT / "benchmarks").rglob("*.py")) if ".environments" not in path.parts]


def commands(path: Path) -> set[str]:
    return set(re.findall(r"python\S* -m benchmarks\.(\w+)(?![\w.])", path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", [path for path in [*PAGES, *SOURCES] if commands(path)], ids=lambda path: path.name)
def test_a_named_command_exists(path: Path) -> None:
    for name in commands(path):
        module = ROOT / "benchmarks" / f"{name}.py"
        if not module.exists():
            assert (ROOT / "benchmarks" / name / "__main__.py").exists(), name
        else:
            assert '__name__ == "__main__"' in module.read_text(encoding="utf-8"), name


def test_the_commands_of_the_makefile_are_found() -> None:
    assert {"compare", "before_after", "leaks"} <= commands(ROOT / "Makefile")
