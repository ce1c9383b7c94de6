"""The reference page of recipes: every key of every task with type, default and meaning, from the recipe types themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from training.recipe.registry import RECIPE_TYPES

Schema = Mapping[str, Any]
_TYPES = {"string": "string", "integer": "integer", "number": "number", "boolean": "boolean"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_HEADER = ("| key | type | default | |", "|---|---|---|---|")


@dataclass(frozen=True)
class Key:
    """One key of a recipe: the tables that have it, and its row on the page."""

    tables: tuple[str, ...]  # as [[data.train]] and [[data.test]]; one empty name at the top level
    about: str  # of the tables
    name: str
    row: str
    description: str


def recipe_reference() -> str:
    """Markdown: what all tasks have in common, then what each task has of its own."""
    keys = {task: keys_of(recipe_type.model_json_schema()) for task, recipe_type in RECIPE_TYPES.items()}
    everywhere = [key for key in next(iter(keys.values())) if all(_has(found, key) for found in keys.values())]
    abouts = {key.about for key in everywhere if all(key.about in {other.about for other in found} for found in keys.values())}
    everywhere = [replace(key, about=key.about if key.about in abouts else "") for key in everywhere]
    lines = ["## Every task", "", *_tables(everywhere)]
    for task, recipe_type in RECIPE_TYPES.items():
        about = " ".join((recipe_type.__doc__ or "").split())
        own = [key for key in keys[task] if not _has(everywhere, key)]
        lines += [f"## Task `{task}`", "", about, "", *_tables(own)]
    return "\n".join(lines) + "\n"


def keys_of(schema: Schema) -> list[Key]:
    """The keys of a recipe type, table after table."""
    tables: dict[str, list[str]] = {"": []}
    for path, name in _walk(schema, schema.get("$defs", {})):
        tables.setdefault(name, []).append(path)
    keys = []
    for name, paths in tables.items():
        table = schema["$defs"][name] if name else schema
        for key, field in table["properties"].items():
            description = field.get("description", "")
            if _reference(field) is not None and not description:
                continue  # its own table says what it is
            default = "needed" if key in table.get("required", ()) else _code(field["default"]) if "default" in field else ""
            row = f"| `{key}` | {_type(field)} | {'' if default == '`null`' else default} | {_cell(description)} |"
            about = " ".join(table.get("description", "").split()) if name else ""
            keys.append(Key(tuple(paths) or ("",), about, key, row, description))
    return keys


def _walk(table: Schema, definitions: Mapping[str, Schema], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The tables inside a table: heading and definition of each."""
    for key, field in table["properties"].items():
        name = _reference(field)
        if name is None:
            continue
        path = f"{prefix}{key}"
        yield f"[[{path}]]" if _is_list(field) else f"[{path}]", name
        yield from _walk(definitions[name], definitions, f"{path}.")


def _reference(field: Schema) -> str | None:
    """The definition that a field's value, or one of its entries, follows; None for a plain value."""
    options = [field, field.get("items", {}), *field.get("anyOf", ()), *field.get("allOf", ())]
    return next((str(option["$ref"]).rpartition("/")[2] for option in options if "$ref" in option), None)


def _is_list(field: Schema) -> bool:
    return field.get("type") == "array"


def _has(keys: list[Key], key: Key) -> bool:
    """Whether the same key stands in the first of its tables, with the same row."""
    return any((other.tables[0], other.row) == (key.tables[0], key.row) for other in keys)


def _tables(keys: list[Key]) -> Iterator[str]:
    """The keys as one Markdown table for each table of a recipe."""
    for tables in dict.fromkeys(key.tables for key in keys):
        rows = [key for key in keys if key.tables == tables]
        if tables != ("",):
            yield from (f"### {', '.join(f'`{table}`' for table in tables)}", "")
            yield from (rows[0].about, "") if rows[0].about else ()
        yield from (*_HEADER, *(key.row for key in rows), "")


def _type(field: Schema) -> str:
    """A field's type in the words of TOML."""
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"] if option.get("type") != "null")
    if "enum" in field:
        return ", ".join(_code(value) for value in field["enum"])
    if "const" in field:
        return _code(field["const"])
    if "$ref" in field:
        return "table"
    if "enum" in field.get("items", {}):
        return f"list out of {_type(field['items'])}"
    if field.get("type") == "array":
        return f"list of {_plural(_type(field.get('items', {})))}"
    if field.get("type") == "object":
        return "table"
    bounds = [f"{sign} {field[bound]:g}" for bound, sign in _BOUNDS.items() if bound in field]
    return " ".join([_TYPES.get(str(field.get("type")), "value"), " and ".join(bounds)]).strip()


def _plural(name: str) -> str:
    first, space, rest = name.partition(" ")
    return name if first.startswith("`") else f"{first}s{space}{rest}"


def _code(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False).replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
