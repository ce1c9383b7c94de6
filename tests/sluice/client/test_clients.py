"""Both clients against a real server, and against one that refuses, closes, and answers late: real processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy
import pandas
import pytest

import sluice
from sluice.client.errors import AccessDenied, ClientError, InvalidAnswer, InvalidInput, ModelNotFound, Unavailable
from tests.folders import write_forecast_folder, write_tensor_folder, write_text_folder
from tests.serving import PATIENCE_S, ROOT, ServerProcess, server_process

Run = Callable[..., Any]
"""(URL, method, arguments, options of the client and of the call) → what it gives, with one of the clients."""
HISTORY = [10.0, 11.0, 9.5, 10.5, 12.0]
FAULTY = Path(__file__).with_name("faulty_server.py")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    models = tmp_path_factory.mktemp("models")
    write_forecast_folder(models)
    write_text_folder(models)
    write_tensor_folder(models)
    with server_process(models, SLUICE_MAX_INSTANCES="40", SLUICE_MAX_BODY_BYTES="20000") as process:
        yield process


def run_blocking(url: str, method: str, *args: Any, key: str | None = None, **options: Any) -> Any:
    with sluice.Client(url, key) as client:
        return getattr(client, method)(*args, **options)


def run_async(url: str, method: str, *args: Any, key: str | None = None, **options: Any) -> Any:
    async def run() -> Any:
        async with sluice.AsyncClient(url, key) as client:
            return await getattr(client, method)(*args, **options)

    return asyncio.run(run())


@pytest.fixture(params=[run_blocking, run_async], ids=["blocking", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.param
    return found


@contextlib.contextmanager
def faulty(server: ServerProcess, *faults: str) -> Iterator[str]:
    """The URL of a process in front of the server with these faults."""
    process = subprocess.Popen([sys.executable, FAULTY, server.url, *faults], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        process.stdout.close()


def post(server: ServerProcess, path: str, body: dict[str, Any]) -> Any:
    return httpx.post(server.url + path, json=body, timeout=PATIENCE_S).json()["predictions"]


def test_predictions_are_what_the_server_answers(server: ServerProcess, run: Run) -> None:
    instances = [{"history": HISTORY}]
    expected = post(server, "/predict/forecast", {"instances": instances, "parameters": {"horizon": 6, "quantiles": [0.5]}})
    assert run(server.url, "forecast", HISTORY, horizon=6, quantiles=[0.5]) == expected[0]
    assert run(server.url, "forecast", [HISTORY, HISTORY], horizon=6, quantiles=[0.5]) == expected * 2
    texts = ["a good film", "bad"]
    assert run(server.url, "classify", texts) == post(server, "/predict/classify", {"instances": texts})
    rows = [[[1.0, 2.0]], {"x": [[0.5, 0.25], [1.0, 1.0]]}]
    assert run(server.url, "predict", "toy-tensor", rows) == post(server, "/predict", {"model": "toy-tensor", "instances": rows})


def test_a_call_larger_than_a_request_is_cut_and_comes_back_in_order(server: ServerProcess, run: Run) -> None:
    """The server takes 40 instances, or 20,000 bytes."""
    texts = [["a good film", "bad", "good good"][number % 3] for number in range(500)]
    once = {text: post(server, "/predict/classify", {"instances": [text]})[0]["label"] for text in set(texts)}
    assert [each["label"] for each in run(server.url, "classify", texts)] == [once[text] for text in texts]
    assert len(run(server.url, "forecast", [HISTORY * 100] * 30)) == 30
    assert run(server.url, "classify", []) == []


def test_what_is_invalid_is_named_by_its_place_in_the_call(server: ServerProcess, run: Run) -> None:
    texts: list[Any] = ["good"] * 100
    texts[87] = 7
    with pytest.raises(InvalidInput) as caught:
        run(server.url, "classify", texts)
    error = caught.value
    assert (error.instance, error.status, error.code) == (87, 422, "invalid_input")
    assert str(error) == "instance 87: expected a string, got 7"
    assert error.request_id
    with pytest.raises(InvalidInput, match="instance 2: history: expected at least 2 steps, got 1") as caught:
        run(server.url, "forecast", [HISTORY, HISTORY, [1.0]])
    assert (caught.value.instance, caught.value.where, caught.value.expected) == (2, "history", "at least 2")
    with pytest.raises(InvalidInput, match="horizon: expected 1 to 40 steps") as caught:
        run(server.url, "forecast", HISTORY, horizon=99)
    assert caught.value.instance is None
    with pytest.raises(InvalidInput) as caught:
        run(server.url, "forecast", [HISTORY, [1.0] * 30_000])
    assert (caught.value.instance, caught.value.code) == (1, "payload_too_large")
    with pytest.raises(ModelNotFound, match="toy-other"):
        run(server.url, "predict", "toy-other", [1])


@pytest.mark.parametrize("value", [float("inf"), {1, 2}], ids=["infinite", "a set"])
def test_what_json_cannot_hold_is_refused_before_anything_is_sent(run: Run, value: object) -> None:
    with pytest.raises(ValueError, match="instance 1 cannot be written as JSON"):
        run("http://127.0.0.1:9", "predict", "any", [1, value])


def test_a_key_opens_the_server_and_another_one_does_not(tmp_path: Path, run: Run) -> None:
    write_text_folder(tmp_path / "models")
    command = [sys.executable, "-m", "service", "key", "test"]
    made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    (tmp_path / "keys.toml").write_text(made.stdout)
    key = next(line.strip() for line in made.stderr.splitlines() if line.startswith("  "))
    with server_process(tmp_path / "models", SLUICE_API_KEYS_FILE=str(tmp_path / "keys.toml")) as server:
        assert len(run(server.url, "classify", ["good"], key=key)) == 1
        for wrong in (None, "none"):
            with pytest.raises(AccessDenied):
                run(server.url, "classify", ["good"], key=wrong)


@pytest.mark.parametrize(
    "faults",
    [["close"], ["cut"], ["refuse"], ["proxy"], ["close", "refuse", "cut", "proxy", "refuse"]],
    ids=lambda names: "-".join(names),
)
def test_what_may_pass_is_sent_again(server: ServerProcess, run: Run, faults: list[str]) -> None:
    with faulty(server, *faults) as url:
        found = run(url, "classify", ["good", "bad"])
    assert found == post(server, "/predict/classify", {"instances": ["good", "bad"]})


@pytest.mark.parametrize(
    ("faults", "status", "words"),
    [
        (["busy"], 503, "overloaded: the queue is full"),
        (["proxy"] * 999, 502, "the server is not available: HTTP 502"),
        (["close"] * 999, None, "the server cannot be reached"),
        (["silent"] * 9, None, "the server did not answer in time"),
        (["drip"] * 9, None, "there was no answer before the deadline"),
        (["gzip"] * 9, None, "there was no answer before the deadline"),
        (["head"] * 9, None, "the server did not answer in time"),
        (["continue"] * 9, None, "the server did not answer in time"),
    ],
    ids=["busy", "proxy", "close", "silent", "drip", "gzip", "head", "continue"],
)
def test_beyond_its_deadline_a_call_fails_with_the_last_reason(
    server: ServerProcess, run: Run, faults: list[str], status: int | None, words: str
) -> None:
    with faulty(server, *faults) as url, pytest.raises(Unavailable) as caught:
        run(url, "classify", ["good"], timeout_s=1.0)
    assert caught.value.status == status
    assert words in str(caught.value)


def test_a_server_that_is_not_there_and_one_that_is_another_are_told_apart(server: ServerProcess, run: Run) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match="cannot be reached"):
            run(f"http://127.0.0.1:{unused.getsockname()[1]}", "classify", ["good"], timeout_s=0.5)
    with faulty(server, "other") as url, pytest.raises(InvalidAnswer, match="no predictions"):
        run(url, "classify", ["good"])
    with pytest.raises(ValueError, match="expected a URL"):
        run("localhost:8000", "classify", ["good"])
    assert issubclass(InvalidAnswer, ClientError)


@pytest.mark.parametrize("fault", ["shape", "ragged", "packed", "twice"])
def test_predictions_that_are_none_are_an_invalid_answer(server: ServerProcess, run: Run, fault: str) -> None:
    times = pandas.date_range("2024-01-01", periods=5, freq="h")
    frame = pandas.DataFrame({"unique_id": ["a"] * 5, "ds": times, "y": HISTORY})
    with faulty(server, fault) as url, pytest.raises(InvalidAnswer, match="cannot be"):
        run(url, "forecast", frame)


def test_an_instance_that_the_call_does_not_have_is_not_named(server: ServerProcess, run: Run) -> None:
    times = pandas.date_range("2024-01-01", periods=5, freq="h")
    frame = pandas.DataFrame({"unique_id": ["a"] * 5, "ds": times, "y": HISTORY})
    with faulty(server, "place") as url, pytest.raises(InvalidInput, match="no") as caught:
        run(url, "forecast", frame)
    assert (caught.value.instance, caught.value.series) == (None, None)


def test_calls_of_several_threads_get_their_own_predictions(server: ServerProcess) -> None:
    with sluice.Client(server.url) as client, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: client.forecast([float(number)] * 5), range(40)))
    expected = post(server, "/predict/forecast", {"instances": [{"history": [float(number)] * 5} for number in range(40)]})
    numpy.testing.assert_allclose([each["forecast"] for each in found], [each["forecast"] for each in expected], rtol=1e-5)


def test_a_client_that_is_closed_or_forgotten_leaves_no_thread_and_no_connection(server: ServerProcess) -> None:
    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "sluice-client"]

    client = sluice.Client(server.url)
    assert threads() == []
    client.classify(["good"])
    assert len(threads()) == 1
    client.close()
    client.close()
    assert threads() == []
    with pytest.raises(RuntimeError, match="closed"):
        client.classify(["good"])
    client = sluice.Client(server.url)
    client.classify(["good"])
    (thread,) = threads()
    del client
    gc.collect()
    thread.join(PATIENCE_S)
    assert threads() == []


def test_a_client_that_is_closed_ends_the_calls_of_other_threads() -> None:
    found: list[BaseException] = []

    def call() -> None:
        try:
            client.classify(["good"])
        except BaseException as exc:
            found.append(exc)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        client = sluice.Client(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        with listener.accept()[0]:
            client.close()
            thread.join(PATIENCE_S)
    (error,) = found
    assert isinstance(error, RuntimeError)
    assert "closed" in str(error)


def test_a_client_goes_on_in_a_process_that_was_forked(server: ServerProcess) -> None:
    code = (
        "import os, sys, sluice\n"
        "client = sluice.Client(sys.argv[1])\n"
        "client.classify(['good'])\n"
        "pid = os.fork()\n"
        "found = client.classify(['good', 'bad'], timeout_s=20)\n"
        "if pid == 0:\n    os._exit(len(found))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), len(found))\n"
    )
    found = subprocess.run([sys.executable, "-c", code, server.url], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert found.stdout.split() == ["2", "2"], found.stderr


async def test_a_cancelled_call_leaves_nothing_under_way(server: ServerProcess) -> None:
    with faulty(server, *["silent"] * 9) as url:
        async with sluice.AsyncClient(url) as client:
            call = asyncio.create_task(client.classify(["good"] * 5000))
            done, _ = await asyncio.wait([call], timeout=0.2)
            assert not done
            before = len(asyncio.all_tasks())
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert len(asyncio.all_tasks()) < before
            assert asyncio.all_tasks() == {asyncio.current_task()}


def test_without_httpx_the_client_says_what_to_install() -> None:
    code = "import sys; sys.modules['httpx'] = None\nimport sluice\ntry: sluice.Client\nexcept ImportError as exc: print(exc)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "pip install 'sluice-serving[client]'" in found.stdout
