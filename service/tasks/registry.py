"""Which tasks there are: what their files define, and what a caller adds. Holds them, and decides nothing."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path

import service.tasks
from service.manifest import Manifest, manifest_schema, manifest_type, read_manifest
from service.tasks.base import Endpoint, TaskDefinition


class TaskRegistry:
    """Tasks by name, in the order in which they were registered. Nothing is added to one once it is made."""

    def __init__(self, definitions: Iterable[TaskDefinition] = ()) -> None:
        """Raises ValueError where two tasks have one name, or two endpoints one path."""
        self._definitions: dict[str, TaskDefinition] = {}
        paths: set[str] = set()
        for definition in definitions:
            if definition.name in self._definitions:
                raise ValueError(f'there are two tasks called "{definition.name}"')
            for endpoint in definition.endpoints:
                if endpoint.path in paths:
                    raise ValueError(f"there are two endpoints at {endpoint.path}")
                if endpoint.task != definition.name:
                    raise ValueError(f'{endpoint.path} belongs to "{definition.name}", and says "{endpoint.task}"')
                paths.add(endpoint.path)
            self._definitions[definition.name] = definition
        self._manifests = {name: manifest_type(name, definition.spec) for name, definition in self._definitions.items()}

    def __getitem__(self, name: str) -> TaskDefinition:
        return self._definitions[name]

    def __contains__(self, name: object) -> bool:
        return name in self._definitions

    def __iter__(self) -> Iterator[TaskDefinition]:
        return iter(self._definitions.values())

    def __repr__(self) -> str:
        return f"<TaskRegistry {list(self._definitions)}>"

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The routes of all tasks."""
        return tuple(endpoint for definition in self for endpoint in definition.endpoints)

    def read_manifest(self, folder: Path) -> Manifest:
        """Read `folder/manifest.json`. Raises FolderError that names the field, what was found and what was expected."""
        return read_manifest(folder, self._manifests)

    def manifest_schema(self) -> str:
        """The JSON Schema of `manifest.json`, as `models/manifest.schema.json` holds it."""
        return manifest_schema(self._manifests)

    def add(self, *definitions: TaskDefinition) -> TaskRegistry:
        """A registry with these tasks behind those of this one, which stays as it is."""
        return TaskRegistry([*self, *definitions])

    def configure(self, settings: Mapping[str, object]) -> TaskRegistry:
        """A registry of the same tasks under an operator's settings."""
        return TaskRegistry(definition.configure(settings) for definition in self)


@cache
def built_in_tasks() -> TaskRegistry:
    """The tasks of this folder: each file that defines `TASK`."""
    names = sorted(module.name for module in pkgutil.iter_modules(service.tasks.__path__))
    modules = [import_module(f"{service.tasks.__name__}.{name}") for name in names if name != "registry"]
    return TaskRegistry(module.TASK for module in modules if hasattr(module, "TASK"))
