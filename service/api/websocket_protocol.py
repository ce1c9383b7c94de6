"""uvicorn's WebSocket protocol with bounds on what a connection may send, in the place of the HTTP protocol that it came by.

Differs from uvicorn's own in these things. What is received is fed to the parser bit by bit, and not while a message waits or the
client does not read: thousands of small frames, or of pings, would else hold up every other connection. A message has a bounded
number of fragments. The end of the connection, and that sent data was read, are reported to the HTTP protocol, which stays the
record of the connection (`connections.py`). When the server ends, the endpoint sees to the end itself.

Builds on names that uvicorn keeps private, so it is imported by `regular_path.py` alone, for the versions that were tested.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

# One that says nothing: what clients send is no news, and holds keys. What fails in the app is logged by the gateway.
_SILENT = logging.getLogger(f"{__name__}.silent")
_SILENT.setLevel(logging.CRITICAL + 1)

PIECE_BYTES = 1024
"""Fed to the parser in one turn of the event loop: some 150 frames, 1 to 2 ms."""
MAX_FRAGMENTS = 1000
"""Of one message."""
CLOSE_TIMEOUT_S = 2.0
"""For so long the client's answer to a closing handshake is awaited."""
INVALID_DATA, POLICY_VIOLATION = 1007, 1008


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection that was opened as HTTP."""

    def __init__(
        self, *args: Any, on_closed: Callable[[Exception | None], None], on_resumed: Callable[[], None], **kwargs: Any
    ) -> None:
        """`on_closed` is called at the end of the connection, `on_resumed` when most of what waited to be sent was sent."""
        super().__init__(*args, **kwargs)
        self.logger = self.conn.logger = _SILENT
        self.conn.debug = False
        self.close_timeout = CLOSE_TIMEOUT_S
        self._on_closed = on_closed
        self._on_resumed = on_resumed
        self._unfed = bytearray()
        self._is_feed_due = False
        self._is_closed_by_app = False

    def begin(self, head: bytes, rest: bytes) -> None:
        """Go on with a connection whose head, the request to open a WebSocket, has come by HTTP, and with what came behind."""
        super().data_received(head)
        if not self.handshake_initiated:  # the head is not to the parser's taste
            self.transport.close()
        elif rest:
            self.data_received(rest)

    # Callbacks of the transport.

    def data_received(self, data: bytes) -> None:
        self._unfed += data
        if not self._is_feed_due:
            self._feed()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unfed.clear()
        super().connection_lost(exc)
        self._on_closed(exc)

    def pause_writing(self) -> None:
        # A client that does not read what was sent is not read from: pings would be answered without an end.
        super().pause_writing()
        self._hold()

    def resume_writing(self) -> None:
        self._on_resumed()
        super().resume_writing()
        self._go_on()

    def shutdown(self) -> None:
        """The server ends. The endpoint knows that, and closes behind the state; uvicorn would cut off what is being answered."""
        if self.close_sent or not self.handshake_complete:
            super().shutdown()

    # What the app calls.

    async def receive(self) -> Any:
        message = await super().receive()  # which may resume reading
        self._go_on()
        return message

    async def send(self, message: Any) -> None:
        if self.close_sent and not self._is_closed_by_app and message["type"] in ("websocket.send", "websocket.close"):
            raise ClientDisconnected  # the parser closed what broke the protocol, behind a message that is being answered
        self._is_closed_by_app = self._is_closed_by_app or message["type"] == "websocket.close"
        await super().send(message)
        if self.close_sent or message["type"] == "websocket.accept":
            self._go_on()  # with what leads to the client's answer, or came before it was open

    # What is fed to the parser.

    def handle_cont(self, event: Any) -> None:
        if len(self.frames) >= MAX_FRAGMENTS:
            self.conn.fail(POLICY_VIOLATION, "too many fragments")
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        try:
            super().send_receive_event_to_app()
        except InvalidState:
            # A text that is no UTF-8, and behind it the client's close, which has been read already and is answered.
            self.queue.put_nowait({"type": "websocket.disconnect", "code": INVALID_DATA, "reason": ""})
            self.close_sent = True
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    @property
    def _is_held(self) -> bool:
        """Whether the WebSocket is not open yet, a message waits for the app, or the client has to read first.

        What comes with the request to open it would else be answered before that: a ping by a pong in front of the 101.
        """
        return not self.handshake_complete or self.read_paused or not self.writable.is_set()

    def _feed(self) -> None:
        """Feed a piece of what was received, and the next one in another turn of the event loop."""
        self._is_feed_due = False
        if self.transport.is_closing():
            self._unfed.clear()
            return
        if self._unfed and not self._is_held:
            piece = bytes(self._unfed[:PIECE_BYTES])
            del self._unfed[:PIECE_BYTES]
            super().data_received(piece)
        self._go_on()

    def _go_on(self) -> None:
        """Feed what is left, or read on, as soon as that may be."""
        if self.transport.is_closing():
            return
        if self._unfed or self._is_held:
            self._hold()
            if not (self._is_held or self._is_feed_due):
                self._is_feed_due = True
                self.loop.call_soon(self._feed)
        else:
            self.transport.resume_reading()

    def _hold(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()
