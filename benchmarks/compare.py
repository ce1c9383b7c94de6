"""Sluice beside the servers people would pick instead, and beside its ceilings: same graphs, same requests, same machine.

    make bench                                          everything; writes RESULTS.md, results.json and results.svg here
    python -m benchmarks.compare --quick                one short round of a few cases
    python -m benchmarks.compare --contestants sluice hand-written --cases c64 ragged --rounds 5

In every round each contestant takes its turn alone (`turns.py`), in another order each round, so that a machine whose speed
drifts is unfair to none; a number to quote is a ratio within one run. The load generators share the machine's cores with the
servers: `wrk` in closed loops, `open_loop.py` where requests come at their own times. What is asked is in `cases.py`, who
takes part in `contestants.py`. A contestant's first answer to each case must be the graph's own before it is timed.

Efficiency is what was measured as a share of the ceiling: processes ÷ (1 / canned answers per second + 1 / rows per second of
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
from benchmarks.cases import CASES, MODELS, QUICK, REFERENCE, Case, choose
from benchmarks.contestants import Contestant, contestants, echo, sluice
from benchmarks.machine import machine, versions
from benchmarks.questions import Instance, questions
from benchmarks.results import GraphSpeed, Results
from benchmarks.servers import ROOT, WORK, free_port, running
from benchmarks.turns import Question, Turn, post

HERE = ROOT / "benchmarks"
GRAPH_ROWS = 256
"""Rows that the bare graph is given in turn: at least two of its largest batches."""
GRAPH_SECONDS = 0.25
"""Of each batch size."""


def main() -> None:
    """Measure, and write after each round what there is so far."""
    options = _parser().parse_args()
    is_whole = not (options.quick or options.cases or options.contestants)
    rounds, seconds = options.rounds or (1 if options.quick else 3), options.seconds or (1 if options.quick else 3)
    cases = choose(options.cases or (QUICK if options.quick else [case.name for case in CASES]))
    field, left_out = contestants(options.contestants)
    for name, reason in left_out.items():
        say(f"{name} is left out: {reason}")

    folders = served_folders({case.model for case in cases}, WORK / "served")
    graphs = {model: BareGraph(folder) for model, folder in folders.items()}
    asked = {}
    for case in cases:
        requests = questions(case)
        asked[case.name] = Question(requests, graphs[case.model].answers(requests[0]))

    with tempfile.TemporaryDirectory() as name:
        field.append(echo(canned_answers(cases, folders, asked, Path(name))))
        results = Results(
            created=datetime.now(UTC).isoformat(timespec="minutes"),
            command=shlex.join(["python", "-m", "benchmarks.compare", *sys.argv[1:]]),
            machine=machine(),
            versions=versions(),
            seconds=seconds,
            num_rounds=rounds,
            cases=cases,
            contestants=tuple(contestant.entry for contestant in field),
            left_out=left_out,
        )
        where: Path = options.results or (HERE if is_whole else WORK)
        for number in range(rounds):
            results = one_round(results, number, field, folders, asked, graphs, seconds)
            results.write(where / report.RESULTS)
    print()
    print(report.write(where))


def one_round(
    results: Results,
    number: int,
    field: Sequence[Contestant],
    folders: Mapping[str, Path],
    asked: Mapping[str, Question],
    graphs: Mapping[str, BareGraph],
    seconds: float,
) -> Results:
    """The results with one round more: the bare graphs first, then every contestant, each round another one first."""
    speeds = graph_speeds(number, results.cases, asked, graphs, GRAPH_SECONDS * min(1.0, seconds / 3))
    turns = [Turn(number, contestant, seconds, folders, asked, say) for contestant in in_turn(field, number)]
    for turn in turns:
        say(f"round {number + 1} of {results.num_rounds}: {turn.contestant.name}")
        turn.take(results.cases)
    return results.model_copy(
        update={
            "graphs": (*results.graphs, *speeds),
            "measurements": (*results.measurements, *(one for turn in turns for one in turn.measurements)),
            "starts": (*results.starts, *(start for turn in turns for start in turn.starts)),
            "failures": (*results.failures, *(failure for turn in turns for failure in turn.failures)),
        }
    )


def in_turn(field: Sequence[Contestant], number: int) -> list[Contestant]:
    """The order of a round: each round begins with another one, and goes on as before."""
    first = number % len(field)
    return [*field[first:], *field[:first]]


def graph_speeds(
    number: int, cases: Sequence[Case], asked: Mapping[str, Question], graphs: Mapping[str, BareGraph], duration_s: float
) -> list[GraphSpeed]:
    """Of every closed loop's kind of rows; cases that ask for the same kind share one measurement."""
    speeds: dict[tuple[str, tuple[int, int]], tuple[float, int]] = {}
    found = []
    for case in cases:
        if case.load is not None:
            continue
        kind = (case.model, case.lengths)
        if kind not in speeds:
            instances = itertools.cycle(instance for request in asked[case.name].requests for instance in request)
            graph = graphs[case.model]
            speeds[kind] = graph.best(graph.rows(list(itertools.islice(instances, GRAPH_ROWS))), duration_s)
            say(f"bare graph, {case.name}: {speeds[kind][0]:,.0f} rows/s at batch {speeds[kind][1]}")
        rows_per_s, batch_size = speeds[kind]
        found.append(GraphSpeed(round=number, case=case.name, rows_per_s=rows_per_s, batch_size=batch_size))
    return found


def served_folders(models: set[str], home: Path) -> dict[str, Path]:
    """A copy of each model in a models folder of its own, so that every server holds one model; the graph in fp32 alone.

    All servers are then compared on the same graph, `home/<model>/<model>/<version>/model.onnx`.
    """
    folders = {}
    for model in (name for name in MODELS if name in models):
        if model == REFERENCE:
            from benchmarks.reference import reference_folder  # brings torch, which is needed once

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


def canned_answers(cases: Sequence[Case], folders: Mapping[str, Path], asked: Mapping[str, Question], folder: Path) -> Path:
    """Sluice's own answer to each case's first request, as a file of the case's name."""
    server = sluice(1)
    for model, path in folders.items():
        command, env = server.command(path, port := free_port())
        with running(server.name, command, port, dict(env)) as running_server:
            for case in cases:
                if case.model == model:
                    first: Sequence[Instance] = asked[case.name].requests[0]
                    answer = post(running_server.url + server.path(case), server.body(case, first))
                    (folder / case.name).write_bytes(answer)
    return folder


def say(line: str) -> None:
    """To whoever waits for the run."""
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, one second, a few cases")
    parser.add_argument("--contestants", nargs="+", default=[], metavar="NAME", help="only those whose names begin so")
    parser.add_argument("--cases", nargs="+", default=[], metavar="NAME", help=", ".join(case.name for case in CASES))
    parser.add_argument("--rounds", type=int, help="3 if absent")
    parser.add_argument("--seconds", type=int, help="length of one burst; 3 if absent; an open loop takes twice that")
    parser.add_argument("--results", type=Path, help="folder to write to; for less than everything benchmarks/.work")
    return parser


if __name__ == "__main__":
    main()
