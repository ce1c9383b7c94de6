"""The command that scores a running service: `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.commands import options as option
from training.commands.console import errors_as_messages


def evaluate_command(
    names: Annotated[list[str] | None, typer.Argument(metavar="[BENCHMARK]...", help="Which; left out: all of them.")] = None,
    url: Annotated[str, typer.Option(help="The running service.")] = "http://localhost:8000",
    output: Annotated[Path | None, typer.Option(help="A JSON file of results; it keeps those of others.")] = None,
    data: option.Data = None,
) -> None:
    """Send the test sets of standard benchmarks to a running service, and print its scores beside those of others."""
    console = Console()
    with errors_as_messages(console):
        from training.evaluation.client import EvaluationError
        from training.evaluation.registry import BENCHMARKS, evaluate
        from training.evaluation.report import show, write_results

        unknown = [name for name in names or () if name not in BENCHMARKS]
        if unknown:
            raise EvaluationError(f'no benchmark "{unknown[0]}"; there are {", ".join(BENCHMARKS)}')
        failed = False
        for name in names or BENCHMARKS:
            with console.status(name):
                found, message = evaluate(name, url, data)
            if found is None:
                failed = True
                console.print(f"{name}: not scored: {message}", highlight=False, soft_wrap=True, markup=False)
                continue
            show(found, console)
            if output is not None:
                write_results([found], output)
        if failed:
            raise typer.Exit(1)
