"""What is to be served, as the process that decides it tells the processes that serve: pure values, and their form as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from service.models.scanning import LoadState
from service.models.verification import Verdict

UNLOADED = "unloaded"
"""The reason of a version that was unloaded by a request: requests do not find it, and readiness does not depend on it."""

Key = tuple[str, str]
"""Name and version of a model."""


@dataclass(frozen=True)
class TargetVersion:
    """One version: served from `folder`, or shown with its state where there is none."""

    name: str
    version: str
    folder: str | None = None
    """Holds its files, which do not change any more: another content is another folder."""
    state: LoadState = "READY"
    reason: str | None = None
    """Why it is not served; with a folder, why a changed content of it is not."""
    is_update: bool = False
    """Whether it came while the server ran: readiness does not depend on it."""
    verdict: Verdict | None = None
    """What was found of its files before."""

    @property
    def key(self) -> Key:
        return self.name, self.version

    @property
    def path(self) -> str:
        return f"{self.name}/{self.version}" if self.version else self.name


class Withdrawal(NamedTuple):
    """A version that one process has taken out of service, which all are to do."""

    name: str
    version: str
    folder: str
    """That it was served from: another content is another version."""
    reason: str

    @property
    def key(self) -> Key:
        return self.name, self.version


Target = Sequence[TargetVersion]
_ADAPTER: TypeAdapter[list[TargetVersion]] = TypeAdapter(list[TargetVersion])


def write_target(target: Target) -> list[dict[str, Any]]:
    """The target as JSON has it."""
    content: list[dict[str, Any]] = _ADAPTER.dump_python(list(target), mode="json")
    return content


def read_target(content: object) -> list[TargetVersion]:
    """The target of such JSON. Raises ValueError."""
    return _ADAPTER.validate_python(content)
