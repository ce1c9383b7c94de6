"""How many cores, how much memory and how many processes: from files as kernels write them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from service.process.machine import (
    MAX_WORKERS,
    MEMORY_PER_WORKER_BYTES,
    can_fork,
    cores_of_worker,
    default_workers,
    disable_tokenizer_threads,
    limit_blas_threads,
    memory_bytes,
    num_cores,
    threads_per_worker,
)

GB = 2**30
HERE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(folder: Path, files: dict[str, str]) -> Path:
    """A root folder with the parts of /proc and /sys that are given."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max", HERE), (50_000, 1), (100_000, 1), (199_999, 1), (100_000 * HERE, HERE), (100_000_000, HERE), ("garbage", HERE)],
)
def test_cores_are_whole_ones_of_the_quota_and_no_more_than_the_affinity(tmp_path: Path, quota: int | str, cores: int) -> None:
    # As a container with a cgroup namespace sees itself.
    root = machine(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota} 100000\n"})
    assert num_cores(root) == cores


def test_the_tightest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    # As a service of systemd sees itself: CPUQuota=100% stands at the slice above it.
    files = {
        "proc/self/cgroup": "0::/system.slice/sluice.service\n",
        "sys/fs/cgroup/system.slice/cpu.max": "100000 100000\n",
        "sys/fs/cgroup/system.slice/sluice.service/cpu.max": "max 100000\n",
        "sys/fs/cgroup/system.slice/memory.max": "max\n",
        "sys/fs/cgroup/system.slice/sluice.service/memory.max": f"{GB // 4}\n",
    }
    root = machine(tmp_path, files)
    assert (num_cores(root), memory_bytes(root)) == (1, GB // 4)


@pytest.mark.parametrize(("quota", "cores"), [(-1, HERE), (150_000, 1)])
def test_the_first_kind_of_cgroups_is_read_too(tmp_path: Path, quota: int, cores: int) -> None:
    # A container without a cgroup namespace reads the host's path, which it cannot see.
    files = {
        "proc/self/cgroup": "4:memory:/docker/12ab\n1:cpu,cpuacct:/docker/12ab\n0::/\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": f"{quota}\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GB // 8}\n",
    }
    root = machine(tmp_path, files)
    assert (num_cores(root), memory_bytes(root)) == (cores, GB // 8)


def test_without_cgroups_the_machine_itself_counts(tmp_path: Path) -> None:
    assert num_cores(tmp_path) == HERE
    assert memory_bytes(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("cores", "memory", "workers"),
    [
        (1, 16 * GB, 1),
        (2, 16 * GB, 2),
        (64, 256 * GB, 64),
        (64, GB, GB // MEMORY_PER_WORKER_BYTES),
        (64, GB // 16, 1),
        (1000, 4000 * GB, MAX_WORKERS),
    ],
)
def test_there_is_a_process_per_core_as_long_as_there_is_memory(cores: int, memory: int, workers: int) -> None:
    assert default_workers(cores, memory) == workers


@pytest.mark.parametrize(("cores", "workers", "threads"), [(1, 1, 1), (8, 1, 8), (8, 2, 4), (8, 3, 2), (2, 8, 1)])
def test_threads_of_all_workers_are_no_more_than_the_cores(cores: int, workers: int, threads: int) -> None:
    assert threads_per_worker(cores, workers) == threads


@pytest.mark.parametrize(
    ("num_workers", "cores", "shares"),
    [
        (2, {0, 1}, [{0}, {1}]),
        (2, {3, 5, 8, 9, 11}, [{3, 5}, {8, 9}]),
        (3, {0, 1}, [{0}, {1}, {0}]),
        (1, {0, 1}, [{0, 1}]),
    ],
)
def test_each_worker_has_an_equal_share_of_the_cores(num_workers: int, cores: set[int], shares: list[set[int]]) -> None:
    assert [cores_of_worker(number, num_workers, cores) for number in range(num_workers)] == shares


def test_pools_of_libraries_are_bounded_unless_the_operator_did() -> None:
    environ = {"OMP_NUM_THREADS": "3"}
    limit_blas_threads(environ)
    disable_tokenizer_threads(environ)
    assert environ == {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def test_a_process_with_other_threads_cannot_be_forked_whole() -> None:
    is_over = threading.Event()
    thread = threading.Thread(target=is_over.wait)
    thread.start()
    try:
        assert not can_fork()
    finally:
        is_over.set()
        thread.join()
