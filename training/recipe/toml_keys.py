"""Keys of a TOML text by their location: the line where each stands, and changes of single values. Knows no recipe.

A location is what pydantic reports: ("data", "train", 0, "path").
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

Location = tuple[str | int, ...]

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]#]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*([A-Za-z0-9_\-.\"']+)\s*=")


def line_numbers(text: str) -> dict[Location, int]:
    """Line (from 1) of each key and table header. Keys of inline tables have no line of their own."""
    lines: dict[Location, int] = {}
    counts: dict[Location, int] = {}
    table: Location = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = tuple(part.strip(" \"'") for part in header[2].split("."))
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                lines.setdefault(table, number)
                table = (*table, counts[table])
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault((*table, *(part.strip("\"'") for part in key[1].split("."))), number)
    return lines


def nearest_line(lines: dict[Location, int], location: Location) -> int | None:
    """The line of a key; where it is left out, that of the innermost table which would hold it."""
    return next((lines[location[:depth]] for depth in range(len(location), 0, -1) if location[:depth] in lines), None)


def parse_location(key: str) -> Location:
    """`layers.0.units` as a location."""
    return tuple(int(part) if part.isdigit() else part for part in key.strip().split("."))


def parse_value(raw: str) -> Any:
    """A TOML value; a text that is none stands for itself, so that quotes may be left out."""
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw.strip()


def set_value(table: Any, location: Location, value: Any) -> None:
    """Change one value of a parsed text in place; tables on the way are made. Raises ValueError where there is no such place."""
    for depth, part in enumerate(location[:-1]):
        if isinstance(table, list):
            table = _element(table, part)
        elif isinstance(table, dict):
            table = table.setdefault(str(part), {})
        else:
            raise ValueError(f"{'.'.join(map(str, location[:depth]))} is a value, not a table")
    last = location[-1]
    if isinstance(table, list):
        _element(table, last)
        table[int(last)] = value
    elif isinstance(table, dict):
        table[str(last)] = value
    else:
        raise ValueError(f"{'.'.join(map(str, location[:-1]))} is a value, not a table")


def _element(items: list[Any], index: str | int) -> Any:
    if not isinstance(index, int) or index >= len(items):
        raise ValueError(f"expected an index below {len(items)}, got {index!r}")
    return items[index]
