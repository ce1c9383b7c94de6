"""Soaks a real server: mixed load for a time, while workers are killed (-9) and stopped and the server is restarted (SIGHUP).

    make soak
    make soak SECONDS=3600
    python -m tests.soak --seconds 60 --clients 24 --seed 7

Forecasts, texts and tensors, one or several instances, from patient, slow and leaving clients, with bad and oversize bodies.
Every answer is compared with the one that the same request gets alone. The exit status is 1 when a rule was broken: a wrong
answer; a request without an answer that no fault explains (`faults.py` says which do); more memory, an unexpected error in the
log, a worker replaced that nobody killed, work left over at the end.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from tests.soak.run import run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=30, help="connections at the same time (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the requests and the choice of workers; without it, a new one")
    parser.add_argument("--report", type=Path, default=Path("soak.json"), help="a JSON file (default: %(default)s)")
    options = parser.parse_args(arguments)
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}, {options.seconds:.0f} s, {options.clients} clients", flush=True)
    soak = run(options.seconds, options.clients, seed)
    print(soak.table())
    soak.write(options.report)
    return 1 if soak.broken_rules() else 0


if __name__ == "__main__":
    sys.exit(main())
