"""Version folders copied aside: what is verified, and what every process loads, are then the same bytes.

A folder that is half copied, replaced, renamed or deleted meanwhile changes nothing of a copy. Reads below its folder only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

from service.errors import FolderError
from service.files import FileRefused, open_confined

MAX_FILES = 1000
MAX_DEPTH = 4
MAX_BYTES = 8 * 2**30


def fingerprint(folder: Path) -> str:
    """Changes with every file of the folder, by names, sizes, times and inodes; no file is read. Raises FolderError."""
    digest = hashlib.sha256()
    for path, found in list_files(folder):
        digest.update(repr((path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)).encode())
    return digest.hexdigest()


def list_files(folder: Path) -> list[tuple[str, os.stat_result]]:
    """The files below a folder, by name; hidden ones are left out. Raises FolderError where it cannot be read."""
    found: list[tuple[str, os.stat_result]] = []
    pending = [("", 0)]
    num_seen = 0
    try:
        while pending:
            inside, depth = pending.pop()
            with os.scandir(folder / inside) as entries:
                for entry in entries:
                    num_seen += 1
                    if num_seen > MAX_FILES:
                        raise FolderError(f"the folder holds more than {MAX_FILES} files")
                    path = f"{inside}/{entry.name}" if inside else entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if depth < MAX_DEPTH:
                            pending.append((path, depth + 1))
                        continue
                    about = entry.stat()
                    if not stat.S_ISDIR(about.st_mode):  # a link to a folder
                        found.append((path, about))
    except FileNotFoundError as exc:
        raise FolderError("a file of the folder has just gone") from exc
    except OSError as exc:
        raise FolderError(f"the folder cannot be read: {exc.strerror}") from exc
    return sorted(found)


def copy_version(source: Path, target: Path) -> str:
    """Copy the files of a version folder to a new folder, and give the fingerprint of what was copied.

    Raises FolderError where it cannot be read, where it changes meanwhile, and where it is too large. Links that lead out of the
    folder are not copied, nor what is no regular file: who needs them finds them missing.
    """
    before = fingerprint(source)
    left = MAX_BYTES
    root = source.resolve()
    for name, _ in list_files(source):
        left -= _copy_file(root, name, target / name, left)
    if fingerprint(source) != before:
        raise FolderError("the folder changed while it was copied")
    return before


def _copy_file(root: Path, name: str, target: Path, max_bytes: int) -> int:
    try:
        with open_confined(root, name) as file:
            found = os.fstat(file.fileno())
            if found.st_size > max_bytes:
                raise FolderError(f"the folder has more than {MAX_BYTES} bytes")
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as copy:
                shutil.copyfileobj(file, copy, 2**20)
    except FileRefused:
        return 0
    except OSError as exc:
        raise FolderError(f"{name} cannot be copied: {exc.strerror}") from exc
    return found.st_size
