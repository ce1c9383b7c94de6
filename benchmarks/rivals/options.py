"""The options of a rival's server: set in `registry.py`, handed to the server file as an environment variable.

An environment variable, since some servers import their file anew in every worker process. Standard library only: the server
files run in environments of their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

VARIABLE = "RIVAL_OPTIONS"


@dataclass(frozen=True)
class Batching:
    """How a server joins the rows of several requests into one run of the graph."""

    max_batch_size: int
    """In `unit`; 0: the server measures it when it loads the model."""
    unit: Literal["requests", "instances"]
    max_delay_ms: float
    """The longest wait of an incomplete batch for more; 0: it runs as soon as a thread is free."""
    is_adaptive: bool = False
    """Whether the server chooses the wait itself, from measured times, within `max_delay_ms`."""


@dataclass(frozen=True)
class Options:
    """The options of one server on one model folder."""

    folder: Path
    num_processes: int
    """Processes that run the graph."""
    num_threads: int | None
    """onnxruntime's intra-op threads in each process; None: its default, one per core."""
    batching: Batching | None
    """None: no batching across requests."""

    def to_environ(self) -> dict[str, str]:
        """The environment variable that `read_options` reads."""
        return {VARIABLE: json.dumps({**asdict(self), "folder": str(self.folder)})}


def read_options(environ: Mapping[str, str] = os.environ) -> Options:
    """The options of this process. Raises KeyError without them: no server file has defaults of its own."""
    values = json.loads(environ[VARIABLE])
    batching = Batching(**values["batching"]) if values["batching"] else None
    return Options(Path(values["folder"]), values["num_processes"], values["num_threads"], batching)
