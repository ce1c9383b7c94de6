"""Sluice beside the servers people would use instead, and beside its ceilings: same graphs, same requests, same machine.

    make bench                                          everything; writes RESULTS.md, results.json and results.svg here
    python -m benchmarks.compare --quick                one short round of a few cases
    python -m benchmarks.compare --targets sluice hand-written --cases c64 ragged --rounds 5

In every round each target runs alone (`target_run.py`), and each round begins with another target, so that a machine whose speed
drifts favours none; the numbers to quote are ratios within one run. The load generators share the machine's cores with the
servers: `wrk` in closed loops, `open_loop.py` for requests at random times. The cases are in `cases.py`, the targets in
`targets.py`. A target's first response to each case must hold the graph's own outputs before the case is measured.

Efficiency is the measured rate as a share of the ceiling: processes ÷ (1 / canned responses per second + 1 / rows per second of
the bare graph), both measured in the same round (`ceilings.py`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import report
from benchmarks.bare_graph import BareGraph
from benchmarks.cases import CASES, MODELS, QUICK, REFERENCE, Case, select_cases
from benchmarks.http_client import post
from benchmarks.machine import machine, versions
from benchmarks.results import GraphSpeed, Results
from benchmarks.servers import ROOT, WORK, free_port, running
from benchmarks.target_run import TargetRun
from benchmarks.targets import Target, echo, select_targets, sluice
from benchmarks.workloads import Workload, draw_requests

HERE = ROOT / "benchmarks"
GRAPH_ROWS = 256
"""Rows that the bare graph runs in turn: at least two of its largest batches."""
GRAPH_SECONDS = 0.25
"""For each batch size."""


def main(arguments: Sequence[str]) -> None:
    """Measure, and write the results so far after each round."""
    options = _parser().parse_args(arguments)
    is_whole = not (options.quick or options.cases or options.targets)
    rounds, seconds = options.rounds or (1 if options.quick else 3), options.seconds or (1 if options.quick else 3)
    cases = select_cases(options.cases or (QUICK if options.quick else [case.name for case in CASES]))
    targets, unavailable = select_targets(options.targets)
    for name, reason in unavailable.items():
        log(f"{name} is not installed: {reason}")

    folders = copy_model_folders({case.model for case in cases}, WORK / "served")
    graphs = {model: BareGraph(folder) for model, folder in folders.items()}
    workloads = {}
    for case in cases:
        requests = draw_requests(case)
        workloads[case.name] = Workload(requests, graphs[case.model].run_each(requests[0]))

    with tempfile.TemporaryDirectory() as name:
        targets.append(echo(write_canned_responses(cases, folders, workloads, Path(name))))
        results = Results(
            created=datetime.now(UTC).isoformat(timespec="minutes"),
            command=shlex.join(["python", "-m", "benchmarks.compare", *arguments]),
            machine=machine(),
            versions=versions(),
            seconds=seconds,
            num_rounds=rounds,
            cases=cases,
            targets=tuple(target.spec for target in targets),
            unavailable=unavailable,
        )
        folder: Path = options.results or (HERE if is_whole else WORK)
        for number in range(rounds):
            results = run_round(results, number, targets, folders, workloads, graphs, seconds)
            results.write(folder / report.RESULTS)
    print()
    print(report.write(folder))


def run_round(
    results: Results,
    number: int,
    targets: Sequence[Target],
    folders: Mapping[str, Path],
    workloads: Mapping[str, Workload],
    graphs: Mapping[str, BareGraph],
    seconds: float,
) -> Results:
    """The results with one more round: the bare graphs first, then every target."""
    speeds = measure_graphs(number, results.cases, workloads, graphs, GRAPH_SECONDS * min(1.0, seconds / 3))
    runs = [TargetRun(number, target, seconds, folders, workloads, log) for target in rotate(targets, number)]
    for run in runs:
        log(f"round {number + 1} of {results.num_rounds}: {run.target.name}")
        run.run(results.cases)
    return results.model_copy(
        update={
            "graphs": (*results.graphs, *speeds),
            "measurements": (*results.measurements, *(one for run in runs for one in run.measurements)),
            "starts": (*results.starts, *(start for run in runs for start in run.starts)),
            "invariances": (*results.invariances, *(one for run in runs for one in run.invariances)),
            "failures": (*results.failures, *(failure for run in runs for failure in run.failures)),
        }
    )


def rotate(targets: Sequence[Target], number: int) -> list[Target]:
    """The order of a round: each round begins with the next target."""
    first = number % len(targets)
    return [*targets[first:], *targets[:first]]


def measure_graphs(
    number: int, cases: Sequence[Case], workloads: Mapping[str, Workload], graphs: Mapping[str, BareGraph], duration_s: float
) -> list[GraphSpeed]:
    """The bare graph's speed on the rows of every closed loop; cases with the same kind of rows share one measurement."""
    speeds: dict[tuple[str, tuple[int, int]], tuple[float, int]] = {}
    found = []
    for case in cases:
        if case.load is not None:
            continue
        kind = (case.model, case.lengths)
        if kind not in speeds:
            instances = itertools.cycle(instance for request in workloads[case.name].requests for instance in request)
            graph = graphs[case.model]
            rows = graph.encode(list(itertools.islice(instances, GRAPH_ROWS)))
            speeds[kind] = graph.measure_best(rows, duration_s)
            log(f"bare graph, {case.name}: {speeds[kind][0]:,.0f} rows/s at batch {speeds[kind][1]}")
        rows_per_s, batch_size = speeds[kind]
        found.append(GraphSpeed(round=number, case=case.name, rows_per_s=rows_per_s, batch_size=batch_size))
    return found


def copy_model_folders(models: set[str], home: Path) -> dict[str, Path]:
    """A copy of each model in a models folder of its own, so that every server holds one model; only the fp32 graph.

    All servers then run the same graph, `home/<model>/<model>/<version>/model.onnx`.
    """
    folders = {}
    for model in (name for name in MODELS if name in models):
        if model == REFERENCE:
            from benchmarks.reference import reference_folder  # imports torch, which only this needs

            origin = reference_folder()
        else:
            origin = max((ROOT / "models" / model).iterdir(), key=lambda path: int(path.name))
        folder = home / model / model / origin.name
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(origin, folder, ignore=shutil.ignore_patterns("plots"))
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        manifest["graphs"] = [graph for graph in manifest["graphs"] if graph.get("precision", "fp32") == "fp32"]
        manifest["training"].pop("plots", None)
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        folders[model] = folder
    return folders


def write_canned_responses(
    cases: Sequence[Case], folders: Mapping[str, Path], workloads: Mapping[str, Workload], folder: Path
) -> Path:
    """Write Sluice's own response to each case's first request, as a file of the case's name."""
    target = sluice(1)
    for model, path in folders.items():
        command, env = target.command(path, port := free_port())
        with running(target.name, command, port, dict(env)) as server:
            for case in cases:
                if case.model == model:
                    body = target.body(case, workloads[case.name].requests[0])
                    (folder / case.name).write_bytes(post(server.url + target.path(case), body, target.headers(case)))
    return folder


def log(line: str) -> None:
    """Print a line of progress."""
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, one second, a few cases")
    parser.add_argument("--targets", nargs="+", default=[], metavar="NAME", help="only those whose names begin so")
    parser.add_argument("--cases", nargs="+", default=[], metavar="NAME", help=", ".join(case.name for case in CASES))
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--seconds", type=int, help="length of one measurement, default: 3; an open loop takes twice that")
    parser.add_argument("--results", type=Path, help="folder to write to; default for a partial run: benchmarks/.work")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
