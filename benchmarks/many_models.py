"""How long a server takes until a thousand models are ready, in processor time too, and how many threads it then has.

    python -m benchmarks.many_models
    python -m benchmarks.many_models --models 200 --workers 4

The folders are copies of one small model under names of their own. On a machine that does something else, processor time is the
figure to go by: what the parent and the processes that verify take is one number, what each worker takes another. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.processes import cpu_seconds
from benchmarks.servers import ROOT, free_port

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
CHILDREN_UTIME, CHILDREN_STIME = 13, 14  # of proc_pid_stat(5), behind the name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that serve (default: %(default)s)")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "forecast-hourly", help="the model that is copied")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_copies(options.model, Path(name), options.models)
        print(measure(Path(name), options.models, options.workers))


def write_copies(model: Path, folder: Path, num: int) -> None:
    """So many copies of a model's newest version, each under a name of its own in its manifest too."""
    newest = max((version for version in model.iterdir() if version.name.isdigit()), key=lambda version: int(version.name))
    for number in range(num):
        target = folder / f"model-{number:04d}" / "1"
        shutil.copytree(newest, target)
        manifest = target / "manifest.json"
        content = json.loads(manifest.read_text(encoding="utf-8"))
        manifest.write_text(json.dumps(content | {"name": target.parent.name, "version": "1"}), encoding="utf-8")
        example = target / "example.json"
        text = example.read_text(encoding="utf-8")
        example.write_text(text.replace(f'"{model.name}"', f'"{target.parent.name}"'), encoding="utf-8")


def measure(folder: Path, num: int, workers: int) -> str:
    """Start a server, and say in a line what it took until its message that it is ready."""
    command = [sys.executable, "-m", "service", f"--models={folder}", f"--port={free_port()}", f"--workers={workers}"]
    command += ["--device=cpu", "--drain-seconds=0", "--log-level=warning"]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        took_s = time.perf_counter() - started
        if "is ready:" not in line:
            raise RuntimeError(f"the server is not ready: {line.strip()}")
        ended_s = sum(int(_stat(process.pid)[place]) for place in (CHILDREN_UTIME, CHILDREN_STIME)) / CLOCK_TICKS
        of_parent = cpu_seconds(process.pid) + ended_s
        children = _children(process.pid)
        of_workers = [cpu_seconds(child) for child in children]
        threads = [len(list(Path(f"/proc/{child}/task").iterdir())) for child in children]
    finally:
        process.terminate()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    return (
        f"{num} models, {workers} workers: ready after {took_s:.1f} s, with {of_parent:.1f} s of processor time in the parent "
        f"and the processes that verify, {max(of_workers, default=0):.1f} s in each worker, which then has "
        f"{max(threads, default=0)} threads; load of the machine {os.getloadavg()[0]:.0f}"
    )


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


if __name__ == "__main__":
    main()
