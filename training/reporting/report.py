"""What a run tells on the terminal: scores beside baselines, the four equalities, the folder. Computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from training.export.quantize import SPEED_ROWS, SecondGraph
from training.export.verify import Verification
from training.fitting.fit import FitResult
from training.network.network import Network
from training.scoring.evaluate import Scores


@dataclass(frozen=True)
class Report:
    """The results of one run."""

    fitted: FitResult
    metrics: Scores
    baselines: Mapping[str, Scores]
    verification: Verification
    second: SecondGraph | None = None


def show(report: Report, name: str, folder: Path, console: Console) -> None:
    """Print the results of a run that was published to `folder`."""
    scores = Table("test score", f"{name}", *report.baselines, title=None)
    for column in scores.columns[1:]:
        column.justify = "right"
    for measure, score in report.metrics.items():
        others = [baseline.get(measure) for baseline in report.baselines.values()]
        scores.add_row(measure, f"[bold]{score:.4g}[/]", *("" if other is None else f"{other:.4g}" for other in others))
    console.print(scores)
    console.print(_table_of(report.verification))
    if report.second is not None:
        show_second(report.second, console)
    fitted = report.fitted
    console.print(f"best epoch  {fitted.best.number} of {len(fitted.epochs)}, {fitted.duration_s:.0f} s", highlight=False)
    console.print(f"published   {folder}", highlight=False, soft_wrap=True)


def show_second(second: SecondGraph, console: Console) -> None:
    """Print what came of an int8 graph."""
    table = Table("int8", "test score", "lost", "bound")
    for loss in second.degradations:
        unit = " points" if loss.kind == "absolute" else " %"
        mark = "" if loss.is_within else "[bold red]"
        table.add_row(
            loss.measure,
            f"{second.score[loss.measure]:.4g}",
            f"{mark}{100 * loss.value:+.3f}{unit}",
            f"{100 * loss.bound:g}{unit}",
        )
    console.print(table)
    rows = asdict(second.verification)
    told = ", ".join(
        f"{name.replace('_', ' ')} {error:.1e}" for name, error in rows.items() if error and name != "graph_vs_torch"
    )
    console.print(
        f"int8        {', '.join(second.quantized)}; at random rows: {told or 'equal alone and in company'}", highlight=False
    )
    for sentence in second.kept:
        console.print(f"            {escape(sentence)}", highlight=False)
    slower = "" if second.speed > 1 else ": slower, better without"
    console.print(
        f"speed       {second.speed:.2f} times the rows per second of fp32, {SPEED_ROWS} at a time{slower}", highlight=False
    )
    if not all(loss.is_within for loss in second.degradations):
        console.print("            a loss is beyond its bound: SLUICE_PRECISION=auto will not take it", highlight=False)


def show_import(network: Network, verification: Verification, notes: Sequence[str], folder: Path, console: Console) -> None:
    """Print what came of a network that was imported and published to `folder`."""
    num_parameters = network.num_parameters + network.num_fixed_parameters
    console.print(f"network     {len(network.layer_names)} layers, {num_parameters:,} parameters", highlight=False)
    for note in notes:
        console.print(f"note        {escape(note)}", highlight=False, soft_wrap=True)
    console.print(_table_of(verification))
    console.print(f"published   {folder}", highlight=False, soft_wrap=True)


def _table_of(verification: Verification) -> Table:
    table = Table("equality", "largest error")
    for equality, error in asdict(verification).items():
        table.add_row(equality.replace("_", " "), "cannot stream" if error is None else f"{error:.1e}")
    return table


@contextmanager
def counted(console: Console, what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress line for `total` steps of some length; call what it yields after each."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
