"""Decides what all processes of a server serve: looks at the folders, has new versions verified, and changes all or none.

A change has two phases: every process loads it beside what it serves (`prepare`), then every process puts it into service
(`commit`); where one of them fails, none does. Knows no sockets and no processes: members, verification and time are arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar

from service.errors import FolderError, LoadFailed, ModelNotFound, Overloaded, ReloadOutcome, ServiceError
from service.models.scanning import LATEST, ModelVersion, VersionPins, scan_models, unreadable
from service.models.snapshots import fingerprint
from service.models.target import UNLOADED, Key, Target, TargetVersion, Withdrawal
from service.models.verification import Verdict

log = logging.getLogger(__name__)

T = TypeVar("T")

PREPARE_TIMEOUT_S = 120.0
COMMIT_TIMEOUT_S = 30.0
MAX_PENDING = 64
RETRY_S = 2.0
MAX_RETRY_S = 300.0
# How often a process that could not load what the others serve tries again.
REJOIN_S = 1.0
SHOWN_NAME_LENGTH = 128


class MemberLost(Exception):
    """A serving process has ended, or does not answer: another one takes its place."""


class Member(Protocol):
    """A serving process."""

    async def prepare(self, change: int, target: Target) -> dict[Key, str]:
        """Have it load the target; the reasons for what it cannot load. Raises MemberLost."""
        ...

    async def commit(self, change: int) -> None:
        """Have it serve the target that it prepared. Raises MemberLost."""
        ...

    def abort(self, change: int) -> None:
        """Have it drop what it prepared."""
        ...

    def show(self, target: Target) -> None:
        """Have it show the states of a target that serves what it serves."""
        ...

    def close(self) -> None:
        """Have it join anew."""
        ...


class Snapshot(NamedTuple):
    """A version as it was copied aside and verified."""

    folder: str
    fingerprint: str
    """Of the folder that was copied."""
    verdict: Verdict | None = None


Verify = Callable[[Key, Path], Awaitable[Snapshot]]
"""Copies a version folder and verifies the copy, in a process that can be killed. Raises FolderError."""


@dataclass(frozen=True)
class Failure:
    """Why a version cannot be loaded, of a folder as it was."""

    reason: str
    fingerprint: str | None
    is_update: bool
    num_tries: int = 1
    retry_at: float = 0.0


@dataclass(frozen=True)
class State:
    """What is served, what cannot be, and what a request has unloaded."""

    served: Mapping[Key, Snapshot]
    failed: Mapping[Key, Failure]
    unloaded: frozenset[Key] = frozenset()
    loading: frozenset[Key] = frozenset()
    updates: frozenset[Key] = frozenset()
    """Of the served: what came while the server ran."""

    def target(self) -> list[TargetVersion]:
        """The same, as the serving processes are told."""
        versions = []
        for key in sorted(
            {*self.served, *self.failed, *self.unloaded, *self.loading}, key=lambda key: (key[0], int(key[1] or 0))
        ):
            snapshot, failure = self.served.get(key), self.failed.get(key)
            reason = None if failure is None else failure.reason
            if snapshot is not None:
                shown = None if reason is None else f"the changed folder is not served: {reason}"
                each = TargetVersion(*key, snapshot.folder, "READY", shown, key in self.updates, snapshot.verdict)
            elif key in self.loading:
                each = TargetVersion(*key, None, "LOADING", None, is_update=True)
            elif failure is not None:
                each = TargetVersion(*key, None, "UNAVAILABLE", reason, failure.is_update)
            else:
                each = TargetVersion(*key, None, "UNAVAILABLE", UNLOADED, is_update=True)
            versions.append(each)
        return versions


class Found(NamedTuple):
    """A version folder at one look."""

    folder: Path
    fingerprint: str | None
    """None where it cannot be read."""
    reason: str | None
    """Why it cannot be served, as far as that is seen without opening it."""


class Plan(NamedTuple):
    """What a look leads to."""

    load: list[Key]
    unload: list[Key]
    broken: dict[Key, str]
    forget: list[Key]


def plan_changes(
    found: Mapping[Key, Found], before: Mapping[Key, Found] | None, state: State, pins: VersionPins, now: float
) -> Plan:
    """What to load and to unload, by two looks one after the other: what differs between them is not touched yet.

    Without a look `before`, what is there now counts. A version that failed is tried again when its folder has changed, and now
    and then.
    """

    def is_stable(key: Key) -> bool:
        return before is None or (key in before and before[key].fingerprint == found[key].fingerprint)

    def has_failed(key: Key) -> bool:
        failure = state.failed.get(key)
        return failure is not None and failure.fingerprint == found[key].fingerprint

    def is_wanted(key: Key) -> bool:
        if found[key].reason is not None or not is_stable(key):
            return False
        served = state.served.get(key)
        if served is not None and served.fingerprint == found[key].fingerprint:
            return False
        return not has_failed(key) or now >= state.failed[key].retry_at

    load, unload = [], []
    for name in sorted({key[0] for key in (*found, *state.served)}):
        keys = sorted((key for key in found if key[0] == name), key=lambda key: int(key[1] or 0), reverse=True)
        if LATEST in pins.get(name, ()):
            best = next((key for key in keys if key in state.served), None)
            above = keys if best is None else keys[: keys.index(best) + 1]
            load += [key for key in above if is_wanted(key)][:1]
            unload += [key for key in state.served if key[0] == name and best is not None and int(key[1]) < int(best[1])]
        else:
            load += [key for key in reversed(keys) if is_wanted(key)]
    unload += [key for key in state.served if key not in found and (before is None or key not in before) and key not in unload]
    broken = {key: each.reason for key, each in found.items() if each.reason is not None and is_stable(key)}
    forget = [key for key in state.failed if key not in found and (before is None or key not in before)]
    return Plan(load, unload, broken, forget)


class Controller:
    """Keeps the members at one state, and changes it. All methods belong to one event loop."""

    def __init__(
        self,
        folders: Sequence[Path],
        state: State,
        verify: Verify,
        *,
        mode: Literal["poll", "explicit"],
        pins: VersionPins | None = None,
        on_changed: Callable[[State], None] = lambda _: None,
        on_reload: Callable[[ReloadOutcome], None] = lambda _: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_changed` is called with each state before the members serve it."""
        self._folders = list(folders)
        self._state = state
        self._verify = verify
        self._mode = mode
        self._pins = pins or {}
        self._on_changed = on_changed
        self._on_reload = on_reload
        self._now = now
        self._members: set[Member] = set()
        self._num_changes = 0
        self._changing = asyncio.Lock()
        """Held from the first member that prepares to the last that commits, and while one joins."""
        self._acting = asyncio.Lock()
        """Held by what looks at the folders and acts on it: one after the other."""
        self._num_pending = 0
        self._before: dict[Key, Found] | None = None
        self.error: str | None = None
        """Why the folders could not be looked at."""

    @property
    def state(self) -> State:
        return self._state

    # ------------------------------------------------------------------------------------------------------- members

    async def join(self, member: Member) -> None:
        """Bring a new member to what the others serve, and keep it there. Raises MemberLost."""
        while True:
            state = self._state
            change = self._next_change()
            failures = await member.prepare(change, state.target())
            if failures and not self._members:
                # Nobody serves it yet: it cannot be served here.
                async with self._changing:
                    served = {key: each for key, each in self._state.served.items() if key not in failures}
                    failed = {
                        key: Failure(reason, self._state.served[key].fingerprint, is_update=key in self._state.updates)
                        for key, reason in failures.items()
                        if key in self._state.served
                    }
                    self._set(replace(self._state, served=served, failed={**self._state.failed, **failed}))
                continue
            if failures:
                log.error(
                    "a process cannot load what the others serve, and tries again", extra={"reasons": list(failures.values())}
                )
                member.abort(change)
                await asyncio.sleep(REJOIN_S)
                continue
            async with self._changing:
                if self._state.served != state.served:
                    member.abort(change)
                    continue
                await member.commit(change)
                member.show(self._state.target())
                self._members.add(member)
                return

    def leave(self, member: Member) -> None:
        """A member has ended."""
        self._members.discard(member)

    # ------------------------------------------------------------------------------------------------------- requests

    async def load(self, name: str) -> None:
        """Load what the folders hold of a model now. Raises ModelNotFound, LoadFailed and Overloaded."""
        async with self._turn(name):
            found = {key: each for key, each in self._look().items() if key[0] == name}
            if not found:
                raise ModelNotFound(f'there is no model folder "{name[:SHOWN_NAME_LENGTH]}"', model=name[:SHOWN_NAME_LENGTH])
            of_name = {key: each for key, each in self._state.served.items() if key[0] == name}
            # Who requests it wants it tried, whatever it was before.
            failed = {key: each for key, each in self._state.failed.items() if key[0] != name}
            state = replace(self._state, served=of_name, failed={})
            self._state = replace(self._state, failed=failed, unloaded=self._without_name(self._state.unloaded, name))
            plan = plan_changes(found, None, state, self._pins, self._now())
            await self._carry_out(plan, found)
            reasons = [f"version {key[1]}: {each.reason}" for key, each in self._state.failed.items() if key[0] == name]
            if reasons:
                raise LoadFailed(f'model "{name}" cannot be loaded: {"; ".join(reasons[:3])}', model=name)

    async def unload(self, name: str) -> None:
        """Take every version of a model out of service. Raises ModelNotFound and Overloaded."""
        async with self._turn(name):
            state = self._state
            keys = [key for key in (*state.served, *state.failed) if key[0] == name]
            if not keys:
                raise ModelNotFound(f'no model "{name[:SHOWN_NAME_LENGTH]}" is loaded', model=name[:SHOWN_NAME_LENGTH])
            unloaded = state.unloaded | frozenset(key for key in keys if key in state.served)
            failed = {key: each for key, each in state.failed.items() if key[0] != name}
            self._state = replace(state, failed=failed, unloaded=unloaded)
            await self._unload(keys)

    async def withdraw(self, withdrawal: Withdrawal) -> None:
        """Take a version out of service that one member has withdrawn, until its folder changes or a request loads it.

        Nothing happens where something else is served by now. Raises LoadFailed.
        """
        key = withdrawal.key

        def without(state: State) -> State:
            snapshot = state.served.get(key)
            if snapshot is None or snapshot.folder != withdrawal.folder:
                return state
            failure = Failure(withdrawal.reason, snapshot.fingerprint, key in state.updates, retry_at=math.inf)
            served = {other: each for other, each in state.served.items() if other != key}
            return replace(state, served=served, failed={**state.failed, key: failure})

        if without(self._state) is not self._state:
            await self._change(without)
            log.error("model version is withdrawn", extra={"model": key[0], "version": key[1], "reason": withdrawal.reason})

    @contextlib.asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        if self._num_pending >= MAX_PENDING:
            raise Overloaded("too many models are being loaded", limit=MAX_PENDING, model=name[:SHOWN_NAME_LENGTH])
        self._num_pending += 1
        try:
            async with self._acting:
                yield
        finally:
            self._num_pending -= 1

    # ---------------------------------------------------------------------------------------------------------- looks

    async def poll(self) -> None:
        """Look at the folders, and act on what is as it was at the look before."""
        async with self._acting:
            self.error = unreadable(self._folders)
            if self.error is not None:
                log.error("the models folders are not looked at, what was loaded stays", extra={"reason": self.error})
                return
            found, before = self._look(), self._before
            self._before = found
            if before is None:
                return
            await self._carry_out(plan_changes(found, before, self._state, self._pins, self._now()), found)

    def _look(self) -> dict[Key, Found]:
        entries, _ = scan_models(self._folders, self._pins)
        return {entry.key: _find(entry) for entry in entries}

    async def _carry_out(self, plan: Plan, found: Mapping[Key, Found]) -> None:
        state = self._state
        failed = {key: each for key, each in state.failed.items() if key not in plan.forget}
        for key, reason in plan.broken.items():
            if key not in failed or failed[key].reason != reason:
                failed[key] = Failure(reason, found[key].fingerprint, is_update=True)
        if failed != state.failed:
            self._set(replace(state, failed=failed))
            self._show()
        for key in plan.load:
            await self._load(key, found[key])
        if plan.unload:
            await self._unload(plan.unload)

    async def _load(self, key: Key, found: Found) -> None:
        self._set(replace(self._state, loading=self._state.loading | {key}))
        self._show()
        try:
            snapshot = await self._verify(key, found.folder)
            await self._change(lambda state: self._with_version(state, key, snapshot))
        except ServiceError as exc:
            self._fail(key, found.fingerprint, exc.message)
        else:
            self._on_reload("loaded")
            log.info("model version is loaded", extra={"model": key[0], "version": key[1]})

    def _with_version(self, state: State, key: Key, snapshot: Snapshot) -> State:
        served = {**state.served, key: snapshot}
        if LATEST in self._pins.get(key[0], ()):
            served = {other: each for other, each in served.items() if other[0] != key[0] or int(other[1]) >= int(key[1])}
        return replace(
            state,
            served=served,
            failed={other: each for other, each in state.failed.items() if other != key},
            loading=state.loading - {key},
            unloaded=state.unloaded - {key},
            updates=state.updates | {key},
        )

    def _fail(self, key: Key, print_: str | None, reason: str) -> None:
        self._on_reload("error")
        log.error("model version cannot be loaded", extra={"model": key[0], "version": key[1], "reason": reason})
        before = self._state.failed.get(key)
        num_tries = before.num_tries + 1 if before is not None and before.fingerprint == print_ else 1
        retry_at = self._now() + min(MAX_RETRY_S, RETRY_S * 2 ** (num_tries - 1))
        failure = Failure(reason, print_, before is None or before.is_update, num_tries, retry_at)
        state = self._state
        self._set(replace(state, failed={**state.failed, key: failure}, loading=state.loading - {key}))
        self._show()

    async def _unload(self, keys: Sequence[Key]) -> None:
        before = self._state.served
        await self._change(
            lambda state: replace(
                state,
                served={key: each for key, each in state.served.items() if key not in keys},
                updates=state.updates - frozenset(keys),
            )
        )
        for key in keys:
            if key in before:
                self._on_reload("unloaded")
                log.info("model version is unloaded", extra={"model": key[0], "version": key[1]})

    # -------------------------------------------------------------------------------------------------------- changes

    async def _change(self, edit: Callable[[State], State]) -> None:
        """Have every member serve the edited state, or none. Raises LoadFailed."""
        async with self._changing:
            members, change, target = list(self._members), self._next_change(), edit(self._state).target()
            ready: list[Member] = []
            for member in members:  # one after the other: the others serve meanwhile
                try:
                    failures = await _within(PREPARE_TIMEOUT_S, member.prepare(change, target))
                except (MemberLost, TimeoutError):
                    self._lose(member)
                    continue
                ready.append(member)
                if failures:
                    for each in ready:
                        each.abort(change)
                    raise LoadFailed("; ".join(failures.values()))
            # What is served changes here alone; what is shown beside it may have changed meanwhile.
            self._set(edit(self._state))
            ends = await asyncio.gather(
                *(_within(COMMIT_TIMEOUT_S, member.commit(change)) for member in ready), return_exceptions=True
            )
            for member, end in zip(ready, ends, strict=True):
                if isinstance(end, BaseException):
                    self._lose(member)

    def _lose(self, member: Member) -> None:
        log.error("a process did not answer in time, and joins anew")
        self._members.discard(member)
        member.close()

    def _set(self, state: State) -> None:
        self._state = state
        self._on_changed(state)

    def _show(self) -> None:
        target = self._state.target()
        for member in self._members:
            member.show(target)

    def _next_change(self) -> int:
        self._num_changes += 1
        return self._num_changes

    @staticmethod
    def _without_name(keys: frozenset[Key], name: str) -> frozenset[Key]:
        return frozenset(key for key in keys if key[0] != name)


def _find(entry: ModelVersion) -> Found:
    if entry.reason is not None:
        return Found(entry.folder, None, entry.reason)
    try:
        return Found(entry.folder, fingerprint(entry.folder), None)
    except FolderError as exc:
        return Found(entry.folder, None, exc.message)


async def _within(timeout_s: float, awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(timeout_s):
        return await awaitable
