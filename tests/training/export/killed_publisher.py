"""Publishes a folder again and again in a process that is killed at its n-th step on the disk, n = 1, 2, ... until one is not.

`python -m tests.training.export.killed_publisher FOLDER [replace]` prints for each a line of JSON: what lies in the models
folder, by the files' paths, with their contents' sizes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from tests.training.export.test_publish import make_publication, with_version
from training.export.publish import publish

BEFORE, AFTER = b"before", b"after" * 50_000


def publish_once(models: Path, graph: bytes, *, replace: bool) -> None:
    """One version of the toy model."""
    publish(make_publication(recipe=with_version(1), graph=graph), models, replace=replace)


def publish_and_die(models: Path, step: int, *, replace: bool) -> int:
    """Publish in a child that kills itself before its `step`-th event on the disk; its exit status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    seen = 0

    def count(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "ctypes.dlsym" or (args and str(models) in str(args[0])):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    publish_once(models, AFTER, replace=replace)
    os._exit(0)


def main(folder: Path, *, replace: bool) -> None:
    """Print what each killed process leaves."""
    status, step = 1, 0
    while status:
        step += 1
        models = folder / str(step)
        models.mkdir()
        if replace:
            publish_once(models, BEFORE, replace=False)
        status = publish_and_die(models, step, replace=replace)
        files = {str(path.relative_to(models)): path.stat().st_size for path in models.rglob("*") if path.is_file()}
        print(json.dumps({"step": step, "is_killed": bool(status), "files": files}), flush=True)
        shutil.rmtree(models)


if __name__ == "__main__":
    main(Path(sys.argv[1]), replace="replace" in sys.argv)
