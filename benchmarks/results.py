"""The measurements of a run, as `results.json` holds them. Computes nothing (`summary.py` does)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from benchmarks.cases import Case
from benchmarks.rivals.options import Batching

Family = Literal["sluice", "hand-written", "hand-written tuned", "packaged", "echo"]
# Five digits: more than their precision.
Number = Annotated[float, AfterValidator(lambda value: float(f"{value:.5g}"))]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TargetSpec(_Strict):
    """One target: its name and family, its configuration, and the versions of its own packages.

    `num_threads` are onnxruntime's in each process (None: one per core); `batching` None: no batching across requests.
    """

    name: str
    family: Family
    num_processes: int
    num_threads: int | None = None
    batching: Batching | None = None
    versions: str = ""


class Measurement(_Strict):
    """One case under load. The last five are set for an open loop; lag and `busy` describe the generator (`open_loop.py`)."""

    round: int
    target: str
    case: str
    requests_per_s: Number
    p50_ms: Number
    p99_ms: Number
    num_failed: int
    p999_ms: Number | None = None
    arrivals_per_s: Number | None = None
    lag_p99_ms: Number | None = None
    lag_max_ms: Number | None = None
    busy: Number | None = None


class Start(_Strict):
    """One start of a target with one model, and its resident memory after the load."""

    round: int
    target: str
    model: str
    ready_s: Number
    resident_bytes: int


class BatchInvariance(_Strict):
    """The worst relative difference between predictions for ragged rows sent together and for the same rows, each alone."""

    round: int
    target: str
    case: str
    worst_difference: Number


class GraphSpeed(_Strict):
    """Rows per second of the bare graph on the rows of a case, on one thread, at its best batch size."""

    round: int
    case: str
    rows_per_s: Number
    batch_size: int


class Failure(_Strict):
    """A case that could not be measured, and why; `case` None: the server did not start."""

    round: int
    target: str
    model: str
    case: str | None
    reason: str


class Results(_Strict):
    """A whole run."""

    created: str
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    seconds: float
    num_rounds: int
    cases: tuple[Case, ...]
    targets: tuple[TargetSpec, ...]
    unavailable: dict[str, str] = Field(default_factory=dict, description="targets that could not be installed: the reason")
    measurements: tuple[Measurement, ...] = ()
    starts: tuple[Start, ...] = ()
    graphs: tuple[GraphSpeed, ...] = ()
    invariances: tuple[BatchInvariance, ...] = ()
    failures: tuple[Failure, ...] = ()

    def write(self, path: Path) -> None:
        """As JSON with one entry of a list per line; written aside and renamed."""
        aside = path.with_suffix(".part")
        aside.write_text(_json(self.model_dump(mode="json", exclude_defaults=True)), encoding="utf-8")
        aside.replace(path)


def read_results(path: Path) -> Results:
    return Results.model_validate_json(path.read_text(encoding="utf-8"))


def _json(content: dict[str, object]) -> str:
    fields = []
    for name, value in content.items():
        lines = ",\n".join(f"  {json.dumps(entry)}" for entry in value) if isinstance(value, list) else ""
        fields.append(f'"{name}": ' + (f"[\n{lines}\n]" if lines else json.dumps(value)))
    return "{\n" + ",\n".join(fields) + "\n}\n"
