"""Which models a folder holds, whatever kind of folder it is, and which versions of them are served."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service.models.folder import ModelOptions
from service.models.preloading import preload_folders
from service.models.repository import Repository
from service.models.scanning import scan_models
from service.settings import Settings, SettingsError, read_settings
from tests.folders import write_forecast_folder, write_text_folder
from tests.serving import client_of

CPU = ModelOptions(device="cpu")
LATEST = frozenset(("latest",))


def found(*folders: Path) -> list[tuple[str, str, str]]:
    entries, _ = scan_models(folders)
    return [(entry.name, entry.version, entry.state) for entry in entries]


async def answering(folders: list[Path], pins: dict[str, frozenset[str]] | None = None) -> dict[str, list[tuple[str, str]]]:
    """The versions and states of each model, once loaded; the same with folders that a parent has read."""
    seen = []
    for preload in (None, preload_folders(folders, CPU, pins=pins)):
        repository = Repository(folders, CPU, pins=pins, preload=preload)
        await repository.start()
        about = repository.describe()
        seen.append({model["name"]: [(each["version"], each["state"]) for each in model["versions"]] for model in about})
        await repository.stop()
    assert seen[0] == seen[1]
    return seen[0]


async def test_the_models_of_several_folders_are_served(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path / "a", "hourly")
    write_text_folder(tmp_path / "b", "texts")
    folders = [tmp_path / "a", tmp_path / "b"]
    assert await answering(folders) == {"hourly": [("1", "READY")], "texts": [("1", "READY")]}
    async with client_of(Path(f"{folders[0]}:{folders[1]}")) as client:
        assert [model["name"] for model in (await client.get("/models")).json()["models"]] == ["hourly", "texts"]


async def test_of_a_version_that_is_in_two_folders_the_first_counts(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path / "a", horizon=4)
    write_forecast_folder(tmp_path / "b", horizon=5)
    write_forecast_folder(tmp_path / "b", version="2", horizon=5)
    repository = Repository([tmp_path / "a", tmp_path / "b"], CPU)
    await repository.start()
    assert [repository.get("toy-forecast", version).horizon for version in ("1", "2")] == [4, 5]
    await repository.stop()


async def test_a_model_folder_is_served_alone(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path, "hourly").parent
    write_forecast_folder(tmp_path, "hourly", "3")
    assert await answering([folder]) == {"hourly": [("1", "READY"), ("3", "READY")]}
    mounted = Path(shutil.move(folder, tmp_path / "mounted"))
    assert await answering([mounted]) == {"hourly": [("1", "READY"), ("3", "READY")]}


@pytest.mark.parametrize("where", ["models", "models/7", "mnt/any thing"])
async def test_a_version_folder_is_served_alone_under_the_name_of_its_manifest(tmp_path: Path, where: str) -> None:
    folder = write_forecast_folder(tmp_path / "written", "hourly", "2")
    (tmp_path / where).parent.mkdir(exist_ok=True)
    mounted = Path(shutil.move(folder, tmp_path / where))
    assert await answering([mounted]) == {"hourly": [("2", "READY")]}


@pytest.mark.parametrize(
    ("where", "name", "version"), [("models", "models", "1"), ("gru/4", "gru", "4"), ("models/1", "models", "1")]
)
async def test_a_graph_alone_is_called_as_its_folders_are(tmp_path: Path, where: str, name: str, version: str) -> None:
    folder = write_forecast_folder(tmp_path / "written")
    for file in ("manifest.json", "example.json"):
        (folder / file).unlink()
    (tmp_path / where).parent.mkdir(exist_ok=True)
    mounted = Path(shutil.move(folder, tmp_path / where))
    assert await answering([mounted]) == {name: [(version, "READY")]}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": 3}', '{"name": "../x", "version": "1"}', "[" * 100_000])
def test_a_lone_folder_with_a_broken_manifest_is_listed_and_not_served(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    ((_, version, _),) = found(tmp_path)
    assert version == "1"
    preload = preload_folders([tmp_path], CPU)
    assert all(examination.findings for examination, _ in preload.examinations.values())


async def test_a_pinned_version_alone_is_served(tmp_path: Path) -> None:
    for version in ("1", "2", "3"):
        write_forecast_folder(tmp_path, "hourly", version)
        write_forecast_folder(tmp_path, "daily", version)
    served = await answering([tmp_path], {"hourly": frozenset(("2",))})
    assert served == {"daily": [("1", "READY"), ("2", "READY"), ("3", "READY")], "hourly": [("2", "READY")]}
    assert await answering([tmp_path], {"hourly": LATEST, "daily": frozenset("13")}) == {
        "daily": [("1", "READY"), ("3", "READY")],
        "hourly": [("3", "READY")],
    }


async def test_the_latest_is_the_highest_that_is_valid(tmp_path: Path) -> None:
    for version in ("1", "2", "10"):
        write_forecast_folder(tmp_path, version=version)
    (tmp_path / "toy-forecast" / "10" / "model.onnx").write_bytes(b"half of a gra")
    served = await answering([tmp_path], {"toy-forecast": LATEST})
    assert served == {"toy-forecast": [("2", "READY"), ("10", "UNAVAILABLE")]}


async def test_a_pin_without_a_folder_is_unavailable(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    repository = Repository(tmp_path, CPU, pins={"toy-forecast": frozenset("9"), "lost": frozenset("1")})
    await repository.start()
    assert not repository.is_ready
    assert [model["reason"] for model in repository.describe()] == ["SLUICE_VERSIONS names it, and there is no such folder"] * 2
    await repository.stop()


def test_settings_list_folders_and_pins() -> None:
    settings = read_settings({"SLUICE_MODELS": "/srv/a:/srv/b", "SLUICE_VERSIONS": " a:1, a:2,b.c:latest,"})
    assert settings.model_folders == [Path("/srv/a"), Path("/srv/b")]
    assert settings.version_pins == {"a": frozenset("12"), "b.c": LATEST}
    assert Settings().version_pins == {}


@pytest.mark.parametrize("text", ["a", "a:", ":1", "a:0", "a:one", "a:1:2x", "../a:1", "a:latest,a:1", "a:1;b:2"])
def test_what_is_no_pin_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="SLUICE_VERSIONS"):
        read_settings({"SLUICE_VERSIONS": text})
