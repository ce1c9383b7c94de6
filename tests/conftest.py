"""Makes `tests.fakes` importable from every test, and keeps onnxruntime from reporting to its maker."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
