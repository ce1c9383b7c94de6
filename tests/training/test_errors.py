"""Whoever runs training catches one class."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from training.errors import TrainingError

PACKAGE = Path(__file__).parents[2] / "training"
FILES = sorted(PACKAGE.rglob("*.py"))


def bases_of_exceptions(tree: ast.Module) -> dict[str, list[str]]:
    """Of every class that is an exception by its name or its bases."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {node.name: [ast.unparse(base) for base in node.bases] for node in classes}
    endings = ("Error", "Exception", "Failed")
    return {name: bases for name, bases in found.items() if any(part.endswith(endings) for part in (name, *bases))}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_error_that_training_defines_is_a_training_error(path: Path) -> None:
    for name, bases in bases_of_exceptions(ast.parse(path.read_text(encoding="utf-8"))).items():
        expected = ["Exception"] if name == "TrainingError" else ["TrainingError"]
        assert bases == expected, f"{path}: {name}"


def test_an_error_carries_its_message() -> None:
    error = TrainingError("layers[0]: expected a name")
    assert error.message == str(error) == "layers[0]: expected a name"
