"""The tasks of training, by name."""

from __future__ import annotations

from typing import Any

from training.recipe.registry import register_recipe, unregister_recipe
from training.runs import classify, forecast, tabular
from training.runs.task import Task

TASKS: dict[str, Task[Any]] = {}


def register(task: Task[Any]) -> None:
    """Let recipes, folders and commands use a task. Raises ValueError if there is another one of its name."""
    register_recipe(task.recipe_type)
    if TASKS.setdefault(task.name, task) is not task:
        raise ValueError(f'there is a task "{task.name}" already')


def unregister(name: str) -> None:
    """Take a task out again, with its recipe."""
    unregister_recipe(TASKS.pop(name).recipe_type)


for _task in (forecast.TASK, classify.TASK, tabular.TASK):
    register(_task)
