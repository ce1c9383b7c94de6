from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from service.errors import AmbiguousModel, InvalidInput, ModelNotFound, ModelNotReady, StartError
from service.models.folder import ModelOptions
from service.models.model import Model, ModelObserver, SilentModelObserver
from service.models.preloading import preload_folders
from service.models.repository import Defaults, Repository
from service.runtime.base import Device, Runtime
from service.runtime.onnx_runtime import open_runtime
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

    def update_failed(self, name: str, version: str) -> None:
        self.events.append(("update failed", name, version))

    def unloaded(self, name: str, version: str) -> None:
        self.events.append(("unloaded", name, version))


async def start(models_dir: Path, defaults: Defaults | None = None, *, strict_readiness: bool = True) -> Repository:
    repository = Repository(models_dir, CPU, defaults=defaults, strict_readiness=strict_readiness)
    await repository.start()
    return repository


async def test_every_folder_is_served(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    write_text_folder(tmp_path)
    write_tensor_folder(tmp_path)
    repository = await start(tmp_path)
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
    edit_manifest(write_forecast_folder(tmp_path, "wrong"), lambda manifest: manifest["forecast"].update(horizon=9))
    (tmp_path / "empty").mkdir()
    listener = Listener()
    repository = Repository(tmp_path, CPU, observer=listener)
    await repository.start()
    assert not repository.is_ready
    assert repository.is_serving
    states = {about["name"]: (about["state"], about.get("reason", "")) for about in repository.describe()}
    assert states["good"] == ("READY", "")
    for name, part in (
        ("broken", "model.onnx: its sha256 is"),
        ("wrong", 'tensor "forecast": expected FP32'),
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
        ("unavailable", "wrong", "1"),
    ]
    await repository.stop()


async def test_the_highest_version_that_is_ready_answers(tmp_path: Path) -> None:
    for version in ("1", "2", "9", "10"):
        write_forecast_folder(tmp_path, version=version, seed=int(version))
    (write_forecast_folder(tmp_path, version="11") / "example.json").unlink()
    repository = await start(tmp_path)
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
    repository = await start(tmp_path)
    for name in ("c", "../a", "", "A", "a/1"):
        with pytest.raises(ModelNotFound, match=r"there are \['a', 'b'\]"):
            repository.get(name)
    with pytest.raises(ModelNotFound) as caught:
        repository.get("x" * 10_000)
    assert len(caught.value.message) < 300
    await repository.stop()


# ------------------------------------------------------------------------------------------- requests that name no model


def choose(
    repository: Repository, task: str, instance: object = None, *, purpose: str | None = None, **parameters: object
) -> str:
    return repository.choose(task, [instance], parameters, purpose=purpose).name


async def test_the_only_model_of_a_task_answers_whatever_the_request_holds(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path, "hourly")
    write_text_folder(tmp_path, "texts")
    write_tensor_folder(tmp_path, "rows")
    repository = await start(tmp_path)
    assert choose(repository, "forecast") == "hourly"
    assert choose(repository, "forecast", {"frequency": "D"}) == "hourly"  # and refuses the frequency itself, with the reason
    assert choose(repository, "classify") == "texts"
    assert choose(repository, "tensor") == "rows"
    await repository.stop()


async def test_the_model_for_the_frequency_of_the_request_answers(tmp_path: Path) -> None:
    for name, frequencies in (("b-hourly", ["H"]), ("a-daily", ["D"]), ("c-slow", ["W", "M"])):
        write_forecast_folder(tmp_path, name, frequencies=frequencies)
    repository = await start(tmp_path)
    assert choose(repository, "forecast", frequency="hourly") == "b-hourly"
    assert choose(repository, "forecast", {"frequency": "D"}) == "a-daily"
    assert choose(repository, "forecast", {"frequency": "D"}, frequency="H") == "a-daily"
    assert repository.choose("forecast", [{"frequency": "W"}, {"frequency": "M"}], {}).name == "c-slow"
    with pytest.raises(
        InvalidInput, match=r"frequency 'W', 'H': no model for forecast takes it; there are \['a-daily', "
    ) as caught:
        repository.choose("forecast", [{"frequency": "W"}, {}], {"frequency": "H"})
    assert (caught.value.reason, caught.value.facts["where"], caught.value.facts["found"]) == (
        "timestamp",
        "frequency",
        ["W", "H"],
    )
    with pytest.raises(AmbiguousModel, match=r'"model" names one of \[') as ambiguous:
        choose(repository, "forecast")
    assert ambiguous.value.facts["candidates"] == ["a-daily", "b-hourly", "c-slow"]
    await repository.stop()


async def test_a_model_for_streams_answers_where_it_is_named_or_alone(tmp_path: Path) -> None:
    edit_manifest(write_text_folder(tmp_path, "a-stream"), lambda content: content["classify"].update(streaming=True))
    repository = await start(tmp_path)
    assert choose(repository, "classify") == choose(repository, "classify", purpose="sentiment") == "a-stream"
    await repository.stop()
    write_text_folder(tmp_path, "b-text")
    repository = await start(tmp_path)
    assert choose(repository, "classify") == choose(repository, "classify", purpose="sentiment") == "b-text"
    assert repository.get("a-stream").name == "a-stream"
    await repository.stop()


async def test_a_model_of_several_features_answers_where_it_is_named_or_alone(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path, "a-plant", features=("load", "heat"))
    repository = await start(tmp_path)
    assert choose(repository, "forecast", frequency="H") == "a-plant"
    await repository.stop()
    write_forecast_folder(tmp_path, "b-hourly")
    repository = await start(tmp_path)
    assert choose(repository, "forecast", frequency="H") == choose(repository, "forecast") == "b-hourly"
    assert repository.get("a-plant").name == "a-plant"
    await repository.stop()


async def test_where_several_models_take_the_frequency_none_is_guessed(tmp_path: Path) -> None:
    for name, frequencies in (("a", ["H"]), ("b", []), ("c", ["D"])):
        write_forecast_folder(tmp_path, name, frequencies=frequencies)
    repository = await start(tmp_path)
    with pytest.raises(AmbiguousModel, match=r"several models for forecast of frequency 'H' fit") as caught:
        choose(repository, "forecast", frequency="H")
    assert caught.value.facts["candidates"] == ["a", "b"]
    assert choose(repository, "forecast", frequency="W") == "b"
    await repository.stop()


async def test_a_frequency_of_a_hundred_thousand_letters_is_answered_shortly(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_forecast_folder(tmp_path, name)
    repository = await start(tmp_path)
    with pytest.raises(InvalidInput) as caught:
        repository.choose("forecast", [{"frequency": "x" * 100_000 + str(number)} for number in range(100)], {})
    assert len(caught.value.message) < 400
    assert len(str(caught.value.facts)) < 2000
    await repository.stop()


async def test_the_configured_model_answers_where_nothing_else_decides(tmp_path: Path) -> None:
    for name, frequencies in (("a", ["H"]), ("b", ["H"]), ("c", ["D"])):
        write_forecast_folder(tmp_path, name, frequencies=frequencies)
    repository = await start(tmp_path, {("forecast", None): "b"})
    assert choose(repository, "forecast") == "b"
    assert choose(repository, "forecast", frequency="H") == "b"
    assert choose(repository, "forecast", frequency="D") == "c"
    await repository.stop()


@pytest.mark.parametrize(
    ("configured", "error", "message"),
    [
        ("broken", ModelNotReady, 'model "broken" is not ready'),
        ("absent", ModelNotFound, 'there is no model "absent"'),
        ("texts", ModelNotFound, 'the default model "texts" is for classify, not for forecast'),
    ],
)
async def test_a_configured_model_that_cannot_answer_is_missed(
    configured: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    write_forecast_folder(tmp_path, "a")
    write_text_folder(tmp_path, "texts")
    (write_forecast_folder(tmp_path, "broken") / "example.json").unlink()
    repository = await start(tmp_path, {("forecast", None): configured})
    with pytest.raises(error, match=message):
        choose(repository, "forecast")
    await repository.stop()


async def test_chinese_texts_are_answered_by_the_chinese_model_and_others_by_another(tmp_path: Path) -> None:
    write_text_folder(tmp_path, "a-chinese")
    edit_manifest(tmp_path / "a-chinese" / "1", lambda manifest: manifest["classify"].update(language="zh-Hans"))
    write_text_folder(tmp_path, "b-english")
    repository = await start(tmp_path)
    assert choose(repository, "classify", "房间很好", purpose="sentiment") == "a-chinese"
    assert choose(repository, "classify", {"text": "The 房间 was fine."}, purpose="sentiment") == "a-chinese"
    assert choose(repository, "classify", {"text": "A fine room. 🙂"}, purpose="sentiment") == "b-english"
    both: list[object] = ["房间很好", "A fine room."]
    nothing_to_look_at: list[object] = [None, 5, {}]
    for instances in (both, nothing_to_look_at, []):
        with pytest.raises(AmbiguousModel) as caught:
            repository.choose("classify", instances, {}, purpose="sentiment")
        assert caught.value.facts["candidates"] == ["a-chinese", "b-english"]
    await repository.stop()
    repository = await start(tmp_path, {("classify", "sentiment"): "b-english"})
    assert choose(repository, "classify", ["x"], purpose="sentiment") == "b-english"
    assert repository.choose("classify", ["房间很好", "A fine room."], {}, purpose="sentiment").name == "b-english"
    await repository.stop()


async def test_where_no_model_is_for_the_language_of_a_text_none_is_refused_for_it(tmp_path: Path) -> None:
    write_text_folder(tmp_path, "a")
    write_text_folder(tmp_path, "b")
    repository = await start(tmp_path, {("classify", None): "b"})
    assert choose(repository, "classify", "房间很好") == "b"
    with pytest.raises(AmbiguousModel):
        choose(repository, "classify", "房间很好", purpose="sentiment")
    await repository.stop()


async def test_a_purpose_leaves_the_models_that_are_meant_for_it(tmp_path: Path) -> None:
    write_text_folder(tmp_path, "topics", labels=["sport", "politics"])
    write_text_folder(tmp_path, "old-sentiment")
    repository = await start(tmp_path)
    assert choose(repository, "classify", purpose="sentiment") == "old-sentiment"
    with pytest.raises(AmbiguousModel) as caught:
        choose(repository, "classify")
    assert caught.value.facts["candidates"] == ["old-sentiment", "topics"]
    with pytest.raises(ModelNotFound, match="there is no model for irony; there are"):
        choose(repository, "classify", purpose="irony")
    await repository.stop()
    edit_manifest(tmp_path / "topics" / "1", lambda manifest: manifest["classify"].update(subject="sentiment"))
    repository = await start(tmp_path, {("classify", "sentiment"): "topics"})
    assert choose(repository, "classify", purpose="sentiment") == "topics"
    with pytest.raises(AmbiguousModel):
        choose(repository, "classify")
    await repository.stop()


async def test_a_task_without_a_model_is_not_found(tmp_path: Path) -> None:
    (write_forecast_folder(tmp_path, "broken") / "example.json").unlink()
    repository = await start(tmp_path)
    for parameters in ({}, {"frequency": "H"}):
        with pytest.raises(ModelNotFound, match=r"there is no model for forecast; there are \['broken'\]"):
            choose(repository, "forecast", **parameters)
    await repository.stop()


async def test_a_restricted_view_is_as_if_the_other_folders_were_not_there(tmp_path: Path) -> None:
    for name in ("a", "b", "hidden"):
        write_forecast_folder(tmp_path, name)
    (write_forecast_folder(tmp_path, "broken") / "model.onnx").write_bytes(b"junk")
    repository = await start(tmp_path, {("forecast", None): "hidden"})
    view = repository.restricted_to(frozenset({"a", "b", "never-there"}))
    assert [about["name"] for about in view.describe()] == ["a", "b"]
    assert view.get("a") is repository.get("a")
    for name in ("hidden", "broken", "never-there", "elsewhere"):
        with pytest.raises(ModelNotFound) as caught:
            view.get(name)
        assert caught.value.message == f"""there is no model "{name}"; there are ['a', 'b']"""
        with pytest.raises(ModelNotFound):
            view.get(name, "1")
        with pytest.raises(ModelNotFound):
            view.describe_model(name)
    with pytest.raises(AmbiguousModel) as several:
        view.choose("forecast", [], {})
    assert several.value.facts["candidates"] == ["a", "b"]
    assert repository.restricted_to(frozenset({"b"})).choose("forecast", [], {}) is repository.get("b")
    with pytest.raises(ModelNotFound, match=r"there are \[\]"):
        repository.restricted_to(frozenset()).choose("forecast", [], {})
    assert repository.choose("forecast", [], {}) is repository.get("hidden")
    assert len(repository.describe()) == 4
    await repository.stop()


async def test_the_example_request_is_one_that_its_model_answers(tmp_path: Path) -> None:
    repository = await start(tmp_path / "none")
    assert repository.example_request() is None
    await repository.stop()
    for write, path, names_model in (
        (write_forecast_folder, "/predict/forecast", False),
        (write_text_folder, "/predict/sentiment", False),
        (lambda folder: write_text_folder(folder, "another"), "/predict", True),
    ):
        write(tmp_path)
        repository = await start(tmp_path)
        request = repository.example_request()
        assert request is not None
        assert (request.path, "model" in request.body) == (path, names_model)
        await repository.stop()


# --------------------------------------------------------------------------------------------------------- readiness


async def test_a_broken_folder_stands_in_the_way_of_strict_readiness_only(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path, "good")
    (write_forecast_folder(tmp_path, "good", "2") / "example.json").unlink()
    reason = "model folder good/2 is UNAVAILABLE: example.json cannot be read: No such file or directory"
    for strict in (True, False):
        repository = await start(tmp_path, strict_readiness=strict)
        assert repository.is_serving
        assert (repository.is_ready, repository.reason) == ((False, reason) if strict else (True, None))
        await repository.stop()
    (write_forecast_folder(tmp_path, "worse") / "example.json").unlink()
    repository = await start(tmp_path)
    assert repository.reason == f"{reason}; 2 of 3 folders cannot be served"
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
    repository = await start(tmp_path / "models")
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
    repository = await start(tmp_path)
    assert [about["name"] for about in repository.describe()] == ["toy-forecast"]
    assert repository.describe_model("toy-forecast")["versions"] == [{"version": "1", "state": "READY"}]
    await repository.stop()


async def test_a_folder_that_lost_its_manifest_is_unavailable_and_a_graph_alone_is_served(tmp_path: Path) -> None:
    (write_forecast_folder(tmp_path, "lost") / "manifest.json").unlink()
    folder = write_forecast_folder(tmp_path, "plain")
    for name in ("manifest.json", "example.json"):
        (folder / name).unlink()
    repository = await start(tmp_path)
    lost, plain = repository.describe()
    assert lost["state"] == "UNAVAILABLE"
    assert "manifest.json cannot be read" in lost["reason"]
    assert (plain["state"], plain["task"]) == ("READY", "tensor")
    await repository.stop()


async def test_a_link_out_of_the_models_folder_is_not_followed(tmp_path: Path) -> None:
    outside = write_forecast_folder(tmp_path / "outside", "secret")
    models_dir = tmp_path / "models"
    write_forecast_folder(models_dir, "good")
    (models_dir / "secret").symlink_to(outside.parent)
    (models_dir / "half").mkdir()
    (models_dir / "half" / "1").symlink_to(outside)
    repository = await start(models_dir)
    states = {about["name"]: (about["state"], about.get("reason")) for about in repository.describe()}
    reason = "the folder is a link that leads out of the models folder"
    assert states == {"good": ("READY", None), "half": ("UNAVAILABLE", reason), "secret": ("UNAVAILABLE", reason)}
    await repository.stop()


async def test_the_models_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path / "real")
    (tmp_path / "models").symlink_to(tmp_path / "real")
    repository = await start(tmp_path / "models")
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
        repository.choose("forecast", [], {})


async def test_after_the_stop_no_request_is_answered(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    repository = await start(tmp_path)
    model = repository.get("toy-forecast")
    await repository.stop()
    assert not repository.is_ready
    assert repository.reason == "the service is stopping"
    with pytest.raises(ModelNotReady):
        await model.predict([{"history": [1, 2]}])
    with pytest.raises(ModelNotReady, match="stopping"):
        repository.choose("forecast", [], {})


async def test_a_missing_device_stops_the_start(tmp_path: Path) -> None:
    def open_graph(graph: bytes, device: Device) -> Runtime:
        return open_runtime(graph, device, available=["CPUExecutionProvider"])

    write_forecast_folder(tmp_path, "a")
    write_forecast_folder(tmp_path, "b")
    repository = Repository(tmp_path, ModelOptions(device="cuda"), open_graph=open_graph)
    with pytest.raises(StartError, match="device cuda was asked for"):
        await repository.start()
    assert not repository.is_ready


async def test_what_breaks_the_reader_in_an_unforeseen_way_is_one_broken_folder(tmp_path: Path) -> None:
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


async def test_folders_that_were_preloaded_are_not_read_again(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path, "good")
    (write_forecast_folder(tmp_path, "broken") / "model.onnx").write_bytes(b"junk")
    (tmp_path / "empty").mkdir()
    from_disk = await start(tmp_path)
    preload = preload_folders(tmp_path, CPU)
    write_forecast_folder(tmp_path, "later")
    (tmp_path / "good" / "1" / "model.onnx").unlink()
    repository = Repository(tmp_path, CPU, preload=preload)
    await repository.start()
    assert repository.describe() == from_disk.describe()
    assert len(await repository.get("good").predict([{"history": [1, 2]}])) == 1
    await repository.stop()
    await from_disk.stop()


async def test_the_example_of_a_preloaded_model_is_still_replayed(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    example = json.loads((folder / "example.json").read_text())
    example["response"]["predictions"][0]["forecast"][0] += 1
    (folder / "example.json").write_text(json.dumps(example))
    preload = preload_folders(tmp_path, CPU)
    repository = Repository(tmp_path, CPU, preload=preload)
    await repository.start()
    assert not repository.is_ready
    await repository.stop()


async def test_a_preloaded_model_needs_its_folder_no_more(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    preload = preload_folders(tmp_path, CPU)
    shutil.rmtree(folder.parent)
    repository = Repository(tmp_path, CPU, preload=preload)
    await repository.start()
    assert repository.is_ready
    await repository.stop()


async def test_a_folder_that_cannot_be_preloaded_is_tried_again_by_the_process_that_serves(tmp_path: Path) -> None:
    def explode(graph: bytes, device: Device) -> Runtime:
        raise ZeroDivisionError

    write_forecast_folder(tmp_path)
    repository = Repository(tmp_path, CPU, preload=preload_folders(tmp_path, CPU, explode))
    await repository.start()
    assert repository.is_ready
    await repository.stop()
