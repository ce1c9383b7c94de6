"""The store that several processes of one machine share: a process that keeps the states, and its clients, over a Unix socket.

What keeps them is the table that one process has for itself. A client that ends, killed or not, ends its connection, and with it
what it had checked out; a client finds a store that was started anew, which is empty. Unix only, as are several workers.
"""

from __future__ import annotations

import asyncio
import itertools
import marshal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from service.errors import StoreUnavailable
from service.sequences.state import CHECKSUM_BYTES, SequenceState, read_bodies
from service.sequences.store import MARGIN_S, Checkout, SequenceKey, StoredSequence, finished, kept_by, owners_of
from service.sequences.table import Owner, SequenceTable, Stored, Ticket

LENGTH_BYTES = 4
# What a client sends: the kind of the message, its number, and what it is about. The answer has the same number.
CHECKOUT, COMMIT, RELEASE, FIND = range(4)
# A store that is just being started, or started anew, is waited for.
CONNECT_PATIENCE_S, CONNECT_INTERVAL_S = 2.0, 0.02


class MessageBatches(asyncio.Protocol):
    """One end of a connection. Messages of one turn of the event loop go out together, in order.

    They are written with `marshal`, which takes a microsecond: both ends are processes of one server, run by one interpreter.
    """

    def __init__(self, on_received: Callable[[Any], None], on_lost: Callable[[], None]) -> None:
        self._on_received = on_received
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._outbox: list[Any] = []

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, message: Any) -> None:
        """Send it, in order; to an end that is gone it is lost."""
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(message)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # which uvloop's are not by their type

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._received[:LENGTH_BYTES])
            if len(self._received) < end:
                return
            with memoryview(self._received) as received, received[LENGTH_BYTES:end] as content:
                batch = marshal.loads(content)
            del self._received[:end]
            for message in batch:
                self._on_received(message)

    def _flush(self) -> None:
        messages, self._outbox = self._outbox, []
        if messages and self._transport is not None and not self._transport.is_closing():
            content = marshal.dumps(messages)
            self._transport.write(len(content).to_bytes(LENGTH_BYTES) + content)


class StoreServer:
    """Serves a table of states, as the bodies of their blocks, to the processes that connect.

    Without their checksums: nothing but processes of one server has them in between.
    """

    def __init__(self, table: SequenceTable[bytes]) -> None:
        self.table = table

    async def serve(self, path: Path) -> asyncio.Server:
        """Serve at this path, where nothing is served yet."""
        return await asyncio.get_running_loop().create_unix_server(self._connect, path)

    def _connect(self) -> asyncio.Protocol:
        return _Client(self.table).messages


class _Client:
    """A process that is connected, and what it has checked out."""

    def __init__(self, table: SequenceTable[bytes]) -> None:
        self.messages = MessageBatches(self._answer, self._release_all)
        self._table = table
        self._tickets: dict[int, Ticket] = {}

    def _answer(self, message: tuple[int, int, Any]) -> None:
        kind, number, about = message
        if kind == CHECKOUT:
            keys, within_s = about
            ticket = self._table.enqueue(keys, within_s, lambda: self._grant(number))
            self._tickets[number] = ticket
            if ticket.is_granted:
                self._grant(number)
        elif kind == COMMIT:
            given, owners, bodies = about
            ticket = self._tickets.pop(given)
            self.messages.send((number, self._table.commit(ticket, _to_changes(owners, bodies))))
        elif kind == RELEASE:
            self._table.release(self._tickets.pop(about))
        else:
            found = self._table.find(about)
            self.messages.send((number, None if found is None else (found.stored.value, found.idle_s, found.is_busy)))

    def _grant(self, number: int) -> None:
        states = self._table.read(self._tickets[number])
        self.messages.send((number, [None if stored is None else stored.value for stored in states]))

    def _release_all(self) -> None:
        tickets, self._tickets = self._tickets, {}
        # The last one first: else one that waits would be granted what the one before it had.
        for ticket in reversed(tickets.values()):
            self._table.release(ticket)


class SharedStore:
    """The client: a store as one of the processes sees it. Connects when it is first needed, and again after a loss."""

    def __init__(self, path: Path, *, patience_s: float = CONNECT_PATIENCE_S, margin_s: float = MARGIN_S) -> None:
        self._path = path
        self._margin_s = margin_s
        self._patience_s = patience_s
        self._numbers = itertools.count()
        self._messages: MessageBatches | None = None
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._connecting: asyncio.Task[MessageBatches] | None = None

    async def checkout(self, keys: Sequence[SequenceKey], within_s: float) -> Checkout:
        messages = await self._connect()
        number = next(self._numbers)
        reply = self._send(messages, CHECKOUT, number, ([key.text for key in keys], within_s + self._margin_s))
        try:
            bodies = await reply
            states = read_bodies(bodies)
        except BaseException:
            self._replies.pop(number, None)
            messages.send((RELEASE, 0, number))
            raise
        return Checkout(keys, states, (messages, number))

    def commit(self, checkout: Checkout, states: Sequence[SequenceState | None]) -> asyncio.Future[None]:
        messages, ticket = checkout.ticket
        if not messages.is_open:
            return finished(_gone())
        owners = [owner and tuple(owner) for owner in owners_of(states)]
        bodies = [None if state is None else state.body for state in states]
        return kept_by(self._send(messages, COMMIT, next(self._numbers), (ticket, owners, bodies)))

    def release(self, checkout: Checkout) -> None:
        messages, ticket = checkout.ticket
        messages.send((RELEASE, 0, ticket))

    async def find(self, key: SequenceKey) -> StoredSequence | None:
        messages = await self._connect()
        found = await self._send(messages, FIND, next(self._numbers), key.text)
        return None if found is None else StoredSequence(SequenceState.from_body(found[0]), *found[1:])

    async def run(self) -> None:
        """Nothing: the process that keeps the states sees to them."""

    async def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        if self._messages is not None:
            self._messages.close()

    def __repr__(self) -> str:
        state = "connected" if self._messages is not None and self._messages.is_open else "not connected"
        return f"<SharedStore {state}, {len(self._replies)} replies awaited>"

    def _send(self, messages: MessageBatches, kind: int, number: int, about: Any) -> asyncio.Future[Any]:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if messages.is_open:
            self._replies[number] = reply
            messages.send((kind, number, about))
        else:
            reply.set_exception(_gone())
        return reply

    async def _connect(self) -> MessageBatches:
        if self._messages is not None and self._messages.is_open:
            return self._messages
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._open())
            self._connecting.add_done_callback(_see)
        # All that wait share the attempt: one that is given up must not end it for the others.
        return await asyncio.shield(self._connecting)

    async def _open(self) -> MessageBatches:
        loop = asyncio.get_running_loop()
        last = loop.time() + self._patience_s
        while True:
            replies: dict[int, asyncio.Future[Any]] = {}
            try:
                _, messages = await loop.create_unix_connection(
                    lambda replies=replies: MessageBatches(  # type: ignore[misc]
                        lambda message: _resolve(replies, *message), lambda: _fail(replies)
                    ),
                    str(self._path),
                )
            except OSError as exc:
                if loop.time() >= last:
                    raise _gone() from exc
            else:
                self._replies, self._messages = replies, messages
                return messages
            await asyncio.sleep(CONNECT_INTERVAL_S)


def _to_changes(owners: Sequence[tuple[str, int] | None], bodies: Sequence[bytes | None]) -> list[Stored[bytes] | None]:
    """States as a client sends them, as the table keeps them."""
    known = {owner: Owner(*owner) for owner in set(owners) if owner is not None}
    return [
        None if owner is None or body is None else Stored(known[owner], len(body) + CHECKSUM_BYTES, body)
        for owner, body in zip(owners, bodies, strict=True)
    ]


def _resolve(replies: dict[int, asyncio.Future[Any]], number: int, result: Any) -> None:
    reply = replies.pop(number, None)
    if reply is not None and not reply.done():
        reply.set_result(result)


def _fail(replies: dict[int, asyncio.Future[Any]]) -> None:
    """The connection is lost: none of these will be answered."""
    lost = list(replies.values())
    replies.clear()
    for reply in lost:
        if not reply.done():
            reply.set_exception(_gone())
            _see(reply)


def _see(future: asyncio.Future[Any]) -> None:
    """Have asyncio not report an exception that nobody awaits any more."""
    if not future.cancelled():
        future.exception()


def _gone() -> StoreUnavailable:
    return StoreUnavailable("the process that keeps the states of sequences cannot be reached; it is started anew")
