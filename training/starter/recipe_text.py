"""A recipe in TOML, composed key by key, with the reasons as comments."""

from __future__ import annotations

import json
import textwrap

Value = str | int | float | bool | list["Value"] | dict[str, "Value"]
WIDTH = 120
COMMENT_COLUMN = 24


class RecipeText:
    """A TOML text that grows line by line."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def comment(self, text: str) -> None:
        """A comment of its own lines; TOML allows no control characters in it."""
        text = "".join(character if character.isprintable() else " " for character in text)
        self._lines += textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)

    def table(self, header: str) -> None:
        """Begin a table, as [fit] or [[layers]]."""
        self._lines += ["", header]

    def key(self, name: str, value: Value, comment: str = "") -> None:
        """One key; its comment stands beside it where there is room, else above it."""
        line = f"{name} = {format_value(value)}"
        if not comment:
            self._lines.append(line)
        elif len(beside := f"{line:{COMMENT_COLUMN - 1}} # {comment}") <= WIDTH:
            self._lines.append(beside)
        else:
            self.comment(comment)
            self._lines.append(line)

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"


def format_value(value: Value) -> str:
    """A value in TOML."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {format_value(entry)}' for key, entry in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(format_value, value))}]"
    # A string of JSON is one of TOML, but for DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
