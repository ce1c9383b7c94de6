"""States that clients carry, over HTTP: sequences go on from the token of the last answer, through any replica."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.api.carried import FEW_TOKENS
from tests.folders import edit_manifest, write_forecast_folder, write_tensor_folder
from tests.serving import client_of
from tests.streams import cells, draw_rows, draw_values, draw_words, write_forecast_stream, write_tensor_stream, write_text_stream

KEY = "k" * 40
WORDS = draw_words(np.random.default_rng(1), 12)
VALUES = draw_values(np.random.default_rng(1), 12)
ROWS = draw_rows(np.random.default_rng(1), 12)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_tensor_stream(folder, [*cells("lstm"), {"type": "dense", "units": 4}])
    write_forecast_stream(folder, cells("gru"))
    write_text_stream(folder, cells("lstm"))
    write_forecast_folder(folder)
    return folder


@pytest.fixture
async def client(models: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(models) as client:
        yield client


async def post(client: httpx.AsyncClient, model: str, instances: list[Any], path: str = "/predict", **more: Any) -> list[Any]:
    answer = await client.post(path, json={"model": model, "instances": instances, **more})
    assert answer.status_code == 200, answer.text
    predictions: list[Any] = answer.json()["predictions"]
    return predictions


def instance(model: str, start: int, end: int) -> dict[str, Any]:
    if model == "toy-chat":
        return {"text": " ".join(WORDS[start:end])}
    return {"history": VALUES[start:end]} if model == "toy-sensor" else {"x": ROWS[start:end]}


STREAMS = [
    ("toy-stream", "/predict"),
    ("toy-sensor", "/predict"),
    ("toy-sensor", "/predict/forecast"),
    ("toy-chat", "/predict"),
    ("toy-chat", "/predict/classify"),
]


@pytest.mark.parametrize(("model", "path"), STREAMS)
async def test_a_sequence_goes_on_from_the_state_of_the_last_answer(client: httpx.AsyncClient, model: str, path: str) -> None:
    (whole,) = await post(client, model, [instance(model, 0, 12) | {"state": None}], path)
    state = None
    for start, end in itertools.pairwise((0, 1, 2, 7, 12)):
        (piece,) = await post(client, model, [instance(model, start, end) | {"state": state}], path)
        state = piece["state"]
    assert piece == whole


async def test_a_prediction_without_a_state_is_as_ever(client: httpx.AsyncClient) -> None:
    (plain,) = await post(client, "toy-stream", [ROWS])
    (named,) = await post(client, "toy-stream", [{"x": ROWS}])
    (begun,) = await post(client, "toy-stream", [{"x": ROWS, "state": None}])
    assert plain == named == begun["y"]
    assert begun.keys() == {"y", "state"}
    (forecast,) = await post(client, "toy-sensor", [{"history": VALUES}])
    assert "state" not in forecast


async def test_a_field_may_be_written_in_escapes(client: httpx.AsyncClient) -> None:
    body = json.dumps({"model": "toy-stream", "instances": [{"x": ROWS, "state": None}]}).replace('"state"', r'"st\u0061te"')
    answer = await client.post("/predict", content=body)
    assert answer.json()["predictions"][0].keys() == {"y", "state"}


async def test_a_word_that_is_only_called_state_is_no_state(client: httpx.AsyncClient) -> None:
    answer = await client.post("/predict", json={"model": "toy-chat", "instances": ["state", {"text": "state"}]})
    assert answer.status_code == 200
    assert "state" not in answer.json()["predictions"][0]


async def test_many_sequences_go_on_in_one_request(client: httpx.AsyncClient) -> None:
    num = FEW_TOKENS + 1
    first = await post(client, "toy-sensor", [{"history": [i, 1.0], "state": None} for i in range(num)])
    second = await post(client, "toy-sensor", [{"history": [2.0], "state": each["state"]} for each in first])
    whole = await post(client, "toy-sensor", [{"history": [i, 1.0, 2.0], "state": None} for i in range(num)])
    assert second == whole


async def test_a_forecast_beyond_the_horizon_leaves_the_state_where_the_values_ended(client: httpx.AsyncClient) -> None:
    short, long = await post(client, "toy-sensor", [{"history": VALUES, "state": None, "horizon": n} for n in (2, 11)])
    assert long["state"] == short["state"]
    assert len(long["forecast"]) == 11
    assert long["forecast"][:2] == short["forecast"]
    # What is fed back is the next piece of the series.
    (fed,) = await post(client, "toy-sensor", [{"history": long["forecast"][:4], "state": long["state"], "horizon": 4}])
    assert fed["forecast"] == long["forecast"][4:8]


async def test_a_piece_is_read_whole_however_long_the_model_reads_otherwise(client: httpx.AsyncClient) -> None:
    values = draw_values(np.random.default_rng(2), 60)  # the context is 24
    (whole,) = await post(client, "toy-sensor", [{"history": values, "state": None}])
    (first,) = await post(client, "toy-sensor", [{"history": values[:50], "state": None}])
    (last,) = await post(client, "toy-sensor", [{"history": values[50:], "state": first["state"]}])
    assert last == whole
    words = draw_words(np.random.default_rng(2), 30)  # and 8 words
    (whole,) = await post(client, "toy-chat", [{"text": " ".join(words), "state": None}])
    (first,) = await post(client, "toy-chat", [{"text": " ".join(words[:20]), "state": None}])
    (last,) = await post(client, "toy-chat", [{"text": " ".join(words[20:]), "state": first["state"]}])
    assert last == whole
    assert "truncated" not in whole


async def test_timestamps_go_on_with_each_piece(client: httpx.AsyncClient) -> None:
    (piece,) = await post(client, "toy-sensor", [{"history": [1.0], "state": None, "start": "2026-01-01T05:00:00", "horizon": 1}])
    assert piece["timestamps"] == ["2026-01-01T06:00:00"]


# ------------------------------------------------------------------------------------------------------------- refusals


async def refused(client: httpx.AsyncClient, model: str, instances: list[Any], path: str = "/predict") -> dict[str, Any]:
    answer = await client.post(path, json={"model": model, "instances": instances})
    assert answer.status_code == 422, answer.text
    content: dict[str, Any] = answer.json()
    return content


async def test_a_model_that_cannot_stream_refuses_a_state_and_says_why(client: httpx.AsyncClient) -> None:
    for state in (None, "AAAA"):
        found = await refused(client, "toy-forecast", [{"history": [1, 2]}, {"history": [1, 2], "state": state}])
        assert (found["code"], found["problem"], found["instance_index"]) == ("invalid_state", "not_streaming", 1)
        assert 'model "toy-forecast" cannot stream: its manifest declares no recurrent state' in found["detail"]


async def test_a_state_of_another_model_is_refused_by_its_name(client: httpx.AsyncClient) -> None:
    (piece,) = await post(client, "toy-stream", [{"x": ROWS, "state": None}])
    found = await refused(client, "toy-sensor", [{"history": [1.0], "state": piece["state"]}])
    assert (found["problem"], found["found"], found["expected"]) == ("model", "toy-stream", "toy-sensor")
    assert found["where"] == "state"


async def test_a_damaged_state_is_refused(client: httpx.AsyncClient) -> None:
    (piece,) = await post(client, "toy-stream", [{"x": ROWS, "state": None}])
    for state in ("x", piece["state"][:-1], piece["state"] + "A", piece["state"][:-9] + "AAAAAAAAA", 5, ["a"], {"a": 1}, True):
        found = await refused(client, "toy-stream", [{"x": ROWS, "state": None}, {"x": ROWS, "state": state}])
        assert (found["code"], found["problem"], found["instance_index"]) == ("invalid_state", "damaged", 1)


async def test_instances_carry_states_all_or_none(client: httpx.AsyncClient) -> None:
    found = await refused(client, "toy-stream", [{"x": ROWS, "state": None}, ROWS])
    assert found["detail"].startswith("instance 1: state is missing")


async def test_a_piece_of_a_series_has_no_gaps(client: httpx.AsyncClient) -> None:
    found = await refused(client, "toy-sensor", [{"history": [1.0, None, 2.0], "state": None}])
    assert found["where"] == "history[1]"
    found = await refused(client, "toy-sensor", [{"history": [], "state": None}])
    assert found["where"] == "history"


async def test_together_with_what_came_before_a_piece_is_as_long_as_the_model_needs(tmp_path: Path) -> None:
    write_forecast_stream(tmp_path, cells("lstm"), min_length=3)
    async with client_of(tmp_path) as client:
        found = await refused(client, "toy-sensor", [{"history": [1.0, 2.0], "state": None}])
        assert "expected at least 3 steps, got 2" in found["detail"]
        (piece,) = await post(client, "toy-sensor", [{"history": [1.0, 2.0, 3.0], "state": None}])
        await post(client, "toy-sensor", [{"history": [4.0], "state": piece["state"]}])


async def test_a_tensor_that_is_called_state_stays_a_tensor(tmp_path: Path) -> None:
    folder = write_tensor_folder(tmp_path)
    edit_manifest(folder, lambda manifest: manifest.update(state=[]))
    edit_manifest(folder, lambda manifest: manifest)
    example = json.loads((folder / "example.json").read_text())
    zeros = [0.0, 0.0, 0.0]
    rows = [{"x": each["x"] if isinstance(each, dict) else each, "state": zeros} for each in example["request"]["instances"]]
    example["request"]["instances"] = rows
    example["response"]["predictions"] = [{"y": each, "new_state": each[-1]} for each in example["response"]["predictions"]]
    (folder / "example.json").write_text(json.dumps(example))
    async with client_of(tmp_path) as client:
        (answer,) = await post(client, "toy-tensor", rows[:1])
        assert answer.keys() == {"y", "new_state"}


# ----------------------------------------------------------------------------------------------------------------- keys


async def test_states_are_signed_with_the_servers_key_and_any_replica_goes_on(models: Path, tmp_path: Path) -> None:
    keys, other = tmp_path / "keys", tmp_path / "other"
    keys.write_text(KEY)
    other.write_text("o" * 40)
    async with client_of(models, state_key_file=keys) as first:
        (piece,) = await post(first, "toy-stream", [{"x": ROWS[:5], "state": None}])
    async with client_of(models, state_key_file=keys) as replica:
        (last,) = await post(replica, "toy-stream", [{"x": ROWS[5:], "state": piece["state"]}])
        (whole,) = await post(replica, "toy-stream", [{"x": ROWS, "state": None}])
    assert last == whole
    async with client_of(models, state_key_file=other) as stranger:
        found = await refused(stranger, "toy-stream", [{"x": ROWS, "state": piece["state"]}])
        assert found["problem"] == "forged"


# ---------------------------------------------------------------------------------------------------- what a model says


async def test_a_model_says_whether_it_streams_and_why_not(client: httpx.AsyncClient) -> None:
    found = (await client.get("/models/toy-stream")).json()["streaming"]
    (piece,) = await post(client, "toy-stream", [{"x": ROWS, "state": None}])
    assert found == {"can_stream": True, "state_bytes": len(piece["state"]) * 3 // 4}
    found = (await client.get("/models/toy-forecast")).json()["streaming"]
    assert found == {"can_stream": False, "reason": "its manifest declares no recurrent state"}
