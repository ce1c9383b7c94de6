"""The output of a run while it is unfinished: parts in a folder beside it, and a journal from which a killed run goes on.

`OUTPUT.parts/` holds `journal.json`, `part-N` and `rejected-N`; a part counts once the journal names it. When the run is over,
parts become `OUTPUT` and `OUTPUT.rejected.ndjson`, and the folder is removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError

from service import wire
from service.scoring.formats import format_of
from service.scoring.outputs import PartWriter, join_parts, open_part
from service.tasks.tables import Columns, Rejection, TableError

if os.name == "posix":
    import fcntl

JOURNAL = "journal.json"
LOCK = "lock"
OWN_NAMES = re.compile(r"lock|journal\.json(\.new)?|(part|rejected)-[0-9]+|rejected|whole")
"""Files of the folder of an unfinished run."""


class Journal(BaseModel):
    """How far a run has come, and what it is a run of."""

    run: dict[str, Any]
    """The input file, the model and the options: what goes on has to be the same."""
    row: int = 0
    """All rows before it are done."""
    num_parts: int = 0
    num_records: int = 0
    num_rejected: int = 0
    num_rows_written: int = 0


class Parts:
    """The unfinished output of one run. Use as a context manager: one run at a time writes to an output."""

    def __init__(self, output: Path, run: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """`run` is JSON. Raises TableError where the output is there, or cannot be written."""
        self.output = output
        self.rejected, self.folder = _rejected_of(output), _folder_of(output)
        self._kind = format_of(output)
        if output.suffix == ".gz":
            raise TableError(f"{output}: compressed text is read, not written")
        for path in (output, self.rejected):
            if path.is_dir():
                raise TableError(f"{path} is a folder, expected a file")
            if path.exists() and not overwrite:
                raise TableError(f"{path} is there already; --overwrite replaces it")
        self.journal = Journal(run=dict(run))
        self.is_resumed = False
        self._writer: PartWriter | None = None
        self._rejections: Any = None
        self._waiting = Journal(run={})  # what the open part adds
        self._lock: Any = None

    def expect_apart(self, source: Path) -> None:
        """Raise TableError where the run would replace or remove the file that it reads."""
        for path in (self.output, self.rejected):
            if path.exists() and path.samefile(source):
                raise TableError(f"{path} is the input: the output needs a name of its own")
        if source.resolve().is_relative_to(self.folder.resolve()):
            raise TableError(f"{source} lies in {self.folder}, which is for what is unfinished: it is removed at the end")

    def __enter__(self) -> Self:
        try:
            if self.folder.is_dir():
                self._expect_own_files()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / LOCK).open("a")
        except OSError as exc:
            raise TableError(f"{self.folder} cannot be written: {exc.strerror}") from exc
        try:
            if os.name == "posix":
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            self._lock.close()
            raise TableError(f"another run writes to {self.output}") from exc
        found = self._read_journal()
        if found is not None and found.run == self.journal.run:
            self.journal, self.is_resumed = found, found.num_parts > 0
        else:
            self._write_journal()
        known = {
            path.name for number in range(self.journal.num_parts) for path in (self._part(number), self._rejected_part(number))
        }
        for path in self.folder.iterdir():
            if path.name not in known | {JOURNAL, LOCK}:  # of a run of something else, or not counted
                path.unlink()
        return self

    def _expect_own_files(self) -> None:
        """Raise TableError for a folder of another origin: what no journal names is removed, and the folder at the end."""
        for path in sorted(self.folder.iterdir()):
            if not OWN_NAMES.fullmatch(path.name) or path.is_dir():
                raise TableError(f"{self.folder} is in the way: {path.name} is no file of an unfinished run")

    def __exit__(self, *_: object) -> None:
        self._abandon()
        self._lock.close()

    def write(self, columns: Columns | None, num_records: int, rejections: Sequence[Rejection], row: int) -> None:
        """Add the predictions of records and the rejections among them: all that lies before `row`."""
        if columns is not None:
            if self._writer is None:
                is_first = self.journal.num_rows_written == 0
                self._writer = open_part(self._part(self.journal.num_parts), self._kind, is_first=is_first)
            self._writer.write(columns)
        if rejections:
            if self._rejections is None:
                self._rejections = self._rejected_part(self.journal.num_parts).open("wb")
            self._rejections.write(b"".join(wire.write(_describe(rejection)) + b"\n" for rejection in rejections))
        waiting = self._waiting
        waiting.num_records += num_records
        waiting.num_rejected += len(rejections)
        waiting.row = row

    def commit(self) -> None:
        """Make what was written since the last time count, however the process ends."""
        waiting = self._waiting
        if self._writer is not None:
            self._writer.close()
            self.journal.num_rows_written += self._writer.num_rows
        if self._rejections is not None:
            self._rejections.flush()
            os.fsync(self._rejections.fileno())
            self._rejections.close()
        self._writer = self._rejections = None
        journal = self.journal
        journal.row = max(journal.row, waiting.row)
        journal.num_parts += 1
        journal.num_records += waiting.num_records
        journal.num_rejected += waiting.num_rejected
        self._waiting = Journal(run={})
        self._write_journal()

    def finish(self) -> None:
        """Make the parts the output. What was there before is replaced; where nothing was rejected, there is no file of it."""
        self.commit()
        numbers = range(self.journal.num_parts)
        rejected = [path for path in map(self._rejected_part, numbers) if path.exists()]
        parts = [path for path in map(self._part, numbers) if path.exists()]
        if rejected:
            whole = self.folder / "rejected"
            join_parts(rejected, whole, "ndjson")
            whole.replace(self.rejected)
        else:
            self.rejected.unlink(missing_ok=True)
        if parts:
            whole = self.folder / "whole"
            join_parts(parts, whole, self._kind)
            whole.replace(self.output)
        else:
            self.output.unlink(missing_ok=True)
        shutil.rmtree(self.folder)

    @property
    def num_records(self) -> int:
        """Records that were scored."""
        return self.journal.num_records + self._waiting.num_records

    @property
    def num_rejected(self) -> int:
        return self.journal.num_rejected + self._waiting.num_rejected

    def _abandon(self) -> None:
        """Leave what the journal does not name; the next run replaces it."""
        for file in (self._writer, self._rejections):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
        self._writer = self._rejections = None

    def _read_journal(self) -> Journal | None:
        try:
            return Journal.model_validate_json((self.folder / JOURNAL).read_bytes())
        except (OSError, ValidationError):
            return None

    def _write_journal(self) -> None:
        draft = self.folder / f"{JOURNAL}.new"
        with draft.open("wb") as file:
            file.write(self.journal.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.folder / JOURNAL)

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number}"

    def _rejected_part(self, number: int) -> Path:
        return self.folder / f"rejected-{number}"


def is_done(output: Path) -> bool:
    """Whether a run has come to its end: its predictions are there, or, where nothing could be scored, what was rejected."""
    return output.exists() or (_rejected_of(output).exists() and not _folder_of(output).exists())


def _rejected_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.rejected.ndjson")


def _folder_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


def identify_file(path: Path) -> dict[str, Any]:
    """What tells a file from another one, and from itself after a change."""
    found = path.stat()
    return {"path": str(path.resolve()), "size": found.st_size, "modified_ns": found.st_mtime_ns}


def _describe(rejection: Rejection) -> dict[str, object]:
    about: dict[str, object] = {"row": rejection.row}
    if rejection.key is not None or rejection.end > rejection.row + 1:
        about |= {"num_rows": rejection.end - rejection.row, "unique_id": rejection.key}
    return about | {"code": rejection.code, "reason": rejection.reason}
