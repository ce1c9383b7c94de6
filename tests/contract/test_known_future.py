"""Known future from a recipe to the real process: the same calendar on both sides, the same answers alone and in company."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from rich.console import Console

from service.models.loading import check_folder
from service.tasks.covariates import calendar_numbers
from service.tasks.forecast_spec import CalendarField
from service.tasks.frequencies import Frequency
from tests.fakes import PATIENCE_S
from tests.serving import server_process
from training.data.covariates import calendar_columns, moments_from
from training.recipe import parse_recipe
from training.recipe.forecast import Frequency as FrequencyName
from training.runs.train import train

FIELDS: tuple[CalendarField, ...] = ("hour", "day_of_week", "month", "day_of_year")
RECIPE = """
task = "forecast"
name = "toy-known"
[[data.train]]
path = "toy.csv"
format = "table"
values = ["y"]
[forecast]
context_length = 12
min_length = 2
horizon = 4
frequencies = ["H"]
quantiles = [0.1, 0.5, 0.9]
covariates = ["warm", "sky"]
calendar = ["hour", "day_of_year"]
[forecast.categories]
sky = ["clear", "rain"]
[[layers]]
type = "lstm"
units = 4
[[layers]]
type = "decoder_input"
[[layers]]
type = "lstm"
units = 4
return_sequences = true
[[layers]]
type = "dense"
[fit]
loss = "quantile"
epochs = 1
steps_per_epoch = 2
[evaluate]
baselines = ["last_value"]
"""

NUMBERS_ALONE = (
    RECIPE.replace("toy-known", "toy-numbers")
    .replace('covariates = ["warm", "sky"]', 'covariates = ["warm", "wind"]')
    .replace('calendar = ["hour", "day_of_year"]\n[forecast.categories]\nsky = ["clear", "rain"]\n', "")
)
"""A model that needs neither texts nor timestamps, which Nixtla's client does not send."""


SERIES = """
task = "forecast"
name = "toy-stations"
[[data.train]]
path = "stations.csv"
format = "long"
id = "station"
[forecast]
context_length = 6
min_length = 2
horizon = 2
frequencies = ["H"]
covariates = ["station"]
[forecast.categories]
station = ["north", "south"]
[[layers]]
type = "gru"
units = 8
[[layers]]
type = "decoder_input"
[[layers]]
type = "gru"
units = 8
return_sequences = true
[[layers]]
type = "dense"
[fit]
loss = "mse"
learning_rate = 0.02
epochs = 3
steps_per_epoch = 60
[evaluate]
baselines = ["last_value"]
"""
"""Which series it is, is a covariate of every step: the column that names the series of a file."""


def write_stations(folder: Path) -> None:
    """In the north every fourth value is 9 and the others 5; in the south every fourth is 1. The first three say nothing."""
    rows = ["station,ds,y"]
    for station, fourth in (("north", 9), ("south", 1)):
        for step in range(200):
            moment = np.datetime64("2024-02-27T00:00:00") + np.timedelta64(step, "h")
            rows.append(f"{station},{moment},{fourth if step % 4 == 3 else 5}")
    (folder / "stations.csv").write_text("\n".join(rows))


def write_data(folder: Path) -> None:
    random = np.random.default_rng(0)
    rows = ["ds,y,warm,wind,sky"]
    for step in range(120):
        moment = np.datetime64("2024-02-27T00:00:00") + np.timedelta64(step, "h")
        rows.append(
            f"{moment},{random.uniform(5, 9):.3f},{random.uniform(-5, 30):.2f},{random.uniform(0, 9):.1f},"
            f"{'rain' if random.random() < 0.3 else 'clear'}"
        )
    (folder / "toy.csv").write_text("\n".join(rows))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("known")
    write_data(folder)
    write_stations(folder)
    path = folder / "toy.toml"
    path.write_text(RECIPE)
    quiet = Console(quiet=True)
    for text in (RECIPE, NUMBERS_ALONE, SERIES):
        train(parse_recipe(text), path, data=folder, models=folder / "models", runs=folder / "runs", console=quiet)
    return folder / "models"


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[httpx.Client]:
    with server_process(models) as process, httpx.Client(base_url=process.url, timeout=PATIENCE_S, trust_env=False) as client:
        yield client


def draw(length: int, horizon: int = 4) -> dict[str, Any]:
    random = np.random.default_rng([length, horizon])

    def columns(count: int) -> dict[str, list[Any]]:
        return {"warm": random.uniform(-5, 30, count).round(2).tolist(), "sky": random.choice(["clear", "rain"], count).tolist()}

    history = random.uniform(5, 9, length).round(3).tolist()
    known = {"past": columns(length), "future": columns(horizon)}
    return {"history": history, "horizon": horizon, "start": "2024-12-31T20:00:00", **known}


def ask(server: httpx.Client, *instances: Any, **fields: Any) -> httpx.Response:
    return server.post("/predict/forecast", json={"model": "toy-known", "instances": instances, **fields})


def forecasts(server: httpx.Client, *instances: Any, **fields: Any) -> list[list[float]]:
    answer = ask(server, *instances, **fields)
    assert answer.status_code == 200, answer.text
    return [prediction["forecast"] for prediction in answer.json()["predictions"]]


def test_the_folder_passes_the_check_and_says_what_it_needs(models: Path, server: httpx.Client) -> None:
    assert check_folder(models / "toy-known" / "1") == []
    about = server.get("/models/toy-known").json()
    assert about["forecast"]["covariates"] == ["warm", "sky"]
    assert about["forecast"]["categories"] == {"sky": ["clear", "rain"]}
    assert about["forecast"]["calendar"] == ["hour", "day_of_year"]
    shapes = {tensor["name"]: tensor["shape"] for tensor in server.get("/v2/models/toy-known").json()["inputs"]}
    assert (shapes["past_covariates"], shapes["future_covariates"]) == ([-1, -1, 4], [-1, 4, 4])


def test_rows_of_any_length_and_horizon_answer_as_alone(server: httpx.Client) -> None:
    instances = [draw(12), draw(2, 9), draw(7, 1), draw(30, 4), draw(5, 17)]
    together = forecasts(server, *instances)
    for instance, found in zip(instances, together, strict=True):
        np.testing.assert_allclose(found, forecasts(server, instance)[0], rtol=1e-5, atol=1e-5)
        assert len(found) == instance["horizon"]


def test_a_shorter_horizon_is_the_begin_of_a_longer_one(server: httpx.Client) -> None:
    whole = draw(12, 11)
    short = {**whole, "horizon": 3, "future": {name: values[:3] for name, values in whole["future"].items()}}
    np.testing.assert_allclose(forecasts(server, short)[0], forecasts(server, whole)[0][:3], rtol=1e-5, atol=1e-5)


def test_the_covariates_and_the_calendar_change_the_answer(server: httpx.Client) -> None:
    instance = draw(12)
    others = [copy.deepcopy(instance) for _ in range(4)]
    others[0]["future"]["warm"][0] += 20
    others[1]["past"]["warm"][-1] += 20
    others[2]["future"]["sky"] = ["rain" if text == "clear" else "clear" for text in instance["future"]["sky"]]
    others[3]["start"] = "2024-06-30T09:00:00"
    first, *changed = forecasts(server, instance, *others)
    assert all(found != first for found in changed)


def test_which_series_it_is_decides_what_the_history_does_not_say(server: httpx.Client) -> None:
    instances = [{"history": [5, 5, 5], "past": {"station": name}, "future": {"station": name}} for name in ("north", "south")]
    answer = server.post("/predict/forecast", json={"model": "toy-stations", "instances": instances})
    north, south = (prediction["forecast"][0] for prediction in answer.json()["predictions"])
    assert north > 6.5
    assert south < 3.5
    for instance in instances:
        instance["past"], instance["future"] = {"station": ["north"] * 3}, {"station": ["north"] * 2}
    again = server.post("/predict/forecast", json={"model": "toy-stations", "instances": instances, "parameters": {"horizon": 2}})
    assert [prediction["forecast"][0] for prediction in again.json()["predictions"]] == [north, north]


def test_the_columns_of_nixtlas_client_are_the_covariates_in_their_order(server: httpx.Client) -> None:
    random = np.random.default_rng(3)
    sizes, horizon = [7, 12], 3
    values = random.uniform(5, 9, sum(sizes)).round(3).tolist()
    past, future = (random.uniform(0, 9, (2, count)).round(2).tolist() for count in (sum(sizes), 2 * horizon))
    series = {"y": values, "sizes": sizes, "X": past, "X_future": future}
    instances = []
    for steps, ahead in ((slice(0, 7), slice(0, 3)), (slice(7, 19), slice(3, 6))):
        known = {
            field: {"warm": columns[0][part], "wind": columns[1][part]}
            for field, columns, part in (("past", past, steps), ("future", future, ahead))
        }
        instances.append({"history": values[steps], "horizon": horizon, **known})
    expected = np.concatenate(forecasts(server, *instances, model="toy-numbers"))
    body = {"model": "toy-numbers", "h": horizon, "freq": "h"}
    found = server.post("/v2/forecast", json={**body, "series": series})
    assert found.status_code == 200, found.text
    np.testing.assert_allclose(found.json()["mean"], expected, rtol=1e-5, atol=1e-5)
    other = server.post("/v2/forecast", json={**body, "series": {**series, "X_future": future[::-1]}})
    assert other.json()["mean"] != found.json()["mean"]
    few = server.post("/v2/forecast", json={**body, "series": {**series, "X": past[:1], "X_future": future[:1]}})
    assert few.status_code == 400
    assert "has the covariates ['warm', 'wind'], in this order; found 1 columns" in few.json()["detail"]
    calendar = server.post("/v2/forecast", json={**body, "model": "toy-known", "series": series})
    assert calendar.status_code == 400


def test_a_sequence_in_pieces_reads_each_pieces_own_covariates(models: Path, server: httpx.Client) -> None:
    manifest = json.loads((models / "toy-known" / "1" / "manifest.json").read_text())
    assert manifest["state"]
    whole = draw(12)

    def piece(start: int, end: int) -> dict[str, Any]:
        following = {name: (whole["past"][name] + whole["future"][name])[end : end + 4] for name in whole["past"]}
        past = {name: values[start:end] for name, values in whole["past"].items()}
        begin = str(np.datetime64(whole["start"]) + np.timedelta64(start, "h"))
        return {**whole, "history": whole["history"][start:end], "start": begin, "past": past, "future": following}

    first = ask(server, {**piece(0, 5), "state": None}).json()["predictions"][0]
    last = ask(server, {**piece(5, 12), "state": first["state"]}).json()["predictions"][0]
    np.testing.assert_allclose(last["forecast"], forecasts(server, whole)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda one: one.pop("future"), "future"),
        (lambda one: one.pop("start"), "start"),
        (lambda one: one["future"]["warm"].pop(), "future.warm"),
        (lambda one: one["past"]["warm"].append(1), "past.warm"),
        (lambda one: one["past"].update(wind=[1] * 12), "past.wind"),
        (lambda one: one["past"]["sky"].__setitem__(3, "snow"), "past.sky[3]"),
        (lambda one: one["future"]["warm"].__setitem__(2, None), "future.warm[2]"),
        (lambda one: one["future"]["warm"].__setitem__(2, 1e39), "future.warm[2]"),
    ],
)
def test_what_does_not_fit_is_422_with_its_place_and_the_server_goes_on(server: httpx.Client, change: Any, where: str) -> None:
    bad = draw(12)
    change(bad)
    answer = ask(server, draw(12), bad)
    assert answer.status_code == 422, answer.text
    assert (answer.json()["where"], answer.json()["instance_index"]) == (where, 1)
    assert ask(server, draw(12)).status_code == 200


@pytest.mark.parametrize("code", ["S", "T", "H", "D", "W", "M", "Q", "Y"])
@pytest.mark.parametrize("start", ["1969-12-30T22:15:00", "2023-12-31T23:59:30", "2024-01-31T00:00:00", "2024-02-29T12:00:00"])
def test_service_and_training_read_the_same_calendar(code: FrequencyName, start: str) -> None:
    expected = calendar_columns(moments_from(start, code, 60), FIELDS)
    assert calendar_numbers(start, Frequency(code), range(60), FIELDS).tolist() == expected.tolist()
