"""The store that several servers share: Redis. The only file that imports its client (the extra `redis`).

What the requests of one process want at the same time goes to Redis in one script, which carries it out as a whole
(`redis_script.lua`): one at a time, so that under load each carries more.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.errors import StartError, StoreUnavailable
from service.sequences.state import SequenceState
from service.sequences.store import (
    EXPIRY_INTERVAL_S,
    MARGIN_S,
    Checkout,
    SequenceKey,
    SilentStoreObserver,
    StoredSequence,
    StoreObserver,
    kept_by,
    lost_checkout,
    read_block,
)
from service.sequences.table import Bounds, Owner, Total

log = logging.getLogger(__name__)

PREFIX = "sluice:"
SCRIPT = Path(__file__).with_name("redis_script.lua")
# For an answer of Redis, and for a connection to it.
TIMEOUT_S = 2.0
# What may be repeated because it is carried out once, however often it is sent: until then it may have been lost on the way.
REPEATED = frozenset(("commit", "release"))
REPEAT_DELAY_S = 0.1
MAX_OPERATIONS = 256
# How often a request looks whether those that came before it, to other processes, are finished.
MIN_POLL_S, MAX_POLL_S = 0.004, 0.032
IS_GRANTED, HAS_EXPIRED = 1, -1

Kind = Literal["enqueue", "read", "release", "commit", "find", "expire"]


class _Operation(NamedTuple):
    """One operation of the script, and where its result goes."""

    kind: Kind
    arguments: Sequence[str | bytes | int]
    result: asyncio.Future[Any]
    is_repeated: bool = False


class RedisStore:
    """A client of one Redis, whose sequences are those of every server that uses it. Cluster mode is not supported."""

    def __init__(
        self,
        url: str,
        bounds: Bounds,
        observer: StoreObserver | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        margin_s: float = MARGIN_S,
    ) -> None:
        """Nothing is connected before it is needed. Raises StartError for what is no URL of Redis."""
        try:
            self._client = redis.asyncio.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),  # what may be repeated is known here
            )
        except ValueError as exc:
            raise StartError(f"SLUICE_SEQUENCE_STORE: {exc}", name="SLUICE_SEQUENCE_STORE") from exc
        self._script = self._client.register_script(SCRIPT.read_text())
        self._margin_s = margin_s
        self._observer: StoreObserver = observer or SilentStoreObserver()
        self._bounds = (PREFIX, max(1, round(1000 * bounds.ttl_s)), bounds.max_sequences, bounds.max_bytes)
        self._numbers = itertools.count()
        self._pending: list[_Operation] = []
        self._sending: asyncio.Task[None] | None = None
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._counted: set[Owner] = set()
        self._is_reachable = True

    async def checkout(self, keys: Sequence[SequenceKey], within_s: float) -> Checkout:
        ticket = f"{self._name}:{next(self._numbers)}"
        own: list[str | int] = [len(keys), *(key.text for key in keys)]
        try:
            found = await self._run("enqueue", ticket, round(1000 * (within_s + self._margin_s)), *own)
            poll_s = MIN_POLL_S
            while found[0] != IS_GRANTED:
                if found[0] == HAS_EXPIRED:
                    raise lost_checkout()
                await self._wait(ticket, poll_s)
                poll_s = min(2 * poll_s, MAX_POLL_S)
                found = await self._run("read", ticket, *own)
            states = [read_block(block) for block in found[1:]]
        except BaseException:
            self._start("release", ticket, *own)
            raise
        return Checkout(keys, states, ticket)

    def commit(self, checkout: Checkout, states: Sequence[SequenceState | None]) -> asyncio.Future[None]:
        changes: list[str | bytes] = []
        for state in states:
            changes += ("", b"") if state is None else (f"{state.model}/{state.version}", state.to_bytes())
        texts = [key.text for key in checkout.keys]
        return kept_by(self._start("commit", checkout.ticket, len(texts), *texts, *changes))

    def release(self, checkout: Checkout) -> None:
        self._start("release", checkout.ticket, len(checkout.keys), *(key.text for key in checkout.keys))

    async def find(self, key: SequenceKey) -> StoredSequence | None:
        found = await self._run("find", key.text)
        state = read_block(found[0]) if found else None
        return None if state is None else StoredSequence(state, found[1] / 1000, bool(found[2]))

    async def run(self) -> None:
        """Look for sequences that are idle for too long, and count those that there are."""
        while True:
            try:
                counts, sizes = await self._run("expire")
            except StoreUnavailable:
                await asyncio.sleep(EXPIRY_INTERVAL_S)
                continue
            totals = {owner: Total() for owner in self._counted}
            for name, values in (("num_sequences", counts), ("num_bytes", sizes)):
                for text, value in _pairs(values):
                    if text:
                        setattr(totals.setdefault(_owner(text), Total()), name, int(value))
            self._counted.update(totals)
            self._observer.counted(totals)
            await asyncio.sleep(EXPIRY_INTERVAL_S)

    async def close(self) -> None:
        if self._sending is not None:
            await asyncio.wait((self._sending,), timeout=TIMEOUT_S)
        await self._client.aclose()

    @functools.cached_property
    def _name(self) -> str:
        """Of this process, among all that use this Redis: not before it is forked."""
        return uuid.uuid4().hex

    def __repr__(self) -> str:
        state = "reachable" if self._is_reachable else "not reachable"
        return f"<RedisStore {state}, {len(self._pending)} operations pending, {len(self._waiting)} requests waiting>"

    async def _wait(self, ticket: str, seconds: float) -> None:
        """Until this process knows that it is this ticket's turn, or for so long."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = turn
        try:
            await asyncio.wait((turn,), timeout=seconds)
        finally:
            del self._waiting[ticket]

    async def _run(self, kind: Kind, *arguments: str | bytes | int) -> Any:
        return await self._start(kind, *arguments)

    def _start(self, kind: Kind, *arguments: str | bytes | int) -> asyncio.Future[Any]:
        result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending.append(_Operation(kind, arguments, result))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())
        return result

    async def _send(self) -> None:
        """Send what is pending until nothing is."""
        while self._pending:
            operations, self._pending = self._pending[:MAX_OPERATIONS], self._pending[MAX_OPERATIONS:]
            arguments = [value for operation in operations for value in (operation.kind, *operation.arguments)]
            try:
                results, ended, first = await self._script(args=(*self._bounds, *arguments))
            except (RedisError, OSError, TimeoutError) as exc:
                self._note(exc)
                await self._fail(operations)
                continue
            self._note(None)
            for operation, result in zip(operations, results, strict=True):
                if not operation.result.done():
                    operation.result.set_result(result)
            for owner, reason in _pairs(ended):
                self._observer.evicted(_owner(owner), "idle" if reason == b"idle" else "lru")
            for ticket in first:
                turn = self._waiting.get(ticket.decode())
                if turn is not None and not turn.done():
                    turn.set_result(None)

    async def _fail(self, operations: Sequence[_Operation]) -> None:
        """Redis cannot be reached: what may be repeated is sent once more."""
        repeated = []
        for operation in operations:
            if operation.kind in REPEATED and not operation.is_repeated:
                repeated.append(operation._replace(is_repeated=True))
            elif not operation.result.done():
                operation.result.set_exception(_unreachable())
                operation.result.exception()  # so that one that nobody awaits any more is not reported
        if repeated:
            await asyncio.sleep(REPEAT_DELAY_S)
            self._pending = repeated + self._pending

    def _note(self, exc: Exception | None) -> None:
        """Log when Redis goes and when it comes back."""
        if self._is_reachable and exc is not None:
            log.warning(
                "Redis cannot be reached: steps of sequences are refused", extra={"reason": f"{type(exc).__name__}: {exc}"}
            )
        elif not self._is_reachable and exc is None:
            log.info("Redis can be reached again")
        self._is_reachable = exc is None


def _pairs(values: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _owner(text: bytes) -> Owner:
    model, _, version = text.decode().rpartition("/")
    return Owner(model, int(version))


def _unreachable() -> StoreUnavailable:
    return StoreUnavailable("Redis, which keeps the states of sequences, cannot be reached")
