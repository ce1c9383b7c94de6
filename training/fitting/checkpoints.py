"""A run's folder: its checkpoints, and the recipe that they belong to. What is done with a checkpoint is in `fit.py`."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.errors import TrainingError
from training.recipe import Recipe, RecipeError

RECIPE_FILE = "recipe.json"
LAST, BEST = "last.ckpt", "best.ckpt"


class CheckpointError(TrainingError):
    """A run cannot be resumed from a file: it is not there, is no checkpoint, or is of another network."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The tensors, numbers and texts of a checkpoint, on the CPU. Raises CheckpointError: other objects would be code to run."""
    if not path.exists():
        raise CheckpointError(f"nothing to resume: there is no {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other versions of the format, which are refused below
            checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as exc:
        message = f"{path} is not a checkpoint of tensors, numbers and texts alone, and is not opened"
        raise CheckpointError(f"{message}: {str(exc).partition(chr(10))[0]}") from exc
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise CheckpointError(f"{path} is not a checkpoint of a run: it has no weights")
    return dict(checkpoint)


def remove_checkpoints(folder: Path) -> None:
    """Remove an older run's checkpoints, where there are some."""
    for name in (LAST, BEST):
        (folder / name).unlink(missing_ok=True)


def require_same(recipe: Recipe, folder: Path) -> None:
    """Refuse to go on from checkpoints of another recipe; only the number of epochs may differ, and what is no training.

    Raises RecipeError that names the differing keys.
    """
    file = folder / RECIPE_FILE
    if not file.exists():
        return
    may_differ = {"version", "description", "licence", "fit.minutes"} | (
        {"fit.epochs"} if recipe.fit.schedule == "none" else set()
    )
    after_training = {"evaluate", "quantize", "ngrams", "calibrate", "self_training", "tune"}
    old, new = _flat(json.loads(file.read_text(encoding="utf-8"))), _flat(recipe.model_dump(mode="json"))
    differing = sorted(
        key
        for key in old.keys() | new.keys()
        if old.get(key) != new.get(key) and key not in may_differ and key.split(".")[0] not in after_training
    )
    if differing:
        raise RecipeError(f"--resume: the recipe has changed since that run: {', '.join(differing)}")


def is_same(recipe: Recipe, folder: Path) -> bool:
    """Whether the checkpoints of a folder are of just this recipe."""
    file = folder / RECIPE_FILE
    return file.exists() and json.loads(file.read_text(encoding="utf-8")) == recipe.model_dump(mode="json")


def begin(recipe: Recipe, folder: Path, *, resume: bool) -> None:
    """Call when all is ready to fit: from here on the folder is this recipe's.

    The older run's checkpoints go before the recipe is written, so that never a recipe lies beside the weights of another;
    a run that fails earlier, for want of its data, leaves the older one as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        remove_checkpoints(folder)
    (folder / RECIPE_FILE).write_text(json.dumps(recipe.model_dump(mode="json"), indent=2), encoding="utf-8")


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}.{key}" if prefix else str(key))
    return flat
