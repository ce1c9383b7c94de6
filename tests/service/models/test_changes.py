"""A repository whose target changes while it serves: what was found answers to its end, and what is dropped ends."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import ModelNotFound, ModelNotReady
from service.models.folder import ModelOptions
from service.models.repository import Repository
from service.models.target import UNLOADED, TargetVersion, Withdrawal
from tests.folders import write_forecast_folder
from tests.serving import PATIENCE_S

CPU = ModelOptions(device="cpu")
BODY = [{"history": [1.0, 2.0, 4.0]}]


def version(folder: Path, number: str = "1") -> TargetVersion:
    return TargetVersion("toy-forecast", number, str(folder))


async def change(repository: Repository, *target: TargetVersion) -> None:
    assert await repository.prepare(target) == {}
    repository.apply(target)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110  # the end of a model wakes nobody
            await asyncio.sleep(0.01)


async def test_a_request_is_answered_by_the_model_that_it_found(tmp_path: Path) -> None:
    old = write_forecast_folder(tmp_path / "old", horizon=4)
    new = write_forecast_folder(tmp_path / "new", horizon=6)
    repository = Repository([], CPU)
    await change(repository, version(old))
    found = repository.get("toy-forecast")
    await change(repository, version(new))
    assert repository.index() == [{"name": "toy-forecast", "version": "1", "state": "READY"}]
    gc.collect()
    assert "open" in repr(found.batcher), "the old model is not stopped as long as a request has found it"
    (prediction,) = await found.predict(BODY)
    assert len(prediction["forecast"]) == 4
    (prediction,) = await repository.get("toy-forecast").predict(BODY)
    assert len(prediction["forecast"]) == 6
    batcher = found.batcher
    del found
    gc.collect()
    await until(lambda: "closed" in repr(batcher))
    await repository.stop()


async def test_an_unloaded_model_is_not_found_and_its_index_says_why(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    repository = Repository([], CPU, may_be_empty=True)
    await change(repository, version(folder))
    await change(repository, TargetVersion("toy-forecast", "1", None, "UNAVAILABLE", UNLOADED, is_update=True))
    assert repository.index() == [{"name": "toy-forecast", "version": "1", "state": "UNLOADING"}]
    with pytest.raises(ModelNotFound):
        repository.get("toy-forecast")
    assert repository.is_ready
    assert repository.describe() == []
    await until(lambda: repository.index()[0]["state"] == "UNAVAILABLE")
    assert repository.index()[0]["reason"] == UNLOADED
    await repository.stop()


async def test_the_end_of_a_replaced_model_is_reported_when_nothing_holds_its_graph(tmp_path: Path) -> None:
    repository = Repository([], CPU)
    await change(repository, version(write_forecast_folder(tmp_path / "old")))
    await repository.get("toy-forecast").predict(BODY)
    graph = weakref.ref(repository.get("toy-forecast").runtime)
    is_free: list[bool] = []
    repository.on_retired = lambda: is_free.append(graph() is None)
    await change(repository, version(write_forecast_folder(tmp_path / "new")))
    await until(lambda: bool(is_free))
    assert is_free == [True]
    await repository.stop()
    assert is_free == [True]  # the end of the server retires nothing


async def test_what_cannot_be_loaded_says_why_and_changes_nothing(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    broken = write_forecast_folder(tmp_path, version="2")
    (broken / "model.onnx").write_bytes(b"half")
    repository = Repository([], CPU)
    await change(repository, version(folder))
    failures = await repository.prepare([version(folder), version(broken, "2")])
    assert list(failures) == [("toy-forecast", "2")]
    assert "its sha256 is" in failures["toy-forecast", "2"]
    repository.abort()
    assert repository.index() == [{"name": "toy-forecast", "version": "1", "state": "READY"}]
    await repository.stop()


async def test_readiness_depends_on_what_was_there_at_the_start_and_not_on_updates(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    repository = Repository([], CPU)
    failure = TargetVersion("toy-forecast", "2", None, "UNAVAILABLE", "broken", is_update=True)
    await change(repository, version(folder), failure)
    assert repository.is_ready
    assert repository.describe_model("toy-forecast")["versions"][1]["reason"] == "broken"
    await change(repository, version(folder), TargetVersion("toy-forecast", "2", None, "UNAVAILABLE", "broken"))
    assert not repository.is_ready
    await repository.stop()


async def test_what_is_prepared_and_not_applied_is_dropped(tmp_path: Path) -> None:
    repository = Repository([], CPU, may_be_empty=True)
    await change(repository)
    assert repository.is_ready
    assert await repository.prepare([version(write_forecast_folder(tmp_path))]) == {}
    repository.abort()
    repository.apply([])
    with pytest.raises(ModelNotFound):
        repository.get("toy-forecast")
    await repository.stop()


async def test_what_another_process_has_withdrawn_is_served_no_more_and_never_again_from_that_folder(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    repository = Repository(tmp_path, CPU)
    await repository.start()
    found = repository.get("toy-forecast")
    withdrawal = Withdrawal("toy-forecast", "1", str(folder), "a run of its graph was ended")
    repository.withdraw(withdrawal)
    with pytest.raises(ModelNotReady, match="a run of its graph was ended"):
        repository.get("toy-forecast")
    (prediction,) = await found.predict(BODY)  # who had found it is answered
    assert prediction["forecast"].size
    repository.apply([version(folder)])
    assert repository.index()[0]["reason"] == "a run of its graph was ended"
    assert repository.withdrawals == [withdrawal]
    other = write_forecast_folder(tmp_path / "other")
    await change(repository, version(other))
    assert repository.get("toy-forecast")
    assert repository.withdrawals == []
    await repository.stop()


async def test_what_was_withdrawn_before_it_is_loaded_is_not_served(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    repository = Repository(tmp_path, CPU)
    repository.withdraw(Withdrawal("toy-forecast", "1", str(folder), "a run of its graph was ended"))
    await repository.start()
    assert repository.index()[0]["state"] == "UNAVAILABLE"
    assert repository.models == []
    await repository.stop()
