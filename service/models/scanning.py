"""Which model folders there are: names and versions as the disk has them. Opens none of their files.

Looks below the models folder only: a link that leads out of it is listed, and not followed.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.models.model import Model

log = logging.getLogger(__name__)

LoadState = Literal["LOADING", "READY", "UNAVAILABLE"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass
class ModelVersion:
    """One version of one model. `version` is "" for a folder that holds none."""

    name: str
    version: str
    state: LoadState = "LOADING"
    reason: str | None = None
    model: Model | None = None

    @property
    def order(self) -> int:
        return int(self.version or 0)

    @property
    def path(self) -> str:
        """Its folder below the models folder."""
        return f"{self.name}/{self.version}" if self.version else self.name


def scan_models(models_dir: Path) -> tuple[list[ModelVersion], str | None]:
    """Every version folder below the models folder, LOADING, or UNAVAILABLE with the reason; and why there are none."""
    try:
        folders = sorted(path for path in models_dir.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
        root = models_dir.resolve(strict=True)
    except OSError as exc:
        return [], f"the models folder {models_dir} cannot be read: {exc.strerror}"
    entries: list[ModelVersion] = []
    for folder in folders:
        if NAME.fullmatch(folder.name) is None:
            log.warning("folder is no model: its name", extra={"folder": folder.name, "expected": NAME.pattern})
            continue
        entries += _scan_model(folder, root)
    return entries, None if entries else f"the models folder {models_dir} holds no model folder"


def _scan_model(folder: Path, root: Path) -> list[ModelVersion]:
    if not folder.resolve().is_relative_to(root):
        return [ModelVersion(folder.name, "", "UNAVAILABLE", "the folder is a link that leads out of the models folder")]
    try:
        versions = [path for path in folder.iterdir() if VERSION.fullmatch(path.name) and path.is_dir()]
    except OSError as exc:
        return [ModelVersion(folder.name, "", "UNAVAILABLE", f"the folder cannot be read: {exc.strerror}")]
    if not versions:
        return [
            ModelVersion(folder.name, "", "UNAVAILABLE", "the folder holds no version: expected a folder named 1, 2, … in it")
        ]
    return [_scan_version(path, root) for path in sorted(versions, key=lambda path: int(path.name))]


def _scan_version(folder: Path, root: Path) -> ModelVersion:
    name, version = folder.parent.name, folder.name
    if not folder.resolve().is_relative_to(root):
        return ModelVersion(name, version, "UNAVAILABLE", "the folder is a link that leads out of the models folder")
    return ModelVersion(name, version)
