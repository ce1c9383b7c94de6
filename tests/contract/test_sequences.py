"""Sequences whose states the server keeps, over HTTP: the same numbers as the whole, and every way to use them wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from service.api.schemas import SequenceDescription
from tests.folders import write_text_folder
from tests.service.sequences.stores import RedisServer, redis_server
from tests.serving import PATIENCE_S, ServerProcess, client_of, server_process, wait_until
from tests.streams import FEATURES, cells, write_forecast_stream, write_tensor_stream, write_text_stream
from tests.torch_models import BiLSTMBothEnds, floats
from training.importers.torch.publishing import publish

MODEL = "toy-sensor"
BIDIRECTIONAL = "both-ways"
CLIENT = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0), timeout=PATIENCE_S, trust_env=False)
SERIES = [round(float(value), 3) for value in 5 + np.random.default_rng(3).normal(size=24)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_forecast_stream(folder, cells("lstm"))
    write_tensor_stream(folder, cells("gru"))
    write_text_stream(folder, cells("lstm"))
    write_text_folder(folder)  # which cannot stream
    publish(BiLSTMBothEnds().eval(), BIDIRECTIONAL, example=floats(6, 9)(), models=folder)  # which cannot either
    return folder


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(
    scope="module",
    params=["one process", "two workers", "two workers with Redis", pytest.param("regular path", marks=pytest.mark.slow)],
)
def server(request: pytest.FixtureRequest, models: Path) -> Iterator[ServerProcess]:
    """Real servers, with every store."""
    settings: dict[str, Any] = {"SLUICE_WORKERS": "2" if "two" in request.param else "1"}
    if "Redis" in request.param:
        redis: RedisServer = request.getfixturevalue("redis")
        settings["SLUICE_SEQUENCE_STORE"] = redis.url
    if request.param == "regular path":
        settings["SLUICE_FAST_PATH"] = "false"
    with server_process(models, **settings) as server:
        yield server
        assert server.end() == 0
        assert "Traceback" not in server.log


@pytest.fixture
async def client(models: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(models) as client:
        yield client


class Connections:
    """A new connection for each request, so that all workers get some."""

    def __init__(self, url: str) -> None:
        self.url = url

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return CLIENT.request(method, f"{self.url}{path}", **options)

    def step(self, id: object, values: list[float], **flags: bool) -> httpx.Response:
        parameters = {"sequence_id": id, **{f"sequence_{name}": value for name, value in flags.items()}}
        body = {"model": MODEL, "instances": [{"history": values}], "parameters": parameters}
        return self.request("POST", "/predict", json=body)

    def forecast(self, id: object, values: list[float], **flags: bool) -> Any:
        return self.step(id, values, **flags).raise_for_status().json()["predictions"][0]

    def whole(self, values: list[float]) -> Any:
        """What the state that clients carry gives for all values at once."""
        body = {"model": MODEL, "instances": [{"history": values, "state": None}]}
        prediction = self.request("POST", "/predict", json=body).raise_for_status().json()["predictions"][0]
        del prediction["state"]
        return prediction


@pytest.fixture
def web(server: ServerProcess) -> Connections:
    return Connections(server.url)


# --------------------------------------------------------------------------------------------------- the same numbers


def test_steps_over_any_connection_give_what_the_whole_gives(web: Connections) -> None:
    ends = [0, 1, 2, 5, 6, 14, 24]
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
        found = web.forecast("whole", SERIES[start:end], start=number == 0, end=end == 24)
        assert found == web.whole(SERIES[:end])
    assert web.step("whole", SERIES[:1]).status_code == 404, "it has ended"


def test_steps_of_many_sequences_share_a_request_and_each_goes_on_by_itself(web: Connections) -> None:
    ids = [f"many-{number}" for number in range(40)]
    for start, end in ((0, 3), (3, 4), (4, 9)):
        instances = [
            {"history": SERIES[number % 5 :][start:end], "sequence_id": id, "sequence_end": end == 9 and number % 2 == 1}
            for number, id in enumerate(ids)
        ]
        body = {"instances": instances, "parameters": {"sequence_start": start == 0}}
        answer = web.request("POST", "/predict/forecast", json=body).raise_for_status().json()
        wholes = [web.whole(SERIES[first:][:end]) for first in range(5)]
        assert answer["predictions"] == [wholes[number % 5] for number in range(40)]
    assert web.request("GET", "/sequences/many-0").json()["steps"] == 9
    assert web.request("GET", "/sequences/many-1").status_code == 404


def test_concurrent_steps_of_one_sequence_are_run_one_after_the_other(web: Connections) -> None:
    web.forecast("busy", SERIES[:1], start=True)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: web.forecast("busy", [2.0]), range(24)))
    expected = [web.whole([SERIES[0], *[2.0] * number]) for number in range(1, 25)]
    assert sorted(answers, key=repr) == sorted(expected, key=repr)
    assert web.request("GET", "/sequences/busy").json()["steps"] == 25


def test_texts_and_tensors_have_sequences_too(web: Connections) -> None:
    def send(model: str, instance: Any, id: int, **flags: bool) -> Any:
        body = {"model": model, "instances": [instance], "parameters": {"sequence_id": id, **flags}}
        return web.request("POST", "/predict", json=body).raise_for_status().json()["predictions"][0]

    send("toy-chat", "good", 1, sequence_start=True)
    assert send("toy-chat", {"text": "bad plot"}, 1) == send("toy-chat", "good bad plot", 2, sequence_start=True)
    rows = np.random.default_rng(1).normal(size=(4, FEATURES)).round(3).tolist()
    send("toy-stream", rows[:3], 1, sequence_start=True)
    assert send("toy-stream", rows[3:], 1) == send("toy-stream", rows, 2, sequence_start=True)


def test_an_id_belongs_to_its_model_and_a_number_is_its_digits(web: Connections) -> None:
    body = {"model": "toy-chat", "instances": ["good"], "parameters": {"sequence_id": 77, "sequence_start": True}}
    web.request("POST", "/predict", json=body).raise_for_status()
    assert web.step(77, SERIES[:1]).status_code == 404
    web.forecast(77, SERIES[:2], start=True)
    assert web.forecast("77", SERIES[2:3]) == web.whole(SERIES[:3])
    ambiguous = web.request("GET", "/sequences/77")
    assert ambiguous.status_code == 409
    assert ambiguous.json()["candidates"] == ["toy-chat", MODEL]
    assert web.request("GET", "/sequences/77", params={"model": MODEL}).json()["steps"] == 3
    web.step(77, SERIES[:1], end=True)
    assert web.request("DELETE", "/sequences/77").status_code == 200


# ------------------------------------------------------------------------------------------------------- Triton's client


@pytest.mark.parametrize("id", [7, 2**64 - 1, "sensor-a", "é/ 7"], ids=str)
def test_tritons_client_sends_sequences_unchanged(server: ServerProcess, id: int | str) -> None:
    rows = np.random.default_rng(2).normal(size=(1, 6, FEATURES)).astype(np.float32)

    def infer(start: int, end: int, *, id: int | str = 0, **flags: bool) -> Any:
        tensor = triton.InferInput("x", (1, end - start, FEATURES), "FP32")
        tensor.set_data_from_numpy(np.ascontiguousarray(rows[:, start:end]))
        # A connection each, so that all workers get some.
        with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
            return client.infer("toy-stream", [tensor], sequence_id=id, **flags).as_numpy("y")

    whole = infer(0, 6)
    infer(0, 2, id=id, sequence_start=True)
    infer(2, 3, id=id)
    assert infer(3, 6, id=id, sequence_end=True).tolist() == whole.tolist()
    with pytest.raises(InferenceServerException, match="START flag"):
        infer(3, 4, id=id)
    assert infer(0, 6, id=id, sequence_start=True, sequence_end=True).tolist() == whole.tolist()


def test_the_protocol_offers_sequences(web: Connections) -> None:
    assert {"sequence", "sequence(string_id)"} <= set(web.request("GET", "/v2").json()["extensions"])


# ------------------------------------------------------------------------------------------------------------ the routes


def test_a_sequence_is_shown_moved_and_ended(web: Connections) -> None:
    web.forecast("moved", SERIES[:5], start=True)
    shown = web.request("GET", "/sequences/moved").raise_for_status().json()
    assert {key: shown[key] for key in ("id", "model", "version", "steps", "is_busy")} == {
        "id": "moved",
        "model": MODEL,
        "version": "1",
        "steps": 5,
        "is_busy": False,
    }
    assert shown.keys() == SequenceDescription.model_fields.keys()
    assert shown["bytes"] > 64
    assert shown["idle_seconds"] >= 0
    put = web.request("PUT", "/sequences/copy", json={"state": shown["state"]}).raise_for_status().json()
    assert (put["id"], put["steps"], put["state"]) == ("copy", 5, shown["state"])
    assert web.forecast("copy", SERIES[5:8]) == web.forecast("moved", SERIES[5:8]) == web.whole(SERIES[:8])
    assert web.request("PUT", "/sequences/copy", json={"state": shown["state"], "model": MODEL, "version": "1"}).is_success
    assert web.forecast("copy", SERIES[5:6]) == web.whole(SERIES[:6])
    for id in ("moved", "copy"):
        assert web.request("DELETE", f"/sequences/{id}", params={"model": MODEL}).status_code == 200
        assert web.request("DELETE", f"/sequences/{id}").status_code == 404


def test_an_id_may_have_slashes(web: Connections) -> None:
    for id in ("plant/7", "/plant//7/", "/"):
        web.forecast(id, SERIES[:5], start=True)
        path = f"/sequences/{quote(id, safe='')}"
        shown = web.request("GET", path).raise_for_status().json()
        assert (shown["id"], shown["steps"]) == (id, 5)
        assert web.request("PUT", path, json={"state": shown["state"]}).raise_for_status().json()["id"] == id
        assert web.request("DELETE", path).status_code == 200
        assert web.step(id, SERIES[5:6]).status_code == 404


# ------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("parameters", "status", "text"),
    [
        ({"sequence_id": "unknown"}, 404, "send its first step with"),
        ({"sequence_id": "unknown", "sequence_end": True}, 404, "was not started, or has ended"),
        ({"sequence_id": -1, "sequence_start": True}, 422, "got -1"),
        ({"sequence_id": 0, "sequence_start": True}, 422, "1 to 2"),
        ({"sequence_id": 2**64, "sequence_start": True}, 422, "whole number"),
        ({"sequence_id": 1.0, "sequence_start": True}, 422, "whole number"),
        ({"sequence_id": True, "sequence_start": True}, 422, "whole number"),
        ({"sequence_id": "", "sequence_start": True}, 422, "1 to 128 characters"),
        ({"sequence_id": "x" * 1_000_000, "sequence_start": True}, 422, "got 1000000 characters"),
        ({"sequence_id": "a\nb", "sequence_start": True}, 422, "control characters"),
        ({"sequence_id": ["a"]}, 422, "whole number"),
        ({"sequence_id": "a", "sequence_start": 1}, 422, "true or false"),
        ({"sequence_start": True}, 422, "is missing"),
        ({"sequence_end": True}, 422, "is missing"),
        ({"sequence_id": "a", "sequence_start": True, "sequence_begin": True}, 400, "sequence_begin"),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_what_a_request_says_wrongly_of_its_sequence_is_refused(
    client: httpx.AsyncClient, parameters: Any, status: int, text: str
) -> None:
    body = {"model": MODEL, "instances": [{"history": SERIES[:3]}], "parameters": parameters}
    answer = await client.post("/predict", json=body)
    assert (answer.status_code, text in answer.json()["detail"]) == (status, True), answer.text[:300]
    assert len(answer.content) < 2000
    own = {"model": MODEL, "instances": [{"history": SERIES[:3], **parameters}]}
    assert (await client.post("/predict", json=own)).status_code == status


@pytest.mark.parametrize(
    ("ids", "text"),
    [(["a", "b", "a"], 'instance 2: sequence "a" is there twice'), ([7, "7"], "is there twice"), (["a", None], "instance 1")],
    ids=str,
)
async def test_each_instance_has_a_sequence_of_its_own(client: httpx.AsyncClient, ids: list[Any], text: str) -> None:
    instances = [{"history": SERIES[:3]} | ({} if id is None else {"sequence_id": id, "sequence_start": True}) for id in ids]
    answer = await client.post("/predict", json={"model": MODEL, "instances": instances})
    assert answer.status_code == 422
    assert text in answer.json()["detail"]


async def test_of_sequences_a_request_has_a_thousand_at_most(client: httpx.AsyncClient) -> None:
    instances = [{"history": [1.0], "sequence_id": number, "sequence_start": True} for number in range(1, 1002)]
    answer = await client.post("/predict", json={"model": MODEL, "instances": instances})
    assert answer.status_code == 422
    assert "at most 1000" in answer.json()["detail"]
    assert (await client.post("/predict", json={"model": MODEL, "instances": instances[:-1]})).status_code == 200


async def test_a_model_that_cannot_stream_has_no_sequences_and_says_why(client: httpx.AsyncClient) -> None:
    body = {"model": "toy-sentiment", "instances": ["good"], "parameters": {"sequence_id": 1, "sequence_start": True}}
    answer = await client.post("/predict", json=body)
    assert answer.status_code == 422
    assert "cannot stream: its manifest declares no recurrent state" in answer.json()["detail"]


async def test_a_second_start_begins_the_sequence_anew(client: httpx.AsyncClient) -> None:
    async def step(values: list[float], **flags: bool) -> Any:
        body = {"model": MODEL, "instances": [{"history": values}], "parameters": {"sequence_id": 1, **flags}}
        return (await client.post("/predict", json=body)).raise_for_status().json()["predictions"]

    first = await step(SERIES[:4], sequence_start=True)
    await step(SERIES[4:6])
    assert await step(SERIES[:4], sequence_start=True) == first
    metrics = (await client.get("/metrics")).text
    assert 'sluice_sequences_started_total{model="toy-sensor",version="1"} 2.0' in metrics
    assert 'sluice_sequences_ended_total{model="toy-sensor",reason="restart",version="1"} 1.0' in metrics


async def test_a_step_that_fails_leaves_the_state_as_it_was(client: httpx.AsyncClient) -> None:
    async def step(values: list[Any], **flags: bool) -> httpx.Response:
        body = {"model": MODEL, "instances": [{"history": values}], "parameters": {"sequence_id": 1, **flags}}
        return await client.post("/predict", json=body)

    async def shown() -> Any:
        content = (await client.get("/sequences/1")).json()
        return content["steps"], content["state"]

    await step(SERIES[:4], sequence_start=True)
    before = await shown()
    assert before[0] == 4
    for wrong in ([None], ["x"], []):
        assert (await step(wrong)).status_code in (400, 422)
        assert (await step(wrong, sequence_start=True)).status_code in (400, 422)
        assert (await step(wrong, sequence_end=True)).status_code in (400, 422)
    late = {"model": MODEL, "instances": [{"history": SERIES[:4]}], "parameters": {"sequence_id": 1}, "timeout_ms": 1e-6}
    assert (await client.post("/predict", json=late)).status_code == 504
    assert await shown() == before


async def test_a_step_and_a_state_in_one_instance_are_refused(client: httpx.AsyncClient) -> None:
    instance = {"history": SERIES[:4], "state": None, "sequence_id": 1, "sequence_start": True}
    assert (await client.post("/predict", json={"model": MODEL, "instances": [instance]})).status_code == 400


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 400, "empty"),
        (b"[]", 400, "no JSON object"),
        (b"{}", 400, '"state"'),
        (b'{"state": 7}', 400, '"state"'),
        (b'{"state": "x", "id": "y"}', 400, '"id"'),
        (b'{"state": "x", "version": "1"}', 400, '"version" needs'),
        (b'{"state": "x", "model": "none"}', 404, "none"),
        (b'{"state": "x", "model": "toy-sentiment"}', 422, "cannot stream"),
        (b'{"state": "x"}', 422, "damaged"),
        (b'{"state": "%s"}' % (b"A" * 1_000_000), 422, "damaged"),
        (b" " * 3_000_000, 413, "bytes"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_what_is_no_state_is_not_restored(client: httpx.AsyncClient, body: bytes, status: int, text: str) -> None:
    answer = await client.put("/sequences/1", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, text in answer.json()["detail"]) == (status, True), answer.text[:300]
    assert (await client.get("/sequences/1")).status_code == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_ids_of_paths_are_bounded(client: httpx.AsyncClient, method: str) -> None:
    assert (await client.request(method, f"/sequences/{'x' * 129}", json={"state": "x"})).status_code == 422
    assert (await client.request(method, "/sequences/a%00b", json={"state": "x"})).status_code == 422
    assert (await client.request("PATCH", "/sequences/1")).status_code == 405


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"sequence_id": -1}, 400),
        ({"sequence_id": "x" * 129}, 400),
        ({"sequence_id": 0, "sequence_start": True}, 400),
        ({"sequence_start": True}, 400),
        ({"sequence_id": 1, "sequence_end": 1}, 400),
        ({"sequence_id": 0}, 200),
        ({"sequence_id": ""}, 200),
        ({"sequence_id": 1}, 404),
        ({"sequence_id": 1, "sequence_start": True}, 200),
    ],
    ids=str,
)
async def test_the_protocols_parameters_are_checked(client: httpx.AsyncClient, parameters: Any, status: int) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1, FEATURES], "data": [0.5] * FEATURES}
    answer = await client.post("/v2/models/toy-stream/infer", json={"inputs": [tensor], "parameters": parameters})
    assert answer.status_code == status, answer.text
    two = {**tensor, "shape": [2, 1, FEATURES], "data": [0.5] * 2 * FEATURES}
    if "sequence_start" in parameters and status == 200:
        refused = await client.post("/v2/models/toy-stream/infer", json={"inputs": [two], "parameters": parameters})
        assert refused.status_code == 400


async def test_an_api_key_sees_the_sequences_of_its_models_alone(models: Path, tmp_path: Path) -> None:
    from service.api.access.keys import describe_entry, new_key

    sensor, chat = new_key(), new_key()
    entries = [
        describe_entry(sensor, "sensor", scopes=["predict"], models=[MODEL], expires=None, rate_limit=None),
        describe_entry(chat, "chat", scopes=["predict"], models=["toy-chat"], expires=None, rate_limit=None),
    ]
    (tmp_path / "keys.toml").write_text("\n".join(entries))
    async with client_of(models, api_keys_file=tmp_path / "keys.toml") as client:

        async def send(key: str, method: str, path: str, **options: Any) -> httpx.Response:
            return await client.request(method, path, headers={"x-api-key": key}, **options)

        body = {"model": MODEL, "instances": [{"history": [1.0]}], "parameters": {"sequence_id": 1, "sequence_start": True}}
        assert (await send(sensor, "POST", "/predict", json=body)).status_code == 200
        shown = await send(sensor, "GET", "/sequences/1")
        assert shown.status_code == 200
        state = {"state": shown.json()["state"]}
        for path in ("/sequences/1", f"/sequences/1?model={MODEL}"):
            assert (await send(chat, "GET", path)).status_code == 404
            assert (await send(chat, "DELETE", path)).status_code == 404
        assert (await send(chat, "PUT", "/sequences/1", json=state)).status_code == 422
        assert (await send(chat, "PUT", "/sequences/1", json=state | {"model": MODEL})).status_code == 404
        assert (await client.get("/sequences/1")).status_code == 401
        assert (await send(sensor, "DELETE", "/sequences/1")).status_code == 200


# ------------------------------------------------------------------------------------------- at real servers, in every store


def test_a_step_of_what_was_never_started_or_has_ended_says_to_send_a_start(web: Connections) -> None:
    web.forecast("ended", SERIES[:2], start=True, end=True)
    for answer in (
        web.step("never", [1.0]),
        web.step("never", [1.0], end=True),
        web.step("ended", [1.0]),
        web.step("ended", [1.0], end=True),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "sequence_not_found")
        assert 'send its first step with "sequence_start": true' in answer.json()["detail"]
    assert web.request("GET", "/sequences/never").status_code == 404, "a step that is refused begins nothing"
    assert web.forecast("never", SERIES[:2], start=True) == web.whole(SERIES[:2])


def test_of_starts_at_the_same_time_each_begins_the_sequence_anew(web: Connections) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: web.forecast("twice", SERIES[:3], start=True), range(16)))
    assert all(answer == answers[0] for answer in answers)
    assert web.request("GET", "/sequences/twice").json()["steps"] == 3
    assert web.forecast("twice", SERIES[3:4]) == web.whole(SERIES[:4])


@pytest.mark.parametrize("id", [-1, 0, -(2**63), 2**64, "x" * 129, "x" * 2**20, "\n" * 100, [1] * 100, {"a": 1}, True, 1.5])
def test_what_can_be_no_id_is_refused_and_the_answer_does_not_repeat_it(web: Connections, id: Any) -> None:
    in_instance = {"model": MODEL, "instances": [{"history": [1.0], "sequence_id": id, "sequence_start": True}]}
    for answer in (web.step(id, [1.0], start=True), web.request("POST", "/predict", json=in_instance)):
        assert (answer.status_code, answer.json()["code"], answer.json()["where"]) == (422, "invalid_input", "sequence_id")
        assert len(answer.content) < 1000


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_an_id_of_a_megabyte_in_a_path_is_refused_before_it_is_looked_for(web: Connections, method: str) -> None:
    answer = web.request(method, "/sequences/" + "x" * 50_000, json={"state": "x"})
    assert 400 <= answer.status_code < 500
    assert len(answer.content) < 1000
    url = httpx.URL(web.url)
    with socket.create_connection((url.host, url.port), timeout=PATIENCE_S) as connection:
        # A connection that is closed while a client still sends may take the answer with it.
        with contextlib.suppress(ConnectionError):
            connection.sendall(
                f"{method} /sequences/{'x' * 2**20} HTTP/1.1\r\nHost: sluice\r\nContent-Length: 0\r\n\r\n".encode()
            )
        found = b""
        with contextlib.suppress(ConnectionError):
            found = connection.recv(64)
    assert not found or found.startswith(b"HTTP/1.1 4")
    assert web.forecast("after", SERIES[:1], start=True) == web.whole(SERIES[:1])


def test_a_bidirectional_model_has_no_sequences_and_says_why(web: Connections) -> None:
    for flags in ({"sequence_start": True}, {}, {"sequence_end": True}):
        body = {
            "model": BIDIRECTIONAL,
            "instances": [np.asarray(floats(3)()[0]).tolist()],
            "parameters": {"sequence_id": 1, **flags},
        }
        answer = web.request("POST", "/predict", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_state")
        assert answer.json()["problem"] == "not_streaming"
        assert "it is bidirectional" in answer.json()["detail"]


@pytest.fixture(params=["one process", "two workers", "two workers with Redis"])
def store_settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Of a server with each of the stores, empty."""
    settings: dict[str, Any] = {"SLUICE_WORKERS": "2" if "two" in request.param else "1"}
    if "Redis" in request.param:
        redis: RedisServer = request.getfixturevalue("redis")
        redis.flush()
        settings["SLUICE_SEQUENCE_STORE"] = redis.url
    return settings


def test_an_idle_sequence_ends_after_its_time_in_every_store_and_is_counted(models: Path, store_settings: dict[str, Any]) -> None:
    with server_process(models, **store_settings, SLUICE_SEQUENCE_TTL_SECONDS="1") as server:
        web = Connections(server.url)
        web.forecast("idle", SERIES[:2], start=True)
        wait_until(lambda: web.request("GET", "/sequences/idle").status_code == 404, "its time is over")
        answer = web.step("idle", SERIES[2:3])
        assert answer.status_code == 404
        assert "was not started, or has ended" in answer.json()["detail"]
        wait_until(lambda: metric(server, f'sluice_sequences_ended_total{{model="{MODEL}",reason="idle"') == 1, "counted")
        wait_until(lambda: metric(server, f'sluice_sequences_active{{model="{MODEL}"') == 0, "none is kept")


def test_of_too_many_sequences_those_end_in_every_store_that_were_not_used_for_longest(
    models: Path, store_settings: dict[str, Any]
) -> None:
    with server_process(models, **store_settings, SLUICE_SEQUENCE_MAX="20") as server:
        web = Connections(server.url)
        for number in range(20):
            web.forecast(f"s{number}", SERIES[:1], start=True)
        web.forecast("s0", SERIES[1:2])
        for number in range(20, 25):
            web.forecast(f"s{number}", SERIES[:1], start=True)
        kept = [number for number in range(25) if web.request("GET", f"/sequences/s{number}").status_code == 200]
        assert kept == [0, *range(6, 25)], "1 to 5 were idle for longest"
        wait_until(lambda: metric(server, f'sluice_sequences_ended_total{{model="{MODEL}",reason="lru"') == 5, "counted")
        wait_until(lambda: metric(server, f'sluice_sequences_active{{model="{MODEL}"') == 20, "20 are kept")


# --------------------------------------------------------------------------------------------------- bounds and metrics


async def test_of_too_many_sequences_the_least_recent_ends_and_is_counted(models: Path) -> None:
    async with client_of(models, sequence_max=50) as client:
        for first in (1, 101, 201):
            instances = [{"history": [1.0], "sequence_id": first + n, "sequence_start": True} for n in range(100)]
            (await client.post("/predict", json={"model": MODEL, "instances": instances})).raise_for_status()
        metrics = (await client.get("/metrics")).text
        assert 'sluice_sequences_ended_total{model="toy-sensor",reason="lru",version="1"} 250.0' in metrics
        assert (await client.get("/sequences/1")).status_code == 404
        assert (await client.get("/sequences/300")).status_code == 200
        expired = {"model": MODEL, "instances": [{"history": [1.0]}], "parameters": {"sequence_id": 1}}
        assert (await client.post("/predict", json=expired)).status_code == 404


def metric(server: ServerProcess, line: str) -> float:
    text = Connections(server.url).request("GET", "/metrics").text
    return sum(float(each.rpartition(" ")[2]) for each in text.splitlines() if each.startswith(line))


def test_metrics_count_the_sequences_of_all_workers(server: ServerProcess, web: Connections) -> None:
    labels = 'model="toy-stream"'
    started = metric(server, "sluice_sequences_started_total{" + labels)
    rows = np.zeros((1, FEATURES)).tolist()
    for number in range(1, 13):
        body = {
            "model": "toy-stream",
            "instances": [rows],
            "parameters": {"sequence_id": 1000 + number, "sequence_start": True, "sequence_end": number > 8},
        }
        web.request("POST", "/predict", json=body).raise_for_status()
    wait_until(lambda: metric(server, "sluice_sequences_started_total{" + labels) == started + 12, "12 were started")
    ended = 'sluice_sequences_ended_total{model="toy-stream",reason="end"'
    wait_until(lambda: metric(server, ended) >= 4, "4 have ended")
    for number in range(1, 9):
        web.request("DELETE", f"/sequences/{1000 + number}").raise_for_status()

    def num_kept() -> float:
        ended = metric(server, "sluice_sequences_ended_total{" + labels)
        return metric(server, "sluice_sequences_started_total{" + labels) - ended

    wait_until(lambda: metric(server, "sluice_sequences_active{" + labels) == num_kept(), "those that are left are kept")


# ------------------------------------------------------------------------------------------------- what fails on the way


def children(pid: int) -> list[int]:
    """The children of a process."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("store", ["local", "redis"])
def test_a_worker_that_is_killed_takes_no_sequence_with_it_and_blocks_none(
    models: Path, store: str, request: pytest.FixtureRequest
) -> None:
    settings: dict[str, Any] = {"SLUICE_WORKERS": "2"}
    if store == "redis":
        redis: RedisServer = request.getfixturevalue("redis")
        redis.flush()
        settings["SLUICE_SEQUENCE_STORE"] = redis.url
    with server_process(models, **settings) as server:
        web = Connections(server.url)
        for id in range(1, 21):
            web.forecast(id, SERIES[:3], start=True)
        workers = children(server.process.pid)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: workers[0] not in children(server.process.pid), "it is gone")
        for id in range(1, 21):
            assert web.forecast(id, SERIES[3:4]) == web.whole(SERIES[:4])


def test_redis_that_is_gone_in_mid_sequence_is_503_and_recovers_by_itself(models: Path) -> None:
    with redis_server() as redis, server_process(models, SLUICE_SEQUENCE_STORE=redis.url) as server:
        web = Connections(server.url)
        web.forecast("a", SERIES[:3], start=True)
        redis.kill()
        for answer in (web.step("a", SERIES[3:4]), web.request("GET", "/sequences/a")):
            assert answer.status_code == 503
            assert answer.json()["code"] == "store_unavailable"
            assert int(answer.headers["retry-after"]) >= 1
        assert web.request("GET", "/health/ready").status_code == 200, "what needs no state is served"
        redis.start()
        assert web.step("a", SERIES[3:4]).status_code == 404, "this Redis keeps nothing on disk"
        web.forecast("a", SERIES[:3], start=True)
        assert web.forecast("a", SERIES[3:4]) == web.whole(SERIES[:4])


def test_sequences_in_redis_outlive_the_server(models: Path, redis: RedisServer) -> None:
    redis.flush()
    with server_process(models, SLUICE_SEQUENCE_STORE=redis.url) as server:
        Connections(server.url).forecast("a", SERIES[:3], start=True)
    with server_process(models, SLUICE_SEQUENCE_STORE=redis.url) as server:
        web = Connections(server.url)
        assert web.forecast("a", SERIES[3:4]) == web.whole(SERIES[:4])


def test_a_model_that_is_reloaded_with_another_graph_in_mid_sequence_is_409(tmp_path: Path) -> None:
    folder = write_forecast_stream(tmp_path, cells("lstm"))
    settings: dict[str, Any] = {"SLUICE_MODEL_CONTROL": "explicit", "SLUICE_LOAD_MODELS": "*", "SLUICE_WORKERS": "2"}
    with server_process(tmp_path, **settings) as server:
        web = Connections(server.url)
        web.forecast("a", SERIES[:3], start=True)
        assert web.request("POST", f"/models/{MODEL}/load").is_success
        web.forecast("a", SERIES[3:4])  # the same graph: nothing has changed
        other = tmp_path / "other"
        write_forecast_stream(other, cells("lstm", 6))
        for file in (other / MODEL / "1").iterdir():
            file.replace(folder / file.name)
        assert web.request("POST", f"/models/{MODEL}/load").is_success
        answer = web.step("a", SERIES[4:5])
        assert answer.status_code == 409
        assert "was reloaded since; start the sequence anew" in answer.json()["detail"]
        assert web.request("GET", "/sequences/a").json()["steps"] == 4, "what was kept is there for the old graph"
        web.forecast("a", SERIES[:3], start=True)
        assert web.forecast("a", SERIES[3:4]) == web.whole(SERIES[:4])
        wait_until(lambda: metric(server, 'sluice_sequences_ended_total{model="toy-sensor",reason="reload"') == 1, "counted")


async def test_steps_of_different_sequences_share_batches(client: httpx.AsyncClient) -> None:
    async def step(id: int) -> None:
        body = {"model": MODEL, "instances": [{"history": [1.0]}], "parameters": {"sequence_id": id, "sequence_start": True}}
        (await client.post("/predict", json=body)).raise_for_status()

    def rows_and_batches(text: str) -> list[float]:
        names = ("sluice_inference_rows_total", "sluice_batch_executions_total")
        return [
            float(line.split()[1]) for name in names for line in text.splitlines() if line.startswith(f'{name}{{model="{MODEL}"')
        ]

    before = rows_and_batches((await client.get("/metrics")).text)
    await asyncio.gather(*(step(id) for id in range(1, 65)))
    after = rows_and_batches((await client.get("/metrics")).text)
    assert after[0] - before[0] == 64
    assert after[1] - before[1] < 64
