"""A recipe: one TOML file that holds a whole training run, read strictly; each task has its own tables and rules."""

from training.recipe.base import (
    Data,
    Evaluation,
    Fit,
    Loss,
    Quantize,
    Recipe,
    RecipeError,
    RecipeTable,
    Source,
    Tune,
    names_of_layer,
)
from training.recipe.classify import ClassifyRecipe, NgramSettings, TextData, TextSource, TokenizerSettings, VectorSettings
from training.recipe.forecast import (
    ForecastEvaluation,
    ForecastRecipe,
    ForecastSettings,
    ScalingSettings,
    SeriesData,
    SeriesSource,
)
from training.recipe.reading import RECIPES, find_recipe, line_of, parse_recipe, read_recipe, recipe_of_folder, recipe_of_json
from training.recipe.tabular import RowData, RowSource, TabularRecipe

__all__ = [
    "RECIPES",
    "ClassifyRecipe",
    "Data",
    "Evaluation",
    "Fit",
    "ForecastEvaluation",
    "ForecastRecipe",
    "ForecastSettings",
    "Loss",
    "NgramSettings",
    "Quantize",
    "Recipe",
    "RecipeError",
    "RecipeTable",
    "RowData",
    "RowSource",
    "ScalingSettings",
    "SeriesData",
    "SeriesSource",
    "Source",
    "TabularRecipe",
    "TextData",
    "TextSource",
    "TokenizerSettings",
    "Tune",
    "VectorSettings",
    "find_recipe",
    "line_of",
    "names_of_layer",
    "parse_recipe",
    "read_recipe",
    "recipe_of_folder",
    "recipe_of_json",
]
