"""Makes `tests.fakes` importable from every test, keeps onnxruntime from reporting to its maker, and hypothesis from timing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# By default an example that takes more than 200 ms fails its test: on a busy machine any of them may.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
