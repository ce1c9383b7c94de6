"""A starter recipe is written where no other file is, whatever the columns are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from training.__main__ import app
from training.data.sources import DataError
from training.recipe import ForecastRecipe, RecipeError, read_recipe
from training.starter.recipe_file import name_of_file, write_starter
from training.starter.recipe_text import RecipeText, format_value
from training.starter.series import SeriesStarter

STARTER = SeriesStarter("year", ("value",), "Y")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "yearly values.csv"
    path.write_text("year,value\n" + "".join(f"{1950 + i},{i}\n" for i in range(60)))
    return path


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("sales.csv", "sales"),
        ("Sales 2024.csv.gz", "Sales-2024"),
        ("umsätze.csv", "ums-tze"),
        (".csv", "model"),
        ("!.csv", "model"),
    ],
)
def test_a_model_is_named_after_the_file(file: str, name: str) -> None:
    assert name_of_file(Path("some/folder") / file) == name


def test_a_recipe_is_overwritten_only_when_that_is_asked_for(file: Path, tmp_path: Path) -> None:
    target = write_starter(file, STARTER, folder=tmp_path)
    assert target == tmp_path / "yearly-values.toml"
    target.write_text("mine")
    with pytest.raises(DataError, match=r"yearly-values\.toml exists: choose another --name, or overwrite it with --force"):
        write_starter(file, STARTER, folder=tmp_path)
    assert target.read_text() == "mine"
    write_starter(file, STARTER, folder=tmp_path, replace=True)
    assert read_recipe(target).name == "yearly-values"


def test_a_name_that_no_model_can_have_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match='"name": String should match pattern'):
        write_starter(file, STARTER, folder=tmp_path, name="a b")
    assert not list(tmp_path.glob("*.toml"))


def test_columns_of_any_name_survive_the_recipe(tmp_path: Path) -> None:
    time, value = "the 'year'", "Wert in €, \\n"
    rows = "".join(f"{1950 + i},{i}\n" for i in range(60))
    (tmp_path / "a.csv").write_text(f'"{time}","{value}"\n{rows}', encoding="utf-8")
    recipe = read_recipe(write_starter(tmp_path / "a.csv", SeriesStarter(time, (value,), "Y"), folder=tmp_path))
    assert isinstance(recipe, ForecastRecipe)
    assert (recipe.data.train[0].time, recipe.data.train[0].values) == (time, [value])


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no file"), (b"", "is empty"), (b"year,value\n", "no rows"), (b"\x00\xff\xfe\n\x00", "yearly values.csv")],
)
def test_a_file_that_is_no_table_is_refused(file: Path, tmp_path: Path, content: bytes | None, message: str) -> None:
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        write_starter(file, STARTER, folder=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --time, --value and --frequency for a forecast, or --text and --label"),
        (["--time", "a", "--value", "b"], "a forecast needs --frequency"),
        (["--series", "a"], "a forecast needs --time"),
        (["--text", "a"], "a classifier needs --label"),
        (["--text", "a", "--label", "b", "--horizon", "3"], "--horizon is for a forecast"),
    ],
)
def test_options_of_the_two_kinds_are_not_mixed(file: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["init", str(file), *options])
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


def test_a_comment_stands_beside_a_key_where_there_is_room() -> None:
    text = RecipeText()
    text.table("[fit]")
    text.key("epochs", 3, "at most")
    text.key("layer", {"type": "lstm", "units": 32, "stateful": True}, "a comment that is too long " * 4)
    above = "# " + " ".join(["a comment that is too long"] * 4)
    assert str(text).splitlines() == [
        "",
        "[fit]",
        "epochs = 3              # at most",
        above,
        'layer = { type = "lstm", units = 32, stateful = true }',
    ]
    assert format_value(["a\x7f", 0.5]) == '["a\\u007f", 0.5]'
