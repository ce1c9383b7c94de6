"""The reference names every key of every task, once, with a meaning."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.toy_task.recipe import SumRecipe
from training.recipe.reference import keys_of, recipe_reference
from training.recipe.registry import RECIPE_TYPES, register_recipe, unregister_recipe


@pytest.fixture
def _toy_task() -> Iterator[None]:
    register_recipe(SumRecipe)
    yield
    unregister_recipe(SumRecipe)


@pytest.mark.parametrize("task", RECIPE_TYPES)
def test_every_key_has_a_meaning(task: str) -> None:
    keys = keys_of(RECIPE_TYPES[task].model_json_schema())
    assert len(keys) > 30
    assert [key.name for key in keys if not key.description] == []


@pytest.mark.parametrize("task", RECIPE_TYPES)
def test_every_key_is_on_the_page(task: str) -> None:
    rows = recipe_reference().splitlines()
    for key in keys_of(RECIPE_TYPES[task].model_json_schema()):
        assert key.row in rows


def test_what_tasks_have_in_common_stands_once() -> None:
    page = recipe_reference()
    assert page.count("| `optimizer` |") == 1
    assert page.count("| `loss` |") == len(RECIPE_TYPES)
    shared, *tasks = page.split("## Task ")
    assert "| `epochs` | integer ≥ 1 | `10` | epochs at most |" in shared
    assert "| `seasonal_lag` | integer ≥ 0 | `0` |" in tasks[0]
    assert [part.split("`")[1] for part in tasks] == list(RECIPE_TYPES)


@pytest.mark.usefixtures("_toy_task")
def test_a_registered_task_comes_with_its_own_table() -> None:
    page = recipe_reference()
    assert "## Task `sum`\n\nA run of task `sum`." in page
    assert "### `[sum]`" in page
    assert "| `num_columns` | integer ≥ 1 | needed | columns that are added, from the first |" in page
