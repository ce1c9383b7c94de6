"""Tasks are found by their files, and a registry holds no two of one name or path."""

from __future__ import annotations

from typing import ClassVar

import pytest

from service.manifest import Spec
from service.tasks.base import Endpoint, TaskDefinition
from service.tasks.registry import TaskRegistry, built_in_tasks


class Toy(TaskDefinition):
    name: ClassVar = "toy"
    endpoints: ClassVar = (Endpoint("/predict/toy", "toy", "Play", "Play."),)


class SameName(TaskDefinition):
    name: ClassVar = "toy"


class SamePath(TaskDefinition):
    name: ClassVar = "other"
    endpoints: ClassVar = (Endpoint("/predict/toy", "other", "Play", "Play."),)


class OfAnother(TaskDefinition):
    name: ClassVar = "another"
    endpoints: ClassVar = (Endpoint("/predict/another", "toy", "Play", "Play."),)


class Reserved(TaskDefinition):
    name: ClassVar = "graphs"
    spec: ClassVar = Spec


def test_the_tasks_of_the_folder_are_registered_with_their_endpoints() -> None:
    tasks = built_in_tasks()
    assert [task.name for task in tasks] == ["classify", "forecast", "tensor"]
    assert {endpoint.path for endpoint in tasks.endpoints} == {"/predict/forecast", "/predict/classify", "/predict/sentiment"}
    assert tasks["forecast"] is next(task for task in tasks if task.name == "forecast")
    assert "forecast" in tasks
    assert "toy" not in tasks


@pytest.mark.parametrize(
    ("definitions", "message"),
    [
        ([Toy(), SameName()], 'two tasks called "toy"'),
        ([Toy(), SamePath()], "two endpoints at /predict/toy"),
        ([OfAnother()], '/predict/another belongs to "another", and says "toy"'),
        ([Reserved()], 'a task cannot be called "graphs"'),
    ],
)
def test_what_is_taken_is_refused(definitions: list[TaskDefinition], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskRegistry(definitions)


def test_a_task_is_added_to_a_registry_of_its_own() -> None:
    tasks = built_in_tasks()
    more = tasks.add(Toy())
    assert [task.name for task in more] == ["classify", "forecast", "tensor", "toy"]
    assert "toy" not in tasks
    assert built_in_tasks() is tasks


def test_settings_make_other_definitions_and_leave_the_first() -> None:
    tasks = built_in_tasks()
    configured = tasks.configure({"max_horizon_multiple": 3, "port": 8000})
    assert configured["forecast"] != tasks["forecast"]
    assert configured["classify"] is tasks["classify"]
