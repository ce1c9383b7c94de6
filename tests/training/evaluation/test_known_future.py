"""Hires of bicycles: what each request holds, and how the answers are scored beside the baselines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.training.evaluation.answering import Answer, answering
from training.evaluation.client import Service
from training.evaluation.known_future import CALENDAR_ALONE, HORIZON, NAME, NUMBERS, TEST_HOURS, Hires, baselines, score_hires

NUM_LEARNED = 40
"""Origins that the baselines are fitted on: enough to be fitted."""


@pytest.fixture(scope="module")
def hires() -> Hires:
    """Hires that a week before shows exactly; of each hour the temperature is its number."""
    num_hours = TEST_HOURS + 1000
    steps = np.arange(num_hours)
    users = 100.0 + 50 * np.sin(2 * np.pi * steps / 168)
    columns: dict[str, list[Any]] = {name: steps.tolist() for name in NUMBERS} | {"weather": ["rain"] * num_hours}
    moments = np.datetime64("2011-01-01T00:00:00", "us") + steps * np.timedelta64(1, "h")
    return Hires(moments, users, columns, np.tile(steps[:, None], (1, 9)).astype(float))


def test_an_instance_holds_what_is_known_of_both_sides_of_its_origin(hires: Hires) -> None:
    found = hires.instance(500, with_covariates=True)
    assert found["history"] == hires.users[164:500].tolist()
    assert found["past"]["temp"] == list(range(164, 500))
    assert found["future"] == {name: list(range(500, 524)) for name in NUMBERS} | {"weather": ["rain"] * 24}
    assert found["start"] == "2011-01-07T20:00:00"
    assert hires.instance(500, with_covariates=False).keys() == {"history", "start"}


def test_the_test_part_is_cut_into_whole_days(hires: Hires) -> None:
    assert hires.truth().shape == (TEST_HOURS // HORIZON, HORIZON)
    assert hires.test_origins[-1] + HORIZON == len(hires.users)


def test_no_baseline_sees_the_day_that_it_forecasts(hires: Hires) -> None:
    row = hires.lagged(500, with_covariates=False)
    assert row.shape == (HORIZON, 8)
    known = hires.users[:500]
    later = Hires(hires.moments, np.concatenate([known, np.full(len(hires.users) - 500, -1.0)]), hires.columns, hires.numbers)
    assert (later.lagged(500, with_covariates=False) == row).all()
    found = baselines(hires, NUM_LEARNED)
    assert np.abs(found["week before"] - hires.truth()).max() < 1e-9
    assert np.abs(found["day before"] - hires.truth()).mean() > 1


def test_scores_are_of_the_answers_and_a_model_that_is_not_served_is_said(hires: Hires) -> None:
    def respond(path: str, body: Any) -> Answer:
        if body["model"] == CALENDAR_ALONE:
            return 404, {"detail": "no such model"}
        day = {"forecast": [100.0] * HORIZON, "quantiles": {"0.1": [0.0] * HORIZON, "0.9": [120.0] * HORIZON}}
        return 200, {"model": NAME, "version": "1", "predictions": [day for _ in body["instances"]]}

    with answering(respond) as url, Service(url) as service:
        evaluation = score_hires(service, hires, NUM_LEARNED)
    error, coverage, absent = evaluation.rows
    assert error.score == pytest.approx(np.abs(hires.truth() - 100).mean())
    assert coverage.score == pytest.approx(100 * (hires.truth() <= 120).mean())
    assert (absent.score, "no such model" in absent.note) == (None, True)
    assert error.baselines.keys() == {"day before", "week before", "boosting on lags", "boosting on lags and covariates"}
    assert evaluation.num_rows == TEST_HOURS // HORIZON
