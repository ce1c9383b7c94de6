"""A graph's first run, in a process of its own with bounded memory and time: what crashes there ends no other process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import training
from training.importers.model import ModelImportError

MEMORY_BYTES = 6 << 30
SECONDS = 120


def run_first(graph: bytes, feeds: Sequence[Mapping[str, NDArray[Any]]], *, memory_bytes: int = MEMORY_BYTES) -> list[str]:
    """Open a graph and run each feed, all of the same inputs; returns what onnxruntime says against each, "" where it runs.

    Raises ModelImportError where the graph cannot be opened, takes too long or too much memory, or ends the process.
    """
    home = str(Path(training.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(graph)
        (folder / "names.json").write_text(json.dumps(list(feeds[0])), encoding="utf-8")
        for number, feed in enumerate(feeds):
            np.savez(folder / f"{number}.npz", *feed.values())
        bounds = [str(folder), str(memory_bytes), str(SECONDS)]
        # Without the working folder on the path: a user's own packages may lie there.
        command = [sys.executable, "-P", "-m", "training.importers.onnx.first_run_process", *bounds]
        try:
            found = subprocess.run(command, env=environment, capture_output=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired as exc:
            raise ModelImportError(f"the graph's first runs take more than {SECONDS} s") from exc
        if found.returncode:
            raise ModelImportError(
                f"the graph's first run ended its process ({_reason(found.returncode)}); it had {memory_bytes >> 20} MB of memory"
            )
        answer = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    if "error" in answer:
        raise ModelImportError(f"onnxruntime does not open the graph: {answer['error']}")
    return [str(error) for error in answer["runs"]]


def _reason(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"
