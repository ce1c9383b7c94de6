"""Which way each measure is better, and which baselines a model is behind."""

from __future__ import annotations

import pytest

from training.scoring.measures import MEASURES, baselines_ahead, decisive_measures, is_better, kind_of


@pytest.mark.parametrize(
    ("measure", "kind"),
    [
        ("mae", "mae"),
        ("one_step_coverage_80", "coverage"),
        ("imdb_accuracy", "accuracy"),
        ("mae_load", "mae"),
        ("speed", "speed"),
    ],
)
def test_the_kind_of_a_measure_is_the_word_that_is_known(measure: str, kind: str) -> None:
    assert kind_of(measure) == kind


def test_each_measure_has_its_direction_and_some_have_none() -> None:
    assert is_better("sst2_accuracy", 0.9, 0.8)
    assert not is_better("sst2_accuracy", 0.8, 0.8)
    assert is_better("m3_smape", 8.0, 9.0)
    assert not any(is_better(measure, *pair) for measure in ("coverage_80", "ece", "speed") for pair in ((1, 2), (2, 1)))
    assert all(("better" in about) or ("best" in about) for about in MEASURES.values())


def test_the_first_kind_that_was_scored_decides() -> None:
    kinds = ("owa", "mase", "mae")
    assert decisive_measures({"mae": 1.0, "mase": 1.0}, kinds) == ["mase"]
    assert decisive_measures({"imdb_accuracy": 1.0, "f1": 1.0, "sst2_accuracy": 1.0}, ("accuracy",)) == [
        "imdb_accuracy",
        "sst2_accuracy",
    ]
    assert decisive_measures({"f1": 1.0}, kinds) == []


def test_a_baseline_that_is_as_good_is_ahead() -> None:
    baselines = {"naive": {"mase": 1.0}, "theta": {"mase": 0.9}, "other": {"mase": 2.0}, "unscored": {"mae": 0.0}}
    assert baselines_ahead({"mase": 1.0}, baselines, ["mase"]) == {"naive": ["mase"], "theta": ["mase"]}
