"""What a task is to training: one object that holds all in which tasks differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rich.console import Console

from training.export.publish import Publication
from training.export.quantize import Trial
from training.network.heads.head import Head
from training.network.spec import NetworkSpec
from training.recipe import Recipe
from training.recipe.registry import task_name
from training.reporting.report import Report

R = TypeVar("R", bound=Recipe)
R_contra = TypeVar("R_contra", bound=Recipe, contravariant=True)
LayerTables = list[dict[str, Any]]


class Run(Protocol[R_contra]):
    """A run, from the recipe to what is published; nothing is published yet. Checkpoints lie in `folder`."""

    def __call__(
        self, recipe: R_contra, *, data: Path | None, folder: Path, resume: bool, console: Console
    ) -> tuple[Publication, Report]: ...


@dataclass(frozen=True)
class Task(Generic[R]):
    """A task of training; `training/runs/registry.py` holds those that there are."""

    recipe_type: type[R]
    head: type[Head]
    run: Run[R]
    # What a further graph of a published folder is measured with: recipe, folder, data folder.
    open_trial: Callable[[R, Path, Path | None], Trial]
    # The network of a recipe, and notes on what is certain only after the run. Reads the data folder only where it must.
    spec_of_recipe: Callable[[R, Path | None], tuple[NetworkSpec, tuple[str, ...]]]
    # The network of a published folder: its recipe, its manifest, the folder.
    spec_of_manifest: Callable[[R, Mapping[str, Any], Path], NetworkSpec]
    # What stands for the first recurrent layer where a dense one takes its place: the steps as one vector.
    layers_without_steps: Callable[[R], LayerTables]
    # Baselines that learn nothing, and the kinds of measures by which a model has to beat them: the first that was scored.
    naive: tuple[str, ...] = ()
    decisive: tuple[str, ...] = ()
    larger_is_better: tuple[str, ...] = ()  # of the measures; of all others smaller is better, or neither

    @property
    def name(self) -> str:
        """As recipes, manifests and the specs of networks name it."""
        return task_name(self.recipe_type)
