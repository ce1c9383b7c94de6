"""Competitions: each part asked of the service, averaged over all points; what cannot be scored is said."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.evaluation.answering import Answer, answering
from training.data.sources import DataError
from training.evaluation.benchmark import Evaluation, File
from training.evaluation.client import EvaluationError, NotServed, Service
from training.evaluation.competitions import Part, ask, mape, read_part, score_competition, smape
from training.evaluation.naive import seasonal_naive

TRAIN = "id,V1,V2,V3,V4\na,1,2,3,4\nb,10,20,30,\n"
TEST = "id,V1,V2\nb,40,50\na,5,0\n"


def part(folder: Path, frequency: str = "M", train: str = TRAIN, test: str = TEST) -> Part:
    files = []
    for name, text in (("train", train), ("test", test)):
        (folder / f"{name}.csv").write_text(text)
        files.append(File(f"{name}.csv", hashlib.sha256(text.encode()).hexdigest()))
    return Part(f"of {frequency}", frequency, 1, files[0], files[1], {"winner": 1.0})


def last_value(path: str, body: Any) -> Answer:
    """Serves months alone, with quantiles one below and above the last value, and a second point forecast of zeros."""
    parameters = body["parameters"]
    if parameters["frequency"] != "M":
        return 404, {"detail": "no model for this frequency"}
    horizon, levels = parameters["horizon"], parameters["quantiles"]
    predictions = [
        {
            "forecast": [0.0 if parameters.get("point") == "mape" else instance["history"][-1]] * horizon,
            "quantiles": {
                f"{level:.12g}": [instance["history"][-1] + np.sign(round(level - 0.5, 3))] * horizon for level in levels
            },
        }
        for instance in body["instances"]
    ]
    return 200, {"model": "months", "version": "1", "predictions": predictions}


def test_measures_are_percentages_of_the_values() -> None:
    truth, forecast = np.array([100.0, 0.0, 0.0]), np.array([50.0, 1.0, 0.0])
    assert smape(truth, forecast).tolist() == [pytest.approx(200 * 50 / 150), 200, 0]
    assert mape(truth, forecast)[0] == 50
    assert np.isnan(mape(truth, forecast)[1:]).all()


def test_files_are_read_in_the_order_of_the_test_file(tmp_path: Path) -> None:
    histories, truth = read_part(part(tmp_path), tmp_path)
    assert [history.tolist() for history in histories] == [[10, 20, 30], [1, 2, 3, 4]]
    assert truth.tolist() == [[40, 50], [5, 0]]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"test": "id,V1,V2\nc,4,5\n"}, 'series "c" is not in train.csv'),
        ({"test": "id,V1,V2\na,4,5\nb,4,\n"}, "the series differ in length, 1 to 2 values"),
        ({"train": "id,V1\na,\nb,1\n"}, 'series "a" has no values'),
        ({"train": "id,V1\na,x\nb,1\n"}, "a value that is no number"),
    ],
)
def test_files_that_cannot_be_scored_are_refused(tmp_path: Path, texts: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_part(part(tmp_path, **texts), tmp_path)


def test_another_content_than_the_benchmarks_is_refused_and_a_missing_file_says_where_it_is_from(tmp_path: Path) -> None:
    given = part(tmp_path)
    (tmp_path / "test.csv").write_text(TEST.replace("5", "6"))
    with pytest.raises(DataError, match="is not the content that the recipe names: expected sha256"):
        read_part(given, tmp_path)
    (tmp_path / "test.csv").unlink()
    with pytest.raises(DataError, match="no file"):
        read_part(given, tmp_path)


def run(url: str, folder: Path, *parts: Part, point: str = "median") -> Evaluation:
    score = partial(score_competition, parts, smape, "sMAPE", point, {"naive": seasonal_naive}, {"winner": 2.0}, "toy")
    with Service(url) as service:
        return score(service, folder)


def test_parts_and_total_stand_beside_baselines_and_published_scores(tmp_path: Path) -> None:
    with answering(last_value) as url:
        found = run(url, tmp_path, part(tmp_path))
    expected = 200 * np.mean([10 / 70, 20 / 80, 1 / 9, 1.0])
    own, total, band = found.rows
    assert (own.part, own.measure) == ("of M", "sMAPE")
    assert own.score == pytest.approx(expected)
    assert own.baselines == {"naive": pytest.approx(expected)}
    assert own.published == {"winner": 1.0}
    assert (total.part, total.published) == ("all", {"winner": 2.0})
    assert total.score == pytest.approx(expected)
    assert (band.measure, band.score) == ("coverage of the 80 % band", 25.0)
    assert found.curves["of M"][0] == [0.1, 0.25]
    assert (found.models, found.num_rows) == (["months/1"], 2)


def test_a_part_that_no_model_serves_is_said_and_there_is_no_total(tmp_path: Path) -> None:
    with answering(last_value) as url:
        found = run(url, tmp_path, part(tmp_path), part(tmp_path, "Q"))
    scores = {row.part: row.score for row in found.rows if row.measure == "sMAPE"}
    assert scores["of Q"] is None
    assert scores["all"] is None
    assert scores["of M"] is not None
    assert any("no model for this frequency" in row.note for row in found.rows)


def test_the_point_forecast_is_asked_for_and_a_model_without_it_gives_its_own(tmp_path: Path) -> None:
    def without_mape(path: str, body: Any) -> Answer:
        return (422, {"detail": "expected one of ['median']"}) if "point" in body["parameters"] else last_value(path, body)

    histories, truth = read_part(part(tmp_path), tmp_path)
    with answering(last_value) as url, Service(url) as service:
        forecast, _, given = ask(service, part(tmp_path), histories, truth.shape[1], "mape")
    assert (forecast.max(), given) == (0, "mape")
    with answering(without_mape) as url, Service(url) as service:
        forecast, quantiles, given = ask(service, part(tmp_path), histories, truth.shape[1], "mape")
        found = run(url, tmp_path, part(tmp_path), point="mape")
    assert (forecast[:, 0].tolist(), given) == ([30, 4], "")
    assert quantiles is not None
    assert "its own" in found.rows[0].note


@pytest.mark.parametrize("forecast", [[1.0], ["x", 2.0], [1.0, None], None])
def test_predictions_that_are_no_numbers_are_an_error(tmp_path: Path, forecast: Any) -> None:
    def respond(path: str, body: Any) -> Answer:
        levels = {f"{level:.12g}": [1.0, 1.0] for level in body["parameters"]["quantiles"]}
        return 200, {"predictions": [{"forecast": forecast, "quantiles": levels}] * len(body["instances"])}

    histories, truth = read_part(part(tmp_path), tmp_path)
    with answering(respond) as url, Service(url) as service, pytest.raises(EvaluationError) as caught:
        ask(service, part(tmp_path), histories, truth.shape[1], "median")
    assert not isinstance(caught.value, NotServed)


@pytest.mark.parametrize("quantiles", [None, [1.0], {}, {"0.1": [1.0, 1.0]}])
def test_quantiles_that_are_not_those_asked_for_are_an_error(tmp_path: Path, quantiles: Any) -> None:
    def respond(path: str, body: Any) -> Answer:
        found = {"forecast": [1.0, 1.0]} | ({} if quantiles is None else {"quantiles": quantiles})
        return 200, {"predictions": [found] * len(body["instances"])}

    histories, truth = read_part(part(tmp_path), tmp_path)
    with (
        answering(respond) as url,
        Service(url) as service,
        pytest.raises(EvaluationError, match=r"a prediction holds|predictions of shape"),
    ):
        ask(service, part(tmp_path), histories, truth.shape[1], "median")
