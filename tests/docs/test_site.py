"""The site of docs/ builds strictly, holds every page, and loads nothing from another server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environ = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_of_docs_is_in_the_site_and_in_its_navigation(site: Path) -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert (site / name).with_suffix(".html").is_file(), name
        assert re.search(rf"- (?:\w+: )?{re.escape(name)}$", config, re.MULTILINE), name


def test_pages_that_live_beside_their_subject_are_in_the_site(site: Path) -> None:
    for name in ("reference/model-folder", "explanation/benchmark-results", "contributing", "security", "changelog"):
        assert (site / f"{name}.html").is_file(), name


def test_the_site_loads_nothing_from_another_server(site: Path) -> None:
    loading = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(https?:)?//|<link[^>]*rel=\"?(?:stylesheet|preconnect|icon)[^>]*href=\"?(https?:)?//"
    )
    for page in site.rglob("*.html"):
        assert not loading.search(page.read_text(encoding="utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*['\"]?https?:", sheet.read_text(encoding="utf-8")), sheet
