"""All model folders: which are there, which are READY, and which one answers a request.

Reads below its own folder only. A broken folder is shown with its reason and never stops the others.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from service.clock import Clock
from service.errors import FolderError, ModelNotFound, ModelNotReady, StartError
from service.manifest import MANIFEST_FILE
from service.models.folder import Examined, ModelOptions, OpenRuntime, examine
from service.models.loading import load_model, measured
from service.models.model import Model, ModelObserver, SilentModelObserver
from service.runtime.onnx_runtime import open_runtime

log = logging.getLogger(__name__)

State = Literal["LOADING", "READY", "UNAVAILABLE"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
GRAPH_FILE = "model.onnx"
# Of unknown names that callers send, so much is told back.
SHOWN_NAME_LENGTH = 128


class RepositoryObserver(Protocol):
    """What the repository tells, always on the event loop."""

    def observer_of(self, name: str, version: str) -> ModelObserver:
        """Who hears the model that is about to be loaded."""
        ...

    def loaded(self, model: Model, duration_s: float) -> None:
        """The model answered its example and is READY."""
        ...

    def unavailable(self, name: str, version: str, reason: str, duration_s: float) -> None:
        """The folder cannot be served."""
        ...


class SilentRepositoryObserver:
    """Hears everything, says nothing."""

    def observer_of(self, name: str, version: str) -> ModelObserver:
        return SilentModelObserver()

    def loaded(self, model: Model, duration_s: float) -> None:
        pass

    def unavailable(self, name: str, version: str, reason: str, duration_s: float) -> None:
        pass


@dataclass
class Entry:
    """One version of one model. `version` is "" for a folder that holds none."""

    name: str
    version: str
    state: State = "LOADING"
    reason: str | None = None
    model: Model | None = None

    @property
    def order(self) -> int:
        return int(self.version or 0)


@dataclass(frozen=True)
class Opened:
    """The model folders as one process found and opened them, for others that it forks: what is read is then shared."""

    entries: list[Entry]
    reason: str | None
    """Why there are none."""
    folders: dict[tuple[str, str], tuple[Examined, float]]
    """By name and version: what opening found, and the seconds it took."""


class Repository:
    """The models below one folder, by name and version. All methods belong to one event loop."""

    def __init__(
        self,
        models_dir: Path,
        options: ModelOptions | None = None,
        *,
        defaults: Mapping[str, str] | None = None,
        observer: RepositoryObserver | None = None,
        clock: Clock | None = None,
        open_graph: OpenRuntime = open_runtime,
        opened: Opened | None = None,
    ) -> None:
        """`defaults` maps a task to the model that answers where a request names none; `opened` is what `open_folders` found."""
        self.models_dir = models_dir
        self.options = options or ModelOptions()
        self._defaults = dict(defaults or {})
        self._observer: RepositoryObserver = observer or SilentRepositoryObserver()
        self._clock = clock
        self._open_graph = open_graph
        self._opened = opened
        self._entries: dict[str, list[Entry]] = {}
        self._serving: dict[str, Model] = {}
        self._is_started = False
        self._reason: str | None = "the models are still loading"

    async def start(self) -> None:
        """Load every folder, on threads. Raises StartError, and nothing else: a missing runtime or GPU concerns them all."""
        if self._opened is None:
            entries, self._reason = await asyncio.to_thread(_scan, self.models_dir)
        else:
            entries, self._reason = self._opened.entries, self._opened.reason
        for entry in entries:
            self._entries.setdefault(entry.name, []).append(entry)
        failures = await asyncio.gather(*(self._load(entry) for entry in entries), return_exceptions=True)
        for failure in failures:
            if failure is not None:
                await self.stop()
                raise failure
        self._is_started = True
        if entries and not self._serving:
            self._reason = f"none of the {len(entries)} model folders in {self.models_dir} can be served"

    async def stop(self) -> None:
        """Let every model answer what waits, then end its threads."""
        models = [entry.model for entries in self._entries.values() for entry in entries if entry.model is not None]
        self._serving.clear()
        self._reason = "the service is stopping"
        await asyncio.gather(*(model.stop() for model in models))

    def get(self, name: str, version: str | None = None) -> Model:
        """The model that answers: the named version, else the highest that is READY.

        Raises ModelNotFound that lists what there is, ModelNotReady with the reason.
        """
        if version is None:
            model = self._serving.get(name)
            if model is not None:
                return model
        if not self._is_started and name not in self._entries:
            raise ModelNotReady("the models are still loading", model=name[:SHOWN_NAME_LENGTH])
        entries = self._named(name)
        if version is None:
            entry = max(entries, key=lambda entry: entry.order)
        else:
            found = next((entry for entry in entries if entry.version == version), None)
            if found is None:
                versions = [entry.version for entry in entries if entry.version]
                raise ModelNotFound(
                    f'model "{name}" has no version {version[:SHOWN_NAME_LENGTH]}; there are {versions}',
                    model=name,
                    versions=versions,
                )
            entry = found
        if entry.model is None:
            reason = entry.reason or "it is still loading"
            raise ModelNotReady(
                f'model "{name}" is not ready: {reason}', model=name, version=entry.version or None, reason=reason
            )
        return entry.model

    def default_for(self, task: str) -> Model:
        """The model for requests that name none: the configured one, else the first by name that is READY for the task.

        Raises ModelNotFound when there is none, ModelNotReady when the configured one is not READY.
        """
        name = self._defaults.get(task)
        if name is not None:
            model = self.get(name)
            if model.manifest.task != task:
                raise ModelNotFound(
                    f'the default model "{name}" is for {model.manifest.task}, not for {task}', model=name, task=task
                )
            return model
        for name in sorted(self._serving):
            if self._serving[name].manifest.task == task:
                return self._serving[name]
        if not self._is_started:
            raise ModelNotReady("the models are still loading", task=task)
        raise ModelNotFound(f"there is no model for {task}", task=task, models=sorted(self._entries))

    def describe(self) -> list[dict[str, Any]]:
        """What `GET /models` lists: every name with its versions, and the state of the version that answers."""
        return [self._summary(name) for name in sorted(self._entries)]

    def describe_model(self, name: str) -> dict[str, Any]:
        """What `GET /models/{name}` says, also of a model that is not READY. Raises ModelNotFound."""
        self._named(name)
        summary = self._summary(name)
        model = self._serving.get(name)
        return summary if model is None else summary | model.describe()

    @property
    def is_ready(self) -> bool:
        """Whether loading is over and at least one model is READY."""
        return self._is_started and bool(self._serving)

    @property
    def reason(self) -> str | None:
        """Why it is not ready; None if it is."""
        return None if self.is_ready else self._reason

    @property
    def models(self) -> list[Model]:
        """Every version that is READY."""
        return [entry.model for entries in self._entries.values() for entry in entries if entry.model is not None]

    def __repr__(self) -> str:
        states = {f"{entry.name}/{entry.version}": entry.state for entries in self._entries.values() for entry in entries}
        return f"<Repository {self.models_dir} {states}>"

    async def _load(self, entry: Entry) -> None:
        if entry.state == "UNAVAILABLE":
            self._refuse(entry, entry.reason or "", 0.0)
            return
        started = time.perf_counter()
        folder = self.models_dir / entry.name / entry.version
        observer = self._observer.observer_of(entry.name, entry.version)
        opened = self._opened.folders.get((entry.name, entry.version)) if self._opened is not None else None
        examined, opened_s = opened or (None, 0.0)
        started -= opened_s
        try:
            model = await load_model(
                folder,
                self.options,
                observer=observer,
                clock=self._clock,
                open_graph=self._open_graph,
                examined=examined,
            )
        except FolderError as exc:
            self._refuse(entry, exc.message, time.perf_counter() - started)
            return
        except StartError:
            raise
        except Exception as exc:
            # A folder that breaks the reader in a way nobody thought of must not take the others with it.
            log.exception("model folder failed to load", extra={"model": entry.name, "version": entry.version})
            self._refuse(entry, f"loading failed: {type(exc).__name__}", time.perf_counter() - started)
            return
        entry.model, entry.state, entry.reason = model, "READY", None
        serving = self._serving.get(entry.name)
        if serving is None or int(serving.version) < entry.order:
            self._serving[entry.name] = model
        duration_s = time.perf_counter() - started
        self._observer.loaded(model, duration_s)
        log.info(
            "model is ready",
            extra={
                "model": model.name,
                "version": model.version,
                "provider": model.runtime.provider,
                "device": model.runtime.requested,
                "precision": model.graph.precision,
                **({"precision_note": model.precision_note} if model.precision_note else {}),
                "duration_s": round(duration_s, 3),
            },
        )

    def _refuse(self, entry: Entry, reason: str, duration_s: float) -> None:
        entry.state, entry.reason = "UNAVAILABLE", reason
        self._observer.unavailable(entry.name, entry.version, reason, duration_s)
        log.warning("model is unavailable", extra={"model": entry.name, "version": entry.version, "reason": reason})

    def _named(self, name: str) -> list[Entry]:
        entries = self._entries.get(name)
        if entries is None:
            models = sorted(self._entries)
            raise ModelNotFound(f'there is no model "{name[:SHOWN_NAME_LENGTH]}"; there are {models}', models=models)
        return entries

    def _summary(self, name: str) -> dict[str, Any]:
        entries = sorted(self._entries[name], key=lambda entry: entry.order)
        model = self._serving.get(name)
        entry = next((entry for entry in entries if entry.model is model), entries[-1]) if model is not None else entries[-1]
        about: dict[str, Any] = {"name": name, "version": entry.version or None, "state": entry.state}
        if entry.reason is not None:
            about["reason"] = entry.reason
        if model is not None:
            about |= model.summary
        about["versions"] = [
            {"version": entry.version, "state": entry.state} | ({"reason": entry.reason} if entry.reason else {})
            for entry in entries
            if entry.version
        ]
        return about


def open_folders(models_dir: Path, options: ModelOptions, open_graph: OpenRuntime = open_runtime) -> Opened:
    """Find, open and measure every model folder; no thread is started. Raises StartError like `Repository.start`."""
    entries, reason = _scan(models_dir)
    folders = {}
    for entry in entries:
        if entry.state == "UNAVAILABLE":
            continue
        started = time.perf_counter()
        try:
            examined = measured(examine(models_dir / entry.name / entry.version, options, open_graph), options)
        except StartError:
            raise
        except Exception:  # whoever loads it meets it again, and says so
            continue
        folders[entry.name, entry.version] = examined, time.perf_counter() - started
    return Opened(entries, reason, folders)


def _scan(models_dir: Path) -> tuple[list[Entry], str | None]:
    """What lies in the folder, nothing opened yet: entries that are LOADING, or UNAVAILABLE with the reason."""
    try:
        folders = sorted(path for path in models_dir.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
        root = models_dir.resolve(strict=True)
    except OSError as exc:
        return [], f"the models folder {models_dir} cannot be read: {exc.strerror}"
    entries: list[Entry] = []
    for folder in folders:
        if NAME.fullmatch(folder.name) is None:
            log.warning("folder is no model: its name", extra={"folder": folder.name, "expected": NAME.pattern})
            continue
        entries += _scan_model(folder, root)
    return entries, None if entries else f"the models folder {models_dir} holds no model folder"


def _scan_model(folder: Path, root: Path) -> list[Entry]:
    if not folder.resolve().is_relative_to(root):
        return [Entry(folder.name, "", "UNAVAILABLE", "the folder is a link that leads out of the models folder")]
    try:
        versions = [path for path in folder.iterdir() if VERSION.fullmatch(path.name) and path.is_dir()]
    except OSError as exc:
        return [Entry(folder.name, "", "UNAVAILABLE", f"the folder cannot be read: {exc.strerror}")]
    if not versions:
        return [Entry(folder.name, "", "UNAVAILABLE", "the folder holds no version: expected a folder named 1, 2, … in it")]
    return [_scan_version(path, root) for path in sorted(versions, key=lambda path: int(path.name))]


def _scan_version(folder: Path, root: Path) -> Entry:
    name, version = folder.parent.name, folder.name
    if not folder.resolve().is_relative_to(root):
        return Entry(name, version, "UNAVAILABLE", "the folder is a link that leads out of the models folder")
    if not (folder / MANIFEST_FILE).exists() and (folder / GRAPH_FILE).exists():
        reason = f"a plain graph: there is {GRAPH_FILE} but no {MANIFEST_FILE}, which this release needs to serve it"
        return Entry(name, version, "UNAVAILABLE", reason)
    return Entry(name, version)
