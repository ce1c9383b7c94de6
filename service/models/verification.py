"""Model folders verified in processes that can be killed, before the server opens them.

Each folder is opened there, its example replayed and its graph measured: a graph that never ends, or takes all memory, ends its
process and not the server. What comes back is what was found, so that nobody has to run the graph again before it serves.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from service.errors import ServiceError
from service.manifest import Precision
from service.models.folder import NOTHING_KNOWN, Examination, ModelOptions, examine
from service.models.graph_scan import GraphScan
from service.models.loading import open_and_replay, with_tuning
from service.models.scanning import ModelVersion, VersionPins, highest_first, scan_models
from service.runtime.base import CPU, OpenRuntime
from service.runtime.onnx_runtime import open_runtime
from service.scheduling.tuning import Tuning

log = logging.getLogger(__name__)

# Measuring all graphs may take so long together; each has an equal part of it, at most what the options say.
MEASURE_ALL_S = 5.0

Name = tuple[str, str]
"""Name and version of a model."""
Report = Callable[[str], None]


@dataclass(frozen=True)
class Verdict:
    """What was found of a version folder."""

    findings: list[str]
    """What is wrong with it, in sentences."""
    precision: Precision | None = None
    """Of the graph that answered the example."""
    sha256: str | None = None
    """Of that graph."""
    precision_note: str | None = None
    tuning: Tuning | None = None
    is_batched: bool | None = None
    """As `Parts.is_batched`, for a folder that holds a graph alone."""
    scan: GraphScan | None = None
    """What the bytes of that graph say."""


class JobFailure(Protocol):
    """What became of a job without a result."""

    @property
    def reason(self) -> str: ...

    @property
    def stage(self) -> str: ...


class RunJobs(Protocol):
    """Runs jobs in processes that can be killed (`process/sandbox.py`)."""

    def __call__(
        self, jobs: Sequence[Name], work: Callable[[Name, Report], Verdict]
    ) -> Iterator[tuple[Name, Verdict | JobFailure]]: ...


class Receiver(Protocol):
    """The end of a pipe that verdicts come from."""

    def recv(self) -> Any: ...

    def fileno(self) -> int: ...

    def close(self) -> None: ...


def verify_folders(
    folders: Path | Sequence[Path],
    options: ModelOptions,
    run: RunJobs,
    send: Callable[[tuple[Name, Verdict]], None],
    pins: VersionPins | None = None,
) -> None:
    """Verify every version folder below these folders, and send what was found of each."""
    entries, _ = scan_models(folders, pins)
    verify_versions(entries, options, run, send)


def verify_versions(
    entries: Sequence[ModelVersion], options: ModelOptions, run: RunJobs, send: Callable[[tuple[Name, Verdict]], None]
) -> None:
    """Verify these versions, and send what was found of each."""
    # In the order in which they are opened, so that who opens them waits for none that comes later.
    folders = {entry.key: entry.folder for entry in highest_first(entries) if entry.state != "UNAVAILABLE"}
    names = list(folders)
    options = replace(options, device="cpu", measure_s=min(options.measure_s, MEASURE_ALL_S / max(1, len(names))))
    for name, outcome in run(names, functools.partial(_verify, folders, options)):
        if not isinstance(outcome, Verdict):
            stage = f" while {outcome.stage}" if outcome.stage else ""
            outcome = Verdict([f"its verification failed{stage}: {outcome.reason}"])
        send((name, outcome))


def _verify(folders: Mapping[Name, Path], options: ModelOptions, name: Name, report: Report) -> Verdict:
    return verify(name, folders[name], options, report)


def verify(
    name: Name,
    folder: Path,
    options: ModelOptions,
    report: Report = lambda _: None,
    open_graph: OpenRuntime = open_runtime,
) -> Verdict:
    """What is found of one version folder, whatever that is; `report` is called with each stage. Runs its own event loop."""
    try:
        report("its graph was opened and its example replayed")
        examination = _open_and_replay(name, folder, options, open_graph)
        report("its graph was measured")
        parts, findings = with_tuning(examination, options)
    except ServiceError as exc:
        return Verdict([exc.message])
    except MemoryError:
        return Verdict(["it takes more memory than SLUICE_LOAD_MEMORY_BYTES"])
    except Exception as exc:
        log.exception("model folder failed to load", extra={"model": name[0], "version": name[1]})
        return Verdict([f"loading failed: {type(exc).__name__}"])
    if parts is None or findings:
        return Verdict(findings)
    is_batched = parts.is_batched if parts.is_plain else None
    return Verdict([], parts.graph.precision, parts.graph.sha256, parts.precision_note, parts.tuning, is_batched, parts.scan)


def _open_and_replay(name: Name, folder: Path, options: ModelOptions, open_graph: OpenRuntime) -> Examination:
    """As `open_and_replay`, in an event loop of its own."""
    examination = examine(folder, options, open_graph, name)  # on no thread: nothing waits here

    async def replay() -> None:
        nonlocal examination
        examination = await open_and_replay(folder, options, open_graph, examination, name)

    # It returns nothing: asyncio.run before Python 3.12 writes the `repr` of what it returns into an error that it drops, which
    # takes 2 ms of a manifest.
    asyncio.run(replay())
    return examination


def examine_verified(
    folder: Path, options: ModelOptions, open_graph: OpenRuntime, verdict: Verdict, identity: Name | None = None
) -> Examination:
    """Open a folder as it was verified. Raises StartError like `examine`."""
    if verdict.findings:
        return Examination(None, verdict.findings)
    assert verdict.precision is not None
    requested = replace(options, precision=verdict.precision)
    known = {verdict.sha256: verdict.scan} if verdict.sha256 is not None and verdict.scan is not None else NOTHING_KNOWN
    parts, findings = examine(folder, requested, open_graph, identity, is_batched=verdict.is_batched, known=known)
    if parts is None or findings:
        return Examination(None, findings)
    if parts.runtime.provider != CPU:  # verified is what it does on the CPU: the device has its own checks, and its own cost
        return examine(folder, options, open_graph, identity)
    if parts.graph.sha256 != verdict.sha256:
        return Examination(None, ["its graph has changed since it was verified"])
    parts = replace(parts, precision_note=verdict.precision_note, tuning=verdict.tuning, is_verified=True)
    return Examination(parts, [])


class Verification:
    """The verdicts on all folders, as they come from the process that verifies them; or those that are known already."""

    def __init__(
        self,
        receiver: Receiver | None = None,
        *,
        known: Mapping[Name, Verdict] | None = None,
        kill: Callable[[], None] | None = None,
    ) -> None:
        self._receiver = receiver
        self._kill = kill
        self._verdicts = dict(known or {})
        self._waiting: dict[Name, asyncio.Future[Verdict]] = {}

    async def verdict(self, name: str, version: str) -> Verdict:
        """What was found of a folder, when that is known. All calls are of one event loop."""
        key = name, version
        if key in self._verdicts or self._receiver is None:
            return self._verdicts.get(key, UNSEEN)
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.add_reader(self._receiver.fileno(), self._receive, loop)
        if key not in self._waiting:
            self._waiting[key] = loop.create_future()
        return await self._waiting[key]

    def wait_for(self, key: Name) -> Verdict:
        """What was found of a folder; blocks until that is known. To be called where no event loop runs."""
        while key not in self._verdicts and self._receiver is not None:
            self._receive_one()
        return self._verdicts.get(key, UNSEEN)

    def collect(self) -> dict[Name, Verdict]:
        """All verdicts; waits for them."""
        while self._receiver is not None:
            self._receive_one()
        return self._verdicts

    def stop(self) -> None:
        """End the process that verifies."""
        if self._kill is not None:
            self._kill()
            self._kill = None

    def _receive(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._receiver is not None
        number = self._receiver.fileno()
        key = self._receive_one()
        finished = list(self._waiting) if key is None else [key]
        for name in finished:
            future = self._waiting.pop(name, None)
            if future is not None and not future.done():
                future.set_result(self._verdicts.get(name, UNSEEN))
        if key is None:
            loop.remove_reader(number)

    def _receive_one(self) -> Name | None:
        assert self._receiver is not None
        try:
            key, verdict = self._receiver.recv()
        except (EOFError, OSError):
            self._receiver.close()
            self._receiver = None
            self.stop()  # it has nothing more to send: reaped here, or it would stay as a zombie as long as the server
            return None
        self._verdicts[key] = verdict
        name: Name = key
        return name


UNSEEN = Verdict(["it was not verified: it was added while the others were, or its verification was ended"])
