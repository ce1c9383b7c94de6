"""The recipe of each task, by the task's name. Needs no torch, so that recipes are read in a moment."""

from __future__ import annotations

from typing import get_args

from training.recipe.base import Recipe
from training.recipe.classify import ClassifyRecipe
from training.recipe.forecast import ForecastRecipe
from training.recipe.tabular import TabularRecipe

RECIPE_TYPES: dict[str, type[Recipe]] = {}


def task_name(recipe_type: type[Recipe]) -> str:
    """The task that a recipe type is for: the one value of its field `task`."""
    (name,) = get_args(recipe_type.model_fields["task"].annotation)
    return str(name)


def register_recipe(recipe_type: type[Recipe]) -> None:
    """Let recipes name this type's task. Raises ValueError if another type has the task already."""
    name = task_name(recipe_type)
    if RECIPE_TYPES.setdefault(name, recipe_type) is not recipe_type:
        raise ValueError(f'task "{name}" has a recipe already: {RECIPE_TYPES[name].__name__}')


def unregister_recipe(recipe_type: type[Recipe]) -> None:
    """Take a recipe type out again."""
    del RECIPE_TYPES[task_name(recipe_type)]


for _recipe_type in (ForecastRecipe, ClassifyRecipe, TabularRecipe):
    register_recipe(_recipe_type)
