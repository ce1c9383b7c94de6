"""Jobs in processes that can be killed, run from a process without threads of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.serving import PATIENCE_S, ROOT

WORK = """
import os, sys, time
from service.process.sandbox import Failure, run_in_children

def work(job, report):
    report(f"at {job}")
    if job == "endless":
        time.sleep(3600)
    if job == "dies":
        os.kill(os.getpid(), 9)
    if job == "greedy":
        try:
            return len(bytes(10**9))
        except MemoryError:
            return "no memory"
    return job.upper()

def run(*jobs, **options):
    given = {"num_children": 2, "timeout_s": 0.5, "memory_bytes": 10**8} | options
    return dict(run_in_children(jobs, work, **given))
"""


def run(code: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", WORK + textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_job_has_its_result_or_the_reason_why_it_has_none() -> None:
    printed = run("""
        found = run("a", "endless", "b", "dies", "greedy", "c", timeout_s=2)
        assert found.pop("endless") == Failure("it took more than 2 s", "at endless")
        assert found.pop("dies") == Failure("its process ended (SIGKILL)", "at dies")
        assert found == {"a": "A", "b": "B", "c": "C", "greedy": "no memory"}, found
        print("ok")
    """)
    assert printed == "ok\n"


def test_children_are_gone_when_all_is_done_and_when_it_is_given_up() -> None:
    printed = run("""
        from pathlib import Path

        def children():
            return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()

        run("a", "endless", "b")
        assert children() == []
        jobs = run_in_children(["a", "endless", "endless"], work, num_children=2, timeout_s=60, memory_bytes=10**8)
        next(jobs)
        assert len(children()) == 2
        jobs.close()
        print(children())
    """)
    assert printed == "[]\n"


@pytest.mark.parametrize("num_children", [1, 2, 5])
def test_more_jobs_than_children_are_all_done(num_children: int) -> None:
    printed = run(f"""
        names = [str(number) for number in range(50)]
        print(run(*names, num_children={num_children}) == {{name: name for name in names}})
    """)
    assert printed == "True\n"
