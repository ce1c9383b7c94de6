"""Cores and memory of this machine as its container bounds them, and how many processes and threads follow from them.

Reads /proc and /sys; knows nothing of settings or models.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection, Iterator, MutableMapping
from pathlib import Path

# A worker that shares its models has some 20 MB of its own (the bundled models, Linux); large bodies and batches come on top.
MEMORY_PER_WORKER_BYTES = 128 * 2**20
MAX_WORKERS = 256
MIN_MEMORY_BYTES = 2**30
# Files of a process that are no connections: libraries, pipes, listeners, the metrics of several workers; more than there are.
OTHER_FILES = 128
# Pools that libraries open with a thread per core, however many processes there are.
BLAS_POOLS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
TOKENIZERS_POOL = "TOKENIZERS_PARALLELISM"

ROOT = Path("/")


def num_cores(root: Path = ROOT) -> int:
    """Cores that this process may use: its affinity, cut by the quota of its container (cgroups of both kinds).

    Whole ones: what a quota gives beyond them would be used up in bursts and then be missing for tens of milliseconds. A
    fraction of one counts as one.
    """
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for folder in _cgroup_folders(root, "cpu"):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            cores = min(cores, int(quota) / int(period))  # a quota of "max" is no number
        with contextlib.suppress(OSError, ValueError):
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            cores = min(cores, int(quota) / int(period)) if int(quota) > 0 else cores
    return max(1, int(cores))


def memory_bytes(root: Path = ROOT) -> int:
    """Memory that this process may use: the machine's, cut by the limit of its container."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for folder in _cgroup_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                size = min(size, int((folder / name).read_text()))
    return size


def default_workers(cores: int, memory: int) -> int:
    """Server processes that share their models, where the operator names no number: one per core, as long as each has memory."""
    return max(1, min(cores, memory // MEMORY_PER_WORKER_BYTES, MAX_WORKERS))


def default_memory_per_process(memory: int, num_processes: int) -> int:
    """What one of so many serving processes may take, where the operator names no number: its share, or 1 GiB if that is more.

    Not all of them need as much at once, and a process that is replaced for little would cost more than what it holds.
    """
    return min(memory, max(memory // num_processes, MIN_MEMORY_BYTES))


def threads_per_worker(cores: int, num_workers: int) -> int:
    """Threads that run one graph in each of so many processes: together as many as there are cores, and one at least."""
    return max(1, cores // num_workers)


def cores_of_worker(number: int, num_workers: int, cores: Collection[int]) -> set[int]:
    """The cores that a worker keeps to: an equal share, of its own as long as there are as many cores as workers."""
    share = threads_per_worker(len(cores), num_workers)
    start = number * share % len(cores)
    return set(sorted(cores)[start : start + share])


def max_open_connections() -> int:
    """Connections that this process may have open beside its other files."""
    try:
        import resource  # Unix only
    except ImportError:
        return sys.maxsize
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(1, limit - OTHER_FILES)


def limit_blas_threads(environ: MutableMapping[str, str]) -> None:
    """Keep numpy from starting a thread per core for matrix products, which nothing here needs; it reads this at its import."""
    for name in BLAS_POOLS:
        environ.setdefault(name, "1")


def disable_tokenizer_threads(environ: MutableMapping[str, str]) -> None:
    """Have texts split on the calling thread, not in the library's own pool; it reads this at each call.

    All cores have work, and the caller, which may be the event loop, would wait until the pool is scheduled
    (docs/explanation/performance.md).
    """
    environ.setdefault(TOKENIZERS_POOL, "false")


def can_fork() -> bool:
    """Whether this process can be forked: on Linux, and without other threads, whose locks a child would inherit locked."""
    if not sys.platform.startswith("linux"):
        return False
    return len(os.listdir("/proc/self/task")) == 1


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Where limits of this process may stand: its own cgroup and all above it, as far as they can be seen from here."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controller
        else:
            continue
        own = Path(os.path.normpath("/" + path.lstrip("/"))).relative_to("/")
        yield from (top / folder for folder in (own, *own.parents))
