"""What mkdocs does beyond its own: pages that live beside their subject, and links to files that are no pages.

`models/README.md` and its like are written where they are read in the repository; here they become pages of the site. A link to
any other file of the repository becomes its path, since the site does not know where the repository is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# File of the repository → its place in the site.
PAGES = {
    "models/README.md": "reference/model-folder.md",
    "benchmarks/RESULTS.md": "explanation/benchmark-results.md",
    "benchmarks/results.svg": "explanation/results.svg",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
LINK = re.compile(r"(!?)\[([^]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the pages that live elsewhere."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of the repository as links of the site, or as paths."""
    place = page.file.src_uri
    source = next((name for name, target in PAGES.items() if target == place), f"docs/{place}")

    def link(found: re.Match[str]) -> str:
        mark, text, target, anchor = found[1], found[2], found[3], found[4] or ""
        if "://" in target:
            return found[0]
        path = os.path.normpath(Path(source).parent / target)
        if path == "README.md":
            path = "docs/index.md"
        inside = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if inside is not None:
            return f"{mark}[{text}]({os.path.relpath(inside, Path(place).parent)}{anchor})"
        return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"

    parts = re.split(r"(^```.*?^```$|`[^`\n]+`(?!\]))", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if index % 2 else LINK.sub(link, part) for index, part in enumerate(parts))
