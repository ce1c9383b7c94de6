"""Progress on the terminal: of steps of unknown length, and of downloads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def progress_line(console: Console, label: str, total: int = 1) -> Iterator[Callable[[], None]]:
    """Show a line for `total` steps, on a terminal only; call what it yields after each step."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def download_lines(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """Show a line per file, on a terminal only; call what it yields with name, bytes so far, and bytes in all if known."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        lines: dict[str, TaskID] = {}

        def show(file: str, done: int, total: int | None) -> None:
            if file not in lines:
                lines[file] = progress.add_task(file, total=total)
            progress.update(lines[file], completed=done, total=total)

        yield show
