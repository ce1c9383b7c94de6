"""The command line's way to an ONNX file: the options as they are typed, rows in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.importers.model import ModelImportError
from training.importers.onnx.darts import KEY
from training.importers.onnx.publishing import OnnxOptions, OnnxResult, import_onnx
from training.importers.onnx.reading import read_onnx
from training.importers.options import flag
from training.importers.rows_file import read_rows_file
from training.importers.torch.command import read_pairs
from training.importers.torch.tasks import Classify, Forecast, Lists, Task

NAMES_ON_THE_COMMAND_LINE = {"frequencies": "frequency"}


def import_file(
    file: Path,
    name: str,
    models: Path,
    *,
    example: Path | None,
    expected: Path | None,
    task: str,
    of_classify: Mapping[str, Any],
    of_forecast: Mapping[str, Any],
    state: Sequence[str],
    **options: Any,
) -> OnnxResult:
    """Import a file with options as they are typed. Raises what `import_onnx` does, and for options that do not fit."""
    source = read_onnx(file)
    is_darts = KEY in source.metadata and task != "classify"
    chosen = _read_task("forecast" if is_darts else task, of_classify, of_forecast, has_horizon=is_darts)
    if expected is not None and example is None:
        raise ModelImportError("--expected: answers belong to the rows of --example")
    rows = None if example is None else read_rows_file(example, "--example")
    answers = None if expected is None else read_rows_file(expected, "--expected")
    read = OnnxOptions(task=chosen, state=read_pairs(list(state), "--state"), **options)
    return import_onnx(source, name, read, models, example=rows, expected=answers)


def _read_task(task: str, of_classify: Mapping[str, Any], of_forecast: Mapping[str, Any], *, has_horizon: bool) -> Task:
    """The task with its options; `has_horizon`: the file itself says how many steps it forecasts."""
    if task not in ("tensor", "forecast", "classify"):
        raise ModelImportError(f"--task: there is no task {task!r}; there are tensor, forecast and classify")
    given = {"classify": _given(of_classify), "forecast": _given(of_forecast)}
    for other, values in given.items():
        if values and other != task:
            option = next(iter(values))
            raise ModelImportError(
                f"{flag(NAMES_ON_THE_COMMAND_LINE.get(option, option))} belongs to --task {other}, the task is {task}"
            )
    if task == "tensor":
        return Lists()
    own = given[task]
    for needed in ("horizon",) if task == "forecast" else ("labels", "tokenizer"):
        if needed not in own and not has_horizon:
            raise ModelImportError(f"--task {task} needs {flag(needed)}")
    if task == "classify":
        return Classify(**own)
    if "quantiles" in own:
        try:
            own["quantiles"] = [float(level) for level in own["quantiles"]]
        except ValueError as exc:
            raise ModelImportError(f"--quantiles: expected numbers, got {','.join(own['quantiles'])}") from exc
    return Forecast(**{"horizon": 0, **own})


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
