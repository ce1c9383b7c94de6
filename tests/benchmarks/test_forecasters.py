"""The table of other libraries' forecasters: what it says of forecasts whose errors are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.forecasters import main, table_row

LEVELS = 9


def test_a_row_has_the_measures_of_the_competition() -> None:
    history = np.tile(np.arange(1.0, 25.0), 4)
    history[24:] += 2.0  # so that a day changes by 2 in one of three
    truth = np.full((1, 48), 10.0)
    quantiles = np.full((1, 48, LEVELS), 12.0)
    mase = 2.0 / (2.0 / 3.0)
    smape = 200 * 2 / 22
    expected = f"| it | {smape:.2f} | {mase:.3f} | {(smape / 18.383 + mase / 2.395) / 2:.3f} | 0.2000 | 0 % | 7 |"
    assert table_row("it", [history], truth, quantiles, 7.0) == expected


def test_a_perfect_forecast_misses_nothing_and_holds_all() -> None:
    truth = np.arange(1.0, 49.0)[None]
    quantiles = np.repeat(truth[..., None], LEVELS, axis=-1)
    history = np.arange(100.0)
    assert table_row("it", [history], truth, quantiles, 0.0) == "| it | 0.00 | 0.000 | 0.000 | 0.0000 | 100 % | 0 |"


def test_a_forecaster_that_is_not_known_is_refused_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prophet", "--python", str(Path("python"))])
    assert "no forecaster 'prophet'; there are neuralforecast-lstm, gluonts-deepar" in capsys.readouterr().err
