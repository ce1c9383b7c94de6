"""A Ray of this machine alone with Sluice on it, to try and to test it: prints where it answers, and ends with SIGTERM or SIGINT.

python -m deploy.ray.local 8000 2 models=models
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OBJECT_STORE_BYTES = 100 * 2**20
"""Requests pass through it only beyond 100 KB."""
ATTEMPTS = 5


def main(port: int, num_replicas: int, settings: dict[str, str]) -> None:
    """Serve until a signal comes."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a server sends nothing unasked
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
    import ray
    from ray import serve

    from deploy.ray.sluice_app import sluice_app

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # Not below a checkout: the names of Ray's sockets may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder  # read when Ray starts; the argument of the same use is private
        ray.init(
            num_cpus=num_replicas,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        try:
            for _ in range(ATTEMPTS):
                # Ray gives its proxy a minute, and goes on starting it when that is over.
                with contextlib.suppress(TimeoutError):
                    serve.start(http_options={"host": "127.0.0.1", "port": port})
                    break
            serve.run(sluice_app({**settings, "min_replicas": num_replicas, "max_replicas": num_replicas}), route_prefix="/")
            print(f"answers at http://127.0.0.1:{port}", flush=True)
            stop.wait()
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), dict(argument.split("=", 1) for argument in sys.argv[3:]))
