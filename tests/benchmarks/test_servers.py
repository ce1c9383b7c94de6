"""A server is ready when it responds, and none of its processes outlives its block."""

from __future__ import annotations

import socket
import sys

import pytest

from benchmarks.servers import free_port, running

# A server whose helper is in a session of its own, has no environment, and ignores SIGTERM.
SERVER = """
import http.server, os, signal, subprocess, sys
helper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
if sys.argv[2] == "with-helper":
    command = [sys.executable, "-c", helper]
    process = subprocess.Popen(command, env={}, start_new_session=True, stdout=subprocess.PIPE)
    process.stdout.readline()
print("listening on", sys.argv[1], flush=True)
http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
"""


def test_the_helpers_of_a_server_end_with_it() -> None:
    port = free_port()
    command = [sys.executable, "-c", SERVER, str(port), "with-helper"]
    with running("server", command, port, ready_path="/README.md", grace_s=0.5) as server:
        started = server.members()
        assert len(started) == 2
        assert server.resident_bytes() > 0
    assert not any(process.is_running() for process in started)


def test_the_error_holds_the_output_of_a_server_that_ends_before_it_is_ready() -> None:
    with (
        pytest.raises(RuntimeError, match=r"status 3 before it was ready: \nno graph here"),
        running("server", [sys.executable, "-c", "print('no graph here'); raise SystemExit(3)"], free_port()),
    ):
        pass


def test_a_server_that_is_not_ready_in_time_is_ended() -> None:
    port = free_port()
    with (
        pytest.raises(RuntimeError, match="not ready within 1 s"),
        running("server", [sys.executable, "-c", SERVER, str(port), "alone"], port, ready_path="/no-such-file", timeout_s=1),
    ):
        pass
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
