from __future__ import annotations

from typing import Any

import pytest

from training.recipe import RecipeError, parse_recipe
from training.recipe.ranges import Choices, Range, read_values, require_comparable
from training.recipe.reading import RECIPES


@pytest.mark.parametrize(
    ("given", "values", "is_logarithmic"),
    [
        ("1e-4..1e-2", Range(1e-4, 1e-2, is_whole=False), True),
        ("0.1..0.5", Range(0.1, 0.5, is_whole=False), False),
        ("-1.0..10.0", Range(-1.0, 10.0, is_whole=False), False),
        ("8..64", Range(8, 64, is_whole=True), False),
        ("8..128", Range(8, 128, is_whole=True), True),
    ],
)
def test_a_range_is_of_whole_numbers_as_written_and_logarithmic_over_a_power_of_ten(
    given: str, values: Range, is_logarithmic: bool
) -> None:
    assert read_values(given) == values
    assert values.is_logarithmic is is_logarithmic


@pytest.mark.parametrize(
    ("values", "inside", "outside"),
    [
        (Range(8, 64, is_whole=True), 64, 8.5),
        (Range(0.1, 0.5, is_whole=False), 0.1, None),
        (Range(0, 2, is_whole=True), 1, True),
        (Choices(("adam", "sgd")), "sgd", "adamw"),
    ],
)
def test_a_value_is_among_those_that_are_searched_or_not(values: Range | Choices, inside: object, outside: object) -> None:
    assert values.contains(inside)
    assert not values.contains(outside)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0.01", "expected a range"),
        ("low..high", "expected a range"),
        ("1..", "expected a range"),
        ("3..3", "from a smaller number to a larger"),
        ("1..inf", "from a smaller number to a larger"),
        ("nan..1", "from a smaller number to a larger"),
        ([4], "two or more different"),
        ([4, 4], "two or more different"),
    ],
)
def test_values_that_are_none_are_refused_with_what_was_expected(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_values(given)


@pytest.mark.parametrize("key", ["data.train.0.path", "evaluate.batch_size", "seed", "fit.loss", "fit.minutes", "ngrams.order"])
def test_an_option_that_changes_what_is_scored_is_not_searched(key: str) -> None:
    with pytest.raises(ValueError, match="would not compare"):
        require_comparable(key)


def test_a_recipe_names_the_line_of_a_search_that_cannot_be() -> None:
    text = (RECIPES / "feature-vectors.toml").read_text() + '\n[tune]\noptions = { "seed" = "1..5" }\n'
    with pytest.raises(RecipeError, match=r'line \d+: "tune": options: seed: searched are options of fit'):
        parse_recipe(text)
