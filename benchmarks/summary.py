"""Statistics of a run: medians with their spread, ratios, efficiency. Pure functions of `Results`; formats nothing.

The machine's speed drifts, so a ratio is computed within each round, and the median of these is reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.cases import Case
from benchmarks.ceilings import ceiling_per_s, efficiency
from benchmarks.results import Measurement, Results, TargetSpec

ECHO = "echo"


class Spread(NamedTuple):
    """Median, least and largest value of the rounds."""

    median: float
    low: float
    high: float


class Summary:
    """The statistics of one run, by target and case; None where nothing was measured."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self._measurements: dict[tuple[str, str], dict[int, Measurement]] = {}
        for one in results.measurements:
            self._measurements.setdefault((one.target, one.case), {})[one.round] = one
        self._graphs = {(graph.case, graph.round): graph for graph in results.graphs}

    @property
    def targets(self) -> list[TargetSpec]:
        """All targets except the one with canned responses."""
        return [target for target in self.results.targets if target.family != "echo"]

    def rounds(self, target: TargetSpec, case: Case) -> dict[int, Measurement]:
        """The target's measurements of a case, by round."""
        return self._measurements.get((target.name, case.name), {})

    def spread(self, target: TargetSpec, case: Case, value: Callable[[Measurement], float | None]) -> Spread | None:
        """The spread of one value of a target's measurements."""
        return spread([found for one in self.rounds(target, case).values() if (found := value(one)) is not None])

    def num_failed(self, target: TargetSpec, case: Case) -> int:
        return sum(one.num_failed for one in self.rounds(target, case).values())

    def ratio_to_handwritten(self, target: TargetSpec, case: Case) -> float | None:
        """Rate over that of the hand-written server with the same number of processes."""

        def is_peer(other: TargetSpec) -> bool:
            return other.family == "hand-written" and other.num_processes == target.num_processes

        return self._ratio(target, case, is_peer)

    def ratio_to_tuned(self, target: TargetSpec, case: Case) -> float | None:
        """Rate over that of the tuned hand-written server, with the number of processes that was fastest in the round.

        It has one graph thread per process, where other servers have more: with equal processes it would be at a disadvantage.
        """
        return self._ratio(target, case, lambda other: other.family == "hand-written tuned")

    def ratio_to_packaged(self, target: TargetSpec, case: Case) -> float | None:
        """Rate over that of the packaged server that was fastest in the round, with any number of processes."""
        return self._ratio(target, case, lambda other: other.family == "packaged")

    def efficiency(self, target: TargetSpec, case: Case) -> float | None:
        """Median share of the ceiling."""
        shares = []
        for number, one in self.rounds(target, case).items():
            if (ceilings := self._ceilings(case, number)) is not None:
                shares.append(efficiency(one.requests_per_s, target.num_processes, *ceilings, case.num_instances))
        return statistics.median(shares) if shares else None

    def ceiling_per_s(self, case: Case) -> Spread | None:
        """Requests per second of one process at best."""
        found = [self._ceilings(case, number) for number in range(self.results.num_rounds)]
        return spread([ceiling_per_s(1, *ceilings, case.num_instances) for ceilings in found if ceilings is not None])

    def echo_per_s(self, case: Case) -> Spread | None:
        """Canned responses per second."""
        return spread([one.requests_per_s for one in self._measurements.get((ECHO, case.name), {}).values()])

    def graph_rows_per_s(self, case: Case) -> Spread | None:
        """Rows per second of the bare graph."""
        return spread([graph.rows_per_s for (name, _), graph in self._graphs.items() if name == case.name])

    def batch_size(self, case: Case) -> int | None:
        """The bare graph's best batch size."""
        sizes = [graph.batch_size for (name, _), graph in self._graphs.items() if name == case.name]
        return statistics.median_low(sizes) if sizes else None

    def _ceilings(self, case: Case, number: int) -> tuple[float, float] | None:
        echo, graph = self._measurements.get((ECHO, case.name), {}).get(number), self._graphs.get((case.name, number))
        return (echo.requests_per_s, graph.rows_per_s) if echo is not None and graph is not None else None

    def _ratio(self, target: TargetSpec, case: Case, is_peer: Callable[[TargetSpec], bool]) -> float | None:
        ratios = []
        for number, one in self.rounds(target, case).items():
            others = self._in_round(case, number, is_peer)
            if others:
                ratios.append(one.requests_per_s / max(other.requests_per_s for other in others))
        return statistics.median(ratios) if ratios else None

    def _in_round(self, case: Case, number: int, is_peer: Callable[[TargetSpec], bool]) -> Sequence[Measurement]:
        found = (self._measurements.get((other.name, case.name), {}).get(number) for other in self.targets if is_peer(other))
        return [one for one in found if one is not None]

    def worst_difference(self, target: TargetSpec, case: Case | None = None) -> float | None:
        """Between ragged rows together and alone, in all rounds of a case, or of all cases."""
        found = [
            one.worst_difference
            for one in self.results.invariances
            if one.target == target.name and (case is None or one.case == case.name)
        ]
        return max(found, default=None)

    def starts(self, target: TargetSpec) -> Mapping[str, tuple[Spread, Spread]]:
        """Per model the seconds from start to ready, and the megabytes after the load."""
        found: dict[str, list[tuple[float, float]]] = {}
        for start in self.results.starts:
            if start.target == target.name:
                found.setdefault(start.model, []).append((start.ready_s, start.resident_bytes / 1e6))
        return {model: (_spread([s for s, _ in pairs]), _spread([mb for _, mb in pairs])) for model, pairs in found.items()}


def spread(values: Sequence[float]) -> Spread | None:
    """Median, least and largest value; None without values."""
    return _spread(values) if values else None


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))
