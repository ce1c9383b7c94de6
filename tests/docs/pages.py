"""Pages as tests read them: their blocks of commands with what stands under each, and whether an answer is the one of the page.

`…` stands for anything: in JSON as a string for one value, as a key or as a last entry for all others, in text for any text.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ANYTHING = "…"


@dataclass(frozen=True)
class Command:
    """One command of a page, without its `$ `, and what the page shows under it."""

    text: str
    output: str


def commands(page: str) -> list[Command]:
    """The commands of all ```console blocks; a command goes on while a quote or here-document is open, or after a backslash."""
    found = []
    for block in re.findall(r"^ *```console\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL):
        lines = [re.sub(r"^ {4}", "", line) if block.startswith("    ") else line for line in block.splitlines()]
        starts = [index for index, line in enumerate(lines) if line.startswith("$ ")]
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            length = next(n for n in range(1, end - start + 1) if _is_whole("\n".join(lines[start : start + n])))
            text = "\n".join(lines[start : start + length]).removeprefix("$ ")
            found.append(Command(text, "\n".join(lines[start + length : end]).strip()))
    return found


def _is_whole(text: str) -> bool:
    if here := re.search(r"<<'(\w+)'\n", f"{text}\n"):
        return text.endswith(f"\n{here[1]}")
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return not text.endswith("\\")


@dataclass(frozen=True)
class Curl:
    """One curl of a page as a request, and the answer that stands under it."""

    method: str
    path: str
    headers: dict[str, str]
    body: str | None
    answer: str


def curls(page: str) -> Iterator[Curl]:
    for command in commands(page):
        words = shlex.split(command.text.replace("\\\n", " "))
        if words[0] != "curl":
            continue
        url = next(word for word in words if word.startswith("http://"))
        body = words[words.index("-d") + 1] if "-d" in words else None
        # curl -d declares every body as a form.
        headers = {} if body is None else {"content-type": "application/x-www-form-urlencoded"}
        for index, word in enumerate(words):
            if word == "-H":
                name, _, value = words[index + 1].partition(":")
                headers[name.strip().lower()] = value.strip()
        if body is not None and body.startswith("@"):
            body = (ROOT / body[1:]).read_text(encoding="utf-8")
        path = "/" + url.split("/", 3)[3] if url.count("/") > 2 else "/"
        yield Curl("GET" if body is None else "POST", path, headers, body, command.output)


def assert_shows(written: str, found: str) -> None:
    """What a page shows is what came: as JSON where it is whole JSON, else line by line."""
    try:
        expected = json.loads(written)
    except ValueError:
        position = 0
        for line in written.splitlines():
            pattern = ".*?".join(re.escape(part) for part in line.split(ANYTHING))
            match = re.compile(pattern, re.DOTALL).search(found, position)
            assert match, f"{line!r} is not in {found!r}"
            position = match.end()
    else:
        assert_agrees(json.loads(found), expected, "answer")


def assert_agrees(found: Any, written: Any, where: str) -> None:
    """Numbers may differ in the last digits, which another processor rounds elsewhere."""
    if written == ANYTHING:
        return
    if isinstance(written, dict):
        assert isinstance(found, dict), where
        if ANYTHING not in written:
            assert found.keys() == written.keys(), where
        for key in written.keys() - {ANYTHING}:
            assert key in found, f"{where}.{key}"
            assert_agrees(found[key], written[key], f"{where}.{key}")
    elif isinstance(written, list):
        assert isinstance(found, list), where
        cut = written.index(ANYTHING) if ANYTHING in written else None
        if cut is None:
            assert len(found) == len(written), where
        for index, value in enumerate(written[:cut]):
            assert_agrees(found[index], value, f"{where}[{index}]")
    elif isinstance(written, float):
        assert found == pytest.approx(written, rel=1e-3, abs=1e-4), where
    else:
        assert found == written, where
