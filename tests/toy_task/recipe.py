"""The recipe of a toy task that no package knows: the sum of each row of a table."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from training.recipe import Fit, Recipe, RecipeTable


class SumSettings(RecipeTable):
    """The table [sum]."""

    num_columns: int = Field(ge=1, description="columns that are added, from the first")


class SumFit(Fit):
    """The training loop."""

    loss: Literal["mse"] = Field(description="the loss")


class SumRecipe(Recipe):
    """A run of task `sum`."""

    task: Literal["sum"]
    sum: SumSettings
    fit: SumFit
