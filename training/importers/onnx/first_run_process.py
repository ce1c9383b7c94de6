"""The process of a graph's first run: `python -m training.importers.onnx.first_run_process FOLDER`, see `first_run.py`.

Imports nothing of ours and no torch, so that it starts in a fraction of a second and its memory is the graph's.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def run(folder: Path) -> dict[str, Any]:
    """What onnxruntime says of `model.onnx` and of each feed, `0.npz` and so on, whose inputs are named in `names.json`."""
    names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime's exceptions have no common base
        return {"error": first_line(exc)}
    runs = []
    for number in range(len(list(folder.glob("*.npz")))):
        with np.load(folder / f"{number}.npz") as arrays:
            try:
                session.run(None, {name: arrays[f"arr_{place}"] for place, name in enumerate(names)})
                runs.append("")
            except Exception as exc:  # as above
                runs.append(first_line(exc))
    return {"runs": runs}


def first_line(exc: BaseException) -> str:
    """The first line of an error, without onnxruntime's own prefix."""
    text = (str(exc).strip().splitlines() or [""])[0]
    return text.removeprefix("[ONNXRuntimeError] : ")[:300] or type(exc).__name__


def main(folder: Path, memory_bytes: int, seconds: int) -> None:
    """Run in bounds and write `answer.json`."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    (folder / "answer.json").write_text(json.dumps(run(folder)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
