"""Results of benchmarks: as a table on a terminal, as a JSON file, and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from training.evaluation.benchmark import Evaluation
from training.evaluation.client import EvaluationError


def show(found: Evaluation, console: Console) -> None:
    """Print one benchmark's table, with the models, the time and the rate."""
    table = Table(title=found.benchmark, box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("part", "measure", "service", "baselines", "published"):
        table.add_column(heading, justify="right" if heading == "service" else "left", overflow="fold")
    for row in found.rows:
        score = "not served" if row.score is None else number(row.score)
        table.add_row(row.part, row.measure, score, _beside(row.baselines), _beside(row.published))
    console.print(table)
    for note in dict.fromkeys(row.note for row in found.rows if row.note):
        console.print(f"  {note}", highlight=False, soft_wrap=True, markup=False)
    rate = f"{found.num_rows:,} rows in {found.seconds:.1f} s, {found.rows_per_s:,.0f} rows/s"
    console.print(f"  {rate}; by {', '.join(found.models) or 'no model'}", highlight=False, soft_wrap=True, markup=False)


def write_results(results: Iterable[Evaluation], path: Path) -> None:
    """Write results to a JSON file; those of other benchmarks that it holds stay. Raises EvaluationError."""
    known = read_results(path) if path.exists() else {}
    known |= {found.benchmark: found.as_json() for found in results}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as exc:
        raise EvaluationError(f"{path} cannot be written: {exc.strerror or exc}") from exc


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """What `write_results` wrote: by benchmark. Raises EvaluationError for a file that is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise EvaluationError(f"{path} cannot be read: {exc}") from exc
    if not isinstance(content, dict) or not all(isinstance(entry, dict) and "rows" in entry for entry in content.values()):
        raise EvaluationError(f"{path} holds no results of benchmarks")
    return content


def as_markdown(results: Mapping[str, Mapping[str, Any]], abouts: Mapping[str, str]) -> str:
    """A section with a table for every benchmark, in the order of `abouts`."""
    parts = []
    for name, about in abouts.items():
        if name not in results:
            continue
        found = results[name]
        parts += [f"### {name}", "", f"{about}. {_by(found)}", ""]
        rows: Sequence[Mapping[str, Any]] = found["rows"]
        baselines = list(dict.fromkeys(key for row in rows for key in row.get("baselines", {})))
        published = list(dict.fromkeys(key for row in rows for key in row.get("published", {})))
        head = ["", "measure", "service", *baselines, *(f"{key} (published)" for key in published)]
        parts += [_line(head), _line(["---", "---", *["---:"] * (len(head) - 2)])]
        for row in rows:
            score = "not served" if row["score"] is None else f"**{number(row['score'])}**"
            beside = [row.get("baselines", {}).get(key) for key in baselines]
            beside += [row.get("published", {}).get(key) for key in published]
            numbers = ["" if value is None else number(value) for value in beside]
            parts.append(_line([row["part"], row["measure"], score, *numbers]))
        notes = dict.fromkeys(row["note"] for row in rows if row.get("note"))
        parts += ["", *notes, *([""] if notes else [])]
    return "\n".join(parts)


def number(value: float) -> str:
    """Three decimals below two, two above."""
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.2f}"


def _by(found: Mapping[str, Any]) -> str:
    models = ", ".join(f"`{name}`" for name in found["models"]) or "no model"
    return f"By {models}; {found['num_rows']:,} rows at {found['rows_per_s']:,.0f} a second."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _beside(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in scores.items())
