"""The process that decides what the workers of a server serve: wired from its settings, it runs until its parent ends it.

It serves no requests and opens no graph itself: folders are copied and verified in children that can be killed.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.app import model_options
from service.errors import FolderError, ServiceError
from service.models.controller import Controller, Failure, MemberLost, Snapshot, State, Verify
from service.models.folder import ModelOptions
from service.models.packing import PACKED_FOLDER, keep_packed, pack_graph
from service.models.preloading import Preload, examine_versions
from service.models.scanning import LATEST, ModelVersion, scan_models
from service.models.snapshots import copy_version
from service.models.target import Key, Target, Withdrawal, write_target
from service.models.verification import UNSEEN, Verdict, verify
from service.observability.logs import set_up_logs
from service.observability.prometheus import reload_counter
from service.process.jobs import JobFailed, run_job
from service.process.machine import memory_bytes
from service.process.messages import Message, MessageStream, serve
from service.settings import Settings

log = logging.getLogger(__name__)

SOCKET_FILE = "control"
STATE_FILE = "state"
PARENT_INTERVAL_S = 1.0


def socket_path(folder: Path) -> Path:
    """Where workers reach the controlling process that has this folder."""
    return folder / SOCKET_FILE


def preload_state(
    settings: Settings,
    folder: Path,
    verify_all: Callable[[Sequence[ModelVersion]], Mapping[Key, Verdict] | None],
    *,
    opens_graphs: bool,
) -> tuple[State, Preload]:
    """What is served at first: every version that the settings name, copied into `folder`, and what was found of each copy.

    `verify_all` gives a verdict on each copy, or None where nothing verifies them before they are opened. With `opens_graphs`
    that is done here, for workers that are forked afterwards. Raises StartError.
    """
    pins = settings.version_pins
    entries, reason = scan_models(settings.model_folders, pins)
    names = settings.models_to_load
    if names is not None:
        there = {entry.name for entry in entries}
        missing = [
            ModelVersion(name, "", "UNAVAILABLE", "SLUICE_LOAD_MODELS names it, and there is no such folder")
            for name in sorted(names - there)
        ]
        entries = [entry for entry in entries if entry.name in names] + missing
    failed: dict[Key, Failure] = {}
    copies: dict[Key, Snapshot] = {}
    for number, entry in enumerate(entries):
        if entry.reason is not None:
            failed[entry.key] = Failure(entry.reason, None, is_update=False)
            continue
        target = folder / f"start-{number}" / entry.name / entry.version
        try:
            copies[entry.key] = Snapshot(str(target), copy_version(entry.folder, target))
        except FolderError as exc:
            failed[entry.key] = Failure(exc.message, None, is_update=False)
    copied = [ModelVersion(*key, folder=Path(each.folder)) for key, each in copies.items()]
    verdicts = verify_all(copied)
    examinations = {}
    if opens_graphs:
        find_verdict = None if verdicts is None else lambda key: verdicts.get(key, UNSEEN)
        examinations = examine_versions(copied, model_options(settings), find_verdict=find_verdict, pins=pins)
    preload = Preload(copied, reason, examinations)
    served: dict[Key, Snapshot] = {}
    for entry in sorted(copied, key=lambda entry: entry.order, reverse=True):
        key = entry.key
        if LATEST in pins.get(key[0], ()) and any(other[0] == key[0] for other in served):
            continue
        verdict = None if verdicts is None else verdicts.get(key, UNSEEN)
        findings = verdict.findings if verdict is not None else []
        if not findings and key in examinations:
            findings = examinations[key][0].findings
        if findings:
            failed[key] = Failure("; ".join(findings[:3]), copies[key].fingerprint, is_update=False)
        else:
            served[key] = copies[key]._replace(verdict=verdict)
    return State(served, failed), preload


def run_controller(settings: Settings, folder: Path, state: State) -> None:
    """Control the workers that connect to the socket in `folder`, until the parent ends.

    `state` is what they serve at first; where another process has controlled them before, it is what that one left.
    """
    set_up_logs(settings.log_level, settings.log_format, worker=os.getpid())
    asyncio.run(_control(settings, folder, state))


async def _control(settings: Settings, folder: Path, state: State) -> None:
    parent = os.getppid()
    state = _read_state(folder) or state
    verify_one = _verifier(folder, settings)
    mode = settings.model_control
    assert mode != "none"
    controller = Controller(
        settings.model_folders,
        replace(state, loading=frozenset()),
        verify_one,
        mode=mode,
        pins=settings.version_pins,
        on_changed=functools.partial(_keep_state, folder),
        on_reload=reload_counter(),
    )
    server = await serve(socket_path(folder), lambda stream: _attend(controller, stream))
    async with server:
        polling = asyncio.create_task(_poll(controller, settings.poll_seconds)) if mode == "poll" else None
        while os.getppid() == parent:  # noqa: ASYNC110  # the end of a parent wakes nobody
            await asyncio.sleep(PARENT_INTERVAL_S)
        if polling is not None:
            polling.cancel()


async def _poll(controller: Controller, every_s: float) -> None:
    while True:
        try:
            await controller.poll()
        except Exception:  # whatever a folder holds, the next look is taken
            log.exception("a look at the models folders failed")
        await asyncio.sleep(every_s)


async def _attend(controller: Controller, stream: MessageStream) -> None:
    """Serve one worker, from its hello to its end."""
    member = StreamMember(stream)
    tasks: set[asyncio.Task[None]] = set()
    joining: asyncio.Task[None] | None = None

    def start(work: Any) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    try:
        while (message := await stream.receive()) is not None:
            if message["type"] == "hello":
                joining = asyncio.create_task(_join(controller, member))
            elif message["type"] in ("load", "unload"):
                start(_answer(controller, stream, message))
            elif message["type"] == "withdrawn":
                start(_withdraw(controller, message))
            else:
                member.receive(message)
    finally:
        controller.leave(member)
        member.end()
        if joining is not None:
            joining.cancel()


async def _join(controller: Controller, member: StreamMember) -> None:
    try:
        await controller.join(member)
    except MemberLost:
        controller.leave(member)


async def _answer(controller: Controller, stream: MessageStream, message: Message) -> None:
    """Carry out what a request wants; it goes on where the worker that has passed it on ends."""
    code = text = None
    try:
        await (controller.load if message["type"] == "load" else controller.unload)(message["name"])
    except ServiceError as exc:
        code, text = exc.code, exc.message
    except Exception:
        log.exception("a model could not be loaded or unloaded")
        code, text = "load_failed", "an unexpected error; the log says more"
    stream.send({"type": "result", "id": message["id"], "code": code, "message": text})


async def _withdraw(controller: Controller, message: Message) -> None:
    names = ("name", "version", "folder", "reason")
    try:
        await controller.withdraw(Withdrawal(*(message[name] for name in names)))
    except ServiceError as exc:
        log.error("a model cannot be taken out of service everywhere", extra={"model": message["name"], "reason": exc.message})


class StreamMember:
    """A worker at the other end of a stream."""

    def __init__(self, stream: MessageStream) -> None:
        self._stream = stream
        self._waiting: dict[tuple[str, int], asyncio.Future[Message]] = {}
        self._is_lost = False

    async def prepare(self, change: int, target: Target) -> dict[Key, str]:
        self._stream.send({"type": "prepare", "change": change, "target": write_target(target)})
        message = await self._reply("prepared", change)
        return {(name, version): reason for name, version, reason in message["failures"]}

    async def commit(self, change: int) -> None:
        self._stream.send({"type": "commit", "change": change})
        await self._reply("committed", change)

    def abort(self, change: int) -> None:
        self._stream.send({"type": "abort", "change": change})

    def show(self, target: Target) -> None:
        self._stream.send({"type": "show", "target": write_target(target)})

    def close(self) -> None:
        self._stream.close()

    def receive(self, message: Message) -> None:
        """A reply has come."""
        reply = self._waiting.pop((message["type"], message["change"]), None)
        if reply is not None and not reply.done():
            reply.set_result(message)

    def end(self) -> None:
        """There will be no more replies."""
        self._is_lost = True
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(MemberLost)

    async def _reply(self, kind: str, change: int) -> Message:
        if self._is_lost:
            raise MemberLost
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[kind, change] = reply
        return await reply


def _verifier(folder: Path, settings: Settings) -> Verify:
    options = model_options(settings)
    timeout_s, max_bytes = settings.load_timeout_ms / 1000, settings.load_memory_bytes or memory_bytes() // 2
    numbers: Iterator[int] = itertools.count()

    async def verify_one(key: Key, source: Path) -> Snapshot:
        place = folder / f"load-{os.getpid()}-{next(numbers)}"
        target = place.joinpath(*key)
        try:
            work = functools.partial(_copy_and_verify, key, source, target, folder / PACKED_FOLDER, options)
            outcome = await run_job(work, timeout_s, max_bytes)
        except JobFailed as exc:
            outcome = str(exc)
        if isinstance(outcome, str):
            shutil.rmtree(place, ignore_errors=True)
            raise FolderError(outcome)
        return outcome

    return verify_one


def _copy_and_verify(key: Key, source: Path, target: Path, packed: Path, options: ModelOptions) -> Snapshot | str:
    """The verified copy, or what is wrong with the folder."""
    try:
        fingerprint = copy_version(source, target)
        # On another device it is checked and measured by the process that runs it there.
        options = replace(options, device="cpu")
        verdict = verify(key, target, options)
        if not verdict.findings:
            pack_graph(key, target, packed, verdict, options)
    except ServiceError as exc:
        return exc.message
    except Exception as exc:
        log.exception("model folder failed to load", extra={"model": key[0], "version": key[1]})
        return f"loading failed: {type(exc).__name__}"
    return "; ".join(verdict.findings[:3]) if verdict.findings else Snapshot(str(target), fingerprint, verdict)


def _keep_state(folder: Path, state: State) -> None:
    """Write down what is to be served, for a process that takes over, and remove the copies that no one needs any more."""
    new = folder / f"{STATE_FILE}.new"
    new.write_bytes(pickle.dumps(state))
    new.rename(folder / STATE_FILE)
    needed = {Path(each.folder).parent.parent for each in state.served.values()}
    if not state.loading:  # while one is verified, what is packed of it is in no state yet
        keep_packed(folder / PACKED_FOLDER, {each.verdict.sha256 for each in state.served.values() if each.verdict is not None})
    for place in folder.glob("load-*"):
        if place not in needed and not state.loading:  # while one is verified, its copy is in no state yet
            shutil.rmtree(place, ignore_errors=True)


def _read_state(folder: Path) -> State | None:
    try:
        state: State = pickle.loads((folder / STATE_FILE).read_bytes())
    except OSError:
        return None
    return state
