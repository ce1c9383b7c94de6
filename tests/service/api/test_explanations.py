"""Predictions with explanations over HTTP: exact, counted as the work that they are, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.deadlines import DeadlineMonitor
from service.api.inference import Call
from service.errors import Overloaded
from tests.folders import WORDS, write_forecast_folder, write_text_folder
from tests.heads import request
from tests.serving import client_of

TEXT = "the film was not a bad film , i saw it"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    write_text_folder(tmp_path, max_length=6)
    write_forecast_folder(tmp_path)
    async with client_of(tmp_path) as client:
        yield client


async def predict(client: httpx.AsyncClient, instances: list[Any], path: str = "/predict/classify", **parameters: Any) -> Any:
    answer = await client.post(path, json={"instances": instances, "parameters": parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


async def test_a_prefix_has_the_score_that_it_gets_as_a_request_of_its_own(client: httpx.AsyncClient) -> None:
    (prediction,) = await predict(client, [TEXT], explain="prefix")
    explanation = prediction["explanation"]
    assert explanation["words"] == TEXT.split()
    for number in range(len(explanation["words"])):
        (alone,) = await predict(client, [" ".join(TEXT.split()[: number + 1])])
        found = {label: values[number] for label, values in explanation["probabilities"].items()}
        assert found == pytest.approx(alone["probabilities"], abs=1e-6)
    assert {label: values[-1] for label, values in explanation["probabilities"].items()} == pytest.approx(
        prediction["probabilities"], abs=1e-6
    )


async def test_occlusion_is_the_text_without_each_word(client: httpx.AsyncClient) -> None:
    words = TEXT.split()
    (prediction,) = await predict(client, [TEXT], explain="occlusion")
    for number in range(len(words)):
        (alone,) = await predict(client, [" ".join(words[:number] + words[number + 1 :])])
        found = {label: values[number] for label, values in prediction["explanation"]["probabilities"].items()}
        assert found == pytest.approx(alone["probabilities"], abs=1e-6)


async def test_the_rows_of_an_explanation_are_counted(client: httpx.AsyncClient) -> None:
    await predict(client, ["good film", "bad"], explain="prefix")
    metrics = (await client.get("/metrics")).text
    assert 'sluice_inference_rows_total{model="toy-sentiment",version="1"} 5.0' in metrics
    assert 'sluice_inference_requests_total{api="predict",model="toy-sentiment",outcome="ok",version="1"} 1.0' in metrics


@pytest.mark.parametrize("path", ["/predict", "/v1/models/toy-sentiment:predict", "/invocations"])
async def test_every_way_to_send_parameters_explains_and_refuses_alike(client: httpx.AsyncClient, path: str) -> None:
    field = "params" if path == "/invocations" else "parameters"

    def body(text: str, method: str) -> dict[str, Any]:
        named = {"model": "toy-sentiment"} if path == "/predict" else {}
        parameters = {"explain": method} | ({"model": "toy-sentiment"} if path == "/invocations" else {})
        return {**named, "instances": [text], field: parameters}

    answer = await client.post(path, json=body("good film", "prefix"))
    assert answer.json()["predictions"][0]["explanation"]["words"] == ["good", "film"], answer.text
    for text, method in (("good", "gradient"), ("a " * 300, "prefix")):
        assert (await client.post(path, json=body(text, method))).status_code in (400, 422)


async def test_a_forecast_has_nothing_to_explain(client: httpx.AsyncClient) -> None:
    body = {"instances": [{"history": [1.0, 2.0]}], "parameters": {"explain": "prefix"}}
    answer = await client.post("/predict/forecast", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


async def test_the_description_says_what_a_model_can_explain(client: httpx.AsyncClient) -> None:
    assert (await client.get("/models/toy-sentiment")).json()["classify"]["explain"] == ["prefix", "occlusion"]


class CountingTicket:
    """A ticket that has room for so many times its work."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.factors: list[float] = []

    def grow(self, factor: float, timeout_s: float) -> bool:
        self.factors.append(factor)
        return factor <= self.most

    def assign(self, model: str) -> None:
        pass


async def test_a_request_that_is_more_work_than_there_is_room_for_is_refused() -> None:
    head = request("/predict")
    ticket = CountingTicket(10.0)
    head.ticket = ticket  # type: ignore[assignment]
    task = asyncio.current_task()
    assert task is not None
    call = Call(head, b"", task, DeadlineMonitor())
    call.finish_parse(2)
    call.count_rows(2)
    assert ticket.factors == []
    call.count_rows(8)
    assert ticket.factors == [4.0]
    assert head.num_instances == 8
    call.finish_parse(2)
    with pytest.raises(Overloaded, match="no room for the 100 rows"):
        call.count_rows(100)


# ------------------------------------------------------------------------------------------------------------- attacks


async def test_many_explanations_at_once_hold_up_nobody_else_and_keep_nothing(client: httpx.AsyncClient) -> None:
    long = " ".join(WORDS * 21)
    assert len(long.split()) == 252
    explained = [asyncio.create_task(predict(client, [long], explain="occlusion")) for _ in range(8)]
    plain = await asyncio.gather(*(predict(client, ["good film"]) for _ in range(16)))
    assert len({str(each) for each in plain}) == 1
    for found in await asyncio.gather(*explained):
        assert len(found[0]["explanation"]["words"]) == 252
    metrics = (await client.get("/metrics")).text
    assert 'sluice_queue_depth_rows{model="toy-sentiment",version="1"} 0.0' in metrics


@pytest.mark.parametrize(
    "instances",
    [
        ["x" * 100_000],
        ["a " * 50_000],
        ["good"] * 9_999,
        ["", "good"],
        [{"text": "good", "state": None}],
        ["\u0000" * 3999],
        ["\u200b" * 300 + " " + "\ufeff" * 300],
        ["🏳️‍🌈" * 200],
        ["ก" * 3999],
    ],
)
async def test_a_hostile_text_is_answered_or_refused_but_never_fails(client: httpx.AsyncClient, instances: list[Any]) -> None:
    for method in ("prefix", "occlusion"):
        body = {"model": "toy-sentiment", "instances": instances, "parameters": {"explain": method}}
        answer = await client.post("/predict", json=body)
        assert answer.status_code in (200, 422), answer.text
    assert (await predict(client, ["good"]))[0]["label"]


async def test_a_cancelled_explanation_leaves_its_rows_to_nobody(client: httpx.AsyncClient) -> None:
    task = asyncio.create_task(predict(client, ["a good film " * 80], explain="prefix"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await predict(client, ["good film"]))[0]["probabilities"]
