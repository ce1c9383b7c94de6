"""The cases of the comparison, as data: model, connections, lengths. Draws no requests (`workloads.py` does)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Task = Literal["forecast", "classify"]
Api = Literal["predict", "v2 JSON", "v2 binary"]
"""What the requests are: instances at each server's own endpoint, or tensors of the Open Inference Protocol, `/v2`."""

REFERENCE, HOURLY, SENTIMENT = "lstm-2x64", "forecast-hourly", "sentiment-en"
MODELS: dict[str, Task] = {REFERENCE: "forecast", HOURLY: "forecast", SENTIMENT: "classify"}
STANDARD = (168, 168)

GROUPS = {
    "connections": "One series of 168 values per request, on two LSTM layers of 64 units",
    "mixed": "Other models and mixed lengths, 64 connections",
    "instances": "Several series of 168 values per request",
    "protocol": "The Open Inference Protocol (`/v2`): series of 168 values as a tensor, on two LSTM layers of 64 units",
    "open loop": "Requests at random times, at a share of the server's own maximum",
}


@dataclass(frozen=True)
class Case:
    """One kind of traffic. `lengths` are the shortest and the longest, in values of a history or words of a text.

    `load` None is a closed loop: each connection sends its next request once it has the response. Else requests arrive at random
    at `load` times the highest rate that the same server reached in the closed loops of the same round. A case takes
    `duration_factor` times the run's seconds: tail latencies need that, and so do slow responses, since requests in flight at the
    end are not counted.
    """

    name: str
    title: str
    group: str
    model: str = REFERENCE
    connections: int = 64
    num_instances: int = 1
    lengths: tuple[int, int] = STANDARD
    load: float | None = None
    duration_factor: int = 1
    api: Api = "predict"

    @property
    def task(self) -> Task:
        return MODELS[self.model]

    @property
    def is_ragged(self) -> bool:
        return self.lengths[0] != self.lengths[1]


def _connections(count: int) -> Case:
    plural = "s" if count > 1 else ""
    bursts = 2 if count > 256 else 1
    return Case(f"c{count}", f"{count} connection{plural}", "connections", connections=count, duration_factor=bursts)


CASES: tuple[Case, ...] = (
    *(_connections(count) for count in (1, 16, 64, 256, 1024)),
    Case("hourly", "`forecast-hourly`: 336 values in, 480 numbers out", "mixed", model=HOURLY, lengths=(336, 336)),
    Case("ragged", "two LSTM layers of 64 units, histories of 8 to 512 values", "mixed", lengths=(8, 512)),
    Case("texts", "`sentiment-en`: texts of 5 to 400 words", "mixed", model=SENTIMENT, lengths=(5, 400)),
    Case("i1", "1 instance, 16 connections", "instances", connections=16),
    Case("i16", "16 instances, 16 connections", "instances", connections=16, num_instances=16),
    Case("i256", "256 instances, 4 connections", "instances", connections=4, num_instances=256, duration_factor=3),
    Case("v2", "a series as JSON, 64 connections", "protocol", api="v2 JSON"),
    Case("v2b", "a series as binary data, 64 connections", "protocol", api="v2 binary"),
    Case("v2b64", "64 series as binary data, 4 connections", "protocol", connections=4, num_instances=64, api="v2 binary"),
    Case("open50", "50 % of the maximum", "open loop", load=0.5, duration_factor=2),
    Case("open90", "90 % of the maximum", "open loop", load=0.9, duration_factor=2),
)
# These closed loops send the same requests as the open ones: the highest of their rates is the maximum that `load` is a share of.
SATURATION_CASES = ("c16", "c64", "c256")
QUICK = ("c1", "c64", "ragged", "texts", "i256", "open50")


def select_cases(names: Sequence[str], cases: Sequence[Case] = CASES) -> tuple[Case, ...]:
    """The cases of these names, in the order of `cases`. Raises SystemExit that lists the known names."""
    unknown = [name for name in names if name not in {case.name for case in cases}]
    if unknown:
        raise SystemExit(f"unknown case {unknown[0]}; known cases: {', '.join(case.name for case in cases)}")
    return tuple(case for case in cases if case.name in names)
