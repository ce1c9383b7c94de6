"""Files that an operator names or a folder holds: read within bounds, and read again when they have changed.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import operator
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from service.errors import ServiceError, StartError

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


class FileRefused(Exception):
    """A file is not read; the text says why, and continues a sentence that begins with the file's name."""


def open_confined(folder: Path, name: str) -> BinaryIO:
    """A regular file that lies in the folder, to be read. Raises FileRefused, and OSError where it cannot be opened.

    Links within the folder are followed, for Kubernetes mounts secrets so; links that lead out of it are not. A FIFO or a
    device is refused without being waited for.
    """
    try:
        target = (folder / name).resolve(strict=True)
        root = folder.resolve(strict=True)
    except RuntimeError as exc:  # before Python 3.13
        raise OSError(errno.ELOOP, "it is a link to itself") from exc
    if not target.is_relative_to(root):
        raise FileRefused("is a link that leads out of the folder")
    # A FIFO opens without a writer; a last component that became a link since is refused. Windows has none of these.
    flags = (getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC"))
    file = os.fdopen(os.open(target, functools.reduce(operator.or_, flags, os.O_RDONLY)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise FileRefused("is not a regular file")
    return file


def read_confined(folder: Path, name: str, max_bytes: int) -> bytes:
    """The bytes of a file, opened by `open_confined`. Raises FileRefused where it cannot be, and where it has more bytes."""
    try:
        with open_confined(folder, name) as file:
            # Python sets so much memory aside as it is to read.
            content = file.read(min(max_bytes, os.fstat(file.fileno()).st_size) + 1)
    except OSError as exc:
        raise FileRefused(f"cannot be read: {exc.strerror}") from exc
    if len(content) > max_bytes:
        raise FileRefused(f"has more than {max_bytes} bytes")
    return content


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file that lies in the folder its path names. Raises StartError that says what is wrong with it."""
    try:
        return read_confined(path.parent, path.name, max_bytes)
    except FileRefused as exc:
        raise StartError(f"{path} {exc}") from exc


def find_readers(path: Path, user: int) -> str:
    """Who may read a file besides the user of this process and its owner, as "group" or "everyone"; empty for nobody.

    A file of another user that a group may read is how a mounted secret reaches a user of that group, and no finding.
    """
    try:
        found = path.stat()
    except OSError:
        return ""
    if found.st_mode & stat.S_IROTH:
        return "everyone"
    return "group" if found.st_mode & stat.S_IRGRP and found.st_uid == user else ""


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
