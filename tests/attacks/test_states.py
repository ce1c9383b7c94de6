"""Bad states, to a real server on both of its paths: each is refused with what it is, and the next request is answered."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.sequences.state import SequenceState
from service.sequences.tokens import SIGNATURE_BYTES, StateTokens
from tests.serving import ServerProcess, server_process
from tests.streams import cells, write_forecast_stream, write_tensor_stream

KEY = b"k" * 40
X = [[1.0, 2.0, 3.0]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_tensor_stream(folder, cells("lstm", 4))
    write_forecast_stream(folder, cells("gru", 16))
    return folder


@pytest.fixture(scope="module", params=["true", "false"], ids=["fast path", "regular path"])
def server(request: pytest.FixtureRequest, models: Path) -> Iterator[ServerProcess]:
    with server_process(models, SLUICE_FAST_PATH=request.param) as server:
        yield server
        assert server.end() == 0
        assert "Traceback" not in server.log


@pytest.fixture(scope="module", params=["true", "false"], ids=["fast path", "regular path"])
def signing(request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_bytes(KEY)
    with server_process(models, SLUICE_FAST_PATH=request.param, SLUICE_STATE_KEY_FILE=str(keys)) as server:
        yield server
        assert server.end() == 0
        assert "Traceback" not in server.log
        assert KEY.decode() not in server.log


def send(server: ServerProcess, *instances: Any, model: str = "toy-stream") -> httpx.Response:
    body = {"model": model, "instances": list(instances)}
    return httpx.post(f"{server.url}/predict", json=body, timeout=30, trust_env=False)


def begin(server: ServerProcess) -> str:
    state: str = send(server, {"x": X, "state": None}).json()["predictions"][0]["state"]
    return state


def content_of(token: str) -> bytes:
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


def rewrite(token: str, change: Callable[[dict[str, Any]], Any]) -> SequenceState:
    """The state of a token with other tensors; its checksum is right."""
    return change_state(SequenceState.from_bytes(content_of(token)), change)


def change_state(state: SequenceState, change: Callable[[dict[str, Any]], Any]) -> SequenceState:
    tensors = dict(state.tensors)
    return SequenceState(*state.identity, state.steps, change(tensors) or tensors)


def swap(tensors: dict[str, Any]) -> dict[str, Any]:
    first, second = tensors
    return {second: tensors[first], first: tensors[second]}


def reshape(tensors: dict[str, Any]) -> dict[str, Any]:
    """As many bytes: one axis more, and a value less."""
    first, second = tensors
    return {first: tensors[first].reshape(1, -1)[:, :-1], second: tensors[second]}


def poison(value: float) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        first = next(iter(tensors))
        tensors[first] = np.full_like(tensors[first], value)

    return change


def retype(tensors: dict[str, Any]) -> None:
    for name, array in tensors.items():
        tensors[name] = array.view(np.int32)


def expect_refusal(server: ServerProcess, token: Any, problem: str) -> dict[str, Any]:
    answer = send(server, {"x": X, "state": token})
    assert answer.status_code == 422, answer.text
    content: dict[str, Any] = answer.json()
    assert (content["code"], content["problem"], content["instance_index"]) == ("invalid_state", problem, 0)
    assert len(answer.content) < 2000
    assert send(server, {"x": X, "state": None}).status_code == 200
    return content


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(poison(np.nan), "nonfinite", id="NaN"),
        pytest.param(poison(np.inf), "nonfinite", id="infinity"),
        pytest.param(retype, "tensors", id="another datatype of the same size"),
        pytest.param(reshape, "tensors", id="other axes of the same size"),
        pytest.param(lambda tensors: {name[::-1]: array for name, array in tensors.items()}, "tensors", id="other names"),
    ],
)
def test_a_state_that_was_written_anew_is_refused_for_what_it_holds(
    server: ServerProcess, change: Callable[[dict[str, Any]], Any], problem: str
) -> None:
    expect_refusal(server, StateTokens().write(rewrite(begin(server), change)), problem)


def test_tensors_go_by_their_names_and_not_by_their_places(server: ServerProcess) -> None:
    token = begin(server)
    swapped = rewrite(token, swap)
    reordered = SequenceState(*swapped.identity, swapped.steps, dict(reversed(list(rewrite(token, dict).tensors.items()))))
    expected, found, other = send(
        server, *({"x": X, "state": each} for each in (token, StateTokens().write(reordered), StateTokens().write(swapped)))
    ).json()["predictions"]
    assert found == expected
    assert other != expected


def test_huge_values_are_a_state_and_harm_no_other(server: ServerProcess) -> None:
    huge = StateTokens().write(rewrite(begin(server), poison(3e38)))
    assert send(server, {"x": X, "state": huge}).status_code in (200, 500)
    assert send(server, {"x": X, "state": None}).status_code == 200


def test_a_state_of_another_model_is_refused_by_its_name(server: ServerProcess) -> None:
    answer = send(server, {"history": [1.0], "state": None}, model="toy-sensor")
    found = expect_refusal(server, answer.json()["predictions"][0]["state"], "model")
    assert found["found"] == "toy-sensor"


@pytest.mark.parametrize(
    "token",
    [
        "A" * 1_900_000,
        "_" * 1_900_000,
        "\u0000" * 1000,
        "../../etc/passwd",
        base64.urlsafe_b64encode(struct.pack("<4sIQ32sBB", b"SLS1", 1, 1, bytes(32), 255, 255) + b"m" * 400).decode().rstrip("="),
    ],
    ids=["letters", "ones", "zeros", "path", "long name"],
)
def test_a_token_of_any_size_and_kind_is_refused_at_once(server: ServerProcess, token: str) -> None:
    answer = send(server, {"x": X, "state": token})
    assert answer.status_code == 422
    assert answer.json()["problem"] in ("damaged", "model")
    assert len(answer.content) < 2000


def test_a_long_token_that_begins_as_one_is_refused_by_its_length(server: ServerProcess) -> None:
    found = expect_refusal(server, begin(server) + "A" * 1_000_000, "damaged")
    assert "characters" in found["detail"]


def test_ten_thousand_states_in_one_request_are_answered_and_more_are_refused(server: ServerProcess) -> None:
    few = send(server, *[{"x": X, "state": None}] * 10_000)
    assert few.status_code == 200
    assert len({each["state"] for each in few.json()["predictions"]}) == 1
    many = send(server, *[{"x": 0, "state": 0}] * 100_000)
    assert many.status_code == 413
    assert send(server, {"x": X, "state": None}).status_code == 200


def test_one_bad_state_among_many_refuses_its_request(server: ServerProcess) -> None:
    good = begin(server)
    answer = send(server, *[{"x": X, "state": good}] * 999, {"x": X, "state": good[:-1]})
    assert (answer.status_code, answer.json()["instance_index"]) == (422, 999)


# -------------------------------------------------------------------------------------------------------- with a key


def test_a_signed_state_is_taken_and_one_that_was_changed_is_forged(signing: ServerProcess) -> None:
    token = begin(signing)
    assert send(signing, {"x": X, "state": token}).status_code == 200
    content = content_of(token)
    signature = content[-SIGNATURE_BYTES:]
    changed = change_state(SequenceState.from_bytes(content[:-SIGNATURE_BYTES]), poison(0.5))
    for content in (
        changed.to_bytes(),
        changed.to_bytes() + signature,
        changed.to_bytes() + bytes(32),
        content_of(StateTokens([b"f" * 40]).write(changed)),
    ):
        forged = base64.urlsafe_b64encode(content).decode().rstrip("=")
        found = expect_refusal(signing, forged, "forged")
        assert KEY.decode() not in str(found)
