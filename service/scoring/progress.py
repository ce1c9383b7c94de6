"""The progress of a run on standard error: a bar on a terminal, else a line now and then. The only file that imports rich."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 30.0


class ProgressDisplay:
    """Shows which share of the input is done."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._is_live = self._console.is_terminal
        self._next_line = time.monotonic() + LINE_EVERY_S
        self._bar = Progress(
            TextColumn("{task.fields[counts]}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._is_live,
        )
        self._task = self._bar.add_task("", total=1.0, counts="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, share: float, num_records: int, num_rejected: int) -> None:
        """`share` of the input, 0 to 1, is done."""
        counts = f"{num_records} scored" + (f", {num_rejected} rejected" if num_rejected else "")
        self._bar.update(self._task, completed=share, counts=counts)
        if not self._is_live and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY_S
            self._console.print(f"{share:.0%}  {counts}", highlight=False)
