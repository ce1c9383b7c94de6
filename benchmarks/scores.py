"""Scores of the bundled models through a running service, as a page: python -m benchmarks.scores [BENCHMARK]...

Starts the server on the models folder, runs the benchmarks of `sluice evaluate`, keeps their results in `benchmarks/scores.json`,
and writes the part of docs/explanation/scores.md between its two marks, with the pictures. What cannot be scored keeps its
earlier results, and is said.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.servers import ROOT, sluice
from training.evaluation.registry import BENCHMARKS, evaluate
from training.evaluation.report import as_markdown, read_results, write_results
from training.reporting import plots

RESULTS = ROOT / "benchmarks" / "scores.json"
PAGE = ROOT / "docs" / "explanation" / "scores.md"
PICTURES = ROOT / "docs" / "pictures"
BEGIN, END = "<!-- begin: make scores -->", "<!-- end: make scores -->"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, write, and return 1 if a benchmark could not be scored."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="BENCHMARK", help=f"of {', '.join(BENCHMARKS)}; left out: all")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f'no benchmark "{unknown[0]}"; there are {", ".join(BENCHMARKS)}')
    folder = Path(os.environ["SLUICE_DATA"]) if os.environ.get("SLUICE_DATA") else None
    failed = False
    with sluice(options.models) as server:
        for name in options.names or BENCHMARKS:
            found, message = evaluate(name, server.url, folder)
            if found is None:
                failed = True
                print(f"{name}: not scored: {message}", file=sys.stderr)
            else:
                write_results([found], RESULTS)
                print(f"{name}: {found.num_rows:,} rows in {found.seconds:.1f} s")
    write_page(read_results(RESULTS) if RESULTS.exists() else {})
    return int(failed)


def write_page(results: Mapping[str, Mapping[str, Any]]) -> None:
    """The generated part of the page, and its picture."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_section(page, section(results)), encoding="utf-8")
    curves = {f"{name}, {part}": points for name, found in results.items() for part, points in found.get("curves", {}).items()}
    if curves:
        (PICTURES / "scores-calibration.png").write_bytes(plots.calibrations(curves))


def section(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables of all results."""
    abouts = {name: f"{benchmark.about[0].upper()}{benchmark.about[1:]}" for name, benchmark in BENCHMARKS.items()}
    return as_markdown(results, abouts).strip()


def with_section(page: str, text: str) -> str:
    """The page with another text between its marks. Raises ValueError where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())
