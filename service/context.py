"""The request that is being handled: its ids, and when each stage of it ran, for log lines, metrics and spans.

Reads no header and writes nothing. Times are seconds of `time.monotonic()`.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Literal, NamedTuple

StageName = Literal["parse", "encode", "queue", "run", "decode", "write"]
"""JSON → request, instances → tensors, waiting for a batch, the graph, tensors → predictions, predictions → JSON."""
# A request of thousands of instances may wait for thousands of batches.
MAX_STAGES = 64


class BatchRun:
    """One run of a graph, for the requests that had rows in it."""

    __slots__ = ("ended_at", "reference", "requests", "rows", "started_at")

    def __init__(self, rows: int, started_at: float, ended_at: float) -> None:
        self.rows = rows
        self.started_at = started_at
        self.ended_at = ended_at
        self.requests: list[RequestContext] = []
        """Those whose stages are kept."""
        self.reference: object | None = None
        """What stands for the run where spans are kept, from the first request on that is over."""


class Stage(NamedTuple):
    """One stage of a request; `batch` is the run that it shared, or waited for."""

    name: StageName
    started_at: float
    ended_at: float
    batch: BatchRun | None = None


class Timing:
    """How long each stage of one request took, and which model it was for."""

    __slots__ = ("model", "seconds", "stages", "version")

    def __init__(self) -> None:
        self.model: str | None = None
        self.version: str | None = None
        self.seconds: dict[StageName, float] = {}
        """The sum of each stage. What waits or runs side by side, as the items of a large request, counts several times."""
        self.stages: list[Stage] | None = None
        """Each by itself, the first MAX_STAGES; None where the sums are enough."""

    def add(self, name: StageName, started_at: float, ended_at: float, batch: BatchRun | None = None) -> None:
        """A stage, or a part of it, is over."""
        self.seconds[name] = self.seconds.get(name, 0.0) + ended_at - started_at
        if self.stages is not None and len(self.stages) < MAX_STAGES:
            self.stages.append(Stage(name, started_at, ended_at, batch))


class RequestContext:
    """What identifies one request, and its timing where somebody wants it."""

    __slots__ = ("is_continued", "request_id", "span", "timing", "traceparent", "tracestate")

    def __init__(self, request_id: str, traceparent: str, tracestate: str | None = None, *, is_continued: bool = False) -> None:
        """`traceparent` as W3C writes it, version 00; `is_continued` where it came with the request."""
        self.request_id = request_id
        self.traceparent = traceparent
        self.tracestate = tracestate
        self.is_continued = is_continued
        self.timing: Timing | None = None
        self.span: object | None = None
        """What stands for the request where spans are kept."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return self.traceparent[3:35]

    @property
    def span_id(self) -> str:
        """16 hexadecimal digits."""
        return self.traceparent[36:52]

    @property
    def is_sampled(self) -> bool:
        """Whether somebody keeps the spans of this trace."""
        return self.traceparent[-1] in "13579bdf"


CURRENT: ContextVar[RequestContext | None] = ContextVar("request", default=None)
"""The request on whose behalf this code runs, on the event loop and on the threads that `asyncio.to_thread` uses."""


def current_timing() -> Timing | None:
    """Where the stages of the current request are to be kept; None where nobody wants them."""
    context = CURRENT.get()
    return None if context is None else context.timing
