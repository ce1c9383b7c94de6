"""The benchmarks by name, and how one is run against a service."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from training.errors import TrainingError
from training.evaluation import competitions, known_future, long_horizon, texts
from training.evaluation.benchmark import Benchmark, Evaluation
from training.evaluation.client import Service

BENCHMARKS: Mapping[str, Benchmark] = {
    entry.name: entry
    for entry in (*competitions.BENCHMARKS, *known_future.BENCHMARKS, *long_horizon.BENCHMARKS, *texts.BENCHMARKS)
}


def evaluate(name: str, url: str, folder: Path | None) -> tuple[Evaluation | None, str]:
    """The scores of a service on one benchmark; or None and the reason, which lies in the data or in the service."""
    try:
        with Service(url) as service:
            return BENCHMARKS[name].score(service, folder), ""
    except TrainingError as exc:
        return None, str(exc)
