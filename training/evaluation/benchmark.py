"""What a benchmark is: its files, how a service is scored on it, and the rows of the table that come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.data.sources import Content, read
from training.evaluation.client import Service
from training.recipe import Source


@dataclass(frozen=True)
class File:
    """One file of a benchmark under the data folder, and the sha256 of its content (`sources.fingerprint`)."""

    path: str
    sha256: str
    catalogue: str = ""
    origin: str = ""

    def read(self, folder: Path | None) -> Content:
        """The content. Raises DataError: no such file, with where it comes from; broken; or another sha256."""
        return read(Source(path=self.path, sha256=self.sha256, catalogue=self.catalogue, origin=self.origin), folder)


@dataclass(frozen=True)
class Row:
    """One line of a benchmark's table: a part of it, its measure, the service's score, and those of others beside it."""

    part: str
    measure: str
    score: float | None  # None: no model serves this part
    baselines: Mapping[str, float] = field(default_factory=dict)  # computed here, on the same data
    published: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, rounded to what scores are worth."""
        found: dict[str, Any] = {"part": self.part, "measure": self.measure}
        found["score"] = None if self.score is None else round(self.score, 4)
        for name, scores in (("baselines", self.baselines), ("published", self.published)):
            if scores:
                found[name] = {key: round(value, 4) for key, value in scores.items()}
        return found | ({"note": self.note} if self.note else {})


@dataclass(frozen=True)
class Evaluation:
    """What a service scored on one benchmark."""

    benchmark: str
    rows: Sequence[Row]
    models: Sequence[str]
    num_rows: int
    seconds: float
    curves: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    """For pictures: by title, points of (x, y)."""

    @property
    def rows_per_s(self) -> float:
        return self.num_rows / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "benchmark": self.benchmark,
            "models": list(self.models),
            "num_rows": self.num_rows,
            "seconds": round(self.seconds, 2),
            "rows_per_s": round(self.rows_per_s, 1),
            "rows": [row.as_json() for row in self.rows],
            "curves": {name: [[round(x, 4), round(y, 4)] for x, y in points] for name, points in self.curves.items()},
        }


@dataclass(frozen=True)
class Benchmark:
    """A standard test set by its name."""

    name: str
    about: str
    score: Callable[[Service, Path | None], Evaluation]
    """Of a service and the data folder. Raises DataError and EvaluationError."""
