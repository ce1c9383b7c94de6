"""Where in the user's code a torch function was called."""

from __future__ import annotations

import dis
import sys
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
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
            trail.append((f"{file}:{frame.f_code.co_firstlineno}", _instruction(frame)))
            if place is None and not file.startswith(_TORCH) and not file.startswith("<"):
                place = Place(file, frame.f_lineno)
            if not scope and frame.f_code.co_varnames[:1] == ("self",):
                owner: Any = frame.f_locals.get("self")
                scope = names.get(id(owner), "")
        frame = frame.f_back
    return Position(place, tuple(reversed(trail)), scope)


def _instruction(frame: FrameType) -> int:
    """The offset of the instruction that `frame` is at, the same in every run.

    `f_lasti` is not: once CPython has specialised a call it may lie in the cache behind the instruction (3.11 and 3.12), or
    at the PRECALL that goes before the CALL (3.11).
    """
    starts = _starts(frame.f_code)
    return starts[bisect_right(starts, frame.f_lasti) - 1]


@lru_cache(maxsize=1024)
def _starts(code: CodeType) -> tuple[int, ...]:
    """Offsets of the instructions without their caches; a PRECALL and its CALL are one."""
    found = list(dis.get_instructions(code))
    return tuple(
        own.offset
        for before, own in zip([None, *found], found, strict=False)
        if before is None or (before.opname, own.opname) != ("PRECALL", "CALL")
    )
