"""Whoever runs training catches one class."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from training.errors import TrainingError

PACKAGE = Path(__file__).parents[2] / "training"
FILES = sorted(PACKAGE.rglob("*.py"))
ENDINGS = ("Error", "Exception", "Failed", "Refused", "Rejected", "Undetermined", "NotAChain", "NotRun", "DoesNotRun")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_error_that_training_defines_is_a_training_error(path: Path) -> None:
    names = [node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)]
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    if parts[-1] == "__main__" or not any(name.endswith(ENDINGS) for name in names):
        return
    module = importlib.import_module(".".join(parts))
    for name in names:
        kind = getattr(module, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert issubclass(kind, TrainingError), name


def test_an_error_carries_its_message() -> None:
    error = TrainingError("layers[0]: expected a name")
    assert error.message == str(error) == "layers[0]: expected a name"
