"""The formats of tables in files, by their names, and the first line of what a library says is wrong with one."""

from __future__ import annotations

from pathlib import Path

from service.tasks.tables import TableError

PARQUET, CSV, TSV, NDJSON = "parquet", "csv", "tsv", "ndjson"
SUFFIXES = {".parquet": PARQUET, ".pq": PARQUET, ".csv": CSV, ".tsv": TSV, ".ndjson": NDJSON, ".jsonl": NDJSON}
BUFFER_BYTES = 2**20
"""Of a file that is read or copied piece by piece."""


def format_of(path: Path) -> str:
    """The format that a file's name says. Raises TableError for others."""
    suffixes = [suffix for suffix in path.suffixes[-2:] if suffix != ".gz"]
    found = SUFFIXES.get(suffixes[-1].lower()) if suffixes else None
    if found is None:
        raise TableError(f"{path}: expected a name that ends in one of {sorted(SUFFIXES)}")
    return found


def first_line(exc: BaseException) -> str:
    """What an exception says, in a line that is not too long."""
    return (str(exc).strip() or type(exc).__name__).splitlines()[0][:300]
