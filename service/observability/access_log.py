"""Where the access log is written: lines that no request can forge, by a thread, from a buffer that never grows beyond a bound.

Knows nothing of HTTP. The event loop makes each line and appends it; if nobody reads what is written, lines are dropped and
counted, and no request waits.
"""

from __future__ import annotations

import logging
import os
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Literal

from service.wire import write

log = logging.getLogger(__name__)

MAX_LINES = 16_384
"""That wait to be written; some 4 MB."""
MAX_VALUE_CHARACTERS = 256
# What is written at once is written whole, by however many processes into the same pipe (POSIX: PIPE_BUF).
CHUNK_BYTES = 4096
INTERVAL_S = 0.1
STOP_S = 1.0
_MAX_LINE = 2048
# All other characters could end a line, steer a terminal, or show a text other than it is.
_PLAIN = re.compile(r"[ !#-\[\]-~]*")


def clean(text: str) -> str:
    """The text in printable ASCII, without quotation marks: other characters as escapes of Python's, too long a text cut off."""
    if len(text) > MAX_VALUE_CHARACTERS:
        text = text[:MAX_VALUE_CHARACTERS] + "..."
    if _PLAIN.fullmatch(text):
        return text
    return text.encode("unicode_escape").decode().replace('"', "\\x22")


class Times:
    """The wall clock in ISO 8601 to the millisecond; the part up to the second is made once a second."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._second = -1
        self._text = ""

    def text(self) -> str:
        """Now."""
        second, millisecond = divmod(round(1000 * self._now()), 1000)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{millisecond:03d}Z"


def json_line(entry: Mapping[str, object]) -> bytes:
    """One object."""
    try:
        line = write(entry)
    except TypeError:  # text that is no Unicode
        line = b"\\"
    # What was escaped has a backslash. So the whole line tells in a microsecond that no value has to be looked at.
    if not line.isascii() or b"\\" in line or b"\x7f" in line or len(line) > _MAX_LINE:
        line = write({name: clean(value) if type(value) is str else value for name, value in entry.items()})
    return line + b"\n"


def text_line(entry: Mapping[str, object]) -> bytes:
    """`time=2026-01-31T12:00:00.123Z request_id=… client=…`; a value with a space or an equals sign is quoted."""
    line = " ".join([f"{name}={value}" for name, value in entry.items()])
    if (
        not (line.isascii() and line.isprintable() and line.count(" ") == len(entry) - 1 and line.count("=") == len(entry))
        or '"' in line
        or "= " in line
        or line.endswith("=")
        or "\\" in line
        or len(line) > _MAX_LINE
    ):
        line = " ".join([f"{name}={_word(value)}" for name, value in entry.items()])
    return line.encode() + b"\n"


def _word(value: object) -> object:
    if type(value) is not str:
        return value
    text = clean(value)
    return f'"{text}"' if not text or " " in text or "=" in text else text


def take_chunk(waiting: deque[bytes]) -> tuple[bytes, int]:
    """The first of these lines, at least one, as many as a pipe takes whole; and how many they are."""
    lines = [waiting.popleft()]
    size = len(lines[0])
    while waiting and size + len(waiting[0]) <= CHUNK_BYTES:
        lines.append(waiting.popleft())
        size += len(lines[-1])
    return b"".join(lines), len(lines)


class AccessLogWriter:
    """Writes entries to a file descriptor from `start` to `stop`. `count_drops` is called on the event loop, by `put`."""

    def __init__(
        self,
        form: Literal["text", "json"],
        count_drops: Callable[[int], None],
        *,
        descriptor: int = 1,
        max_lines: int = MAX_LINES,
    ) -> None:
        self._line = json_line if form == "json" else text_line
        self._count_drops = count_drops
        self._descriptor = descriptor
        self._max_lines = max_lines
        self._lines: deque[bytes] = deque()
        self._failed: deque[int] = deque()  # lines that could not be written, and are not yet counted
        self._has_warned = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, entry: Mapping[str, object]) -> None:
        """Have the entry written soon; where too many wait it is dropped."""
        while self._failed:
            self._count_drops(self._failed.popleft())
        if len(self._lines) >= self._max_lines:
            self._count_drops(1)
        else:
            self._lines.append(self._line(entry))

    def start(self) -> None:
        """Start the thread; call it in the process that serves."""
        self._thread = threading.Thread(target=self._work, name="access-log", daemon=True)
        self._thread.start()

    def stop(self, patience_s: float = STOP_S) -> None:
        """Write what waits, if somebody reads it in time."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(patience_s)

    def _work(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._write_all()
        self._write_all()

    def _write_all(self) -> None:
        while self._lines:
            chunk, num_lines = take_chunk(self._lines)
            try:
                self._write(chunk)
            except OSError as exc:
                if not self._has_warned:
                    self._has_warned = True
                    log.warning("cannot write the access log", extra={"reason": exc.strerror})
                self._failed.append(num_lines)

    def _write(self, chunk: bytes) -> None:
        """Write all of it, however long that takes: this thread has nothing else to do."""
        while chunk:
            try:
                chunk = chunk[os.write(self._descriptor, chunk) :]
            except BlockingIOError:  # somebody has made the pipe non-blocking
                select.select([], [self._descriptor], [], INTERVAL_S)
