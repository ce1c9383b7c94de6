"""The starter that the options of the command line ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.data.sources import DataError
from training.starter.recipe_file import Starter
from training.starter.series import SeriesStarter
from training.starter.texts import TextStarter


def read_starter(
    *,
    time: str | None = None,
    value: Sequence[str] | None = None,
    frequency: str | None = None,
    series: str | None = None,
    horizon: int | None = None,
    text: str | None = None,
    label: str | None = None,
) -> Starter:
    """A starter of series or of texts. Raises DataError where an option is missing, or is one of the other kind's."""
    of_series = {"--time": time, "--value": value, "--frequency": frequency, "--series": series, "--horizon": horizon}
    of_texts = {"--text": text, "--label": label}
    given = [name for name, option in of_series.items() if option is not None]
    if text is None and label is None:
        _require({name: of_series[name] for name in ("--time", "--value", "--frequency")}, given, "a forecast")
        assert time is not None
        assert value is not None
        assert frequency is not None
        return SeriesStarter(time, tuple(value), frequency, series, horizon)
    if given:
        raise DataError(f"{given[0]} is for a forecast, --text and --label are for a classifier of texts")
    _require(of_texts, [name for name, option in of_texts.items() if option is not None], "a classifier")
    assert text is not None
    assert label is not None
    return TextStarter(text, label)


def _require(options: Mapping[str, object], given: Sequence[str], model: str) -> None:
    missing = [name for name, option in options.items() if option is None]
    if missing and not given:
        raise DataError("give --time, --value and --frequency for a forecast, or --text and --label for a classifier of texts")
    if missing:
        raise DataError(f"{model} needs {missing[0]}")
