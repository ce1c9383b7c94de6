"""How commands end: with a message in place of a traceback, and an exit status."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from training.errors import TrainingError

INSTALL = "pip install 'sluice-serving[cpu,{extra}]'"


@contextmanager
def errors_as_messages(console: Console, interrupted: str = "stopped", extra: str = "train") -> Iterator[None]:
    """End the command with a message instead of a traceback where training refuses something or lacks a library."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"\n{interrupted}")
        raise typer.Exit(130) from None
    except TrainingError as exc:
        message = str(exc).replace("[", "\\[")
        Console(stderr=True).print(f"[bold red]error[/]: {message}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except ImportError as exc:
        raise SystemExit(f"this command needs more than the service does: {INSTALL.format(extra=extra)} ({exc})") from exc


def split_names(text: str | None) -> tuple[str, ...] | None:
    """What commas separate."""
    return None if text is None else tuple(part.strip() for part in text.split(","))
