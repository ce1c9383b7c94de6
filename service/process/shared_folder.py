"""A temporary folder for the workers of one parent, removed with it, also when the parent was killed.

Unix only, as are several workers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

LOCK_FILE = "lock"


@contextlib.contextmanager
def shared_folder(prefix: str, inside: Path) -> Iterator[Path]:
    """A new folder, removed at the end, and with it those whose parents were killed."""
    for other in inside.glob(f"{prefix}*"):
        if _is_orphaned(other):
            shutil.rmtree(other, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=inside) as name:
        folder = Path(name)
        # Under its name only once it is locked: a lock that is free means that the parent has ended. Unlike a pid, this is true
        # also between containers that share a folder.
        lock = os.open(folder / "lock.new", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            _try_lock(lock)
            (folder / "lock.new").rename(folder / LOCK_FILE)
            yield folder
        finally:
            os.close(lock)


def _is_orphaned(folder: Path) -> bool:
    try:
        if folder.lstat().st_uid != os.getuid():
            return False
        lock = os.open(folder / LOCK_FILE, os.O_RDWR)
    except OSError:
        return False  # just being made, or just removed
    try:
        return _try_lock(lock)
    finally:
        os.close(lock)


def _try_lock(file: int) -> bool:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
