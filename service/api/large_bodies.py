"""Large bodies: bounded by how many values they hold, read and freed beside the event loop, one at a time; written in parts.

Reading JSON holds the GIL, on whichever thread it is: a body is read in pieces (`json_pieces.py`), and one body at a time, so
that the loop gets its turn between two.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any, TypeVar

from service.api.parsing import ParsedRequest, parse
from service.errors import PayloadTooLarge
from service.json_pieces import count_values, release
from service.wire import pause, write_parts

T = TypeVar("T")

PAUSE_BYTES = 16 * 1024
"""Behind so much text of an answer others get a turn: some 0.1 ms."""


class LargeBodyParser:
    """Reads bodies of more than `parsing.LARGE_BYTES` on a thread."""

    def __init__(self, max_values: int) -> None:
        self._max_values = max_values
        self._turn = asyncio.Lock()

    async def parse(self, body: bytes, max_instances: int) -> ParsedRequest:
        """As `parse`; raises PayloadTooLarge for too many values too."""
        return await self.read(body, lambda: parse(body, max_instances))

    async def read(self, text: bytes, parse_body: Callable[[], T]) -> T:
        """The result of `parse_body`, which reads this JSON text; raises PayloadTooLarge where it holds too many values."""
        async with self._turn:
            return await asyncio.to_thread(self._read, text, parse_body)

    def free(self, value: object) -> None:
        """Free what was read of a body and is needed no more, on a thread; nobody need wait for it."""
        asyncio.get_running_loop().run_in_executor(None, release, value, pause)

    def _read(self, text: bytes, parse_body: Callable[[], T]) -> T:
        found = count_values(text)
        if found > self._max_values:
            raise PayloadTooLarge(
                f"the body holds {found} JSON values, as many as its commas, 10 for each list or object and 20 for each key; "
                f"SLUICE_MAX_JSON_VALUES is {self._max_values}",
                found=found,
                limit=self._max_values,
                setting="SLUICE_MAX_JSON_VALUES",
            )
        # Collecting garbage while so many objects come into being would take half as long again, within the same hold of the GIL.
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return parse_body()
        finally:
            if was_enabled:
                gc.enable()


async def write_large(value: Any) -> bytes:
    """The text of `wire.write`; one with many values is written in parts, with a turn of the event loop between them."""
    parts: list[bytes] = []
    num_bytes = 0  # since the last turn: brackets and names are not worth one
    for part in write_parts(value):
        parts.append(part)
        num_bytes += len(part)
        if num_bytes > PAUSE_BYTES:
            await asyncio.sleep(0)
            num_bytes = 0
    return parts[0] if len(parts) == 1 else b"".join(parts)
