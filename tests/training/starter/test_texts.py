"""A starter recipe for texts fits their labels and lengths, and a table that cannot be learned from is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.data.sources import DataError
from training.recipe import ClassifyRecipe, read_recipe
from training.starter.recipe_file import write_starter
from training.starter.texts import TextStarter

STARTER = TextStarter("review", "label")


def write(folder: Path, rows: list[str], header: str = "review,label") -> Path:
    file = folder / "reviews.csv"
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return file


def recipe_of(file: Path) -> ClassifyRecipe:
    recipe = read_recipe(write_starter(file, STARTER, folder=file.parent))
    assert isinstance(recipe, ClassifyRecipe)
    return recipe


def test_two_labels_get_one_sigmoid_unit_and_short_texts_few_tokens(tmp_path: Path) -> None:
    recipe = recipe_of(write(tmp_path, [f"a good film number {i},{'yes' if i % 3 else 'no'}" for i in range(90)]))
    assert recipe.data.labels == ["no", "yes"]
    assert (recipe.fit.loss, recipe.layers[-1]["activation"]) == ("binary_crossentropy", "sigmoid")
    assert (recipe.tokenizer.kind, recipe.truncation) == ("wordpiece", (10, 0))
    assert (recipe.data.test_share, recipe.fit.steps_per_epoch) == (0.15, None)
    assert "The most frequent label alone is right for 67 %" in (tmp_path / "reviews.toml").read_text()


def test_labels_with_control_characters_survive_the_recipe(tmp_path: Path) -> None:
    labels = ["a\x07b", "line\u0085break"]
    recipe = recipe_of(write(tmp_path, [f"a good film {i},{labels[i % 2]}" for i in range(60)]))
    assert recipe.data.labels == labels


def test_several_labels_get_a_softmax_and_long_texts_a_head_and_a_tail(tmp_path: Path) -> None:
    recipe = recipe_of(write(tmp_path, [f"{'word ' * 900}{i},{i % 3}" for i in range(60)]))
    assert (recipe.fit.loss, recipe.layers[-1]["activation"]) == ("categorical_crossentropy", "softmax")
    assert recipe.truncation == (150, 50)


def test_texts_without_spaces_are_read_by_characters(tmp_path: Path) -> None:
    recipe = recipe_of(write(tmp_path, [f"房间很好服务也很好{i},{i % 2}" for i in range(60)]))
    assert recipe.tokenizer.kind == "characters"


def test_many_texts_are_not_all_read_in_every_epoch(tmp_path: Path) -> None:
    recipe = recipe_of(write(tmp_path, [f"{'word ' * 200}{i},{i % 2}" for i in range(5000)]))
    assert recipe.fit.steps_per_epoch == 100


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["fine,1", " ,0"], "reviews.csv: row 2: the text is empty"),
        (["fine,1", "bad,"], "reviews.csv: row 2: the label is missing"),
        (["fine,1"] * 60, "column \"label\" has one value, '1': a classifier needs two labels"),
        ([f"fine,{i}" for i in range(200)], 'column "label" has 200 values in 200 rows: is it the labels?'),
        ([f"fine,{i % 2}" for i in range(20)], "50 rows are the fewest to learn from, there are 20"),
        ([*(f"fine,{i % 2}" for i in range(60)), "rare,3"], "label '3' has 1 row(s), 5 are the fewest"),
    ],
)
def test_a_table_that_cannot_be_learned_from_is_refused(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        write_starter(write(tmp_path, rows), STARTER, folder=tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(("text", "label", "option"), [("body", "label", "--text"), ("review", "mood", "--label")])
def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path, text: str, label: str, option: str) -> None:
    file = write(tmp_path, ["fine,1"])
    with pytest.raises(DataError, match=rf"{option}: reviews\.csv: has no column .*; there are review, label"):
        write_starter(file, TextStarter(text, label), folder=tmp_path)
