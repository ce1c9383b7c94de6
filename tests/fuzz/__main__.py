"""Fuzzes a real server: changed HTTP messages, JSON bodies and streams, and what schemathesis makes of the OpenAPI document.

    make fuzz
    make fuzz SEED=7 CASES=100000
    make fuzz REPLAY=fuzz-findings/trees-17.json

Half of the cases go to two workers with the fast path, half to one worker with the regular path alone. What fails is written into
a folder, one file per case, and can be sent again. The exit status is 1 when a rule was broken; `campaign.py` says which.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import urllib.request
from dataclasses import asdict
from pathlib import Path

from tests.fuzz.campaign import SETTINGS, run, served_models
from tests.fuzz.cases import read_case
from tests.fuzz.contract import Contract
from tests.fuzz.wire import send
from tests.serving import server_process

# Shares of the fuzzers; schemathesis takes the longest for a case.
SHARES = {"messages": 0.4, "trees": 0.4, "streams": 0.1, "operations": 0.1}
SERVERS = {
    "two workers, fast path": {"SLUICE_WORKERS": "2"},
    "one worker, regular path": {"SLUICE_WORKERS": "1", "SLUICE_FAST_PATH": "false"},
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="the same seed sends the same cases; without it, a new one")
    parser.add_argument("--cases", type=int, default=24_000, help="cases in all (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=Path("fuzz-findings"), help="where failing cases go (default: %(default)s)"
    )
    parser.add_argument("--report", type=Path, help="a JSON file for the report")
    parser.add_argument("--replay", type=Path, help="send the case of this file alone, and show what comes back")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        return replay(options.replay)
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    reports = []
    for name, environ in SERVERS.items():
        counts = {kind: round(options.cases * share / len(SERVERS)) for kind, share in SHARES.items()}
        report = run(name, seed, counts, options.folder, environ=environ, progress=_print_progress)
        print(report, flush=True)
        reports.append(report)
    total, failed = sum(report.total for report in reports), sum(len(report.problems) for report in reports)
    print(f"{total:,} cases in {sum(report.duration_s for report in reports):.0f} s, {failed} broken rules, seed {seed}")
    if options.report is not None:
        options.report.write_text(json.dumps([asdict(report) for report in reports], indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


def _print_progress(line: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')}  {line}", flush=True)


def replay(path: Path) -> int:
    """Send one case to a server of its own; 1 where a rule is broken by its answer."""
    case = read_case(path)
    with served_models() as models, server_process(models, **SETTINGS) as server:
        with urllib.request.urlopen(f"{server.url}/openapi.json", timeout=30) as response:
            contract = Contract(json.load(response))
        host, port = server.url.removeprefix("http://").split(":")
        exchange = send((host, int(port)), case)
        print(case.sent[:2000])
        print(exchange.received[:2000])
        problems = contract.check(case, exchange)
        print(server.log)
    print(*(problems or ["nothing is wrong"]), sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
