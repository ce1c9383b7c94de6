from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from service.errors import ModelNotFound, ModelNotReady, StartError
from service.models.folder import ModelOptions
from service.models.model import Model, ModelObserver, SilentModelObserver
from service.models.repository import Repository, open_folders
from service.runtime.onnx_runtime import Device, Runtime, open_runtime
from tests.folders import edit_manifest, write_forecast_folder, write_tensor_folder, write_text_folder

CPU = ModelOptions(device="cpu")


class Listener:
    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []

    def observer_of(self, name: str, version: str) -> ModelObserver:
        return SilentModelObserver()

    def loaded(self, model: Model, duration_s: float) -> None:
        self.events.append(("loaded", model.name, model.version))

    def unavailable(self, name: str, version: str, reason: str, duration_s: float) -> None:
        self.events.append(("unavailable", name, version))


async def started(models_dir: Path, **defaults: str) -> Repository:
    repository = Repository(models_dir, CPU, defaults=defaults)
    await repository.start()
    return repository


async def test_every_folder_is_served(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    write_text_folder(tmp_path)
    write_tensor_folder(tmp_path)
    repository = await started(tmp_path)
    assert repository.is_ready
    assert repository.reason is None
    assert [(about["name"], about["state"], about["task"]) for about in repository.describe()] == [
        ("toy-forecast", "READY", "forecast"),
        ("toy-sentiment", "READY", "classify"),
        ("toy-tensor", "READY", "tensor"),
    ]
    assert len(await repository.get("toy-forecast").predict([{"history": [1, 2]}])) == 1
    await repository.stop()


async def test_a_broken_folder_does_not_stop_the_others(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path, "good")
    (write_forecast_folder(tmp_path, "broken") / "model.onnx").write_bytes(b"junk")
    edit_manifest(write_forecast_folder(tmp_path, "liar"), lambda manifest: manifest["forecast"].update(horizon=9))
    (tmp_path / "empty").mkdir()
    listener = Listener()
    repository = Repository(tmp_path, CPU, observer=listener)
    await repository.start()
    assert repository.is_ready
    states = {about["name"]: (about["state"], about.get("reason", "")) for about in repository.describe()}
    assert states["good"] == ("READY", "")
    for name, part in (
        ("broken", "model.onnx: its sha256 is"),
        ("liar", 'tensor "mean": expected FP32'),
        ("empty", "no version"),
    ):
        assert states[name][0] == "UNAVAILABLE"
        assert part in states[name][1]
        with pytest.raises(ModelNotReady, match=f'model "{name}" is not ready: '):
            repository.get(name)
        assert repository.describe_model(name)["reason"] == states[name][1]
    assert sorted(listener.events) == [
        ("loaded", "good", "1"),
        ("unavailable", "broken", "1"),
        ("unavailable", "empty", ""),
        ("unavailable", "liar", "1"),
    ]
    await repository.stop()


async def test_the_highest_version_that_is_ready_answers(tmp_path: Path) -> None:
    for version in ("1", "2", "9", "10"):
        write_forecast_folder(tmp_path, version=version, seed=int(version))
    (write_forecast_folder(tmp_path, version="11") / "example.json").unlink()
    repository = await started(tmp_path)
    assert repository.get("toy-forecast").version == "10"
    assert repository.get("toy-forecast", "2").version == "2"
    with pytest.raises(ModelNotReady, match=r"example\.json cannot be read"):
        repository.get("toy-forecast", "11")
    with pytest.raises(ModelNotFound, match=r"has no version 3; there are \['1', '2', '9', '10', '11'\]"):
        repository.get("toy-forecast", "3")
    about = repository.describe_model("toy-forecast")
    assert (about["version"], about["state"]) == ("10", "READY")
    assert [(version["version"], version["state"]) for version in about["versions"]] == [
        *((version, "READY") for version in ("1", "2", "9", "10")),
        ("11", "UNAVAILABLE"),
    ]
    assert json.loads(json.dumps(about)) == about
    await repository.stop()


async def test_an_unknown_model_is_not_found_and_the_known_are_listed(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path, "b")
    write_forecast_folder(tmp_path, "a")
    repository = await started(tmp_path)
    for name in ("c", "../a", "", "A", "a/1"):
        with pytest.raises(ModelNotFound, match=r"there are \['a', 'b'\]"):
            repository.get(name)
    with pytest.raises(ModelNotFound) as caught:
        repository.get("x" * 10_000)
    assert len(caught.value.message) < 300
    await repository.stop()


async def test_the_default_of_a_task_is_the_configured_one_or_the_first_by_name(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path, "b")
    write_forecast_folder(tmp_path, "a")
    (write_forecast_folder(tmp_path, "0") / "example.json").unlink()
    repository = await started(tmp_path)
    assert repository.default_for("forecast").name == "a"
    with pytest.raises(ModelNotFound, match="there is no model for classify"):
        repository.default_for("classify")
    await repository.stop()


@pytest.mark.parametrize(
    ("configured", "error", "message"),
    [
        ("b", None, ""),
        ("broken", ModelNotReady, 'model "broken" is not ready'),
        ("absent", ModelNotFound, 'there is no model "absent"'),
        ("texts", ModelNotFound, 'the default model "texts" is for classify, not for forecast'),
    ],
)
async def test_a_configured_default_is_obeyed_or_missed(
    configured: str, error: type[Exception] | None, message: str, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        write_forecast_folder(tmp_path, name)
    write_text_folder(tmp_path, "texts")
    (write_forecast_folder(tmp_path, "broken") / "example.json").unlink()
    repository = await started(tmp_path, forecast=configured)
    if error is None:
        assert repository.default_for("forecast").name == configured
    else:
        with pytest.raises(error, match=message):
            repository.default_for("forecast")
    await repository.stop()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.write_text("a file"), "cannot be read: Not a directory"),
        (lambda path: path.mkdir(), "holds no model folder"),
        (lambda path: (path / "a" / "1").mkdir(parents=True), "none of the 1 model folders"),
    ],
)
async def test_without_models_it_starts_and_is_not_ready(make: object, reason: str, tmp_path: Path) -> None:
    assert callable(make)
    make(tmp_path / "models")
    repository = await started(tmp_path / "models")
    assert not repository.is_ready
    assert repository.reason is not None
    assert reason in repository.reason
    await repository.stop()


async def test_what_is_no_model_folder_is_passed_over(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    (tmp_path / "README.md").write_text("not a model")
    for name in (".toy-forecast.tmp", "__pycache__", "spaces in it"):
        shutil.copytree(folder.parent, tmp_path / name)
    for name in ("latest", "0", "01", ".2"):
        shutil.copytree(folder, folder.parent / name)
    repository = await started(tmp_path)
    assert [about["name"] for about in repository.describe()] == ["toy-forecast"]
    assert repository.describe_model("toy-forecast")["versions"] == [{"version": "1", "state": "READY"}]
    await repository.stop()


async def test_a_plain_graph_says_that_it_needs_a_manifest(tmp_path: Path) -> None:
    (write_forecast_folder(tmp_path) / "manifest.json").unlink()
    repository = await started(tmp_path)
    [about] = repository.describe()
    assert about["state"] == "UNAVAILABLE"
    assert "no manifest.json" in about["reason"]
    await repository.stop()


async def test_a_link_out_of_the_models_folder_is_not_followed(tmp_path: Path) -> None:
    outside = write_forecast_folder(tmp_path / "outside", "secret")
    models_dir = tmp_path / "models"
    write_forecast_folder(models_dir, "good")
    (models_dir / "secret").symlink_to(outside.parent)
    (models_dir / "half").mkdir()
    (models_dir / "half" / "1").symlink_to(outside)
    repository = await started(models_dir)
    states = {about["name"]: (about["state"], about.get("reason")) for about in repository.describe()}
    reason = "the folder is a link that leads out of the models folder"
    assert states == {"good": ("READY", None), "half": ("UNAVAILABLE", reason), "secret": ("UNAVAILABLE", reason)}
    await repository.stop()


async def test_the_models_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path / "real")
    (tmp_path / "models").symlink_to(tmp_path / "real")
    repository = await started(tmp_path / "models")
    assert repository.is_ready
    await repository.stop()


async def test_before_the_start_nothing_is_ready(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    repository = Repository(tmp_path, CPU)
    assert not repository.is_ready
    assert repository.reason == "the models are still loading"
    with pytest.raises(ModelNotReady, match="still loading"):
        repository.get("toy-forecast")
    with pytest.raises(ModelNotReady, match="still loading"):
        repository.default_for("forecast")


async def test_after_the_stop_nobody_is_answered(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    repository = await started(tmp_path)
    model = repository.get("toy-forecast")
    await repository.stop()
    assert not repository.is_ready
    with pytest.raises(ModelNotReady):
        await model.predict([{"history": [1, 2]}])


async def test_a_missing_device_stops_the_start(tmp_path: Path) -> None:
    def open_graph(graph: bytes, device: Device) -> Runtime:
        return open_runtime(graph, device, available=["CPUExecutionProvider"])

    write_forecast_folder(tmp_path, "a")
    write_forecast_folder(tmp_path, "b")
    repository = Repository(tmp_path, ModelOptions(device="cuda"), open_graph=open_graph)
    with pytest.raises(StartError, match="device cuda was asked for"):
        await repository.start()
    assert not repository.is_ready


async def test_what_breaks_the_reader_in_an_unknown_way_is_one_broken_folder(tmp_path: Path) -> None:
    def open_graph(graph: bytes, device: Device) -> Runtime:
        if len(opened) == 0:
            opened.append(graph)
            raise MemoryError
        return open_runtime(graph, device)

    opened: list[bytes] = []
    write_forecast_folder(tmp_path, "a")
    write_forecast_folder(tmp_path, "b")
    repository = Repository(tmp_path, CPU, open_graph=open_graph)
    await repository.start()
    assert sorted(about["state"] for about in repository.describe()) == ["READY", "UNAVAILABLE"]
    assert "loading failed: MemoryError" in {about.get("reason") for about in repository.describe()}
    await repository.stop()


async def test_folders_that_were_opened_before_are_not_read_again(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path, "good")
    (write_forecast_folder(tmp_path, "broken") / "model.onnx").write_bytes(b"junk")
    (tmp_path / "empty").mkdir()
    from_disk = await started(tmp_path)
    opened = open_folders(tmp_path, CPU)
    write_forecast_folder(tmp_path, "later")
    (tmp_path / "good" / "1" / "model.onnx").unlink()
    repository = Repository(tmp_path, CPU, opened=opened)
    await repository.start()
    assert repository.describe() == from_disk.describe()
    assert len(await repository.get("good").predict([{"history": [1, 2]}])) == 1
    await repository.stop()
    await from_disk.stop()


async def test_a_model_that_was_opened_before_still_has_to_answer_its_example(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    opened = open_folders(tmp_path, CPU)
    example = json.loads((folder / "example.json").read_text())
    example["response"]["predictions"][0]["mean"][0] += 1
    (folder / "example.json").write_text(json.dumps(example))
    repository = Repository(tmp_path, CPU, opened=opened)
    await repository.start()
    assert not repository.is_ready
    await repository.stop()


async def test_a_folder_that_cannot_be_opened_before_is_tried_again_by_who_serves(tmp_path: Path) -> None:
    def explode(graph: bytes, device: Device) -> Runtime:
        raise ZeroDivisionError

    write_forecast_folder(tmp_path)
    repository = Repository(tmp_path, CPU, opened=open_folders(tmp_path, CPU, explode))
    await repository.start()
    assert repository.is_ready
    await repository.stop()
