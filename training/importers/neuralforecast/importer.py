"""A recurrent model of neuralforecast becomes a forecast model: as a torch module, which is published as any is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.importers.model import ModelImportError
from training.importers.neuralforecast.folder import read_folder
from training.importers.neuralforecast.module import make_module
from training.importers.rows_file import read_rows_file
from training.importers.torch.publishing import PublishedModel, publish
from training.importers.torch.tasks import Forecast

SEED = 0
NUM_MORE = 3  # steps that the second row of the example is longer


def import_neuralforecast(
    folder: Path,
    name: str,
    models: Path,
    *,
    model: str | None = None,
    example: Path | None = None,
    frequencies: Sequence[str] | None = None,
    season_length: int | None = None,
    **options: Any,
) -> PublishedModel:
    """Publish a model that `NeuralForecast.save` wrote as `models/<name>/<version>`; `model` says which of several.

    `example` are histories; `frequencies` those that the folder does not say. `options` are those of `publish`. Raises
    ModelImportError for what is not served, and what `publish` raises.
    """
    saved = read_folder(folder, model)
    num_history = saved.options.num_history
    rows = _draw(num_history) if example is None else _read(example, num_history)
    given = [saved.frequency] if frequencies is None and saved.frequency else list(frequencies or ())
    task = Forecast(
        saved.options.h,
        features=[saved.target],
        quantiles=sorted(saved.quantiles),
        frequencies=given,
        season_length=season_length or 1,
        context_length=num_history,
    )
    about = options.pop("description", None) or f"{saved.name} of neuralforecast"
    origin = {"from": "neuralforecast", "folder": folder.name, "model": saved.name, "class": saved.kind}
    return publish(make_module(saved), name, example=rows, task=task, description=about, origin=origin, models=models, **options)


def _draw(num_history: int) -> list[NDArray[Any]]:
    """Random histories of two lengths: the window, and more than that."""
    rng = np.random.default_rng(SEED)
    return [rng.random((length, 1)).round(4).astype(np.float32) for length in (num_history, num_history + NUM_MORE)]


def _read(example: Path, num_history: int) -> list[NDArray[Any]]:
    """The caller's histories, and one of another length where they have none."""
    given = [row["history"] if isinstance(row, dict) else row for row in read_rows_file(example, "--example")]
    rows = [np.asarray(row, np.float32) for row in given]
    rows = [row[:, None] if row.ndim == 1 else row for row in rows]
    for number, row in enumerate(rows):
        if row.ndim != 2 or row.shape[1] != 1 or len(row) < num_history:
            raise ModelImportError(
                f"--example: row {number} has the shape {row.shape}; the model reads the last {num_history} steps of one series"
            )
    if rows and len({len(row) for row in rows}) == 1:
        rows.append(np.concatenate([rows[0][:NUM_MORE], rows[0]]))
    return rows
