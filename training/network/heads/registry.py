"""The head of each task, by the task's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from training.network.heads.classify import ClassifyHead
from training.network.heads.forecast import ForecastHead, ForecastSpec
from training.network.heads.head import Head
from training.network.heads.stream import StreamHead
from training.network.heads.tensor import TensorHead
from training.network.spec import NetworkError, NetworkSpec

HEADS: dict[str, type[Head]] = {}


def register_head(head: type[Head]) -> type[Head]:
    """Let networks have a task: the one value that the head's Spec allows for `task`. Raises ValueError if it has a head."""
    (task,) = get_args(head.Spec.model_fields["task"].annotation)
    if HEADS.setdefault(task, head) is not head:
        raise ValueError(f'task "{task}" has a head already: {HEADS[task].__name__}')
    return head


for _head in (ForecastHead, ClassifyHead, TensorHead):
    register_head(_head)


def head_class(task: object) -> type[Head]:
    """The head of a task. Raises NetworkError that lists the tasks there are."""
    if not isinstance(task, str) or task not in HEADS:
        raise NetworkError(f"unknown task {task!r}; there are {', '.join(HEADS)}")
    return HEADS[task]


def make_head(spec: NetworkSpec) -> Head:
    """The head of a network with this spec. Raises NetworkError where the spec is another task's, LayerError as `from_spec`."""
    kind = head_class(spec.task)
    if not isinstance(spec, kind.Spec):
        raise NetworkError(f'task "{spec.task}" needs a {kind.Spec.__name__}, got a {type(spec).__name__}')
    if isinstance(spec, ForecastSpec) and spec.streaming:
        return StreamHead.from_spec(spec)
    return kind.from_spec(spec)


def read_spec(table: Mapping[str, Any]) -> NetworkSpec:
    """The spec from its dump, as manifests hold it. Raises NetworkError for an unknown task, else pydantic's ValidationError."""
    return head_class(table.get("task")).Spec.model_validate(table)
