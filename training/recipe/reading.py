"""From a recipe file to a recipe, with the line and the key of every fault. Loads no data and knows no network."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from training.recipe.base import Recipe, RecipeError
from training.recipe.registry import RECIPE_TYPES
from training.recipe.toml_keys import Location, line_numbers, nearest_line, parse_location, parse_value, set_value

RECIPES = Path(__file__).parent.parent / "recipes"
MANIFEST_FILE = "manifest.json"


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path, the published folder that it made, or the file of a bundled one by its name.

    Raises RecipeError that lists those.
    """
    path = Path(name)
    if path.is_file() or (path / MANIFEST_FILE).is_file():
        return path
    bundled = {file.stem: file for file in sorted(RECIPES.glob("*.toml"))}
    if name in bundled:
        return bundled[name]
    near = difflib.get_close_matches(name, bundled, n=1)
    hint = f'; did you mean "{near[0]}"?' if near else "."
    raise RecipeError(f'no recipe "{name}"{hint} There is no such file, and the bundled recipes are: {", ".join(bundled)}')


def read_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or that of a published folder, and apply `key=value` changes (dotted keys, TOML values).

    Raises RecipeError.
    """
    if path.is_dir():
        content = recipe_of_folder(path).as_json()
        _apply(content, changes)
        return recipe_of_json(content)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise RecipeError(f"{path}: cannot be read: {exc}") from exc
    return parse_recipe(text, changes, where=str(path))


def parse_recipe(text: str, changes: Sequence[str] = (), *, where: str = "recipe") -> Recipe:
    """The recipe in a TOML text, with changes. Raises RecipeError naming every fault with its line and key."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise RecipeError(f"{where}: not TOML: {exc}") from exc
    changed = _apply(table, changes)
    line = line_numbers(text).get(("task",))
    recipe_type = _recipe_type(table, "--set task" if ("task",) in changed else f"{where}, line {line}" if line else where)
    try:
        return recipe_type.model_validate(table)
    except ValidationError as exc:
        # `--set description=5` is text where the recipe wants text: the recipe decides the type.
        texts = [loc for loc in changed if any(e["loc"] == loc and e["type"] == "string_type" for e in exc.errors())]
        if texts:
            for location in texts:
                set_value(table, location, changed[location])
            try:
                return recipe_type.model_validate(table)
            except ValidationError as again:
                exc = again
        lines = line_numbers(text)
        faults = [_sentence(dict(error), recipe_type, lines, changed, where) for error in exc.errors(include_url=False)]
        raise RecipeError("\n".join(faults)) from exc


def recipe_of_json(content: Mapping[str, Any]) -> Recipe:
    """A recipe from the plain JSON that `Recipe.as_json` gave. Raises RecipeError."""
    recipe_type = _recipe_type(content, "recipe")
    try:
        # Strict types allow for JSON's own only where the input is JSON.
        return recipe_type.model_validate_json(json.dumps(content))
    except ValidationError as exc:
        faults = [_sentence(dict(error), recipe_type, {}, (), "recipe") for error in exc.errors(include_url=False)]
        raise RecipeError("\n".join(faults)) from exc


def recipe_of_folder(folder: Path) -> Recipe:
    """The recipe that made a published folder. Raises RecipeError where none did, as with an imported model."""
    try:
        return recipe_of_json(json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["training"]["recipe"])
    except (OSError, ValueError, KeyError, TypeError, RecipeError) as exc:
        raise RecipeError(f"{folder}: there is no manifest.json with the recipe of a run: {exc}") from exc


def line_of(path: Path, location: Location) -> int | None:
    """Where a key stands in a recipe file, counted from 1; where it is left out, the table that would hold it."""
    return nearest_line(line_numbers(path.read_text(encoding="utf-8")), location)


def _apply(table: dict[str, Any], changes: Sequence[str]) -> dict[Location, str]:
    """Change the table in place; returns the raw value by location."""
    changed: dict[Location, str] = {}
    for change in changes:
        key, equals, raw = change.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {change}: expected key=value")
        location = parse_location(key)
        try:
            set_value(table, location, parse_value(raw))
        except ValueError as exc:
            raise RecipeError(f"--set {change}: {exc}") from exc
        changed[location] = raw.strip()
    return changed


def _recipe_type(table: Mapping[str, Any], place: str) -> type[Recipe]:
    names = ", ".join(RECIPE_TYPES)
    if "task" not in table:
        raise RecipeError(f'{place}: "task" is missing; there are {names}')
    task = table["task"]
    if not isinstance(task, str) or task not in RECIPE_TYPES:
        near = difflib.get_close_matches(str(task), RECIPE_TYPES, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are {names}"
        raise RecipeError(f'{place}: "task": no task {task!r}; {hint}')
    return RECIPE_TYPES[task]


def _sentence(
    error: Mapping[str, Any],
    recipe_type: type[Recipe],
    lines: dict[Location, int],
    changed: Iterable[Location],
    where: str,
) -> str:
    location = tuple(error["loc"])
    # pydantic adds the name of a union's branch; the recipe's own keys are what stands in the file.
    key = ".".join(str(part) for part in location if "[" not in str(part))
    place = next((f"--set {key}" for change in changed if location[: len(change)] == change), "")
    if not place:
        line = nearest_line(lines, location)
        place = f"{where}, line {line}" if line else where
    if error["type"] == "extra_forbidden":
        return f'{place}: unknown key "{key}"; {_hint(recipe_type, location)}'
    if error["type"] == "missing":
        return f'{place}: "{key}" is missing'
    message = str(error["msg"]).removeprefix("Value error, ")
    if not key:
        return f"{place}: {message}"
    is_short = not isinstance(error["input"], dict | list)
    return f'{place}: "{key}": {message}, got {error["input"]!r}' if is_short else f'{place}: "{key}": {message}'


def _hint(recipe_type: type[Recipe], location: Location) -> str:
    """What an unknown key may have meant: one of another task's, a misspelt one, or one of those that there are."""
    name, names = str(location[-1]), _keys_at(recipe_type, location[:-1])
    owners = [task for task, other in RECIPE_TYPES.items() if name in _keys_at(other, location[:-1])]
    if owners:
        return f"it is for task {' and '.join(f'{owner!r}' for owner in owners)}"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f'did you mean "{near[0]}"?' if near else f"there are: {', '.join(names)}"


def _keys_at(recipe_type: type[Recipe], location: Location) -> list[str]:
    """The keys of the table at a location."""
    model: Any = recipe_type
    for part in location:
        if isinstance(part, int):
            continue
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            return []
        model = table_in(fields[part].annotation)
    return list(getattr(model, "model_fields", {}))


def table_in(annotation: Any) -> type[BaseModel] | None:
    """The table inside `Table | None`, `Sequence[Table]` and the like; None if there is none."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, BaseModel) else None
    return next((found for found in map(table_in, get_args(annotation)) if found is not None), None)
