"""What a run tells on the terminal: scores beside baselines, the four equalities, the folder. Computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from training.evaluate import Scores
from training.fit import Fitted
from training.verify import Equalities


@dataclass(frozen=True)
class Report:
    """The results of one run."""

    fitted: Fitted
    metrics: Scores
    baselines: Mapping[str, Scores]
    equalities: Equalities


def show(report: Report, name: str, folder: Path, console: Console) -> None:
    """Print the results of a run that was published to `folder`."""
    scores = Table("test score", f"{name}", *report.baselines, title=None)
    for column in scores.columns[1:]:
        column.justify = "right"
    for measure, score in report.metrics.items():
        others = [baseline.get(measure) for baseline in report.baselines.values()]
        scores.add_row(measure, f"[bold]{score:.4g}[/]", *("" if other is None else f"{other:.4g}" for other in others))
    console.print(scores)
    equalities = Table("equality", "largest error")
    for equality, error in asdict(report.equalities).items():
        equalities.add_row(equality.replace("_", " "), "cannot stream" if error is None else f"{error:.1e}")
    console.print(equalities)
    fitted = report.fitted
    console.print(f"best epoch  {fitted.best.number} of {len(fitted.epochs)}, {fitted.duration_s:.0f} s", highlight=False)
    console.print(f"published   {folder}", highlight=False, soft_wrap=True)


@contextmanager
def counted(console: Console, what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress line for `total` steps of some length; call what it yields after each."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
