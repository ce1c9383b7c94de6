"""What the workers of one server show each other: a JSON file per subject and worker, in the folder that they share.

Knows nothing of what is in them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.wire import read, write


class WorkerFiles:
    """The files of one subject."""

    def __init__(self, subject: str, directory: Path | None) -> None:
        """Without a `directory` there are no other workers, and nothing is written."""
        self._subject = subject
        self._directory = directory

    @property
    def is_shared(self) -> bool:
        """Whether there may be other workers."""
        return self._directory is not None

    def write(self, value: object) -> None:
        """Show the others this in place of what they saw before; they never see half of it."""
        if self._directory is None:
            return
        file = path_of(self._directory, self._subject, os.getpid())
        aside = file.with_suffix(".new")
        with contextlib.suppress(OSError):  # the folder goes when the server ends
            aside.write_bytes(write(value))
            aside.replace(file)

    def read_others(self) -> Iterator[Any]:
        """What each of the other workers shows."""
        if self._directory is None:
            return
        own = path_of(self._directory, self._subject, os.getpid())
        for file in self._directory.glob(f"{self._subject}_*.json"):
            if file == own:
                continue
            try:
                text = file.read_bytes()
            except OSError:  # the worker has ended
                continue
            yield read(text)


def path_of(directory: Path, subject: str, pid: int) -> Path:
    """The file of one worker."""
    return directory / f"{subject}_{pid}.json"


def remove_files(directory: Path, pid: int) -> None:
    """Remove the files of a worker that has ended, of every subject."""
    for file in directory.glob(path_of(directory, "*", pid).name):
        file.unlink(missing_ok=True)
