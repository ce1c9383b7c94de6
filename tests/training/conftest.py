"""What every test of training shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks on many threads spend their time waiting for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Where the public data sets lie; skips where they are absent."""
    folder = Path(os.environ.get("SLUICE_DATA") or "absent")
    if not folder.is_dir():
        pytest.skip("the public data sets are absent: $SLUICE_DATA names no folder")
    return folder
