"""A recipe is read strictly, and every fault is named with its line and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.recipe import RECIPES, ClassifyRecipe, ForecastRecipe, RecipeError, find_recipe, line_of, parse_recipe, read_recipe

FORECAST = """\
task = "forecast"
name = "toy"

[[data.train]]
builtin = "air-passengers"

[forecast]
context_length = 24
horizon = 12

[[layers]]
type = "lstm"
units = 8

[[layers]]
type = "dense"

[fit]
loss = "mse"
"""
BASES = "season_length = 12\nbases = [{ lag = 12 }]"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_bundled_recipe_can_be_read_and_bears_its_files_name(path: Path) -> None:
    assert read_recipe(path).name == path.stem


def test_defaults_are_filled_in() -> None:
    recipe = parse_recipe(FORECAST)
    assert recipe.fit.optimizer == "adam"
    assert isinstance(recipe, ForecastRecipe)
    assert recipe.data.train[0].builtin == "air-passengers"
    assert recipe.forecast.shortest == 1


def test_the_manifests_recipe_gives_the_same_recipe_again() -> None:
    recipe = parse_recipe(FORECAST, ["fit.epochs=3"])
    assert type(recipe).model_validate(recipe.as_json()) == recipe


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("horizon = 12", "horizn = 12", 'recipe, line 9: unknown key "forecast.horizn"; did you mean "horizon"?'),
        ("horizon = 12", "horizn = 12", 'recipe, line 7: "forecast.horizon" is missing'),
        ('loss = "mse"', "los = 1", 'line 19: unknown key "fit.los"; did you mean "loss"?'),
        (
            'builtin = "air-passengers"',
            'path = "a"\nformt = "wide"',
            'line 6: unknown key "data.train.0.formt"; did you mean "format"',
        ),
        (
            'builtin = "air-passengers"',
            'path = "a"\nformat = "lines"',
            "Input should be 'auto', 'wide', 'long' or 'table', got 'lines'",
        ),
        ('name = "toy"', 'name = "a b"', 'recipe, line 2: "name"'),
        ("horizon = 12", 'horizon = "12"', "recipe, line 9: \"forecast.horizon\": Input should be a valid integer, got '12'"),
        ("horizon = 12", "horizon = 0", "greater than or equal to 1, got 0"),
        ('loss = "mse"', 'loss = "quantile"', "forecast.quantiles need each other"),
        (
            'loss = "mse"',
            'loss = "binary_crossentropy"',
            "line 19: \"fit.loss\": Input should be 'mse', 'mae', 'huber', 'quantile' or 'smape'",
        ),
        ("horizon = 12", "horizon = 12\noutput = 1", 'line 10: unknown key "forecast.output"; there are: context_length'),
        ('name = "toy"', 'name = "toy"\nlanguage = "en"', "line 3: unknown key \"language\"; it is for task 'classify'"),
        ('task = "forecast"', 'task = "forcast"', 'recipe, line 1: "task": no task \'forcast\'; did you mean "forecast"?'),
        ('task = "forecast"', "task = 3", 'recipe, line 1: "task": no task 3; there are forecast, classify, tensor'),
        ('task = "forecast"\n', "", 'recipe: "task" is missing; there are forecast, classify, tensor'),
        (
            "horizon = 12",
            "horizon = 12\n[scaling]\nfloor = 1.0",
            'line 10: "scaling": floor is for kind "window", not "standard"',
        ),
        ("[[data.train]]", '[data]\ntargets = ["y", "y"]\n[[data.train]]', "targets must differ"),
        ('loss = "mse"', 'loss = "mse"\noptimizer = "rmsprop"\nweight_decay = 0.1', "weight_decay is for sgd, adam and adamw"),
        ('loss = "mse"', 'loss = "mse"\ndenominator_gradient = 0.5', 'denominator_gradient is for loss "smape", not "mse"'),
        ('loss = "mse"', 'loss = "smape"\ndenominator_gradient = 1.5', "less than or equal to 1, got 1.5"),
        ('loss = "mse"', 'loss = "mse"\nrelative_weight = 1.0', 'relative_weight is for loss "quantile" and forecast.bases'),
        ('loss = "mse"', 'loss = "mse"\nrelative_weight = -1.0', "greater than or equal to 0, got -1"),
        ("horizon = 12", "horizon = 12\nmin_length = 30", "min_length 30 is above context_length 24"),
        ("horizon = 12", "horizon = 12\nquantiles = [0.9, 0.1]", "must ascend"),
        ("horizon = 12", "horizon = 12\nbases = [{ lag = 12 }]", "season_length"),
        ("horizon = 12", "horizon = 12\nread_length = 3", "read_length and base_origins are for bases"),
        ("horizon = 12", f"horizon = 12\n{BASES}", 'forecast.bases and scaling of kind "seasonal" need each other'),
        ("horizon = 12", f"horizon = 12\n{BASES}\nread_length = 13", "context_length 24 is too short for bases of lag 12"),
        ("horizon = 12", f"horizon = 12\n{BASES}\nmin_length = 23\nread_length = 6", "a min_length of 24 or more"),
        ("horizon = 12", f"horizon = 12\n{BASES}\nseasonal_lag = 12", "bases go without streaming, covariates"),
        ("horizon = 12", f"horizon = 12\n{BASES}\ntheta_share = 0.5", "seasonal_lag, theta_share and decomposition"),
        ("horizon = 12", "horizon = 12\ntheta_share = 1.5", "less than 1, got 1.5"),
        ("horizon = 12", 'horizon = 12\n[scaling]\nkind = "seasonal"', "forecast.bases and scaling of kind"),
        ('builtin = "air-passengers"', "", "give either `path` or `builtin`"),
        ('task = "forecast"', 'task = "forecast', "not TOML"),
    ],
)
def test_a_fault_is_named_with_its_line_and_key(old: str, new: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(FORECAST.replace(old, new))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("fit.epochs=3", "epochs", 3),
        ("fit.learning_rate=1e-4", "learning_rate", 1e-4),
        ("fit.optimizer=sgd", "optimizer", "sgd"),
        ('fit.optimizer="sgd"', "optimizer", "sgd"),
    ],
)
def test_a_change_is_typed_by_the_recipe(change: str, key: str, value: object) -> None:
    assert getattr(parse_recipe(FORECAST, [change]).fit, key) == value


def test_a_change_reaches_into_lists_and_a_number_can_be_a_text() -> None:
    recipe = parse_recipe(FORECAST, ["layers.0.units=64", "description=5", "data.train.0.licence=x"])
    assert recipe.layers[0]["units"] == 64
    assert recipe.description == "5"
    assert recipe.data.sources[0].licence == "x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("fit.epoch=3", '--set fit.epoch: unknown key "fit.epoch"; did you mean "epochs"?'),
        ("fit.epochs", "expected key=value"),
        ("fit.epochs=many", "--set fit.epochs"),
        ("layers.7.units=1", "expected an index below 2, got 7"),
        ("name.first=a", "--set name.first=a: name is a value, not a table"),
        ("task=forcast", '--set task: "task": no task'),
    ],
)
def test_a_fault_of_a_change_names_the_change(change: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(FORECAST, [change])
    assert message in str(caught.value)


def test_a_recipe_is_found_by_path_and_by_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(FORECAST)
    assert find_recipe(str(file)) == file
    assert find_recipe("passengers").name == "passengers.toml"
    with pytest.raises(RecipeError, match='did you mean "passengers"'):
        find_recipe("pasengers")


def test_a_published_folder_is_a_recipe_whose_values_can_be_changed(tmp_path: Path) -> None:
    recipe = parse_recipe(FORECAST)
    (tmp_path / "manifest.json").write_text(json.dumps({"training": {"recipe": recipe.as_json()}}))
    assert find_recipe(str(tmp_path)) == tmp_path
    assert read_recipe(tmp_path) == recipe
    assert read_recipe(tmp_path, ["fit.epochs=77"]).fit.epochs == 77
    with pytest.raises(RecipeError, match="unknown key"):
        read_recipe(tmp_path, ["fit.epoch=77"])
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"no manifest\.json with the recipe"):
        read_recipe(tmp_path)


def test_a_layers_line_is_known(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(FORECAST)
    assert line_of(file, ("layers", 1)) == 15


CLASSIFY = """\
task = "classify"
name = "toy"

[[data.train]]
path = "a.txt"

[[data.test]]
path = "b.txt"

[[layers]]
type = "embedding"
output_dim = 4

[[layers]]
type = "gru"
units = 4
name = "reader"

[[layers]]
type = "dense"

[fit]
loss = "categorical_crossentropy"
"""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["fit.rates.lstm=0.5"], 'fit.rates: no layer has the type or the name "lstm"; there are embedding, gru, dense'),
        (["tokenizer.piece_length=100", "tokenizer.tail=10"], "piece_length reads texts whole, head and tail cut them"),
        (['data.unlabelled=[{path = "c.txt"}]'], r"data.unlabelled is for \[vectors\]"),
        (["pretraining.max_length=5"], "greater than or equal to 8"),
        (["self_training.epochs=1"], r"self_training needs \[\[data.unlabelled\]\]"),
        (['data.unlabelled=[{path = "c.txt"}]', "self_training.epochs=1"], r"needs calibrate = true or \[ngrams\]"),
        (
            ['layers=[{type = "pad_sequences", maxlen = 3}, {type = "dense"}]', "vectors={}"],
            r"\[vectors\] needs a layer of type emb",
        ),
        (
            [
                'layers=[{type = "pad_sequences", maxlen = 3}, {type = "embedding", output_dim = 2}, {type = "dense"}]',
                'calibrate="by_length"',
            ],
            'calibrate = "by_length" is for texts of different lengths',
        ),
        (
            ["fit.adversarial=1.0", "ensemble.members=2"],
            "fit.adversarial needs one network whose first layer is of type embedding",
        ),
        (
            ["fit.adversarial=1.0", 'layers=[{type = "dense"}]'],
            "fit.adversarial needs one network whose first layer is of type emb",
        ),
        (["ngrams.order=6"], "less than or equal to 5"),
        (['data.drop_shared_texts="test"'], "drop_shared_texts"),
    ],
)
def test_options_of_texts_that_do_not_fit_one_another_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(CLASSIFY, changes)


def test_rates_are_by_type_or_name_and_pieces_replace_the_cut() -> None:
    recipe = parse_recipe(CLASSIFY, ["fit.rates={embedding = 0.25, reader = 0.5, dense_2 = 2.0}", "tokenizer.piece_length=101"])
    assert isinstance(recipe, ClassifyRecipe)
    assert recipe.fit.rates == {"embedding": 0.25, "reader": 0.5, "dense_2": 2.0}
    assert recipe.truncation == (51, 50)
    assert type(recipe).model_validate(recipe.as_json()) == recipe
