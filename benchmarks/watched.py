"""`python -m service` with a witness: a thread that sees when the event loop stands still, and writes down what it was doing.

python -m benchmarks.watched

Each stall is one line of JSON on stdout: `stall_ms`, less the time that the loop's thread waited for a core (`no_core_ms`:
other processes are not our stall), and where that thread was, innermost first. So is each run of the garbage collector that
took half as long. The witness needs the interpreter's lock like everybody: what it sees of a call that keeps the lock is the
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
from service.__main__ import main
from service.observability.loop_lag import LoopLagMonitor

STALL_S = 0.01
LOOK_EVERY_S = 0.002
DEPTH = 4


class Witness(LoopLagMonitor):
    """A LoopLagMonitor that rings often and is watched from another thread."""

    def start(self) -> None:
        if self._timer is None:
            self._interval_s = LOOK_EVERY_S
            self._rung_at = time.monotonic()
            idents = threading.get_ident(), threading.get_native_id()
            threading.Thread(target=self._look, args=idents, daemon=True).start()
        super().start()

    def _fire(self) -> None:
        self._rung_at = time.monotonic()
        super()._fire()

    def _look(self, loop_thread: int, native_id: int) -> None:
        no_core_s = waited_for_core_s(native_id)
        while True:
            time.sleep(LOOK_EVERY_S)
            rung_at = self._rung_at
            if time.monotonic() - rung_at < STALL_S + LOOK_EVERY_S:
                no_core_s = waited_for_core_s(native_id)
                continue
            place = places(sys._current_frames()[loop_thread])
            while self._rung_at == rung_at:
                time.sleep(LOOK_EVERY_S)
            stall_s = self._rung_at - rung_at - LOOK_EVERY_S
            no_core_s = waited_for_core_s(native_id) - no_core_s
            if stall_s - no_core_s > STALL_S:
                tell(stall_ms=round(1000 * (stall_s - no_core_s), 1), no_core_ms=round(1000 * no_core_s, 1), place=place)


def waited_for_core_s(native_id: int) -> float:
    """Seconds that a thread was ready to run and was not, because others did."""
    return int(Path(f"/proc/self/task/{native_id}/schedstat").read_text().split()[1]) / 1e9


def places(frame: FrameType | None) -> list[str]:
    """file:line function, innermost first."""
    found: list[str] = []
    while frame is not None and len(found) < DEPTH:
        code = frame.f_code
        found.append(f"{'/'.join(code.co_filename.split('/')[-2:])}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return found


def tell(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")  # in one piece: several threads tell
    sys.stdout.flush()


class _Collections:
    """Tells of long runs of the garbage collector."""

    def __init__(self) -> None:
        self._started_at = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._started_at = time.thread_time()
        elif (took_s := time.thread_time() - self._started_at) > STALL_S / 2:
            tell(gc_ms=round(1000 * took_s, 1), generation=info["generation"])


if __name__ == "__main__":
    vars(service.app)["LoopLagMonitor"] = Witness
    gc.callbacks.append(_Collections())
    sys.exit(main())
