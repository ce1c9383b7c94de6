"""The distribution that pages and messages name for installing is ours: `sluice` on the package index is another project."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.test_links import PAGES

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALL = re.compile(r"pip3? install\s+([^\n`;&|)]*)")
OPTIONS_WITH_VALUE = ("-c", "--constraint", "-r", "--requirement")


def texts() -> Iterator[tuple[str, str]]:
    """(where, text) of every page, every string of the packages, and every file that installs."""
    for page in PAGES:
        yield page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")
    for package in ("sluice", "service", "training"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield f"{file.relative_to(ROOT).as_posix()}:{node.lineno}", node.value
        for file in sorted((ROOT / package).rglob("*.toml")):
            yield file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
    for name in ("pyproject.toml", "Makefile", "Dockerfile", ".ci/run"):
        yield name, (ROOT / name).read_text(encoding="utf-8")


def installed(text: str) -> Iterator[str]:
    """The name of each distribution that a `pip install` of a text would fetch from the index.

    Beyond the first word that is no option, only quoted words and those with a version count: prose may follow a command.
    """
    for command in INSTALL.findall(text):
        words = iter(command.split("#")[0].split())
        num_found = 0
        for word in words:
            if word.startswith("-"):
                if word in OPTIONS_WITH_VALUE:
                    next(words, None)
                continue
            name = re.fullmatch(r"""['"]?([A-Za-z0-9][A-Za-z0-9_-]*)(['"\[=<>~!,.)].*)?""", word)
            if num_found == 0 or word[0] in "'\"" or "==" in word:
                num_found += 1
                if name:  # else a path, or a placeholder
                    yield name[1].lower()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("pip install 'sluice[gpu]'", ["sluice"]),
        ("run `pip install sluice` first", ["sluice"]),
        ("$ .venv/bin/pip install -c constraints.txt 'sluice-serving[cpu,train]'", ["sluice-serving"]),
        ("pip install --editable '.[cpu]' torch==2.13.0", ["torch"]),
    ],
)
def test_names_are_found(text: str, names: list[str]) -> None:
    assert list(installed(text)) == names


def test_only_our_distribution_is_named_for_installing() -> None:
    named = {name: where for where, text in texts() for name in installed(text)}
    assert PROJECT["name"] in named
    assert named.keys() <= {PROJECT["name"]}, named


def test_extras_are_named_with_the_distribution() -> None:
    found = [(where, name) for where, text in texts() for name in re.findall(r"(?<![\w.-])sluice\[[a-z]", text)]
    assert found == []


def test_extras_that_are_named_exist() -> None:
    named = {
        extra for _, text in texts() for part in re.findall(r"sluice-serving\[([a-z,]+)\]", text) for extra in part.split(",")
    }
    assert named
    assert named <= PROJECT["optional-dependencies"].keys()
