"""Which model folders there are: names and versions as the disk has them. Of their files only a lone manifest is read.

Looks below the given folders only: a link that leads out of one is listed, and not followed.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from service.errors import FolderError
from service.manifest import MANIFEST_FILE, read_file
from service.models.model import Model
from service.models.plain_graph import GRAPH_FILE

log = logging.getLogger(__name__)

LoadState = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
LATEST = "latest"
# Of a manifest that is read for the names in it.
MAX_MANIFEST_BYTES = 16 * 2**20

VersionPins = Mapping[str, frozenset[str]]
"""Model → the versions that are served of it, or `latest`: the highest that is valid. Of other models all are."""


@dataclass
class ModelVersion:
    """One version of one model. `version` is "" for a folder that holds none."""

    name: str
    version: str
    state: LoadState = "LOADING"
    reason: str | None = None
    model: Model | None = None
    folder: Path = field(default_factory=Path)
    is_update: bool = False
    """Whether it came while the server ran. Readiness does not depend on it."""

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.version

    @property
    def order(self) -> int:
        return int(self.version or 0)

    @property
    def path(self) -> str:
        """Its folder below the models folder."""
        return f"{self.name}/{self.version}" if self.version else self.name


def scan_models(folders: Path | Sequence[Path], pins: VersionPins | None = None) -> tuple[list[ModelVersion], str | None]:
    """Every version folder below these folders, LOADING, or UNAVAILABLE with the reason; and why there are none.

    A folder may hold models, be a model (`1/model.onnx` in it), or be a version (`manifest.json` or `model.onnx` in it). Where
    two hold the same version of a model, the first one counts. Of models with pins only those versions are there; of one that
    is pinned to `latest` all, for the highest of them may turn out to be broken.
    """
    roots = [folders] if isinstance(folders, Path) else list(folders)
    found: dict[tuple[str, str], ModelVersion] = {}
    reasons = []
    for root in roots:
        entries, reason = _scan_root(root)
        if reason is not None:
            reasons.append(reason)
        for entry in entries:
            first = found.setdefault(entry.key, entry)
            if first is not entry:
                log.warning(
                    "model version is there twice, the first counts", extra={"model": entry.path, "folder": str(entry.folder)}
                )
    entries = _with_pins(list(found.values()), pins or {})
    return entries, None if entries else "; ".join(reasons)


def unreadable(folders: Path | Sequence[Path]) -> str | None:
    """Why one of these folders cannot be listed now; None where all can."""
    for folder in [folders] if isinstance(folders, Path) else folders:
        try:
            os.scandir(folder).close()
        except OSError as exc:
            return f"the models folder {folder} cannot be read: {exc.strerror}"
    return None


def highest_first(entries: Iterable[ModelVersion]) -> list[ModelVersion]:
    """The versions of one model from the highest to the lowest."""
    return sorted(entries, key=lambda entry: entry.order, reverse=True)


def _with_pins(entries: list[ModelVersion], pins: VersionPins) -> list[ModelVersion]:
    kept = [entry for entry in entries if pins.get(entry.name, frozenset((LATEST,))) & {LATEST, entry.version}]
    there = {entry.key for entry in kept}
    for name, versions in sorted(pins.items()):
        for version in sorted(versions):
            if version != LATEST and (name, version) not in there:
                kept.append(ModelVersion(name, version, "UNAVAILABLE", "SLUICE_VERSIONS names it, and there is no such folder"))
    return kept


def _scan_root(folder: Path) -> tuple[list[ModelVersion], str | None]:
    try:
        root = folder.resolve(strict=True)
        if _is_version_folder(root):
            return [_lone_version(root)], None
        if any(VERSION.fullmatch(path.name) and _is_version_folder(path) for path in folder.iterdir()):
            return _scan_model(folder, root, _name_of_model(folder, root)), None
        paths = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
    except OSError as exc:
        return [], f"the models folder cannot be read: {exc.strerror}"
    except RuntimeError:  # Path.resolve of a link to itself, before Python 3.13
        return [], "the models folder cannot be read: it is a link to itself"
    entries: list[ModelVersion] = []
    for path in paths:
        if NAME.fullmatch(path.name) is None:
            log.warning("folder is no model: its name", extra={"folder": path.name, "expected": NAME.pattern})
            continue
        entries += _scan_model(path, root, path.name)
    return entries, None if entries else "the models folder holds no model folder"


def _is_version_folder(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (MANIFEST_FILE, GRAPH_FILE))


def _lone_version(folder: Path) -> ModelVersion:
    """A version folder that was named itself: it is called as its manifest says, else as its folders are."""
    is_numbered = VERSION.fullmatch(folder.name) is not None
    manifest = _read_names(folder)
    name = manifest.get("name") or (folder.parent.name if is_numbered else folder.name)
    version = manifest.get("version") or (folder.name if is_numbered else "1")
    return _named(name, version, folder)


def _name_of_model(folder: Path, root: Path) -> str:
    """What a model folder that was named itself is called: as its highest manifest says, else as the folder is."""
    numbers = sorted((int(path.name) for path in folder.iterdir() if VERSION.fullmatch(path.name)), reverse=True)
    names = (_read_names(root / str(number)).get("name") for number in numbers)
    name = next((name for name in names if name and NAME.fullmatch(name)), root.name)
    return name if NAME.fullmatch(name) else "model"


def _named(name: str, version: str, folder: Path) -> ModelVersion:
    if NAME.fullmatch(name) is None or VERSION.fullmatch(version) is None:
        return ModelVersion("model", "1", "UNAVAILABLE", f"{MANIFEST_FILE}: its name or version is none", folder=folder)
    return ModelVersion(name, version, folder=folder)


def _read_names(folder: Path) -> dict[str, str]:
    """`name` and `version` of a manifest, without more of it; what is wrong with it is found when it is loaded."""
    try:
        manifest: Any = json.loads(read_file(folder, MANIFEST_FILE, MAX_MANIFEST_BYTES))
    except (FolderError, ValueError, RecursionError):
        return {}
    if type(manifest) is not dict:
        return {}
    return {key: value for key in ("name", "version") if type(value := manifest.get(key)) is str}


def _scan_model(folder: Path, root: Path, name: str) -> list[ModelVersion]:
    def unavailable(reason: str) -> list[ModelVersion]:
        return [ModelVersion(name, "", "UNAVAILABLE", reason, folder=folder)]

    if not folder.resolve().is_relative_to(root):
        return unavailable("the folder is a link that leads out of the models folder")
    try:
        versions = [path for path in folder.iterdir() if VERSION.fullmatch(path.name) and path.is_dir()]
    except OSError as exc:
        return unavailable(f"the folder cannot be read: {exc.strerror}")
    if not versions:
        return unavailable("the folder holds no version: expected a folder named 1, 2, … in it")
    return [_scan_version(path, root, name) for path in sorted(versions, key=lambda path: int(path.name))]


def _scan_version(folder: Path, root: Path, name: str) -> ModelVersion:
    if not folder.resolve().is_relative_to(root):
        reason = "the folder is a link that leads out of the models folder"
        return ModelVersion(name, folder.name, "UNAVAILABLE", reason, folder=folder)
    return ModelVersion(name, folder.name, folder=folder)
