"""The models that come with Sluice: valid, small, and better than the baselines, by the scores in their manifests."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest

from service.models.folder import ModelOptions
from service.models.loading import check_folder, load_model
from service.sequences.state import SequenceState
from service.wire import read, write
from tests.serving import client_of
from training.export.publish import card_of

ROOT = Path(__file__).parent.parent.parent
FOLDERS = sorted(path for path in (ROOT / "models").glob("*/*") if path.is_dir())
MAX_BYTES = 12_000_000


def manifest(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "models" / name / "1" / "manifest.json").read_text())
    return content


def test_both_models_are_there() -> None:
    assert {folder.parent.name for folder in FOLDERS} >= {"forecast-hourly", "sentiment-en"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_a_bundled_folder_is_valid(folder: Path) -> None:
    assert check_folder(folder) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_a_bundled_folder_is_small(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MAX_BYTES


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_the_card_of_a_bundled_folder_is_that_of_its_manifest(folder: Path) -> None:
    assert (folder / "README.md").read_text(encoding="utf-8") == card_of(folder), "run `sluice card models`"


def test_a_bundled_int8_graph_is_inside_its_bounds() -> None:
    (fp32, int8) = manifest("sentiment-en")["graphs"]
    assert {loss["measure"] for loss in int8["loss"]} == {"imdb_accuracy", "sst2_accuracy"}
    for loss in int8["loss"]:
        assert loss["value"] == pytest.approx(fp32["score"][loss["measure"]] - int8["score"][loss["measure"]])
        assert loss["value"] <= loss["bound"] <= 0.005


def test_the_forecaster_reads_two_weeks_and_beats_its_baselines() -> None:
    training = manifest("forecast-hourly")["training"]
    assert manifest("forecast-hourly")["forecast"]["context_length"] >= 336
    assert manifest("forecast-hourly")["forecast"]["horizon"] == 48
    assert training["metrics"]["owa"] <= 0.44
    assert len(training["baselines"]) >= 2
    assert all(training["metrics"]["owa"] < baseline["owa"] for baseline in training["baselines"].values())


@pytest.mark.parametrize(
    ("name", "frequency", "measures"),
    [
        ("forecast-monthly", "M", ("mase", "m3_smape", "tourism_mape")),
        ("forecast-quarterly", "Q", ("mase", "m3_smape", "tourism_mape")),
        ("forecast-yearly", "Y", ("mase", "m3_smape", "tourism_smape")),
        ("forecast-other", "D", ("mase", "m3_smape", "m3_mape")),
    ],
)
def test_the_forecasters_of_the_competitions_beat_their_baselines_with_bands_that_hold(
    name: str, frequency: str, measures: tuple[str, ...]
) -> None:
    training = manifest(name)["training"]
    metrics = training["metrics"]
    assert manifest(name)["forecast"]["frequencies"] == [frequency]
    assert manifest(name)["forecast"]["points"] == ["median", "mape"]
    assert 0.74 <= metrics["coverage_80"] <= 0.86
    for baseline in training["baselines"].values():
        assert all(metrics[measure] < baseline[measure] for measure in measures)


def test_the_forecaster_of_several_features_beats_its_baselines_and_linear_ones_on_the_standard_split() -> None:
    training, block = manifest("forecast-ett")["training"], manifest("forecast-ett")["forecast"]
    assert (block["horizon"], len(block["targets"])) == (96, 7)
    for measure, bound in (("mse_standardized", 0.37), ("mae_standardized", 0.391)):
        assert training["metrics"][measure] < bound
        assert all(training["metrics"][measure] < baseline[measure] for baseline in training["baselines"].values())


async def test_a_request_without_a_model_is_not_for_the_forecaster_of_several_features(tmp_path: Path) -> None:
    for name in ("forecast-hourly", "forecast-ett"):
        shutil.copytree(ROOT / "models" / name, tmp_path / name)
    history = [10 + 3 * math.sin(2 * math.pi * step / 24) for step in range(480)]
    rows = [[value + feature for feature in range(7)] for value in history]
    async with client_of(tmp_path) as client:
        for body in ({"instances": [{"history": history}]}, {"instances": [{"history": history, "frequency": "H"}]}):
            answer = await client.post("/predict/forecast", json=body)
            assert answer.json()["model"] == "forecast-hourly", answer.text
        answer = await client.post("/predict/forecast", json={"model": "forecast-ett", "instances": [{"history": rows}]})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["predictions"][0]["forecast"]) == 96
        assert len(answer.json()["predictions"][0]["forecast"][0]) == 7


def test_each_frequency_has_one_bundled_forecaster() -> None:
    blocks = [json.loads((folder / "manifest.json").read_text()).get("forecast", {}) for folder in FOLDERS]
    blocks = [block for block in blocks if not (block.get("streaming") or block.get("covariates"))]
    blocks = [block for block in blocks if len(block.get("features", ())) < 2]
    served = sorted(name for block in blocks for name in block.get("frequencies", ()))
    assert served == ["D", "H", "M", "Q", "Y"]


async def test_a_history_of_numbers_beyond_what_the_forecaster_can_hold_is_invalid_and_no_failure(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models" / "forecast-yearly", tmp_path / "forecast-yearly")
    async with client_of(tmp_path) as client:
        for last, status in ((1e10, 200), (1e30, 422)):
            body = {"model": "forecast-yearly", "instances": [{"history": [1e-30, last] * 12}]}
            answer = await client.post("/predict", json=body)
            assert answer.status_code == status, answer.text
        problem = answer.json()
        assert (problem["code"], problem["instance_index"], problem["where"]) == ("invalid_input", 0, "history")
        tensor = {"name": "history", "shape": [1, 24, 1], "datatype": "FP32", "data": [1e-30, 1e30] * 12}
        answer = await client.post("/v2/models/forecast-yearly/infer", json={"inputs": [tensor]})
        assert answer.status_code == 400, answer.text


def test_the_sentiment_model_reads_long_reviews_and_short_sentences() -> None:
    training = manifest("sentiment-en")["training"]
    metrics, baselines = training["metrics"], training["baselines"]
    # Of 1,821 sentences probabilities that are exactly right would measure up to 0.024.
    for name, least, most in (("imdb", 0.93, 0.01), ("sst2", 0.87, 0.025)):
        assert all(metrics[f"{name}_accuracy"] > 0.015 + baseline[f"{name}_accuracy"] for baseline in baselines.values())
        assert metrics[f"{name}_accuracy"] >= least
        assert metrics[f"{name}_ece"] <= most
    assert {"majority", "tfidf_logistic", "nb_logistic"} <= baselines.keys()


def test_the_sensor_forecasts_a_day_better_than_its_baselines_and_finds_what_was_put_into_the_test_part() -> None:
    training = manifest("sensor-stream")["training"]
    metrics, baselines = training["metrics"], training["baselines"]
    assert all(metrics["mase"] < baselines[name]["mase"] for name in ("last_value", "seasonal_naive", "linear"))
    assert 0.77 <= metrics["one_step_coverage_80"] <= 0.83
    for kind in ("spike_auroc", "level_shift_auroc", "flat_line_auroc"):
        assert metrics[kind] > max(baselines[name][kind] for name in ("last_value", "seasonal_naive", "rolling_z_score")), kind


async def test_the_sensor_in_pieces_answers_as_the_whole_and_marks_what_is_odd_and_what_is_missing() -> None:
    model = await load_model(ROOT / "models" / "sensor-stream" / "1", ModelOptions(measure_s=0.0))
    values: list[float | None] = [round(4500 + 900 * math.sin(2 * math.pi * step / 48), 1) for step in range(400)]
    values[200], values[390] = None, 9000.0
    (whole,) = read(write(await model.predict([{"history": values}])))
    scores: list[float | None] = []
    state: SequenceState | None = None
    for start, end in pairwise([0, 1, 2, 50, 201, 390, 391, 400]):
        (answer,), (state,) = await model.advance([{"history": values[start:end]}], [state])
        answer = read(write(answer))
        scores += answer["anomaly"]
    await model.stop()
    assert answer["forecast"] == whole["forecast"]
    assert answer["quantiles"] == whole["quantiles"]
    assert len(answer["forecast"]) == 48
    assert [score is None for score in scores] == [step == 200 for step in range(400)]
    assert scores[390] == 10
    assert [score or 0.0 for score in scores] == pytest.approx([score or 0.0 for score in whole["anomaly"]], abs=1e-5)


def test_the_sentiment_of_pieces_is_learned_and_stays_close_to_that_of_whole_texts() -> None:
    training = manifest("sentiment-stream")["training"]
    assert training["metrics"]["imdb_accuracy"] >= 0.86
    assert training["metrics"]["sst2_accuracy"] >= 0.82
    fp32, int8 = manifest("sentiment-stream")["graphs"]
    for loss in int8["loss"]:
        assert fp32["score"][loss["measure"]] - int8["score"][loss["measure"]] <= loss["bound"] <= 0.005


@pytest.mark.parametrize("precision", ["fp32", "int8"])
async def test_the_sentiment_of_a_text_in_pieces_is_that_of_the_text_so_far(precision: Literal["fp32", "int8"]) -> None:
    options = ModelOptions(measure_s=0.0, precision=precision)
    model = await load_model(ROOT / "models" / "sentiment-stream" / "1", options)
    pieces = ["The first hour is dull,", "badly acted and far too long.", "But then it turns into a wonderful,", "moving film!"]
    state: SequenceState | None = None
    scores = []
    for end, piece in enumerate(pieces, 1):
        (answer,), (state,) = await model.advance([piece], [state])
        (whole,) = await model.predict([" ".join(pieces[:end])])
        scores.append(read(write(answer))["probabilities"]["positive"])
        assert scores[-1] == pytest.approx(read(write(whole))["probabilities"]["positive"], abs=2e-6)
    await model.stop()
    assert max(scores[:2]) < 0.3
    assert scores[3] > 2 * scores[1], "what comes later is heard"


def test_the_chinese_model_beats_its_baselines_on_texts_that_training_never_saw() -> None:
    training = manifest("sentiment-zh")["training"]
    assert training["metrics"]["accuracy"] >= 0.93
    for baseline in training["baselines"].values():
        assert training["metrics"]["unseen_accuracy"] > baseline["unseen_accuracy"]
        assert training["metrics"]["accuracy"] > baseline["accuracy"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_the_scores_of_the_readme_are_the_manifests(folder: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for measure, value in manifest(folder.parent.name)["training"]["metrics"].items():
        if measure in ("owa", "smape", "mase", "imdb_accuracy", "sst2_accuracy"):
            shown = (
                f"{value:.3f}" if measure in ("owa", "mase") else f"{value:.2f}" if measure == "smape" else f"{100 * value:.1f}"
            )
            assert shown in readme, measure
