"""Jobs in child processes: their results, and what becomes of those that end or do not end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.serving import ROOT

CODE = """
import asyncio, os, signal, time
from service.process.jobs import JobFailed, run_job

def forever():
    while True: time.sleep(60)

def allocate():
    try:
        return len(bytearray(2**31))
    except MemoryError:
        return "no memory"

async def run(work, timeout_s):
    try:
        return await run_job(work, timeout_s, 2**30)
    except JobFailed as exc:
        return str(exc)

async def main():
    parent = os.getpid()
    print(await run(lambda: os.getppid() == parent, 30), flush=True)
    print(len(await run(lambda: "x" * 1_000_000, 30)), flush=True)
    print(await run(forever, 0.2), flush=True)
    print(await run(lambda: os.kill(os.getpid(), signal.SIGKILL), 30), flush=True)
    print(await run(lambda: os._exit(3), 30), flush=True)
    print(await run(allocate, 30), flush=True)

asyncio.run(main())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux forks")
def test_a_job_gives_its_result_or_says_how_it_ended() -> None:
    # In a process without other threads, as the controlling one is.
    found = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.splitlines() == [
        "True",
        "1000000",
        "it took more than 0.2 s",
        "its process ended (SIGKILL)",
        "its process ended (exit status 3)",
        "no memory",
    ]
