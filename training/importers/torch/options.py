"""What the command line's options for a torch module mean: the task with its own options, axes, scalers and scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.importers.options import flag
from training.importers.torch.calling import Axis
from training.importers.torch.errors import ModuleRefused
from training.importers.torch.tasks import Classify, Forecast, Lists, Task
from training.importers.torch.wrappers import LinearScale

TASK_OPTIONS: Mapping[str, tuple[type[Forecast | Classify] | None, tuple[str, ...], tuple[str, ...]]] = {
    "tensor": (None, (), ()),
    "forecast": (
        Forecast,
        ("horizon",),
        ("features", "targets", "quantiles", "frequencies", "season_length", "context_length", "scaler"),
    ),
    "classify": (Classify, ("labels", "tokenizer"), ("max_length", "language", "subject", "are_probabilities")),
}
"""By task: its class, the options that it needs, and those that it has besides."""
_FLAGS = {"frequencies": "--frequency", "are_probabilities": "--probabilities"}
_SCALER_KEYS = {"minmax": ("min_", "scale_"), "standard": ("mean_", "scale_")}


def read_task_options(task: str, **given: Any) -> Task:
    """The task of `--task` with its options. Options that are None are left out.

    Raises ModuleRefused for a task that is none, an option that is missing, and one of another task.
    """
    if task not in TASK_OPTIONS:
        raise ModuleRefused(f"--task: expected {', '.join(TASK_OPTIONS)}, got {task!r}")
    make, needed, allowed = TASK_OPTIONS[task]
    options = {name: value for name, value in given.items() if value is not None}
    for other, (_, other_needed, other_allowed) in TASK_OPTIONS.items():
        foreign = [name for name in options if name in (*other_needed, *other_allowed) and name not in (*needed, *allowed)]
        if foreign:
            raise ModuleRefused(f"{_flag(foreign[0])} belongs to --task {other}, the task is {task}")
    missing = [name for name in needed if name not in options]
    if missing:
        raise ModuleRefused(f"--task {task} needs {_flag(missing[0])}")
    return Lists() if make is None else make(**options)


def _flag(name: str) -> str:
    return _FLAGS.get(name, flag(name))


def read_inputs(pairs: Sequence[str]) -> dict[str, tuple[Axis, ...]] | None:
    """`x=time,7` as the axes of a row, by argument; None where there is none. Raises ModuleRefused."""
    found: dict[str, tuple[Axis, ...]] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        axes = [axis.strip() for axis in text.split(",")] if text else []
        if not (separator and name) or not all(axis == "time" or (axis.isdecimal() and int(axis) > 0) for axis in axes):
            raise ModuleRefused(f'--input: expected ARGUMENT=AXES, as x=time,7 (sizes, and "time"), got {pair!r}')
        found[name] = tuple("time" if axis == "time" else int(axis) for axis in axes)
    return found or None


def read_scores(pairs: Sequence[str]) -> dict[str, float]:
    """`accuracy=0.93` as measures for the manifest. Raises ModuleRefused."""
    found = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not (separator and name) or not np.isfinite(number):
            raise ModuleRefused(f"--score: expected MEASURE=NUMBER, as accuracy=0.93, got {pair!r}")
        found[name] = number
    return found


def read_quantiles(text: str | None) -> tuple[float, ...] | None:
    """`0.1,0.5,0.9` as levels. Raises ModuleRefused."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as exc:
        raise ModuleRefused(f"--quantiles: expected levels as 0.1,0.5,0.9, got {text!r}") from exc


def read_scale(text: str | None, option: str) -> LinearScale | None:
    """`minmax:LOW,HIGH`, `standard:MEAN,DEVIATION`, or a JSON file with the attributes of a fitted scaler of scikit-learn.

    The file holds `min_` and `scale_` of a MinMaxScaler, or `mean_` and `scale_` of a StandardScaler, as lists of one number for
    each feature. Raises ModuleRefused.
    """
    if text is None:
        return None
    kind, separator, numbers = text.partition(":")
    if separator and kind in _SCALER_KEYS:
        try:
            first, second = (np.array([float(part)]) for part in numbers.split(","))
        except ValueError as exc:
            raise ModuleRefused(f"{option}: expected {kind}: and two numbers, got {text!r}") from exc
        size = second - first if kind == "minmax" else second
        with np.errstate(all="ignore"):
            return _scale(1 / size, -first / size, option, text)
    return _read_scaler_file(Path(text), option)


def _read_scaler_file(path: Path, option: str) -> LinearScale:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for kind, (shift, factor) in _SCALER_KEYS.items():
            if isinstance(content, Mapping) and shift in content and factor in content:
                one, other = (np.atleast_1d(np.asarray(content[key], np.float64)) for key in (shift, factor))
                if one.shape != other.shape or one.ndim != 1:
                    raise ModuleRefused(f"{option}: {path}: {shift} and {factor} must be lists of one length")
                if kind == "minmax":
                    return _scale(other, one, option, str(path))
                with np.errstate(all="ignore"):  # what is not finite is refused
                    return _scale(1 / other, -one / other, option, str(path))
    except OSError as exc:
        raise ModuleRefused(f"{option}: {path}: {exc.strerror}") from exc
    except (ValueError, TypeError, RecursionError) as exc:
        raise ModuleRefused(f"{option}: {path} cannot be read: {exc}") from exc
    raise ModuleRefused(f"{option}: {path} holds neither min_ and scale_ (MinMaxScaler) nor mean_ and scale_ (StandardScaler)")


def _scale(factor: Any, offset: Any, option: str, source: str) -> LinearScale:
    if not np.isfinite(factor).all() or not np.isfinite(offset).all() or not factor.all():
        raise ModuleRefused(f"{option}: {source}: a range or deviation is zero or not finite")
    return LinearScale(factor, offset)
