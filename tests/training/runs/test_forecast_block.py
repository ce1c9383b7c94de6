"""The manifest's block of a forecasting model: what it has, and nothing of what it has not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training.data.series import Series
from training.network.heads.forecast import ForecastSpec
from training.recipe import ForecastSettings
from training.runs.forecast_block import forecast_block

SERIES = Series(("s",), (np.zeros((30, 2)),), ("load", "heat"), ("heat",), validation_length=2, test_length=2)
PLAIN = ["context_length", "min_length", "horizon", "frequencies", "season_length", "quantiles", "point", "features", "targets"]


def block(**options: Any) -> dict[str, Any]:
    settings = ForecastSettings(context_length=24, horizon=2, season_length=6, **options)
    spec = ForecastSpec(
        layers=({"type": "lstm", "units": 2}, {"type": "dense"}),
        num_features=2,
        targets=(1,),
        horizon=2,
        quantiles=tuple(settings.quantiles),
        mape_point=settings.mape_point,
    )
    return forecast_block(settings, SERIES, spec)


def test_what_a_model_has_not_is_left_out() -> None:
    found = block(frequencies=["H"])
    assert list(found) == PLAIN
    assert (found["min_length"], found["point"], found["features"], found["targets"]) == (6, "mean", ["load", "heat"], ["heat"])


@pytest.mark.parametrize(
    ("options", "further"),
    [
        ({"quantiles": [0.1, 0.5], "mape_point": True}, {"points": ["median", "mape"]}),
        (
            {"covariates": ["sky"], "categories": {"sky": ["clear", "rain"]}},
            {"covariates": ["sky"], "categories": {"sky": ["clear", "rain"]}},
        ),
        ({"calendar": ["hour"], "frequencies": ["H"]}, {"calendar": ["hour"]}),
        ({"streaming": True, "quantiles": [0.1, 0.5, 0.9], "warm_up": 5}, {"streaming": True, "warm_up": 5, "min_length": 1}),
    ],
    ids=["points", "covariates", "calendar", "streaming"],
)
def test_what_it_has_is_there(options: dict[str, Any], further: dict[str, Any]) -> None:
    found = block(**options)
    assert found.items() >= further.items()
    assert found.keys() == {*PLAIN, *further}
