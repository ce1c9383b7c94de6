"""What a run prints: scores beside baselines, the four checks, the folder. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training.export.quantize import SPEED_ROWS, SecondGraph
from training.export.verify import Verification
from training.fitting.fit import FitResult
from training.reporting.imports import verification_table
from training.scoring.evaluate import Scores


@dataclass(frozen=True)
class Report:
    """The results of one run."""

    fitted: FitResult
    metrics: Scores
    baselines: Mapping[str, Scores]
    verification: Verification
    second: SecondGraph | None = None
    windows: Sequence[Mapping[str, Any]] = ()
    """Of a backtest: the scores at each origin, as the manifest has them."""


def show(report: Report, name: str, folder: Path, console: Console) -> None:
    """Print the results of a run that was published to `folder`."""
    show_scores(report, name, console)
    console.print(verification_table(report.verification))
    if report.second is not None:
        show_second(report.second, console)
    fitted = report.fitted
    console.print(f"best epoch  {fitted.best.number} of {len(fitted.epochs)}, {fitted.duration_s:.0f} s", highlight=False)
    console.print(f"published   {folder}", highlight=False, soft_wrap=True)


def show_scores(report: Report, name: str, console: Console) -> None:
    """Print the scores of a run beside those of its baselines."""
    scores = Table("test score", f"{name}", *report.baselines, title=None)
    for column in scores.columns[1:]:
        column.justify = "right"
    for measure, score in report.metrics.items():
        others = [baseline.get(measure) for baseline in report.baselines.values()]
        scores.add_row(measure, f"[bold]{score:.4g}[/]", *("" if other is None else f"{other:.4g}" for other in others))
    console.print(scores)
    if report.windows:
        names = list(report.windows[0]["mase"])
        table = Table("window", "first step", *(f"mase, {column}" for column in names))
        for number, window in enumerate(report.windows, start=1):
            shown = (f"{window['mase'][column]:.4g}" if column in window["mase"] else "" for column in names)
            table.add_row(str(number), str(window["first"]), *shown)
        console.print(table)


def show_second(second: SecondGraph, console: Console) -> None:
    """Print the results of an int8 graph."""
    table = Table("int8", "test score", "lost", "bound")
    for found in second.degradations:
        unit = " points" if found.kind == "absolute" else " %"
        mark = "" if found.is_within else "[bold red]"
        table.add_row(
            found.measure,
            f"{second.score[found.measure]:.4g}",
            f"{mark}{100 * found.value:+.3f}{unit}",
            f"{100 * found.bound:g}{unit}",
        )
    console.print(table)
    rows = second.verification.errors
    errors = ", ".join(
        f"{name.replace('_', ' ')} {error:.1e}" for name, error in rows.items() if error and name != "graph_vs_torch"
    )
    console.print(
        f"int8        {', '.join(second.quantized)}; at random rows: {errors or 'equal alone and in a batch'}", highlight=False
    )
    for sentence in second.kept:
        console.print(f"            {escape(sentence)}", highlight=False)
    slower = "" if second.speed > 1 else ": slower, better without"
    console.print(
        f"speed       {second.speed:.2f} times the rows per second of fp32, {SPEED_ROWS} at a time{slower}", highlight=False
    )
    if not all(found.is_within for found in second.degradations):
        console.print("            a loss is beyond its bound: SLUICE_PRECISION=auto will not serve it", highlight=False)
