"""How an import is published: the options that every task has. An adapter adds those of its task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StringConstraints, ValidationError

from training.importers.model import ModelImportError

Name = Annotated[str, StringConstraints(min_length=1)]


class ImportOptions(BaseModel):
    """What the command line accepts, and what the manifest keeps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    version: PositiveInt | None = None
    task: str = "tensor"
    description: str = ""
    licence: str = ""


def parse_options(values: Mapping[str, Any], options_by_task: Mapping[str, type[ImportOptions]]) -> ImportOptions:
    """The options of the task that `values` names; None is left out. Raises ModelImportError that names the option."""
    given = {name: value for name, value in values.items() if value is not None}
    task = given.get("task", "tensor")
    if task not in options_by_task:
        raise ModelImportError(f"--task: there is no task {task!r} to import for; there are {', '.join(options_by_task)}")
    own = options_by_task[task]
    for other, options in options_by_task.items():
        foreign = [name for name in given if name in options.model_fields and name not in own.model_fields]
        if foreign:
            raise ModelImportError(f"{flag(foreign[0])} belongs to --task {other}, the task is {task}")
    try:
        return own(**given)
    except ValidationError as exc:
        error = exc.errors(include_url=False)[0]
        name = flag(str(error["loc"][0]))
        if error["type"] == "missing":
            raise ModelImportError(f"--task {task} needs {name}") from exc
        raise ModelImportError(f"{name}: {error['msg'].removeprefix('Value error, ')}, got {error['input']!r}") from exc


def flag(name: str) -> str:
    """An option as the command line writes it."""
    return f"--{name.replace('_', '-')}"
