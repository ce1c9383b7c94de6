"""Files that an operator names: read within bounds, and read again when they have changed.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from service.errors import ServiceError, StartError

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file that lies in the folder its path names. Raises StartError that says what is wrong with it.

    Links within that folder are followed, for Kubernetes mounts secrets so; links that lead out of it are not. A FIFO or a
    device is refused without being waited for.
    """
    try:
        folder, target = path.parent.resolve(strict=True), path.resolve(strict=True)
        if not target.is_relative_to(folder):
            raise StartError(f"{path} is a link that leads out of its folder")
        # A FIFO opens without a writer; a last component that became a link since is refused.
        number = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(number, "rb") as file:
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode):
                raise StartError(f"{path} is not a regular file")
            content = file.read(max_bytes + 1)
    except OSError as exc:
        raise StartError(f"{path} cannot be read: {exc.strerror}") from exc
    except RuntimeError as exc:  # Path.resolve of a link to itself, before Python 3.13
        raise StartError(f"{path} cannot be read: a link that leads to itself") from exc
    if len(content) > max_bytes:
        raise StartError(f"{path} has more than {max_bytes} bytes")
    return content


class _Signature(NamedTuple):
    """Changes with every write, also with one that keeps the time of the last modification (the ctime does not)."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def _signature(path: Path) -> _Signature | None:
    """None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return _Signature(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class FileWatch:
    """Calls `reload` when one of the files has changed and stayed as it is for two looks, so that no half of one is read.

    By its size, its times and its inode, not by inotify: what is mounted from elsewhere sends no events.
    """

    def __init__(self, paths: Iterable[Path], reload: Callable[[], None]) -> None:
        """`reload` raises ServiceError where what it reads is wrong; the files are then left alone until they change again."""
        self._paths = tuple(paths)
        self._reload = reload
        # What was read before this moment may have changed within the resolution of the clock: it is read once more.
        self._loaded: tuple[_Signature | None, ...] | None = None
        self._seen: tuple[_Signature | None, ...] | None = None

    def look(self) -> None:
        """See whether the files have changed; reads them when they have."""
        found = tuple(_signature(path) for path in self._paths)
        if found != self._seen:
            self._seen = found
            return
        if found == self._loaded:
            return
        self._loaded = found
        try:
            self._reload()
        except ServiceError as exc:
            log.error("a changed file is not used, what was read before stays", extra={"reason": exc.message})

    async def run(self, every_s: float = LOOK_EVERY_S) -> None:
        """Look now and then, on a thread, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(self.look)
