"""Every promise of docs/reliability.md names tests that there are."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
TEST = re.compile(r"`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`")
HEADER = "| promise | proven by | bound or setting |"
THEMES = {
    *("Overload", "Deadlines", "Bodies and answers", "Headers and connections", "Models and folders", "Life cycle", "Access"),
    *("Exactness of answers", "Observability", "The image"),
}


def rows() -> list[tuple[str, str, str]]:
    """The cells of every table of promises."""
    found = []
    for table in PAGE.split(HEADER)[1:]:
        for line in table.strip().splitlines()[1:]:
            if not line.startswith("|"):
                break
            promise, proof, bound = (cell.strip() for cell in line.strip("|").split("|"))
            found.append((promise, proof, bound))
    return found


@functools.cache
def functions_of(path: str) -> set[str]:
    """The functions of a file, in classes too."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(("promise", "proof", "bound"), rows(), ids=[promise[:60] for promise, _, _ in rows()])
def test_a_promise_names_tests_that_exist_and_nothing_else(promise: str, proof: str, bound: str) -> None:
    named = TEST.findall(proof)
    assert named, promise
    assert TEST.sub("", proof).strip() == "", "the middle column holds tests alone, as `file::function`"
    for path, function in named:
        assert (ROOT / path).is_file(), path
        assert function in functions_of(path), f"{path} has no {function}"


def test_every_theme_has_promises() -> None:
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    texts = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert {theme for theme, text in texts.items() if HEADER in text} >= THEMES
    assert {"Measured", "Not promised"} <= texts.keys()
    assert len(rows()) > 50
