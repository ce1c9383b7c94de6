"""The adapter of each task, by the task's name."""

from __future__ import annotations

from typing import get_args

from training.importers.adapters.base import Adapter
from training.importers.adapters.classify import ClassifyAdapter
from training.importers.adapters.forecast import ForecastAdapter
from training.importers.adapters.tensor import TensorAdapter
from training.importers.options import ImportOptions

ADAPTERS: dict[str, type[Adapter]] = {}


def register_adapter(adapter: type[Adapter]) -> None:
    """Let models be imported for the adapter's task. Raises ValueError if another adapter has the task already."""
    (task,) = get_args(adapter.Options.model_fields["task"].annotation)
    if ADAPTERS.setdefault(task, adapter) is not adapter:
        raise ValueError(f'task "{task}" has an adapter already: {ADAPTERS[task].__name__}')


def options_by_task() -> dict[str, type[ImportOptions]]:
    """The options of each task."""
    return {task: adapter.Options for task, adapter in ADAPTERS.items()}


for _adapter in (TensorAdapter, ForecastAdapter, ClassifyAdapter):
    register_adapter(_adapter)
