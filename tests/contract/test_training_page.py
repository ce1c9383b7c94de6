"""docs/how-to/training.md names every bundled recipe and every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from sluice.__main__ import COMMANDS
from training.__main__ import app
from training.recipe import RECIPES

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "how-to" / "training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(file.stem for file in RECIPES.glob("*.toml")))
def test_every_bundled_recipe_is_in_the_table(name: str) -> None:
    assert f"| `{name}` |" in PAGE


@pytest.mark.parametrize("name", ["train", "init", "summary", "compare", "tune", "data fetch", "quantize"])
def test_the_commands_of_the_page_exist(name: str) -> None:
    assert COMMANDS[name].name in {command.name for command in app.registered_commands}
    assert f"sluice {name}" in PAGE
