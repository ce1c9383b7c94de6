"""Model folders examined by one process for others: what is read, and what was measured, is then shared. Serves nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.errors import StartError
from service.models.folder import Examination, ModelOptions, examine
from service.models.loading import with_tuning
from service.models.scanning import LATEST, ModelVersion, VersionPins, highest_first, scan_models
from service.models.target import Key
from service.models.verification import Verdict, Verification, examine_verified
from service.runtime.base import OpenRuntime
from service.runtime.onnx_runtime import open_runtime


@dataclass(frozen=True)
class Preload:
    """The model folders as one process examined them, for others that it forks: what is read is then shared."""

    entries: list[ModelVersion]
    reason: str | None
    """Why there are none."""
    examinations: dict[tuple[str, str], tuple[Examination, float]]
    """By name and version: what was found, and the seconds it took."""

    @property
    def can_stream(self) -> bool:
        """Whether one of the models can stream."""
        parts = [examination.parts for examination, _ in self.examinations.values()]
        return any(each is not None and not each.why_not_streaming for each in parts)


def preload_folders(
    models_dirs: Path | Sequence[Path],
    options: ModelOptions,
    open_graph: OpenRuntime = open_runtime,
    verification: Verification | None = None,
    pins: VersionPins | None = None,
) -> Preload:
    """Find, examine and measure every model folder; no thread is started. Raises StartError like `Repository.start`.

    With `verification` the graphs are run there and not here; each is opened here while the next ones are verified.
    """
    entries, reason = scan_models(models_dirs, pins)
    find_verdict = None if verification is None else verification.wait_for
    return Preload(entries, reason, examine_versions(entries, options, open_graph, find_verdict, pins))


def examine_versions(
    entries: Sequence[ModelVersion],
    options: ModelOptions,
    open_graph: OpenRuntime = open_runtime,
    find_verdict: Callable[[Key], Verdict] | None = None,
    pins: VersionPins | None = None,
) -> dict[Key, tuple[Examination, float]]:
    """What `examine` finds in each folder, measured, and the seconds it took; no thread is started.

    With `find_verdict` no graph is run: it says what was found of each.
    """
    examinations = {}
    finished: set[str] = set()
    for entry in highest_first(entries):
        if entry.state == "UNAVAILABLE" or entry.name in finished:
            continue
        verdict = None if find_verdict is None else find_verdict(entry.key)
        started = time.perf_counter()
        try:
            if verdict is None:
                examination = with_tuning(examine(entry.folder, options, open_graph, entry.key), options)
            else:
                examination = examine_verified(entry.folder, options, open_graph, verdict, entry.key)
        except StartError:
            raise
        except Exception:  # the process that loads it meets the same error, and reports it
            continue
        examinations[entry.key] = examination, time.perf_counter() - started
        if examination.parts is not None and not examination.findings and LATEST in (pins or {}).get(entry.name, ()):
            finished.add(entry.name)
    return examinations
