"""The steps of sequences whose states are kept here: checkout → run → commit, one step of a sequence at a time.

Knows nothing of HTTP, nor of where states are kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from service.errors import SequenceConflict, SequenceEnd, SequenceNotFound
from service.sequences.state import GraphIdentity, SequenceState
from service.sequences.store import Checkout, SequenceKey, SequenceStore

T = TypeVar("T")

COMMIT_PATIENCE_S = 5.0
"""A commit that was begun is waited for even when the time of its request is over: its outcome would else be unknown."""
SHOWN_ID_LENGTH = 128


class SequenceStep(Protocol):
    """What a request says of the step of one sequence."""

    @property
    def id(self) -> str: ...

    @property
    def is_start(self) -> bool: ...

    @property
    def is_end(self) -> bool: ...


class StreamingModel(Protocol):
    """What must be known of a model whose sequences are kept."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> GraphIdentity: ...

    def expect_streaming(self) -> None: ...


class SequenceObserver(Protocol):
    """Counts the sequences that requests start and end."""

    def started(self, model: str, version: int) -> None: ...

    def ended(self, model: str, version: int, reason: SequenceEnd) -> None: ...


class Inspection(NamedTuple):
    """What is kept of a sequence."""

    id: str
    state: SequenceState
    idle_s: float
    is_busy: bool


Run = Callable[[list[SequenceState | None]], Awaitable[tuple[T, Sequence[SequenceState]]]]
"""One step of each sequence, from its state or, for None, from its beginning: the answer, and the new states."""


class KeptSequences:
    """Sequences by model and id, in a store. A step that fails, or is not answered in time, leaves the state as it was.

    Each `holder` has ids of its own: whoever may use a model must not read, change or end the sequences of others by their ids.
    """

    def __init__(self, store: SequenceStore, observer: SequenceObserver, now: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self._observer = observer
        self._now = now

    async def advance(
        self, model: StreamingModel, steps: Sequence[SequenceStep], run: Run[T], *, deadline: float, holder: str = ""
    ) -> T:
        """Run one step of each of these sequences, all different, after the steps that came before; `deadline` is of `now`.

        What they become is kept when `run` has returned, of all of them or of none. Raises StateError where the model cannot
        stream, SequenceNotFound and SequenceConflict, what `run` raises, StoreUnavailable and DeadlineExceeded.
        """
        model.expect_streaming()
        checkout = await self.store.checkout(
            [SequenceKey(model.name, step.id, holder) for step in steps], max(0.0, deadline - self._now())
        )
        try:
            states = _expect_states(model, steps, checkout.states)
            answer, new = await run(states)
        except BaseException:
            self.store.release(checkout)
            raise
        await self._commit(checkout, [None if step.is_end else state for step, state in zip(steps, new, strict=True)])
        identity = model.identity
        for step, before in zip(steps, checkout.states, strict=True):
            if step.is_start or step.is_end:
                self._count(identity, before, is_start=step.is_start, is_end=step.is_end)
        return answer

    async def find(self, model: str, id: str, holder: str = "") -> Inspection | None:
        """What is kept of a sequence, None for nothing. Requests that have it are not waited for."""
        found = await self.store.find(SequenceKey(model, id, holder))
        return None if found is None else Inspection(id, *found)

    async def put(self, id: str, state: SequenceState, *, within_s: float, holder: str = "") -> None:
        """Keep this state of a sequence, whatever was kept of it before; requests that have it are waited for."""
        checkout = await self.store.checkout([SequenceKey(state.model, id, holder)], within_s)
        await self._commit(checkout, [state])
        self._count(state.identity, checkout.states[0], is_start=True, is_end=False)

    async def delete(self, model: str, id: str, *, within_s: float, holder: str = "") -> bool:
        """End a sequence; False where there is none. Requests that have it are waited for."""
        checkout = await self.store.checkout([SequenceKey(model, id, holder)], within_s)
        state = checkout.states[0]
        if state is None:
            self.store.release(checkout)
            return False
        await self._commit(checkout, [None])
        self._observer.ended(model, state.version, "end")
        return True

    async def _commit(self, checkout: Checkout, states: Sequence[SequenceState | None]) -> None:
        """Keep the states. Once that has begun, a request whose time is over is answered all the same: it was carried out."""
        commit = self.store.commit(checkout, states)
        try:
            await asyncio.shield(commit)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            await asyncio.wait((commit,), timeout=COMMIT_PATIENCE_S)
            if not commit.done():
                raise
            task.uncancel()
            commit.result()

    def _count(self, identity: GraphIdentity, before: SequenceState | None, *, is_start: bool, is_end: bool) -> None:
        if is_start:
            if before is not None:
                reason: SequenceEnd = "restart" if before.identity == identity else "reload"
                self._observer.ended(before.model, before.version, reason)
            self._observer.started(identity.model, identity.version)
        if is_end:
            self._observer.ended(identity.model, identity.version, "end")


def _expect_states(
    model: StreamingModel, steps: Sequence[SequenceStep], states: Sequence[SequenceState | None]
) -> list[SequenceState | None]:
    """The states that the steps go on from. Raises SequenceNotFound and SequenceConflict."""
    identity = model.identity
    found: list[SequenceState | None] = []
    for step, state in zip(steps, states, strict=True):
        if step.is_start:
            found.append(None)
            continue
        if state is None:
            shown = step.id[:SHOWN_ID_LENGTH]
            raise SequenceNotFound(
                f'sequence "{shown}" of model "{model.name}" was not started, or has ended: '
                'send its first step with "sequence_start": true (the START flag)',
                sequence_id=shown,
                model=model.name,
            )
        if state.identity != identity:
            raise conflict(step.id, state.identity, identity)
        found.append(state)
    return found


def conflict(id: str, found: GraphIdentity, expected: GraphIdentity) -> SequenceConflict:
    """The state of a sequence belongs to another version, or to another graph of the same version."""
    if found.version != expected.version:
        why = (
            f"was begun with version {found.version}, and version {expected.version} answers now: "
            f'name "version": "{found.version}" while that is served, or start the sequence anew'
        )
    else:
        why = f"was begun with another graph: version {found.version} was reloaded since; start the sequence anew"
    return SequenceConflict(
        f'sequence "{id[:SHOWN_ID_LENGTH]}" of model "{expected.model}" {why}',
        sequence_id=id[:SHOWN_ID_LENGTH],
        model=expected.model,
        found=str(found.version),
        expected=str(expected.version),
    )
