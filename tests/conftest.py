"""Makes `tests.fakes` importable from every test, keeps onnxruntime from reporting to its maker, and hypothesis from timing.

All tests of some folders are marked `resilience` here; in other folders the files or tests say it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# By default an example that takes more than 200 ms fails its test: on a busy machine any of them may.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

RESILIENCE = ("attacks", "fuzz", "soak")
"""Folders of tests."""


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(ROOT).parts[1] in RESILIENCE:
            item.add_marker("resilience")
