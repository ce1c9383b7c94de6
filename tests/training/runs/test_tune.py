"""A search of a recipe's options: what is tried, what is kept, and what ends it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from training.errors import TrainingError
from training.layers.registry import LayerError
from training.recipe import RECIPES, Recipe, RecipeError, read_recipe
from training.runs import tabular, tune
from training.runs.search import Search, SearchError, SearchTrial

SMALL = ["fit.epochs=1", "layers.2.units=4", "layers.3.units=4"]
RATES = ["fit.learning_rate=1e-4..1e-2"]


def recipe(options: list[str] = RATES, *, trials: int = 3, minutes: float = 60.0, changes: tuple[str, ...] = ()) -> Recipe:
    plain = read_recipe(RECIPES / "feature-vectors.toml", [*SMALL, *changes])
    return tune.with_options(plain, options, minutes=minutes, trials=trials)


def search(given: Recipe, folder: Path, *, resume: bool = False) -> tune.Tuning:
    return tune.tune(given, tabular.TASK, data=None, folder=folder, resume=resume, console=Console(quiet=True))


def test_a_search_tries_the_recipes_own_values_first_and_names_the_best(tmp_path: Path) -> None:
    given = recipe([*RATES, "layers.2.units=[4, 8]"], changes=("fit.learning_rate=0.002",))
    found = search(given, tmp_path)
    assert len(found.trials) == 3
    assert found.trials[0].values == {"fit.learning_rate": 0.002, "layers.2.units": 4}
    assert all(1e-4 <= float(trial.values["fit.learning_rate"]) <= 1e-2 for trial in found.trials)
    assert found.best is not None
    assert found.best.score == min(trial.score for trial in found.trials if trial.score is not None)
    written = json.loads(tune.write(found, tmp_path).read_text())
    assert written["best"] == found.best.number
    assert [trial["values"] for trial in written["trials"]] == [dict(trial.values) for trial in found.trials]


def test_training_with_the_values_of_a_trial_gives_its_score(tmp_path: Path) -> None:
    found = search(recipe(trials=2), tmp_path)
    last = found.trials[-1]
    changed = tune.with_values(found.recipe, last.values)
    _, report = tabular.run(changed, data=None, folder=tmp_path / "again", resume=False, console=Console(quiet=True))  # type: ignore[arg-type]
    assert report.fitted.best.validation == pytest.approx(last.score)


def test_a_search_goes_on_from_the_trials_that_lie_there(tmp_path: Path) -> None:
    first = search(recipe(trials=1), tmp_path)
    second = search(recipe(trials=3), tmp_path, resume=True)
    assert second.trials[:1] == first.trials
    assert len({trial.values["fit.learning_rate"] for trial in second.trials}) == 3
    assert len(search(recipe(trials=2), tmp_path).trials) == 2  # begins anew


def test_a_search_that_is_not_there_or_of_other_options_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="nothing to resume"):
        search(recipe(), tmp_path, resume=True)
    search(recipe(trials=1), tmp_path)
    with pytest.raises(SearchError, match="is of another search"):
        search(recipe(["fit.batch_size=[16, 32]"]), tmp_path, resume=True)


def test_the_trial_that_runs_when_the_time_is_up_is_ended_without_a_score(tmp_path: Path) -> None:
    found = search(recipe(minutes=1e-9, changes=("fit.epochs=100000", "fit.patience=100000")), tmp_path)
    assert found.trials == ()  # none begins when the time is up already
    started = 0.0
    trial = tune._run_trial(
        read_recipe(RECIPES / "feature-vectors.toml", [*SMALL, "fit.epochs=100000", "fit.patience=100000"]),
        tabular.TASK,
        SearchTrial(0, {}, None),
        started,  # long ago
        data=None,
        folder=tmp_path,
    )
    assert trial.score is None
    assert trial.note == tune.TOO_LATE


def test_a_trial_that_fails_is_noted_and_the_search_goes_on(tmp_path: Path) -> None:
    found = search(recipe(["layers.4.rate=[0.5, 1.5]"], trials=5), tmp_path)
    by_rate = {trial.values["layers.4.rate"]: trial for trial in found.trials}
    assert by_rate[0.5].score is not None
    assert by_rate[1.5].score is None
    assert "rate" in by_rate[1.5].note


def test_a_search_in_which_every_trial_fails_ends_with_the_reason(tmp_path: Path) -> None:
    hopeless = recipe(trials=50, changes=("fit.learning_rate=1e30",), options=["fit.batch_size=8..64"])
    with pytest.raises(TrainingError, match="trials and none without a failure"):
        search(hopeless, tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ([], RecipeError, "no option to search"),
        (["fit.learning_rate"], RecipeError, "expected KEY=LOW..HIGH"),
        (["fit.learning_rate=0.1"], RecipeError, "expected a range as"),
        (["fit.learning_rate=1..0"], RecipeError, "from a smaller number to a larger one"),
        (["fit.learning_rats=1e-4..1e-2"], RecipeError, "fit.learning_rats"),
        (["layers.99.units=4..8"], RecipeError, "layers.99.units"),
        (["layers.2.unit=4..8"], LayerError, "unit"),
    ],
)
def test_an_option_that_cannot_be_searched_is_refused_before_the_first_trial(
    options: list[str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        search(recipe(options), tmp_path)


def test_a_recipe_that_learns_from_its_validation_part_has_nothing_to_choose_by(tmp_path: Path) -> None:
    given = tune.with_options(read_recipe(RECIPES / "forecast-yearly.toml"), RATES, minutes=None, trials=None)
    with pytest.raises(RecipeError, match="learns from its validation part"):
        search(given, tmp_path)


def test_the_table_shows_the_best_first_and_the_command_that_trains_with_it() -> None:
    trials = (
        SearchTrial(0, {"fit.learning_rate": 0.001, "fit.optimizer": "adam"}, 0.5),
        SearchTrial(1, {"fit.learning_rate": 0.003, "fit.optimizer": "sgd"}, 0.25),
        SearchTrial(2, {"fit.learning_rate": 0.01, "fit.optimizer": "sgd"}, None, "the loss is nan"),
    )
    text = io.StringIO()
    tune.show(tune.Tuning(recipe(), trials), Console(file=text, width=200), "sluice train feature-vectors")
    lines = text.getvalue()
    assert lines.index("0.25") < lines.index("0.5")
    assert """next        sluice train feature-vectors --set fit.learning_rate=0.003 --set 'fit.optimizer="sgd"'""" in lines


def test_numbers_are_tried_with_few_digits_and_within_their_range(tmp_path: Path) -> None:
    from training.recipe.ranges import Range

    options: dict[str, Any] = {"a": Range(1e-4, 1e-2, is_whole=False), "b": Range(0.99951, 0.99959, is_whole=False)}
    found = Search(tmp_path / "s.log", options, seed=1, about="", resume=False)
    for _ in range(5):
        trial = found.ask()
        assert float(f"{trial.values['a']:.3g}") == trial.values["a"]
        assert 0.99951 <= float(trial.values["b"]) <= 0.99959
        found.tell(SearchTrial(trial.number, trial.values, 1.0))
    assert len(found.trials) == 5
