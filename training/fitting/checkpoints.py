"""A run's folder: its checkpoints, and the recipe that they belong to. What is in a checkpoint, `fit.py` knows."""

from __future__ import annotations

import json
from pathlib import Path

from training.fitting.fit import BEST, LAST
from training.recipe import Recipe, RecipeError

RECIPE_FILE = "recipe.json"


def require_same(recipe: Recipe, folder: Path) -> None:
    """Refuse to go on from checkpoints of another recipe; only the number of epochs may differ, and what is no training.

    Raises RecipeError that names the differing keys.
    """
    file = folder / RECIPE_FILE
    if not file.exists():
        return
    may_differ = {"version", "description", "licence"} | ({"fit.epochs"} if recipe.fit.schedule == "none" else set())
    old, new = _flat(json.loads(file.read_text(encoding="utf-8"))), _flat(recipe.model_dump(mode="json"))
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and key not in may_differ)
    if differing:
        raise RecipeError(f"--resume: the recipe has changed since that run: {', '.join(differing)}")


def begin(recipe: Recipe, folder: Path, *, resume: bool) -> None:
    """Call when all is ready to fit: from here on the folder is this recipe's.

    The older run's checkpoints go before the recipe is written, so that never a recipe lies beside the weights of another;
    a run that fails earlier, for want of its data, leaves the older one as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        for name in (LAST, BEST):
            (folder / name).unlink(missing_ok=True)
    (folder / RECIPE_FILE).write_text(json.dumps(recipe.model_dump(mode="json"), indent=2), encoding="utf-8")


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}.{key}" if prefix else str(key))
    return flat
