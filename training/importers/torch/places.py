"""Where in the user's code a torch function was called."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)

Trail = tuple[tuple[str, int], ...]
"""Code object and instruction of every frame between the module's call and torch: equal where the same source line runs again."""


@dataclass(frozen=True)
class Place:
    """A line of the user's code."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{Path(self.file).name}, line {self.line}"


@dataclass(frozen=True)
class Position:
    """Where a call came from: the innermost line outside torch, the trail of all frames, and the module that made it."""

    place: Place | None
    trail: Trail
    scope: str


def find_position(root: FrameType, names: Mapping[int, str]) -> Position:
    """The position of the call that is being made under `root`; `names` maps id(module) to its qualified name."""
    frame: FrameType | None = sys._getframe(1)
    place: Place | None = None
    trail: list[tuple[str, int]] = []
    scope = ""
    while frame is not None and frame is not root:
        file = frame.f_code.co_filename
        if not file.startswith(_HERE):
            trail.append((f"{file}:{frame.f_code.co_firstlineno}", frame.f_lasti))
            if place is None and not file.startswith(_TORCH) and not file.startswith("<"):
                place = Place(file, frame.f_lineno)
            if not scope and frame.f_code.co_varnames[:1] == ("self",):
                owner: Any = frame.f_locals.get("self")
                scope = names.get(id(owner), "")
        frame = frame.f_back
    return Position(place, tuple(reversed(trail)), scope)
