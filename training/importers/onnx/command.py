"""The command line's way to an ONNX file: the options as they are typed, rows in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.importers.model import ModelImportError
from training.importers.onnx.darts import KEY
from training.importers.onnx.publishing import OnnxOptions, OnnxResult, import_onnx
from training.importers.onnx.reading import read_onnx
from training.importers.rows_file import read_rows_file
from training.importers.torch.command import read_pairs
from training.importers.torch.options import read_task_options


def import_file(
    file: Path,
    name: str,
    models: Path,
    *,
    example: Path | None,
    expected: Path | None,
    task: str,
    task_options: Mapping[str, Any],
    state: Sequence[str],
    **options: Any,
) -> OnnxResult:
    """Import a file with options as they are typed. Raises what `import_onnx` does, and for options that do not fit."""
    source = read_onnx(file)
    if KEY in source.metadata and task != "classify":
        # The file itself says how many steps it forecasts: 0 is as many.
        task, task_options = "forecast", {**task_options, "horizon": task_options.get("horizon") or 0}
    chosen = read_task_options(task, **task_options)
    if expected is not None and example is None:
        raise ModelImportError("--expected: answers belong to the rows of --example")
    rows = None if example is None else read_rows_file(example, "--example")
    answers = None if expected is None else read_rows_file(expected, "--expected")
    read = OnnxOptions(task=chosen, state=read_pairs(list(state), "--state"), **options)
    return import_onnx(source, name, read, models, example=rows, expected=answers)
