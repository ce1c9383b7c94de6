"""`python -m service` with a monitor thread that detects stalls of the event loop and records the loop's stack.

python -m benchmarks.stall_monitor

Each stall is one line of JSON on stdout: `stall_ms`, without the time in which the loop's thread waited for a core
(`no_core_ms`: other processes cause that), and the loop's `stack`, innermost frame first. So is each run of the garbage collector
that took half as long. The monitor needs the interpreter's lock like every thread: for a call that holds the lock it sees the
line that made the call. Linux only.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import service.app
from benchmarks.servers import ROOT
from service.__main__ import main
from service.observability.loop_lag import LoopLagMonitor

STALL_S = 0.01
SAMPLE_EVERY_S = 0.002
DEPTH = 4


class StallMonitor(LoopLagMonitor):
    """A LoopLagMonitor with a short period, whose timers are watched from another thread."""

    def start(self) -> None:
        if self._timer is None:
            self._interval_s = SAMPLE_EVERY_S
            self._fired_at = time.monotonic()
            idents = threading.get_ident(), threading.get_native_id()
            threading.Thread(target=self._watch, args=idents, daemon=True).start()
        super().start()

    def _fire(self) -> None:
        self._fired_at = time.monotonic()
        super()._fire()

    def _watch(self, loop_thread: int, native_id: int) -> None:
        no_core_s = runnable_wait_s(native_id)
        while True:
            time.sleep(SAMPLE_EVERY_S)
            fired_at = self._fired_at
            if time.monotonic() - fired_at < STALL_S + SAMPLE_EVERY_S:
                no_core_s = runnable_wait_s(native_id)
                continue
            stack = describe_stack(sys._current_frames()[loop_thread])
            while self._fired_at == fired_at:
                time.sleep(SAMPLE_EVERY_S)
            stall_s = self._fired_at - fired_at - SAMPLE_EVERY_S
            no_core_s = runnable_wait_s(native_id) - no_core_s
            if stall_s - no_core_s > STALL_S:
                emit(stall_ms=round(1000 * (stall_s - no_core_s), 1), no_core_ms=round(1000 * no_core_s, 1), stack=stack)


def runnable_wait_s(native_id: int) -> float:
    """Seconds in which a thread was ready to run and had no core."""
    return int(Path(f"/proc/self/task/{native_id}/schedstat").read_text().split()[1]) / 1e9


def describe_stack(frame: FrameType | None) -> list[str]:
    """`file:line function` of each frame, innermost first; files of the service by their path from the checkout."""
    lines: list[str] = []
    while frame is not None and len(lines) < DEPTH:
        code = frame.f_code
        path = Path(code.co_filename)
        name = path.relative_to(ROOT) if path.is_relative_to(ROOT / "service") else Path(*path.parts[-2:])
        lines.append(f"{name}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return lines


def emit(**event: object) -> None:
    sys.stdout.write(json.dumps(event) + "\n")  # in one write: several threads emit
    sys.stdout.flush()


class _CollectionTimer:
    """Emits an event for each long run of the garbage collector."""

    def __init__(self) -> None:
        self._started_at = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._started_at = time.thread_time()
        elif (took_s := time.thread_time() - self._started_at) > STALL_S / 2:
            emit(gc_ms=round(1000 * took_s, 1), generation=info["generation"])


if __name__ == "__main__":
    vars(service.app)["LoopLagMonitor"] = StallMonitor
    gc.callbacks.append(_CollectionTimer())
    sys.exit(main())
