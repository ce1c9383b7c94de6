"""What is asked of every server: the cases, as data. Sends nothing, and draws no bodies (`questions.py` does)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Task = Literal["forecast", "classify"]

REFERENCE, HOURLY, SENTIMENT = "lstm-2x64", "forecast-hourly", "sentiment-en"
MODELS: dict[str, Task] = {REFERENCE: "forecast", HOURLY: "forecast", SENTIMENT: "classify"}
STANDARD = (168, 168)

GROUPS = {
    "connections": "One series of 168 values per request, on two LSTM layers of 64 units",
    "mixed": "Other models and mixed lengths, 64 connections",
    "instances": "Several series of 168 values per request",
    "open loop": "Requests that come when they come, at a share of the server's own maximum",
}


@dataclass(frozen=True)
class Case:
    """One kind of traffic. `lengths` are the shortest and the longest, in values of a history or words of a text.

    `load` None is a closed loop: each of the connections sends again when it was answered. Else requests arrive at random at
    `load` times the most requests per second that the same server answered in the closed loops of its turn. A case takes
    `num_bursts` times the run's seconds: rare latencies need that, and slow answers, as what is under way at the end is not
    counted.
    """

    name: str
    title: str
    group: str
    model: str = REFERENCE
    connections: int = 64
    num_instances: int = 1
    lengths: tuple[int, int] = STANDARD
    load: float | None = None
    num_bursts: int = 1

    @property
    def task(self) -> Task:
        return MODELS[self.model]

    @property
    def is_ragged(self) -> bool:
        return self.lengths[0] != self.lengths[1]


def _connections(count: int) -> Case:
    plural = "s" if count > 1 else ""
    bursts = 2 if count > 256 else 1
    return Case(f"c{count}", f"{count} connection{plural}", "connections", connections=count, num_bursts=bursts)


CASES: tuple[Case, ...] = (
    *(_connections(count) for count in (1, 16, 64, 256, 1024)),
    Case("hourly", "`forecast-hourly`: 336 values in, 480 numbers out", "mixed", model=HOURLY, lengths=(336, 336)),
    Case("ragged", "two LSTM layers of 64 units, histories of 8 to 512 values", "mixed", lengths=(8, 512)),
    Case("texts", "`sentiment-en`: texts of 5 to 400 words", "mixed", model=SENTIMENT, lengths=(5, 400)),
    Case("i1", "1 instance, 16 connections", "instances", connections=16),
    Case("i16", "16 instances, 16 connections", "instances", connections=16, num_instances=16),
    Case("i256", "256 instances, 4 connections", "instances", connections=4, num_instances=256, num_bursts=3),
    Case("open50", "50 % of the maximum", "open loop", load=0.5, num_bursts=2),
    Case("open90", "90 % of the maximum", "open loop", load=0.9, num_bursts=2),
)
# In these closed loops the same is asked as in the open ones: the best of their rates is the maximum that `load` is a share of.
SETTING_MAXIMUM = ("c16", "c64", "c256")
QUICK = ("c1", "c64", "ragged", "texts", "i256", "open50")


def choose(names: Sequence[str]) -> tuple[Case, ...]:
    """The cases of these names, in the order of `CASES`. Raises SystemExit that lists what there is."""
    unknown = [name for name in names if name not in {case.name for case in CASES}]
    if unknown:
        raise SystemExit(f"there is no case {unknown[0]}; there are: {', '.join(case.name for case in CASES)}")
    return tuple(case for case in CASES if case.name in names)
