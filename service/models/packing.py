"""Graphs of versions that come while the server runs, packed once for all of its processes, which map them from one file.

What is there at the start is opened by the parent and shared by the workers that it forks; what comes later is opened by each.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Set as AbstractSet
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from service.errors import FolderError
from service.models.folder import ModelOptions
from service.models.target import Key
from service.models.verification import Verdict, verify
from service.runtime.onnx_runtime import list_packed, open_runtime, remove_packed, write_packed

log = logging.getLogger(__name__)

PACKED_FOLDER = "packed"
"""In the folder of the controlling process."""


def pack_graph(key: Key, folder: Path, packed: Path, verdict: Verdict, options: ModelOptions) -> None:
    """Write the graph that was verified into `packed`, where it answers its example in that form, too."""
    graph = next((file for file in folder.glob("*.onnx") if sha256(file.read_bytes()).hexdigest() == verdict.sha256), None)
    if graph is None or verdict.sha256 is None or verdict.sha256 in list_packed(packed):
        return
    about = {"model": key[0], "version": key[1]}
    try:
        write_packed(graph.read_bytes(), packed)
    except FolderError as exc:
        log.info("each process holds the weights for itself: %s", exc.message, extra=about)
        return
    again = replace(options, measure_s=0.0, precision=verdict.precision or options.precision)
    findings = verify(key, folder, again, open_graph=functools.partial(open_runtime, packed=packed)).findings
    if findings:
        log.warning("the packed graph is not used: %s", findings[0], extra=about)
        remove_packed(list_packed(packed)[verdict.sha256])


def keep_packed(packed: Path, digests: AbstractSet[str | None]) -> None:
    """Remove the packed graphs of all others than these sha256. Processes that have opened one keep it."""
    for digest, file in list_packed(packed).items():
        if digest not in digests:
            remove_packed(file)
