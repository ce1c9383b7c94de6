"""A run as bars: one panel for each group of cases, one colour for each contestant. Medians, with lines from least to most."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cases import Case
from benchmarks.results import Entry, Family, Measurement, Results
from benchmarks.summary import Summary
from training.reporting.plots import STYLE

# Okabe and Ito's colours, which people with any colour vision tell apart; the darker of two has more processes.
COLOURS: dict[Family, tuple[str, ...]] = {
    "sluice": ("#56B4E9", "#0072B2"),
    "hand-written": ("#E8B08A", "#D55E00"),
    "packaged": ("#009E73", "#CC79A7", "#E69F00", "#999999"),
}


class _Panel(NamedTuple):
    """What is drawn of a group, how a case is called under its bars, and whether large differences need a logarithm."""

    title: str
    ylabel: str
    value: Callable[[Case, Measurement], float]
    tick: Callable[[Case], str]
    is_log: bool = False


PANELS = {
    "connections": _Panel(
        "One series of 168 values, by connections",
        "requests/s",
        lambda case, one: one.requests_per_s,
        lambda case: str(case.connections),
    ),
    "mixed": _Panel(
        "Other models and mixed lengths",
        "requests/s",
        lambda case, one: one.requests_per_s,
        lambda case: {"hourly": "forecast-hourly", "ragged": "8 to 512 values", "texts": "sentiment-en"}.get(
            case.name, case.name
        ),
    ),
    "instances": _Panel(
        "By instances per request",
        "rows/s",
        lambda case, one: one.requests_per_s * case.num_instances,
        lambda case: str(case.num_instances),
    ),
    "open loop": _Panel(
        "Requests at random times, 99th percentile",
        "ms from the intended time",
        lambda case, one: one.p99_ms,
        lambda case: case.title,
        is_log=True,
    ),
}


def picture(results: Results) -> bytes:
    """An SVG, the same bytes for the same results."""
    summary = Summary(results)
    drawn = [name for name in PANELS if any(case.group == name for case in results.cases)]
    with rc_context({**STYLE, "svg.hashsalt": "sluice", "svg.fonttype": "none"}):
        height = 3.2 * -(-len(drawn) // 2) + 1
        figure = Figure(figsize=(11, height), layout="constrained")
        for place, group in enumerate(drawn, 1):
            _draw(figure.add_subplot(-(-len(drawn) // 2), 2, place), summary, group)
        handles = [figure.axes[0].bar(0, 0, color=_colour(summary, entry), label=entry.name) for entry in summary.servers]
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
        target = io.BytesIO()
        figure.savefig(target, format="svg", metadata={"Date": None})
    return target.getvalue()


def _draw(axes: Axes, summary: Summary, group: str) -> None:
    panel = PANELS[group]
    cases = [case for case in summary.results.cases if case.group == group]
    width = 0.8 / max(1, len(summary.servers))
    for number, entry in enumerate(summary.servers):
        for place, case in enumerate(cases):
            found = summary.spread(entry, case, lambda one, case=case: panel.value(case, one))  # type: ignore[misc]
            if found is not None:
                at = place + (number - (len(summary.servers) - 1) / 2) * width
                axes.bar(at, found.median, width, color=_colour(summary, entry))
                axes.vlines(at, found.low, found.high, color="#333333", linewidth=0.8)
    axes.set_xticks(range(len(cases)), [panel.tick(case) for case in cases])
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(panel.ylabel)
    axes.set_title(panel.title)
    if panel.is_log:
        axes.set_yscale("log")


def _colour(summary: Summary, entry: Entry) -> str:
    alike = [other.name for other in summary.servers if other.family == entry.family]
    colours = COLOURS[entry.family]
    return colours[alike.index(entry.name) % len(colours)]
