"""The tasks of training, by name."""

from __future__ import annotations

from typing import Any

from training.network.heads.registry import HEADS, register_head
from training.recipe.registry import register_recipe, unregister_recipe
from training.runs import classify, forecast, tabular
from training.runs.task import Task

TASKS: dict[str, Task[Any]] = {}


def register(task: Task[Any]) -> None:
    """Let recipes, networks and commands use a task. Raises ValueError if there is another one of its name."""
    register_recipe(task.recipe_type)
    register_head(task.head)
    if TASKS.setdefault(task.name, task) is not task:
        raise ValueError(f'there is a task "{task.name}" already')


def unregister(name: str) -> None:
    """Take a task out again, with its recipe and its head."""
    unregister_recipe(TASKS.pop(name).recipe_type)
    del HEADS[name]


for _task in (forecast.TASK, classify.TASK, tabular.TASK):
    register(_task)
