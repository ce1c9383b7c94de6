"""Writes model folders: beside their place first, then renamed, so that no reader finds half of one.

What is in them, `models/README.md` specifies. Trains and verifies nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from training.errors import TrainingError
from training.export.model_card import CARD_FILE, render_card
from training.graph.builder import OPSET
from training.recipe import Source
from training.scoring.evaluate import Scores

if TYPE_CHECKING:  # an import publishes too, and reads no tables
    from training.data.sources import Content

SCHEMA_VERSION = 1
GRAPH_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
INT8_FILE = "model.int8.onnx"
PLOTS = "plots"
AT_FDCWD = -100
RENAME_EXCHANGE = 2
"""Of Linux's renameat2(2)."""
TOLERANCE = {"absolute": 1e-4, "relative": 1e-3}
LIBRARIES = (
    "sluice-serving",
    "torch",
    "lightning",
    "onnx",
    "onnxruntime",
    "numpy",
    "polars",
    "tokenizers",
    "statsforecast",
    "scikit-learn",
    "matplotlib",
)


class PublishError(TrainingError):
    """The folder cannot be written: the version exists already, or the disk refuses it."""


class Subject(Protocol):
    """What a folder is of: a recipe, or the source of an import."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int | None:
        """None: the next free number."""
        ...

    @property
    def task(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def licence(self) -> str:
        """Of the data; empty: the data's own licences."""
        ...

    @property
    def seed(self) -> int: ...
    def as_json(self) -> dict[str, Any]:
        """All of it, for the manifest."""
        ...


class Second(Protocol):
    """A graph beside the first one."""

    @property
    def payload(self) -> bytes: ...
    @property
    def entry(self) -> dict[str, Any]:
        """As the manifest lists it, its file's name too."""
        ...


@dataclass(frozen=True)
class Publication:
    """All that goes into one folder."""

    recipe: Subject
    graph: bytes
    tensors: Mapping[str, Any]  # inputs, outputs, state as the manifest lists them
    spec: Mapping[str, Any]  # the manifest's block of the task; empty where it has none
    instances: Sequence[Any]
    predictions: Sequence[Any]
    metrics: Scores
    baselines: Mapping[str, Scores]
    data: Sequence[Mapping[str, str]]
    facts: Mapping[str, Any] = field(default_factory=dict)  # more for the block `training`
    files: Mapping[str, str] = field(default_factory=dict)  # further files by name, as tokenizer.json
    pictures: Mapping[str, bytes] = field(default_factory=dict)  # PNG by name, for the folder plots/
    second: Second | None = None  # a second graph, of another precision
    opset: int = OPSET
    min_length: int = 1  # the fewest steps of a row
    statistics: Mapping[str, Any] | None = None  # of the training part


def publish(publication: Publication, models: Path, *, replace: bool = False) -> Path:
    """Write `models/<name>/<version>` and return it. The version is the recipe's, or else the next free number.

    Raises PublishError if the recipe's version is there already and `replace` is not set, or if the disk refuses a write;
    nothing is left behind then.
    """
    recipe = publication.recipe
    require_free(recipe, models, replace=replace)
    with open_home(recipe, models) as home:
        number = recipe.version or next_version(home)
        with _folder_aside(home) as aside:
            _write(publication, number, aside)
            put_in_place(aside, home / str(number))
    return home / str(number)


def _write(publication: Publication, number: int, folder: Path) -> None:
    """All files of a version, the manifest last."""
    (folder / GRAPH_FILE).write_bytes(publication.graph)
    if publication.second is not None:
        (folder / publication.second.entry["file"]).write_bytes(publication.second.payload)
    for name, text in publication.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, png in publication.pictures.items():
        (folder / PLOTS).mkdir(exist_ok=True)
        (folder / PLOTS / name).write_bytes(png)
    (folder / "example.json").write_text(_json(_example(publication)), encoding="utf-8")
    content = manifest(publication, number)
    (folder / CARD_FILE).write_text(render_card(content), encoding="utf-8")
    (folder / "manifest.json").write_text(_json(content), encoding="utf-8")


@contextmanager
def open_home(recipe: Subject, models: Path) -> Iterator[Path]:
    """The folder of a model's versions, made where it is missing and removed again where nothing comes into it.

    Raises PublishError for what the disk refuses meanwhile: no space, no permission, a file in the way.
    """
    home = models / recipe.name
    try:
        home.mkdir(parents=True, exist_ok=True)
        yield home
    except OSError as exc:
        raise PublishError(f"{home} cannot be written: {exc.strerror or exc}") from exc
    finally:
        with suppress(OSError):
            home.rmdir()  # only an empty folder goes


@contextmanager
def _folder_aside(home: Path) -> Iterator[Path]:
    """A folder to fill and rename; what is still there under its own name at the end is removed."""
    # A name that begins with a dot is no version, so that listings skip it.
    aside = Path(tempfile.mkdtemp(dir=home, prefix=".new-"))
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def add_graph(folder: Path, file: str, payload: bytes, entry: Mapping[str, Any]) -> None:
    """Add a graph to a published folder, or replace the one in `file`: in a copy of the folder, which then takes its place.

    Raises PublishError if the disk refuses a write; the folder is as it was then.
    """
    try:
        with _folder_aside(folder.parent) as aside:
            shutil.copytree(folder, aside, dirs_exist_ok=True)
            (aside / file).write_bytes(payload)
            content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            content["graphs"] = [*(graph for graph in content["graphs"] if graph["file"] != file), dict(entry)]
            (aside / CARD_FILE).write_text(render_card(content), encoding="utf-8")
            (aside / "manifest.json").write_text(_json(content), encoding="utf-8")
            put_in_place(aside, folder)
    except OSError as exc:
        raise PublishError(f"{folder} cannot be written: {exc.strerror or exc}") from exc


def set_statistics(folder: Path, statistics: Mapping[str, Any]) -> None:
    """Put the statistics of the training part into the manifest of a published folder, in one step.

    Raises PublishError if the disk refuses a write; the folder is as it was then.
    """
    content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    content.pop("statistics", None)
    training = {"training": content.pop("training")} if "training" in content else {}
    _replace_file(folder / MANIFEST_FILE, _json({**content, "statistics": statistics, **training}))


def card_of(folder: Path) -> str:
    """The model card that belongs to a published folder's manifest. Raises PublishError where there is no such manifest."""
    try:
        return render_card(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise PublishError(f"{folder}: there is no manifest.json that a card could be written from: {exc!r}") from exc


def write_card(folder: Path) -> bool:
    """Write the card of a published folder, and return whether it changed. Raises PublishError."""
    card, file = card_of(folder), folder / CARD_FILE
    try:
        if file.is_file() and file.read_bytes() == card.encode():
            return False
    except OSError as exc:
        raise PublishError(f"{file} cannot be read: {exc.strerror or exc}") from exc
    _replace_file(file, card)
    return True


def _replace_file(file: Path, text: str) -> None:
    """Write a file of a published folder: a server that copies the folder meanwhile finds the old one or the new one.

    Raises PublishError if the disk refuses it; the file is as it was then.
    """
    aside = file.with_name(f".{file.name}.new")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(file)
    except OSError as exc:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise PublishError(f"{file} cannot be written: {exc.strerror or exc}") from exc


def version_folders(folder: Path) -> list[Path]:
    """The version folders of a models folder, of a model's folder, or the one itself. Raises PublishError where there is none."""
    if (folder / "manifest.json").is_file():
        return [folder]
    found = sorted(file.parent for pattern in ("*/manifest.json", "*/*/manifest.json") for file in folder.glob(pattern))
    if not found:
        raise PublishError(f"{folder}: there is no model folder, with a manifest.json in it")
    return found


def read_example_instances(folder: Path) -> list[Any]:
    """The instances of a published folder's example."""
    example = json.loads((folder / "example.json").read_text(encoding="utf-8"))
    return list(example["request"]["instances"])


def describe_graph(file: str, payload: bytes, precision: str, score: Scores, **more: Any) -> dict[str, Any]:
    """A graph as the manifest lists it."""
    entry = {"file": file, "sha256": hashlib.sha256(payload).hexdigest(), "precision": precision, "opset": OPSET}
    return {**entry, "score": dict(score), **more}


def put_in_place(aside: Path, folder: Path) -> None:
    """Rename, so that no reader finds half of the folder, and remove what was there before."""
    aside.chmod(0o755)
    if not folder.exists():
        aside.rename(folder)
    elif _exchange(aside, folder):
        shutil.rmtree(aside)
    else:
        old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".old-"))
        folder.rename(old / folder.name)
        aside.rename(folder)
        shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step, so that a process that is killed leaves either; False where only Linux could."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(renameat2(AT_FDCWD, os.fsencode(one.absolute()), AT_FDCWD, os.fsencode(other.absolute()), RENAME_EXCHANGE) == 0)


def require_free(recipe: Subject, models: Path, *, replace: bool = False) -> None:
    """Raise PublishError if the recipe's version is published already; for a check before hours of training, too."""
    folder = models / recipe.name / str(recipe.version)
    if recipe.version is not None and folder.exists() and not replace:
        raise PublishError(f"{folder} exists: choose another version, or publish with --replace")


def next_version(home: Path) -> int:
    """One above the highest version in a model's folder; 1 in an empty one."""
    numbers = [int(entry.name) for entry in home.iterdir() if re.fullmatch(r"[1-9][0-9]{0,8}", entry.name)]
    return max(numbers, default=0) + 1


def manifest(publication: Publication, number: int) -> dict[str, Any]:
    """The content of manifest.json."""
    recipe = publication.recipe
    licences = dict.fromkeys(entry["licence"] for entry in publication.data if entry.get("licence"))
    return {
        "schema_version": SCHEMA_VERSION,
        "name": recipe.name,
        "version": str(number),
        "task": recipe.task,
        "description": recipe.description,
        "licence": recipe.licence or "; ".join(licences),
        "graphs": [
            describe_graph(GRAPH_FILE, publication.graph, "fp32", publication.metrics, opset=publication.opset),
            *([publication.second.entry] if publication.second else []),
        ],
        **publication.tensors,
        **({"min_length": publication.min_length} if publication.min_length > 1 else {}),
        **({recipe.task: dict(publication.spec)} if publication.spec else {}),
        **({"statistics": dict(publication.statistics)} if publication.statistics else {}),
        "training": {
            "recipe": recipe.as_json(),
            "data": list(publication.data),
            "metrics": dict(publication.metrics),
            "baselines": {name: dict(scores) for name, scores in publication.baselines.items()},
            "seed": recipe.seed,
            "versions": find_versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **({"plots": [f"{PLOTS}/{name}" for name in publication.pictures]} if publication.pictures else {}),
            **publication.facts,
        },
    }


def describe_data(sources: Sequence[Source], contents: Sequence[Content]) -> list[dict[str, str]]:
    """Per file: name, origin, licence, sha256 of what was really read."""
    digests = {id(content.source): content.sha256 for content in contents}
    entries = []
    for source in sources:
        entry = {"name": str(source), "origin": source.origin, "licence": source.licence, "sha256": digests.get(id(source), "")}
        entries.append({key: value for key, value in entry.items() if value})
    return entries


def find_versions() -> dict[str, str]:
    """Python's version, and those of the libraries that a run uses."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


def _example(publication: Publication) -> dict[str, Any]:
    return {
        "request": {"model": publication.recipe.name, "instances": list(publication.instances)},
        "response": {"predictions": list(publication.predictions)},
        "tolerance": TOLERANCE,
    }


def _json(content: Mapping[str, Any]) -> str:
    """Indented, but with lists of numbers on one line; no NaN."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    return (
        re.sub(r"\[[^\[\]{}\"]*\]", lambda found: re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]"), text)
        + "\n"
    )
