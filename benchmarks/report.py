"""The results of a run as Markdown and a chart. Measures nothing.

python -m benchmarks.report [FOLDER]         renders RESULTS.md and results.svg again from FOLDER/results.json
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.batch_invariance import TOLERANCE
from benchmarks.cases import GROUPS, Case
from benchmarks.results import Results, TargetSpec, read_results
from benchmarks.rivals import NOT_MEASURED
from benchmarks.summary import Spread, Summary

RESULTS, PAGE, PICTURE = "results.json", "RESULTS.md", "results.svg"

_HOW = """
In every round each target runs alone on the machine, with the load generator, and each round begins with another target. Rates
are medians of the rounds (least to largest); ratios are computed within each round, and the median of these is shown:

* *× hand-written*: to the [hand-written](rivals/handwritten.py) FastAPI endpoint with the same number of processes.
* *× tuned*: to the [well-tuned hand-written](rivals/handwritten_tuned.py) one, with the number of processes that was fastest in
  that round, since it has one graph thread per process where others have more.
* *× packaged*: to the fastest packaged server of that round.
* *Efficiency*: the share of the ceiling, processes ÷ (1 / canned responses per second + 1 / rows per second of the bare graph),
  measured in the same round.

Failed requests are counted and not part of a rate. Latencies of closed loops are wrk's, which adds samples for requests that a
slow response kept from being sent. A target's first response to each case must hold the graph's own outputs to 1e-4 before the
case is measured. *–* was not measured in this run.

*Ragged rows as each alone*: rows of mixed lengths are sent at the same time, some of them in one request, and again each alone to
the idle server; *yes* where the predictions are equal to 1e-5 (relative to the largest value of an output), with the worst
difference.
"""
_INVARIANCE = "ragged rows as each alone"
_RATIOS = "× hand-written | × tuned | × packaged | efficiency"
_HOW_OPEN = """
Requests arrive at random (Poisson, fixed seed) at a share of the highest rate that the same server reached in the closed loops of
the round. Latencies count from the intended time of a request, so that a stall counts for every request that was due meanwhile
(coordinated omission). *Lag* is the generator's own delay (99th percentile), *busy* its share of a core: where these are large,
the latencies are the generator's.
"""


def write(folder: Path) -> str:
    """Render `results.json` of a folder beside it, and return the page."""
    from benchmarks.plot import draw_svg  # imports matplotlib and torch, which should not be in memory during a run

    results = read_results(folder / RESULTS)
    page = render(results)
    (folder / PAGE).write_text(page, encoding="utf-8")
    (folder / PICTURE).write_bytes(draw_svg(results))
    return page


def render(results: Results) -> str:
    """The whole page."""
    summary = Summary(results)
    lines = ["# Sluice beside other servers", "", *_run_table(results), _HOW, f"![bar chart of the tables below]({PICTURE})", ""]
    lines += ["## Servers", "", *_server_table(summary), "", "## Sluice", "", *_sluice_table(summary)]
    for group, title in GROUPS.items():
        cases = [case for case in results.cases if case.group == group]
        if cases:
            lines += ["", f"## {title}", ""]
            if group == "open loop":
                lines += [_HOW_OPEN.strip(), ""]
            for case in cases:
                lines += [f"### {case.title[0].upper()}{case.title[1:]}", "", *_case_table(summary, case), ""]
    lines += ["## Ceilings", "", *_ceiling_table(summary), "", "## Start and memory", "", *_start_table(summary)]
    lines += ["", "## Servers that are not measured", "", *(f"* **{name}**: {reason}" for name, reason in NOT_MEASURED.items())]
    lines += [f"* **{name}** could not be installed: {_one_line(reason)}" for name, reason in results.unavailable.items()]
    if results.failures:
        lines += ["", "## Could not be measured", ""]
        lines += [
            f"* {failure.target}, {failure.case or failure.model}, round {failure.round + 1}: {_one_line(failure.reason)}"
            for failure in results.failures
        ]
    return "\n".join(lines).rstrip() + "\n"


def _run_table(results: Results) -> Iterator[str]:
    plural = "s" if results.num_rounds > 1 else ""
    yield from ("| | |", "|---|---|")
    yield f"| when | {results.created}, {results.num_rounds} round{plural} of {results.seconds:g} s per case |"
    yield f"| machine | {', '.join(f'{name}: {value}' for name, value in results.machine.items())} |"
    yield f"| versions | {', '.join(f'{name} {value}' for name, value in results.versions.items())} |"
    yield f"| command | `{results.command}` |"


def _server_table(summary: Summary) -> Iterator[str]:
    """The configuration of every target: what a row of the other tables was measured with."""
    yield "Batch size and wait are the server's settings: how many requests or instances may share a run of the graph, and how"
    yield "long an incomplete batch waits for more. Threads are processes × onnxruntime's intra-op threads in each."
    yield ""
    yield f"| | threads | batch at most | batch wait | {_INVARIANCE} | versions |"
    yield "|---|---|---|---|---|---|"
    for target in summary.targets:
        cells = [_threads(target), _batch_size(target), _batch_wait(target), _invariance(summary.worst_difference(target))]
        yield _row(target.name, *cells, target.versions)


def _invariance(worst: float | None) -> str:
    """Whether ragged rows have the predictions of each row alone, with the worst difference."""
    return "–" if worst is None else f"{'yes' if worst <= TOLERANCE else 'no'} ({worst:.0e})"


def _threads(target: TargetSpec) -> str:
    return f"{target.num_processes} × {target.num_threads or 'one per core'}"


def _batch_size(target: TargetSpec) -> str:
    if target.batching is None:
        return "one request"
    if target.batching.max_batch_size == 0:
        return f"{target.batching.unit}, as measured at load"
    return f"{target.batching.max_batch_size} {target.batching.unit}"


def _batch_wait(target: TargetSpec) -> str:
    if target.batching is None:
        return "no batching"
    wait = f"{target.batching.max_delay_ms:,g} ms"
    return f"adaptive, ≤ {wait}" if target.batching.is_adaptive else wait


def _sluice_table(summary: Summary) -> Iterator[str]:
    """Sluice alone, case by case."""
    yield f"| case | processes | requests/s | {_RATIOS} | p50 / p99 ms |"
    yield "|---|" + "---:|" * 7
    for case in summary.results.cases:
        if case.load is not None:
            continue
        for target in summary.targets:
            rate = summary.spread(target, case, lambda one: one.requests_per_s)
            if target.family == "sluice" and rate is not None:
                cells = [_number(rate.median), *_ratios(summary, target, case), _latencies(summary, target, case)]
                yield _row(case.title, target.num_processes, *cells)


def _case_table(summary: Summary, case: Case) -> Iterator[str]:
    if case.load is not None:
        yield "| | threads | batch wait | arrivals/s | responses/s | p50 ms | p99 ms | p99.9 ms | failed | lag ms | busy |"
        yield "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
        yield from _rows(_open_row(summary, target, case) for target in summary.targets)
        return
    counts_rows = case.num_instances > 1
    head = "requests/s | rows/s" if counts_rows else "requests/s"
    end = f"failed | {_INVARIANCE}" if case.is_ragged else "failed"
    yield f"| | threads | batch wait | {head} | p50 / p99 ms | {_RATIOS} | {end} |"
    yield "|---|---|---|" + "---:|" * (7 + counts_rows) + "---|" * case.is_ragged
    yield from _rows(_closed_row(summary, target, case) for target in summary.targets)


def _closed_row(summary: Summary, target: TargetSpec, case: Case) -> str | None:
    rate = summary.spread(target, case, lambda one: one.requests_per_s)
    if rate is None:
        return None
    cells = [_spread(rate)]
    if case.num_instances > 1:
        cells.append(_number(rate.median * case.num_instances))
    cells += [_latencies(summary, target, case), *_ratios(summary, target, case)]
    cells.append(str(summary.num_failed(target, case)))
    if case.is_ragged:
        cells.append(_invariance(summary.worst_difference(target, case)))
    return _row(target.name, _threads(target), _batch_wait(target), *cells)


def _open_row(summary: Summary, target: TargetSpec, case: Case) -> str | None:
    values = [
        summary.spread(target, case, lambda one: one.arrivals_per_s),
        summary.spread(target, case, lambda one: one.requests_per_s),
        summary.spread(target, case, lambda one: one.p50_ms),
        summary.spread(target, case, lambda one: one.p99_ms),
        summary.spread(target, case, lambda one: one.p999_ms),
        summary.spread(target, case, lambda one: one.lag_p99_ms),
        summary.spread(target, case, lambda one: one.busy),
    ]
    if values[0] is None:
        return None
    cells = ["–" if value is None else _number(value.median) for value in values]
    return _row(target.name, _threads(target), _batch_wait(target), *cells[:5], summary.num_failed(target, case), *cells[5:])


def _ceiling_table(summary: Summary) -> Iterator[str]:
    yield "| case | canned responses/s | rows/s of the bare graph | at batch | requests/s of one process at best |"
    yield "|---|---:|---:|---:|---:|"
    for case in summary.results.cases:
        graph, canned, best = summary.graph_rows_per_s(case), summary.echo_per_s(case), summary.ceiling_per_s(case)
        if graph is not None:
            size = summary.batch_size(case)
            yield _row(case.title, *(("–" if one is None else _spread(one)) for one in (canned, graph)), size, *_median(best))


def _start_table(summary: Summary) -> Iterator[str]:
    yield "Seconds from the start to the first ready response with one model, and memory after its load: the proportional set"
    yield "size of all its processes."
    yield ""
    models = list(dict.fromkeys(start.model for start in summary.results.starts))
    yield _row("", *(f"{model}: ready s | MB" for model in models))
    yield "|---|" + "---:|---:|" * len(models)
    for target in summary.targets:
        starts = summary.starts(target)
        cells = [
            f"{starts[model][0].median:.2f} | {starts[model][1].median:.0f}" if model in starts else "– | –" for model in models
        ]
        yield _row(target.name, *cells)


def _ratios(summary: Summary, target: TargetSpec, case: Case) -> list[str]:
    """The cells under `_RATIOS`."""
    ratios = (
        summary.ratio_to_handwritten(target, case),
        summary.ratio_to_tuned(target, case),
        summary.ratio_to_packaged(target, case),
        summary.efficiency(target, case),
    )
    return ["–" if ratio is None else f"{ratio:.2f}" for ratio in ratios]


def _latencies(summary: Summary, target: TargetSpec, case: Case) -> str:
    p50 = summary.spread(target, case, lambda one: one.p50_ms)
    p99 = summary.spread(target, case, lambda one: one.p99_ms)
    return " / ".join(_median(p50) + _median(p99))


def _rows(rows: Iterable[str | None]) -> Iterator[str]:
    return (row for row in rows if row is not None)


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _median(found: Spread | None) -> list[str]:
    return ["–" if found is None else _number(found.median)]


def _spread(found: Spread) -> str:
    """The median, with the range where there is one."""
    if found.low == found.high:
        return _number(found.median)
    return f"{_number(found.median)} ({_number(found.low)} to {_number(found.high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[-300:]


def main(argv: Sequence[str]) -> None:
    """Render the given folder, or this one."""
    print(write(Path(argv[0]) if argv else Path(__file__).parent))


if __name__ == "__main__":
    main(sys.argv[1:])
