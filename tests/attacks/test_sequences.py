"""Sequences whose states are kept, attacked: by the ids of others, and by bodies that are no state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from service.api.access.keys import describe_entry, new_key
from service.sequences.store import SequenceKey
from tests.serving import ServerProcess, server_process
from tests.streams import FEATURES, cells, write_forecast_stream, write_tensor_stream

MODEL = "toy-sensor"
NAMES = ("alice", "alice again", "mallory")


class Attacked(NamedTuple):
    server: ServerProcess
    keys: dict[str, str]

    def send(self, who: str, method: str, path: str, **options: Any) -> httpx.Response:
        """On a connection of its own, so that each worker gets some."""
        headers = {"x-api-key": self.keys[who]}
        return httpx.request(method, self.server.url + path, headers=headers, timeout=30, trust_env=False, **options)

    def step(self, who: str, id: object, value: float, **flags: bool) -> httpx.Response:
        parameters = {"sequence_id": id, **{f"sequence_{name}": flag for name, flag in flags.items()}}
        body = {"model": MODEL, "instances": [{"history": [value]}], "parameters": parameters}
        return self.send(who, "POST", "/predict", json=body)

    def infer(self, who: str, id: object, **flags: bool) -> httpx.Response:
        parameters = {"sequence_id": id, **{f"sequence_{name}": flag for name, flag in flags.items()}}
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1, FEATURES], "data": [0.5] * FEATURES}
        return self.send(who, "POST", "/v2/models/toy-stream/infer", json={"inputs": [tensor], "parameters": parameters})


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "two workers"])
def attacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    models, folder = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("keys")
    write_forecast_stream(models, cells("lstm"))
    write_tensor_stream(models, cells("gru"))
    keys = {who: new_key() for who in NAMES}
    holders = {who: who.partition(" ")[0] for who in NAMES}
    file = folder / "keys.toml"
    file.write_text("".join(describe_entry(key, holders[who], scopes=["predict"]) for who, key in keys.items()))
    with server_process(models, SLUICE_WORKERS=request.param, SLUICE_API_KEYS_FILE=str(file)) as server:
        yield Attacked(server, keys)
        assert server.end() == 0
        assert "Traceback" not in server.log


def test_the_id_of_somebody_elses_sequence_opens_nothing(attacked: Attacked) -> None:
    first = attacked.step("alice", 1, 5.0, start=True).raise_for_status().json()["predictions"]
    assert attacked.step("mallory", 1, 9.0).status_code == 404
    assert attacked.send("mallory", "GET", "/sequences/1").status_code == 404
    assert attacked.send("mallory", "DELETE", "/sequences/1").status_code == 404
    attacked.step("mallory", 1, 900.0, start=True).raise_for_status()
    state = attacked.send("mallory", "GET", "/sequences/1").raise_for_status().json()["state"]
    attacked.send("mallory", "PUT", "/sequences/1", json={"state": state}).raise_for_status()
    attacked.step("mallory", 1, 900.0, end=True).raise_for_status()
    shown = attacked.send("alice", "GET", "/sequences/1").raise_for_status().json()
    assert (shown["id"], shown["steps"]) == ("1", 1)
    second = attacked.step("alice", 1, 5.5).raise_for_status().json()["predictions"]
    body = {"model": MODEL, "instances": [{"history": [5.0], "state": None}]}
    carried = attacked.send("alice", "POST", "/predict", json=body).json()["predictions"][0]
    body["instances"] = [{"history": [5.5], "state": carried["state"]}]
    again = attacked.send("alice", "POST", "/predict", json=body).json()["predictions"][0]
    assert [carried["forecast"], again["forecast"]] == [first[0]["forecast"], second[0]["forecast"]]


def test_the_same_holds_for_the_protocol_of_tensors(attacked: Attacked) -> None:
    attacked.infer("alice", 7, start=True).raise_for_status()
    assert attacked.infer("mallory", 7).status_code == 404
    assert attacked.send("mallory", "GET", "/sequences/7?model=toy-stream").status_code == 404
    attacked.infer("mallory", 7, start=True, end=True).raise_for_status()
    attacked.infer("alice", 7).raise_for_status()


def test_a_key_that_replaces_another_one_goes_on_with_its_sequences(attacked: Attacked) -> None:
    attacked.step("alice", "kept", 1.0, start=True).raise_for_status()
    attacked.step("alice again", "kept", 2.0).raise_for_status()
    assert attacked.send("alice again", "GET", "/sequences/kept").json()["steps"] == 2


def test_no_holder_and_id_together_are_those_of_another_one() -> None:
    parts = ("", "a", "b", "a/b", "a.b", "1")
    keys = [SequenceKey(model, id, holder) for model in ("m", "n") for id in parts[1:] for holder in ("", "a", "b", "a.b", "1")]
    assert len({key.text for key in keys}) == len(keys)


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        pytest.param(b'{"state": %s}' % (b"[" * 90_000), (400, 413), id="open brackets"),
        pytest.param(b'{"state": [%s]}' % b",".join([b"[]"] * 600_000), (413,), id="empty lists"),
        pytest.param(b"{%s}" % b",".join(b'"%d":1' % n for n in range(150_000)), (400, 413), id="fields"),
        pytest.param(json.dumps({"state": "A" * 1_900_000}).encode(), (422,), id="a long state"),
        pytest.param(b'{"state": "\\ud800"}', (400, 422), id="half of a pair"),
        pytest.param(b"\xff\xfe", (400,), id="no UTF-8"),
    ],
)
def test_a_body_that_is_no_state_is_refused_whatever_it_holds(attacked: Attacked, body: bytes, statuses: tuple[int, ...]) -> None:
    answer = attacked.send("alice", "PUT", "/sequences/x", content=body)
    assert answer.status_code in statuses, answer.text[:300]
    assert len(answer.content) < 2000
    assert attacked.send("alice", "GET", "/sequences/x").status_code == 404
