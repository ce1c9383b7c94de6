"""What a soak found: requests by outcome, latencies and memory over time, and which rules were broken."""

from __future__ import annotations

import collections
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.clients import Record
from tests.soak.faults import WATCHED_S, Fault, is_explained

NUM_ROWS = 20
# Under load, the median of the last fifth against that of the second: batches of random sizes leave the heap in random states.
ALLOWED_GROWTH = 0.25


@dataclass(frozen=True)
class Sample:
    """Memory of all processes at one moment, by the monotonic clock."""

    at: float
    resident_mb: float


@dataclass
class Soak:
    """One run, as it was observed; `problems` are those of the server itself."""

    started_at: float
    ended_at: float
    records: list[Record]
    faults: list[Fault]
    memory: list[Sample]
    num_clients: int
    problems: list[str] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        return self.ended_at - self.started_at

    def broken_rules(self) -> list[str]:
        """Everything that must not have happened."""
        found = [f"{record.kind}: wrong answer: {record.detail}" for record in self.records if record.outcome == "wrong"][:10]
        broken = [record for record in self.records if record.outcome == "broken"]
        for record in [record for record in broken if not is_explained(record, self.faults)][:10]:
            at = record.ended_at - self.started_at
            found.append(f"{record.kind}: no answer, and no fault explains it, at {at:.1f} s: {record.detail}")
        for fault in self.faults:
            # A client has one connection at a time, and a new one that breaks too has met a second fault.
            num = sum(is_explained(record, [fault]) and not record.is_refused_connection for record in broken)
            if num > self.num_clients:
                found.append(f"{num} requests of {self.num_clients} clients lost by one {fault.kind}")
        if not any(record.outcome == "answered" for record in self.records):
            found.append("no request was answered")
        if (share := self.growth()) is not None and share > ALLOWED_GROWTH:
            found.append(f"memory grew by {share:.0%}, allowed are {ALLOWED_GROWTH:.0%}")
        return [*found, *self.problems]

    def growth(self) -> float | None:
        """Of memory under load, as a share; None where the run was too short to say."""
        fifth = self.duration_s / 5
        early = [one.resident_mb for one in self.memory if fifth <= one.at - self.started_at < 2 * fifth]
        late = [one.resident_mb for one in self.memory if one.at - self.started_at >= 4 * fifth]
        if self.duration_s < WATCHED_S or not early or not late:
            return None
        return statistics.median(late) / statistics.median(early) - 1

    def rows(self) -> list[dict[str, Any]]:
        """The run in equal stretches of time."""
        length = self.duration_s / NUM_ROWS
        found = []
        for number in range(NUM_ROWS):
            start = self.started_at + number * length
            stretch = [record for record in self.records if start <= record.ended_at < start + length]
            counts = collections.Counter(record.outcome for record in stretch)
            patient = sorted(record.ended_at - record.sent_at for record in stretch if record.outcome == "answered")
            memory = [one.resident_mb for one in self.memory if start <= one.at < start + length]
            unexplained = sum(record.outcome == "broken" and not is_explained(record, self.faults) for record in stretch)
            found.append(
                {
                    "from_s": round(number * length, 1),
                    "requests": len(stretch),
                    **{outcome: counts[outcome] for outcome in ("answered", "refused", "left", "wrong")},
                    "explained": counts["broken"] - unexplained,
                    "unexplained": unexplained,
                    "p50_ms": _quantile_ms(patient, 0.5),
                    "p99_ms": _quantile_ms(patient, 0.99),
                    "memory_mb": round(statistics.median(memory), 1) if memory else None,
                    "faults": [fault.kind for fault in self.faults if start <= fault.at < start + length],
                }
            )
        return found

    def table(self) -> str:
        """The stretches as Markdown, then the sums."""
        rows = self.rows()
        lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---:|" * len(rows[0])]
        for row in rows:
            shown = [", ".join(value) if isinstance(value, list) else str(value) for value in row.values()]
            lines.append("| " + " | ".join(shown) + " |")
        counts = collections.Counter((record.kind, record.outcome) for record in self.records)
        lines += ["", f"{len(self.records):,} requests of {self.num_clients} clients in {self.duration_s:.0f} s:"]
        for kind in sorted({kind for kind, _ in counts}):
            lines.append(
                f"  {kind}: " + ", ".join(f"{outcome} {num:,}" for (of, outcome), num in sorted(counts.items()) if of == kind)
            )
        broken = collections.Counter(record.detail for record in self.records if record.outcome == "broken")
        lines += [f"  {num:,} times {detail}" for detail, num in broken.most_common(8)]
        lines.append(f"{len(self.faults)} faults: {dict(collections.Counter(fault.kind for fault in self.faults))}")
        if (share := self.growth()) is not None:
            lines.append(f"memory under load: {share:+.1%} from the second fifth to the last")
        problems = self.broken_rules()
        return "\n".join([*lines, *(f"FAILED: {problem}" for problem in problems), "passed" if not problems else "FAILED"])

    def write(self, path: Path) -> None:
        """Write the table, the faults and the broken rules as JSON."""
        content = {
            "duration_s": round(self.duration_s, 1),
            "clients": self.num_clients,
            "requests": len(self.records),
            "outcomes": dict(collections.Counter(record.outcome for record in self.records)),
            "faults": [asdict(fault) | {"at": round(fault.at - self.started_at, 1)} for fault in self.faults],
            "rows": self.rows(),
            "broken_rules": self.broken_rules(),
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _quantile_ms(ordered: Sequence[float], share: float) -> float | None:
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) if ordered else None
