"""The monitor records the loop's stack, and how long its thread had no core."""

from __future__ import annotations

import sys
import threading
from typing import Any

from benchmarks.servers import ROOT
from benchmarks.stall_monitor import describe_stack, runnable_wait_s


def test_a_stack_begins_with_the_innermost_frame() -> None:
    stack = describe_stack(sys._getframe())
    assert stack[0].startswith("benchmarks/test_stall_monitor.py:")
    assert stack[0].endswith(" test_a_stack_begins_with_the_innermost_frame")
    assert len(stack) > 1


def test_a_frame_of_the_service_is_named_by_its_path_from_the_checkout() -> None:
    namespace: dict[str, Any] = {"sys": sys}
    exec(compile("frame = sys._getframe()", str(ROOT / "service" / "api" / "predict.py"), "exec"), namespace)
    assert describe_stack(namespace["frame"])[0] == "service/api/predict.py:1 <module>"


def test_the_wait_for_a_core_is_known_for_every_thread() -> None:
    assert runnable_wait_s(threading.get_native_id()) >= 0
