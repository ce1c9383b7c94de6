"""Every link of every page: the file it names is there, and so is the heading."""

from __future__ import annotations

import re
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)")


def pages() -> list[Path]:
    """The Markdown files of the repository, as git knows them; outside a checkout, those that lie where pages lie."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    names = listed.stdout.split("\n") if listed.returncode == 0 else []
    found = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    return found or [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("models/*.md"), *ROOT.glob("benchmarks/*.md")]


PAGES = sorted(pages())


def prose(page: Path) -> str:
    """A page without its blocks and spans of code, in which brackets are no links."""
    text = re.sub(r"^(```|~~~).*?^\1$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "`code`", text)


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, as Markdown's `toc` extension and web front ends of git agree on it."""
    text = re.sub(r"^(```|~~~).*?^\1$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for heading in re.findall(r"^#{1,6} (.+?)\s*#*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        letters = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", letters).strip().lower()))
    return found


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for target in LINK.findall(prose(page)):
            if "://" not in target and not target.startswith("mailto:"):
                yield page, target


LINKS = sorted(set(links()))


def test_there_are_pages_and_links_to_check() -> None:
    assert ROOT / "README.md" in PAGES
    assert len(LINKS) > 20


@pytest.mark.parametrize(
    ("page", "target"), LINKS, ids=lambda value: value.relative_to(ROOT).as_posix() if isinstance(value, Path) else value
)
def test_a_link_leads_to_a_file_and_a_heading_that_are_there(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.exists(), f"{page.relative_to(ROOT)} links to {target}"
    assert file.is_relative_to(ROOT), f"{page.relative_to(ROOT)} links out of the repository: {target}"
    if anchor:
        assert anchor in anchors(file), f"{target} of {page.relative_to(ROOT)} is none of {sorted(anchors(file))}"
