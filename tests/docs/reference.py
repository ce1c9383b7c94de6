"""The parts of docs/reference that are written from the code: `python -m tests.docs.reference` writes them, a test compares.

A part stands between `<!-- name:begin -->` and `<!-- name:end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import typer

from service.api.openapi import describe_errors
from service.settings import settings_table
from sluice.__main__ import COMMANDS
from training.__main__ import app
from training.recipe.reference import recipe_reference

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def errors_table() -> str:
    """One row per error of the table in service/api/errors.py."""
    lines = ["| code | status | title | when |", "|---|---|---|---|"]
    lines += [f"| `{e['code']}` | {e['status']} | {e['title']} | {e['description']} |" for e in describe_errors()]
    return "\n".join(lines) + "\n"


def commands_text() -> str:
    """Every command of `sluice`: its line, and the arguments and options of those that training has."""
    return "\n".join(line for name in COMMANDS for line in _command(name)) + "\n"


def _command(name: str) -> Iterator[str]:
    command = COMMANDS[name]
    yield from (f"## sluice {name}", "", f"{command.about[0].upper()}{command.about[1:]}.", "")
    if command.package == "service":
        yield from (SERVICE_OPTIONS[name], "")
        return
    found = typer.main.get_group(app).commands[command.name]
    rows = [_row(parameter) for parameter in sorted(found.params, key=lambda parameter: not _is_argument(parameter))]
    if rows:
        yield from ("| argument or option | default | |", "|---|---|---|", *rows, "")


# What argparse knows of these is the settings' own table, and one folder.
SERVICE_OPTIONS: Mapping[str, str] = {
    "serve": "Takes every [setting](settings.md) as an option, `SLUICE_MAX_BATCH_SIZE` as `--max-batch-size`.",
    "check": "`sluice check FOLDER`: `models/<name>/<version>`, `models/<name>` for all its versions, or `models` for all. "
    "Exit status 1 if there are findings.",
    "score": "`sluice score MODEL INPUT OUTPUT`, with `--column COLUMN=NAME` for a column that the file calls otherwise, "
    "`--parameter NAME=VALUE` for the parameters of requests, `--keep NAME` for a column to copy, `--max-rejected N` "
    "(any number), `--overwrite`, `--engine ray` for the files of a folder, "
    "and the settings `--models`, `--device`, `--num-threads` and `--precision`. "
    "[How to score files](../how-to/score-files.md). Exit status 1 where nothing could be scored, or the file not to its end.",
    "key": "`sluice key NAME`, with `--scope predict`, `--scope admin` or both (`predict`), `--model NAME` for each model that "
    "it may use (all), `--expires DATE` (never) and `--rate-limit RATE` (that of the server). The key goes to the terminal, its "
    "entry for the [keys file](../how-to/access.md#api-keys) to standard output.",
    "settings": "Prints the [table of settings](settings.md).",
}


# Parameters are click's; newer typers bring a click of their own, so that no type of click's fits them all.


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _row(parameter: Any) -> str:
    name = f"`{parameter.name.upper()}`" if _is_argument(parameter) else ", ".join(f"`{option}`" for option in parameter.opts)
    default = parameter.default
    shown = "needed" if parameter.required else "" if default is None or default is False or default == () else f"`{default}`"
    about = getattr(parameter, "help", None) or ""
    return f"| {name} | {shown} | {about.replace('|', '&#124;')} |"


class Part(NamedTuple):
    """One part of a page and what writes it."""

    page: str
    render: Callable[[], str]


PARTS: Mapping[str, Part] = {
    "settings": Part("settings.md", settings_table),
    "errors": Part("errors.md", errors_table),
    "commands": Part("command-line.md", commands_text),
    "recipes": Part("recipe.md", recipe_reference),
}


def completed(name: str) -> str:
    """The page of a part with the part as the code has it."""
    part = PARTS[name]
    text = (REFERENCE / part.page).read_text(encoding="utf-8")
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    found = re.search(f"{re.escape(begin)}.*?{re.escape(end)}", text, re.DOTALL)
    assert found, f"{part.page} has no place for {name}"
    return text[: found.start()] + begin + part.render() + end + text[found.end() :]


if __name__ == "__main__":
    for each in PARTS:
        (REFERENCE / PARTS[each].page).write_text(completed(each), encoding="utf-8")
        print(REFERENCE / PARTS[each].page)
