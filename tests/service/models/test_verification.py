"""What is verified in another process, and what the server makes of it."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from service.models.folder import ModelOptions
from service.models.preloading import preload_folders
from service.models.repository import Repository
from service.models.verification import JobFailure, Name, RunJobs, Verdict, Verification, verify_folders
from service.runtime.base import Device, Runtime
from service.runtime.onnx_runtime import open_runtime
from tests.folders import add_int8_graph, edit_example, write_forecast_folder, write_text_folder

CPU = ModelOptions("cpu", measure_s=0.05)


class Failure(NamedTuple):
    reason: str
    stage: str


def run_here(jobs: Sequence[Name], work: object) -> Iterator[tuple[Name, Verdict | JobFailure]]:
    assert callable(work)
    for job in jobs:
        yield job, Failure("it took more than 1 s", "it was tried") if job[0] == "endless" else work(job, lambda stage: None)


def verdicts(models: Path, run: RunJobs = run_here) -> dict[Name, Verdict]:
    found: dict[Name, Verdict] = {}
    verify_folders(models, CPU, run, lambda verdict: found.update([verdict]))
    return found


def test_a_verdict_says_what_is_wrong_or_all_that_serving_needs(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    edit_example(write_text_folder(tmp_path), lambda example: example["response"]["predictions"][0].update(score=7))
    write_text_folder(tmp_path, "endless")
    found = verdicts(tmp_path)
    good = found["toy-forecast", "1"]
    assert (good.findings, good.precision, good.tuning is not None) == ([], "fp32", True)
    assert "predictions[0].score" in found["toy-sentiment", "1"].findings[0]
    assert found["endless", "1"].findings == ["its verification failed while it was tried: it took more than 1 s"]


async def test_what_was_verified_is_opened_and_not_run_again(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    found = await asyncio.to_thread(verdicts, tmp_path)
    (folder / "example.json").unlink()  # a replay would say so
    repository = Repository(tmp_path, CPU, verification=Verification(known=found))
    await repository.start()
    assert repository.is_ready, repository.reason
    assert repository.get("toy-forecast").tuning == found["toy-forecast", "1"].tuning
    await repository.stop()


async def test_a_graph_that_changed_since_and_a_folder_that_was_added_are_unavailable(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    found = await asyncio.to_thread(verdicts, tmp_path)
    found["toy-forecast", "1"] = Verdict([], "fp32", "0" * 64)
    write_text_folder(tmp_path)
    repository = Repository(tmp_path, CPU, verification=Verification(known=found))
    await repository.start()
    reasons = [model.get("reason", "") for model in repository.describe()]
    assert "has changed since it was verified" in reasons[0]
    assert "was not verified" in reasons[1]
    await repository.stop()


async def test_verdicts_are_awaited_as_they_come_from_a_pipe(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    write_text_folder(tmp_path)
    found = await asyncio.to_thread(verdicts, tmp_path)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    for verdict in list(found.items())[:1]:
        sender.send(verdict)
    sender.close()  # the process that verifies has died
    reaped: list[bool] = []
    repository = Repository(tmp_path, CPU, verification=Verification(receiver, kill=lambda: reaped.append(True)))
    await repository.start()
    assert [model["state"] for model in repository.describe()] == ["READY", "UNAVAILABLE"]
    assert reaped == [True], "the process that verified is not left as a zombie"
    await repository.stop()


def test_a_folder_is_opened_while_the_next_ones_are_verified(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    write_text_folder(tmp_path)
    write_text_folder(tmp_path, version="2")
    found = verdicts(tmp_path)
    assert next(iter(found)) == ("toy-sentiment", "2"), "in the order in which they are opened"
    events: list[str] = []

    class Receiver:
        def __init__(self) -> None:
            self._left = iter(found.items())

        def recv(self) -> Any:
            verdict = next(self._left, None)
            if verdict is None:
                raise EOFError
            events.append(f"verified {verdict[0][0]}")
            return verdict

        def fileno(self) -> int:
            raise AssertionError("no event loop runs yet")

        def close(self) -> None:
            events.append("closed")

    def open_graph(graph: Path | bytes, device: Device) -> Runtime:
        events.append("opened")
        return open_runtime(graph, device)

    preload = preload_folders(tmp_path, CPU, open_graph, Verification(Receiver()))
    assert len(preload.examinations) == 3
    assert events == [
        each for name in ("toy-sentiment", "toy-forecast", "toy-sentiment") for each in (f"verified {name}", "opened")
    ]


def test_a_folder_of_which_no_verdict_comes_was_not_verified() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    sender.close()
    verification = Verification(receiver)
    assert "was not verified" in verification.wait_for(("a", "1")).findings[0]
    assert verification.collect() == {}


def test_the_int8_graph_that_passed_is_the_one_that_is_opened(tmp_path: Path) -> None:
    add_int8_graph(write_forecast_folder(tmp_path))
    found = verdicts(tmp_path)
    assert found["toy-forecast", "1"].precision == "int8"
    preload = preload_folders(tmp_path, CPU, verification=Verification(known=found))
    ((examination, _),) = preload.examinations.values()
    assert examination.parts is not None
    assert (examination.parts.graph.precision, examination.parts.is_verified) == ("int8", True)
    wrong = {name: Verdict(["no"]) for name in found}
    ((examination, _),) = preload_folders(tmp_path, CPU, verification=Verification(known=wrong)).examinations.values()
    assert examination == (None, ["no"])
