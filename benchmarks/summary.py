"""Rounds become numbers: medians with their spread, ratios, efficiency. Pure functions of `Results`; formats nothing.

The machine's speed drifts, so a ratio is taken within each round, and of the rounds' ratios the median.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.cases import Case
from benchmarks.ceilings import ceiling_per_s, efficiency
from benchmarks.results import Entry, Measurement, Results

ECHO = "echo"


class Spread(NamedTuple):
    """Of several rounds."""

    median: float
    low: float
    high: float


class Summary:
    """One run's numbers, asked by contestant and case; None where nothing was measured."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self._entries = {entry.name: entry for entry in results.contestants}
        self._measured: dict[tuple[str, str], dict[int, Measurement]] = {}
        for one in results.measurements:
            self._measured.setdefault((one.contestant, one.case), {})[one.round] = one
        self._graphs = {(graph.case, graph.round): graph for graph in results.graphs}

    @property
    def servers(self) -> list[Entry]:
        """All contestants but the ceiling."""
        return [entry for entry in self.results.contestants if entry.family != "echo"]

    def rounds(self, entry: Entry, case: Case) -> dict[int, Measurement]:
        return self._measured.get((entry.name, case.name), {})

    def spread(self, entry: Entry, case: Case, value: Callable[[Measurement], float | None]) -> Spread | None:
        """Of one value of a contestant's measurements."""
        return spread([found for one in self.rounds(entry, case).values() if (found := value(one)) is not None])

    def num_failed(self, entry: Entry, case: Case) -> int:
        return sum(one.num_failed for one in self.rounds(entry, case).values())

    def against_handwritten(self, entry: Entry, case: Case) -> float | None:
        """Rate over that of the hand-written server with the same number of processes."""
        return self._ratio(entry, case, lambda peer: peer.family == "hand-written" and peer.num_processes == entry.num_processes)

    def against_packaged(self, entry: Entry, case: Case) -> float | None:
        """Rate over that of the packaged server that was best in the round, with however many processes."""
        return self._ratio(entry, case, lambda peer: peer.family == "packaged")

    def efficiency(self, entry: Entry, case: Case) -> float | None:
        """Median share of the ceiling."""
        shares = []
        for number, one in self.rounds(entry, case).items():
            if (ceilings := self._ceilings(case, number)) is not None:
                shares.append(efficiency(one.requests_per_s, entry.num_processes, *ceilings, case.num_instances))
        return statistics.median(shares) if shares else None

    def ceiling_per_s(self, case: Case) -> Spread | None:
        """Requests per second of one process at best."""
        found = [self._ceilings(case, number) for number in range(self.results.num_rounds)]
        return spread([ceiling_per_s(1, *ceilings, case.num_instances) for ceilings in found if ceilings is not None])

    def echo_per_s(self, case: Case) -> Spread | None:
        """Canned answers per second."""
        return spread([one.requests_per_s for one in self._measured.get((ECHO, case.name), {}).values()])

    def graph_rows_per_s(self, case: Case) -> Spread | None:
        """Rows per second of the bare graph."""
        return spread([graph.rows_per_s for (name, _), graph in self._graphs.items() if name == case.name])

    def batch_size(self, case: Case) -> int | None:
        """The bare graph's best batch size."""
        sizes = [graph.batch_size for (name, _), graph in self._graphs.items() if name == case.name]
        return statistics.median_low(sizes) if sizes else None

    def _ceilings(self, case: Case, number: int) -> tuple[float, float] | None:
        echo, graph = self._measured.get((ECHO, case.name), {}).get(number), self._graphs.get((case.name, number))
        return (echo.requests_per_s, graph.rows_per_s) if echo is not None and graph is not None else None

    def _ratio(self, entry: Entry, case: Case, is_peer: Callable[[Entry], bool]) -> float | None:
        ratios = []
        for number, one in self.rounds(entry, case).items():
            peers = self._in_round(case, number, is_peer)
            if peers:
                ratios.append(one.requests_per_s / max(peer.requests_per_s for peer in peers))
        return statistics.median(ratios) if ratios else None

    def _in_round(self, case: Case, number: int, is_peer: Callable[[Entry], bool]) -> Sequence[Measurement]:
        found = (self._measured.get((peer.name, case.name), {}).get(number) for peer in self.servers if is_peer(peer))
        return [one for one in found if one is not None]

    def starts(self, entry: Entry) -> Mapping[str, tuple[Spread, Spread]]:
        """Per model the seconds until ready and the megabytes after the load."""
        found: dict[str, list[tuple[float, float]]] = {}
        for start in self.results.starts:
            if start.contestant == entry.name:
                found.setdefault(start.model, []).append((start.ready_s, start.resident_bytes / 1e6))
        return {model: (_sure([s for s, _ in pairs]), _sure([mb for _, mb in pairs])) for model, pairs in found.items()}


def spread(values: Sequence[float]) -> Spread | None:
    """Median, least and largest; None of nothing."""
    return _sure(values) if values else None


def _sure(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))
