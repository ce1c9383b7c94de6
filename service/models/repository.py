"""All model folders: which are there, which are READY, and which model answers a request.

Reads below its own folder only. A broken folder is shown with its reason and never stops the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import logging
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from service.clock import Clock
from service.errors import AmbiguousModel, FolderError, InvalidInput, ModelNotFound, ModelNotReady, StartError
from service.models.choosing import SHOWN_NAME_LENGTH, SHOWN_NAMES, choose_model, list_names
from service.models.description import PLATFORM, describe_config, describe_model, describe_tensors, summarize_model
from service.models.folder import Examination, ModelOptions
from service.models.loading import load_model
from service.models.model import Model, ModelObserver, SilentModelObserver
from service.models.preloading import Preload
from service.models.scanning import LATEST, ModelVersion, VersionPins, highest_first, scan_models
from service.models.target import UNLOADED, Key, Target, TargetVersion, Withdrawal
from service.models.verification import Verdict, Verification, examine_verified
from service.runtime.base import OpenRuntime
from service.runtime.onnx_runtime import open_runtime
from service.scheduling.batching import Batcher
from service.scheduling.loop_budget import LoopBudget
from service.tasks.base import Endpoint

log = logging.getLogger(__name__)

Defaults = Mapping[tuple[str, str | None], str]
"""(task, purpose) → the model for requests that name none."""
# How long the runs of a model that is withdrawn may take to end.
END_GRACE_S = 5.0
# How often it is looked whether a model that was replaced has requests left, and for how long at most.
DRAIN_INTERVAL_S = 0.05
MAX_DRAIN_S = 60.0
# While a thread loads a model, the event loop gets the interpreter back after so long rather than after 5 ms.
LOADING_SWITCH_S = 0.0005


class RepositoryObserver(Protocol):
    """Events of a repository, always reported on the event loop."""

    def observer_of(self, name: str, version: str) -> ModelObserver:
        """The observer of the model that is about to be loaded."""
        ...

    def loaded(self, model: Model, duration_s: float) -> None:
        """The model is READY."""
        ...

    def unavailable(self, name: str, version: str, reason: str, duration_s: float) -> None:
        """The folder cannot be served."""
        ...

    def update_failed(self, name: str, version: str) -> None:
        """Changed files of a version cannot be served; what they were before goes on being served."""
        ...

    def unloaded(self, name: str, version: str) -> None:
        """The version is served no more, nor shown."""
        ...


class SilentRepositoryObserver:
    """Ignores every event."""

    def observer_of(self, name: str, version: str) -> ModelObserver:
        return SilentModelObserver()

    def loaded(self, model: Model, duration_s: float) -> None:
        pass

    def unavailable(self, name: str, version: str, reason: str, duration_s: float) -> None:
        pass

    def update_failed(self, name: str, version: str) -> None:
        pass

    def unloaded(self, name: str, version: str) -> None:
        pass


@dataclass(frozen=True)
class ExampleRequest:
    """A request that one of the models answers, as the start message prints it."""

    path: str
    body: dict[str, Any]


@dataclass(frozen=True)
class _Prepared:
    """A model that is loaded and not yet in service."""

    folder: str
    model: Model
    duration_s: float


class Repository:
    """The models of some folders, by name and version. All methods belong to one event loop."""

    def __init__(
        self,
        models_dirs: Path | Sequence[Path],
        options: ModelOptions | None = None,
        *,
        pins: VersionPins | None = None,
        defaults: Defaults | None = None,
        strict_readiness: bool = True,
        observer: RepositoryObserver | None = None,
        clock: Clock | None = None,
        loop_budget: LoopBudget | None = None,
        open_graph: OpenRuntime = open_runtime,
        preload: Preload | None = None,
        verification: Verification | None = None,
        on_stuck: Callable[[], None] = lambda: None,
        may_be_empty: bool = False,
    ) -> None:
        """`strict_readiness`: ready is when every folder is READY, else when one is. All models share the `loop_budget` of the
        event loop. `preload` is what `preload_folders` found with the same `pins`; `verification` verifies what was not
        preloaded, None: nothing does but the load itself. `on_stuck` is called when a graph runs that cannot be ended. With
        `may_be_empty` it is ready with nothing to serve. Models come by `start`, or by `prepare` and `apply`.
        """
        self.models_dirs = [models_dirs] if isinstance(models_dirs, Path) else list(models_dirs)
        self._pins = dict(pins or {})
        self.options = options or ModelOptions()
        self._tasks = self.options.tasks
        self._defaults = dict(defaults or {})
        self._strict_readiness = strict_readiness
        self._observer: RepositoryObserver = observer or SilentRepositoryObserver()
        self._clock = clock
        self._loop_budget = loop_budget or LoopBudget()
        self._open_graph = open_graph
        self._preload = preload
        self._preloaded = {(entry.key, entry.folder) for entry in preload.entries} if preload is not None else frozenset()
        self._verification = verification
        self._on_stuck = on_stuck
        self.on_withdrawn: Callable[[Withdrawal], None] = lambda _: None
        """Called when a version was taken out of service for what its graph did."""
        self.on_retired: Callable[[], None] = lambda: None
        """Called when a model that was replaced or unloaded has ended, and nothing holds its graph any more."""
        self._withdrawn: dict[tuple[Key, Path], str] = {}
        self._withdrawals: set[asyncio.Task[None]] = set()
        self._entries: dict[str, list[ModelVersion]] = {}
        self._serving: dict[str, Model] = {}
        self._candidates: dict[tuple[str, str | None], list[Model]] = {}
        self._may_be_empty = may_be_empty
        self._prepared: dict[Key, _Prepared] = {}
        self._unloaded: list[TargetVersion] = []
        self._drains: dict[asyncio.Task[bool], Key] = {}
        self._is_started = False
        self._reason: str | None = "the models are still loading"
        """Why nothing is served, where no folder is to blame."""

    async def start(self) -> None:
        """Load every folder, on threads. Raises StartError, and nothing else: a missing runtime or GPU concerns them all."""
        if self._preload is None:
            entries, reason = await asyncio.to_thread(scan_models, self.models_dirs, self._pins)
        else:
            entries, reason = self._preload.entries, self._preload.reason
        for entry in entries:
            self._entries.setdefault(entry.name, []).append(entry)
        failures = await asyncio.gather(*(self._load_versions(name) for name in self._entries), return_exceptions=True)
        for failure in failures:
            if failure is not None:
                await self.stop()
                raise failure
        self._is_started, self._reason = True, reason

    async def prepare(self, target: Target) -> dict[Key, str]:
        """Load what the target serves and is not loaded, beside what is served; the reasons for what cannot be loaded.

        Raises StartError like `start`. `apply` puts it into service, `abort` drops it.
        """
        self.abort()
        interval_s = sys.getswitchinterval()
        sys.setswitchinterval(LOADING_SWITCH_S)
        try:
            return await self._prepare(target)
        finally:
            sys.setswitchinterval(interval_s)

    async def _prepare(self, target: Target) -> dict[Key, str]:
        failures: dict[Key, str] = {}
        for each in target:
            if each.folder is None or self._is_loaded(each) or (each.key, Path(each.folder)) in self._withdrawn:
                continue
            entry = ModelVersion(each.name, each.version, folder=Path(each.folder))
            started = time.perf_counter()
            try:
                model = await self._open(entry, each.verdict)
            except FolderError as exc:
                failures[each.key] = exc.message
            else:
                self._prepared[each.key] = _Prepared(each.folder, model, time.perf_counter() - started)
        return failures

    def abort(self) -> None:
        """Drop what was prepared and not applied."""
        for key, prepared in self._prepared.items():
            self._retire(key, prepared.model)
        self._prepared.clear()

    def apply(self, target: Target) -> None:
        """Serve the target from here on, all of it at once. What it does not hold is unloaded when its requests are answered.

        A version that it serves and that is neither loaded nor prepared is LOADING.
        """
        before = {entry.key: entry for entries in self._entries.values() for entry in entries}
        self._entries, self._serving = {}, {}
        self._unloaded = [each for each in target if each.reason == UNLOADED]
        folders = {(each.key, Path(each.folder)) for each in target if each.folder is not None}
        self._withdrawn = {place: reason for place, reason in self._withdrawn.items() if place in folders}
        for each in target:
            if each.reason != UNLOADED:
                entry = self._renew(each, before.get(each.key))
                self._entries.setdefault(each.name, []).append(entry)
        for entries in self._entries.values():
            for entry in entries:
                serving = self._serving.get(entry.name)
                if entry.model is not None and (serving is None or int(serving.version) < entry.order):
                    self._serving[entry.name] = entry.model
        self._candidates.clear()
        self._is_started, self._reason = True, None if self._entries or self._may_be_empty else "there is no model folder"
        after = {entry.key: entry for entries in self._entries.values() for entry in entries}
        for key, entry in before.items():
            model, entry.model = entry.model, None
            if model is None and key not in after:
                self._observer.unloaded(*key)
            if model is not None and (key not in after or after[key].model is not model):
                self._retire(key, model)

    def withdraw(self, withdrawal: Withdrawal) -> None:
        """Take a version out of service that another process has withdrawn, when its requests are answered; or never serve it."""
        place = (withdrawal.key, Path(withdrawal.folder))
        if place in self._withdrawn:
            return
        self._withdrawn[place] = withdrawal.reason
        entry = next((each for each in self._entries.get(withdrawal.name, ()) if (each.key, each.folder) == place), None)
        if entry is None or entry.model is None:
            return
        model, entry.model = entry.model, None
        self._choose_serving(entry.name)
        self._refuse(entry, withdrawal.reason, 0.0)
        self._retire(entry.key, model)

    @property
    def withdrawals(self) -> list[Withdrawal]:
        """What was taken out of service, here or in another process, and is still to be served as far as is known here."""
        return [Withdrawal(*key, str(folder), reason) for (key, folder), reason in self._withdrawn.items()]

    async def stop(self) -> None:
        """Let every model answer what waits, then end its threads."""
        self.abort()
        for drain in self._drains:
            drain.cancel()
        await asyncio.gather(*self._drains, return_exceptions=True)
        models = [entry.model for entries in self._entries.values() for entry in entries if entry.model is not None]
        self._serving.clear()
        self._candidates.clear()
        self._is_started, self._reason = False, "the service is stopping"
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
                    f'model "{name}" has no version {version[:SHOWN_NAME_LENGTH]}; there are {list_names(versions)}',
                    model=name,
                    versions=versions[:SHOWN_NAMES],
                )
            entry = found
        if entry.model is None:
            reason = entry.reason or "it is still loading"
            raise ModelNotReady(
                f'model "{name}" is not ready: {reason}', model=name, version=entry.version or None, reason=reason
            )
        return entry.model

    def choose(
        self, task: str, instances: Sequence[object], parameters: Mapping[str, object], *, purpose: str | None = None
    ) -> Model:
        """The model for a request that names none: the only READY one for the task and the purpose that fits the request.

        What of a request decides, such as a frequency, is the task's affair. Where nothing decides, or several fit, the model
        that the operator configured is taken. Raises AmbiguousModel that lists the models where several are left,
        InvalidInput where none fits, ModelNotFound where there is none, and ModelNotReady while the models are loading and
        where the configured one is not READY.
        """
        key = (task, purpose)
        default = self._defaults.get(key)
        criterion = None
        if default is not None:
            criterion = self._tasks[task].criterion(instances, parameters)
            if criterion is None:
                return self._get_default(default, task)
        candidates = self._candidates.get(key)
        if candidates is None:
            candidates = self._candidates[key] = self._find_candidates(task, purpose)
        if len(candidates) == 1:
            return candidates[0]  # which refuses by itself what it does not fit
        if not candidates:
            models = sorted(self._entries)
            raise ModelNotFound(
                f"there is no model for {purpose or task}; there are {list_names(models)}", task=task, models=models[:SHOWN_NAMES]
            )
        if default is None:
            criterion = self._tasks[task].criterion(instances, parameters)
        return choose_model(criterion, candidates, default, task)

    def only(self) -> Model:
        """The model for a request of a protocol that names none, of whatever task: the only one that is READY.

        Raises AmbiguousModel that lists the models where there are several, ModelNotFound where there is none, and ModelNotReady
        while they are loading.
        """
        if not self._is_started:
            raise ModelNotReady(self._reason or "the models are still loading")
        names = sorted(self._serving)
        if not names:
            raise ModelNotFound("there is no model that is ready", models=sorted(self._entries)[:SHOWN_NAMES])
        if len(names) > 1:
            raise AmbiguousModel(
                f"there are several models, the request has to name one of {list_names(names)}", candidates=names[:SHOWN_NAMES]
            )
        return self._serving[names[0]]

    def restricted_to(self, names: frozenset[str]) -> Self:
        """The models of these names, to answer one request with: of all others it is as if their folders were not there."""
        view = copy.copy(self)
        view._entries = {name: self._entries[name] for name in names if name in self._entries}
        view._serving = {name: self._serving[name] for name in names if name in self._serving}
        view._defaults = {key: name for key, name in self._defaults.items() if name in names}
        view._candidates = {}
        view._unloaded = [each for each in self._unloaded if each.name in names]
        view._drains = {drain: key for drain, key in self._drains.items() if key[0] in names}
        return view

    def example_request(self) -> ExampleRequest | None:
        """A request that shows what the models are for; None where none has a short one."""
        for definition in self._tasks:
            models = [model for _, model in sorted(self._serving.items()) if model.task == definition.name]
            for model in models:
                instance = definition.example_instance(model.manifest)
                if instance is None:
                    continue
                for endpoint in definition.endpoints:
                    if self._answers(endpoint, model, instance):
                        return ExampleRequest(endpoint.path, {"instances": [instance]})
                return ExampleRequest("/predict", {"model": model.name, "instances": [instance]})
        return None

    def describe(self) -> list[dict[str, Any]]:
        """What `GET /models` lists: every name with its versions, and the state of the version that answers."""
        return [self._summarize(name) for name in sorted(self._entries)]

    def describe_model(self, name: str) -> dict[str, Any]:
        """What `GET /models/{name}` says, also of a model that is not READY. Raises ModelNotFound."""
        self._named(name)
        summary = self._summarize(name)
        model = self._serving.get(name)
        return summary if model is None else summary | describe_model(model)

    def describe_tensors(self, name: str, version: str | None = None) -> dict[str, Any]:
        """The metadata of the model that answers, as the Open Inference Protocol has it. Raises what `get` raises."""
        model = self.get(name, version)
        versions = [entry.version for entry in sorted(self._entries[name], key=lambda entry: entry.order) if entry.model]
        return {"name": name, "versions": versions, "platform": PLATFORM, **describe_tensors(model)}

    def describe_config(self, name: str, version: str | None, max_rows: int) -> dict[str, Any]:
        """The configuration of the model that answers, as Triton has it. Raises what `get` raises."""
        return describe_config(self.get(name, version), max_rows)

    def index(self) -> list[dict[str, str]]:
        """Every version with its state, and the reason where it is not READY, as the repository extension lists them."""
        return [
            {"name": name}
            | ({"version": entry.version} if entry.version else {})
            | {"state": entry.state}
            | ({"reason": entry.reason} if entry.reason else {})
            for name in sorted(self._entries)
            for entry in sorted(self._entries[name], key=lambda entry: entry.order)
        ] + self._index_unloaded()

    @property
    def is_ready(self) -> bool:
        """Whether loading is over and every folder is READY, without `strict_readiness` one of them."""
        if not self._is_started:
            return False
        if not self._serving:
            return self._may_be_empty and not self._entries
        return not self._strict_readiness or not self._broken

    @property
    def reason(self) -> str | None:
        """Why it is not ready; None if it is."""
        if self.is_ready:
            return None
        if self._reason is not None:
            return self._reason
        broken = self._broken or [entry for entries in self._entries.values() for entry in entries]
        num_folders = sum(map(len, self._entries.values()))
        if not self._serving:
            return f"none of the {num_folders} model folders can be served"
        first = broken[0]
        others = f"; {len(broken)} of {num_folders} folders cannot be served" if len(broken) > 1 else ""
        return f"model folder {first.path} is {first.state}: {first.reason or 'it is still loading'}{others}"

    @property
    def is_serving(self) -> bool:
        """Whether any model is READY, whatever the others are."""
        return bool(self._serving)

    @property
    def models(self) -> list[Model]:
        """Every version that is READY."""
        return [entry.model for entries in self._entries.values() for entry in entries if entry.model is not None]

    def __repr__(self) -> str:
        states = {f"{entry.name}/{entry.version}": entry.state for entries in self._entries.values() for entry in entries}
        return f"<Repository {self._shown_dirs} {states}>"

    async def _load_versions(self, name: str) -> None:
        """Load what there is of one model: every version, or the highest valid one where it is pinned to that."""
        entries = self._entries[name]
        if LATEST not in self._pins.get(name, ()):
            failures = await asyncio.gather(*map(self._load, entries), return_exceptions=True)
            for failure in failures:
                if failure is not None:
                    raise failure
            return
        tried = []
        for entry in highest_first(entries):
            tried.append(entry)
            await self._load(entry)
            if entry.model is not None:
                break
        self._entries[name] = tried

    async def _load(self, entry: ModelVersion) -> None:
        if entry.state == "UNAVAILABLE":
            self._refuse(entry, entry.reason or "", 0.0)
            return
        started = time.perf_counter()
        preloaded = self._find_preloaded(entry)
        started -= preloaded[1] if preloaded is not None else 0.0
        try:
            model = await self._open(entry)
        except FolderError as exc:
            self._refuse(entry, exc.message, time.perf_counter() - started)
            return
        if (reason := self._withdrawn.get((entry.key, entry.folder))) is not None:
            self._refuse(entry, reason, time.perf_counter() - started)
            await model.stop()
            return
        self._put_into_service(entry, model, time.perf_counter() - started)
        self._choose_serving(entry.name)

    async def _open(self, entry: ModelVersion, verdict: Verdict | None = None) -> Model:
        """The model of a folder, started; `verdict` is what was found of it, where that is known.

        Raises FolderError, whatever is wrong with the folder, and StartError.
        """
        preloaded = self._find_preloaded(entry)
        examination = None if preloaded is None else preloaded[0]
        try:
            if examination is None and verdict is None and self._verification is not None:
                verdict = await self._verification.verdict(entry.name, entry.version)
            if examination is None and verdict is not None:
                examination = await asyncio.to_thread(
                    examine_verified, entry.folder, self.options, self._open_graph, verdict, entry.key
                )
            return await load_model(
                entry.folder,
                self.options,
                observer=self._observer.observer_of(entry.name, entry.version),
                clock=self._clock,
                loop_budget=self._loop_budget,
                open_graph=self._open_graph,
                examination=examination,
                identity=entry.key,
            )
        except (FolderError, StartError):
            raise
        except Exception as exc:
            # A folder that breaks the reader in an unforeseen way must not take the others with it.
            log.exception("model folder failed to load", extra={"model": entry.name, "version": entry.version})
            raise FolderError(f"loading failed: {type(exc).__name__}") from exc

    def _find_preloaded(self, entry: ModelVersion) -> tuple[Examination, float] | None:
        """What another process found of this very folder, and the seconds it took."""
        if self._preload is None or (entry.key, entry.folder) not in self._preloaded:
            return None
        return self._preload.examinations.get(entry.key)

    def _is_loaded(self, each: TargetVersion) -> bool:
        assert each.folder is not None
        entries = self._entries.get(each.name, ())
        return any(entry.key == each.key and entry.model is not None and entry.folder == Path(each.folder) for entry in entries)

    def _renew(self, each: TargetVersion, before: ModelVersion | None) -> ModelVersion:
        """The entry for a version of the target, with the model that is prepared for it or that it has already."""
        entry = ModelVersion(each.name, each.version, each.state, each.reason, is_update=each.is_update)
        if each.folder is None:
            if each.state == "UNAVAILABLE" and (before is None or before.reason != each.reason):
                self._refuse(entry, each.reason or "", 0.0)
            return entry
        entry.folder = Path(each.folder)
        prepared = self._prepared.get(each.key)
        if prepared is not None and prepared.folder == each.folder:
            del self._prepared[each.key]
            self._put_into_service(entry, prepared.model, prepared.duration_s)
            entry.reason = each.reason
        elif before is not None and before.model is not None and before.folder == entry.folder:
            entry.model, entry.state = before.model, "READY"
            if each.reason is not None and each.reason != before.reason:
                self._observer.update_failed(*each.key)
        elif (reason := self._withdrawn.get((each.key, entry.folder))) is not None:
            entry.state, entry.reason = "UNAVAILABLE", reason
        else:
            entry.state = "LOADING"
        return entry

    def _retire(self, key: Key, model: Model) -> None:
        """Stop a model that no new request finds, once those that have found it are answered."""
        task = asyncio.get_running_loop().create_task(_drain(weakref.ref(model), model.batcher))
        self._drains[task] = key
        task.add_done_callback(self._finish_drain)

    def _finish_drain(self, drain: asyncio.Task[bool]) -> None:
        key = self._drains.pop(drain)
        self.on_retired()
        if not drain.result():
            log.error("a run of the graph cannot be ended", extra={"model": key[0], "version": key[1]})
            self._on_stuck()
        if not any(entry.key == key for entry in self._entries.get(key[0], ())):
            self._observer.unloaded(*key)

    def _index_unloaded(self) -> list[dict[str, str]]:
        there = {entry.key for entries in self._entries.values() for entry in entries}
        gone = {key: {"state": "UNLOADING"} for key in self._drains.values()}
        gone |= {each.key: {"state": "UNAVAILABLE", "reason": UNLOADED} for each in self._unloaded if each.key not in gone}
        return [
            {"name": name} | ({"version": version} if version else {}) | state
            for (name, version), state in sorted(gone.items())
            if (name, version) not in there
        ]

    def _put_into_service(self, entry: ModelVersion, model: Model, duration_s: float) -> None:
        entry.model, entry.state, entry.reason = model, "READY", None
        # By reference, for what holds a model is its requests.
        model.on_overdue = functools.partial(self._withdraw, entry.key, weakref.ref(model))
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

    def _choose_serving(self, name: str) -> None:
        """Have the highest version that is READY answer for this name."""
        ready = [entry for entry in self._entries[name] if entry.model is not None]
        if not ready:
            self._serving.pop(name, None)
        else:
            best = max(ready, key=lambda entry: entry.order)
            assert best.model is not None
            self._serving[name] = best.model
        self._candidates.clear()

    def _withdraw(self, key: Key, reference: weakref.ref[Model]) -> None:
        """Take a model out of service whose graph ran for too long."""
        model = reference()
        entry = next((entry for entry in self._entries.get(key[0], ()) if entry.model is model), None)
        if model is None or entry is None:
            return
        reason = f"a run of its graph took more than {self.options.max_run_s:g} s and was ended"
        entry.model = None
        self._withdrawn[key, entry.folder] = reason
        self._choose_serving(entry.name)
        self._refuse(entry, reason, 0.0)
        self.on_withdrawn(Withdrawal(*key, str(entry.folder), reason))
        task = asyncio.get_running_loop().create_task(self._end_runs(model))
        self._withdrawals.add(task)
        task.add_done_callback(self._withdrawals.discard)

    async def _end_runs(self, model: Model) -> None:
        await model.batcher.stop(drain=False, grace_s=END_GRACE_S)
        if await model.batcher.has_ended(END_GRACE_S):
            return
        log.error("a run of the graph cannot be ended", extra={"model": model.name, "version": model.version})
        self._on_stuck()

    def _find_candidates(self, task: str, purpose: str | None) -> list[Model]:
        """The READY models of a task that answer for a purpose, by name. Raises ModelNotReady while there may be more."""
        if not self._is_started:
            # Else the same request would be answered by one model now, and by another when that is loaded.
            raise ModelNotReady(self._reason or "the models are still loading", task=task)
        definition = self._tasks[task]
        models = [model for _, model in sorted(self._serving.items()) if model.task == task]
        models = [model for model in models if purpose is None or definition.serves(model.manifest, purpose)]
        return [model for model in models if not definition.is_special(model.manifest)] or models

    def _get_default(self, name: str, task: str) -> Model:
        model = self.get(name)
        if model.task != task:
            raise ModelNotFound(f'the default model "{name}" is for {model.task}, not for {task}', model=name, task=task)
        return model

    def _answers(self, endpoint: Endpoint, model: Model, instance: object) -> bool:
        """Whether this model is chosen for the instance where a request to the endpoint names none."""
        try:
            return self.choose(endpoint.task, [instance], {}, purpose=endpoint.purpose) is model
        except (AmbiguousModel, InvalidInput, ModelNotFound, ModelNotReady):
            return False

    @property
    def _shown_dirs(self) -> str:
        return ", ".join(map(str, self.models_dirs))

    @property
    def _broken(self) -> list[ModelVersion]:
        """The folders that are not READY, by name and version."""
        entries = [entry for name in sorted(self._entries) for entry in self._entries[name]]
        return [entry for entry in entries if entry.state != "READY" and not entry.is_update]

    def _refuse(self, entry: ModelVersion, reason: str, duration_s: float) -> None:
        entry.state, entry.reason = "UNAVAILABLE", reason
        self._observer.unavailable(entry.name, entry.version, reason, duration_s)
        log.warning("model is unavailable", extra={"model": entry.name, "version": entry.version, "reason": reason})

    def _named(self, name: str) -> list[ModelVersion]:
        entries = self._entries.get(name)
        if entries is None:
            models = sorted(self._entries)
            raise ModelNotFound(
                f'there is no model "{name[:SHOWN_NAME_LENGTH]}"; there are {list_names(models)}', models=models[:SHOWN_NAMES]
            )
        return entries

    def _summarize(self, name: str) -> dict[str, Any]:
        entries = sorted(self._entries[name], key=lambda entry: entry.order)
        model = self._serving.get(name)
        entry = next((entry for entry in entries if entry.model is model), entries[-1]) if model is not None else entries[-1]
        about: dict[str, Any] = {"name": name, "version": entry.version or None, "state": entry.state}
        if entry.reason is not None:
            about["reason"] = entry.reason
        if model is not None:
            about |= summarize_model(model)
        about["versions"] = [
            {"version": entry.version, "state": entry.state} | ({"reason": entry.reason} if entry.reason else {})
            for entry in entries
            if entry.version
        ]
        return about


async def _drain(model: weakref.ref[Model], batcher: Batcher[Any, Any]) -> bool:
    """Stop a model when nothing holds it but its own threads: its requests do, from when they find it until they are answered.

    False where a run of its graph cannot be ended.
    """
    with contextlib.suppress(asyncio.CancelledError):
        deadline = time.monotonic() + MAX_DRAIN_S
        while model() is not None and time.monotonic() < deadline:  # noqa: ASYNC110  # the end of a reference wakes nobody
            await asyncio.sleep(DRAIN_INTERVAL_S)
    await batcher.stop()
    return await batcher.has_ended(END_GRACE_S)
