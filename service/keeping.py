"""The process that keeps the states of sequences for the workers of a server: wired from its settings, it runs until its parent
ends it.

It knows no models: states are blocks of bytes to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path

from service.observability.logs import set_up_logs
from service.observability.prometheus import SequenceMeter
from service.sequences.shared import StoreServer
from service.sequences.store import EXPIRY_INTERVAL_S
from service.sequences.table import Bounds, SequenceTable
from service.settings import Settings

log = logging.getLogger(__name__)

SOCKET_FILE = "sequences"


def store_path(folder: Path) -> Path:
    """Where workers reach the process that has this folder."""
    return folder / SOCKET_FILE


def run_store(settings: Settings, folder: Path) -> None:
    """Keep the states of sequences for those that connect to the socket in `folder`, until the parent ends."""
    set_up_logs(settings.log_level, settings.log_format, worker=os.getpid())
    with contextlib.suppress(OSError):  # what it is, for those who look at a list of processes; Linux has it
        Path("/proc/self/comm").write_text("sluice-store")
    bounds = Bounds(settings.sequence_max, settings.sequence_max_bytes, settings.sequence_ttl_seconds)
    path = store_path(folder)
    path.unlink(missing_ok=True)  # of a process that was killed
    asyncio.run(_keep(bounds, path))


async def _keep(bounds: Bounds, path: Path) -> None:
    parent = os.getppid()
    meter = SequenceMeter(None)
    table: SequenceTable[bytes] = SequenceTable(bounds, time.monotonic, meter.evicted)
    async with await StoreServer(table).serve(path):
        while os.getppid() == parent:
            table.expire()
            meter.counted(table.totals)
            await asyncio.sleep(EXPIRY_INTERVAL_S)
