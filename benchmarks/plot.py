"""A run as a bar chart: one panel per group of cases, one colour per target. Medians, with lines from least to largest."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cases import Case
from benchmarks.results import Family, Measurement, Results, TargetSpec
from benchmarks.summary import Summary
from training.reporting.plots import STYLE

# Okabe and Ito's colours, distinguishable with any colour vision; the darker of two has more processes.
COLOURS: dict[Family, tuple[str, ...]] = {
    "sluice": ("#56B4E9", "#0072B2"),
    "hand-written": ("#E8B08A", "#D55E00"),
    "hand-written tuned": ("#F7EFA0", "#F0E442"),
    "packaged": ("#009E73", "#CC79A7", "#E69F00", "#999999"),
}


class _Panel(NamedTuple):
    """The value drawn for a group, the label of a case, and whether the axis is logarithmic."""

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
    "protocol": _Panel(
        "The Open Inference Protocol, one series or 64",
        "rows/s",
        lambda case, one: one.requests_per_s * case.num_instances,
        lambda case: {"v2": "JSON", "v2b": "binary", "v2b64": "64, binary"}.get(case.name, case.name),
    ),
    "open loop": _Panel(
        "Requests at random times, 99th percentile",
        "ms from the intended time",
        lambda case, one: one.p99_ms,
        lambda case: case.title,
        is_log=True,
    ),
}


def draw_svg(results: Results) -> bytes:
    """The chart as SVG; equal results give equal bytes."""
    summary = Summary(results)
    groups = [name for name in PANELS if any(case.group == name for case in results.cases)]
    with rc_context({**STYLE, "svg.hashsalt": "sluice", "svg.fonttype": "none"}):
        height = 3.2 * -(-len(groups) // 2) + 1
        figure = Figure(figsize=(11, height), layout="constrained")
        for place, group in enumerate(groups, 1):
            _draw(figure.add_subplot(-(-len(groups) // 2), 2, place), summary, group)
        handles = [figure.axes[0].bar(0, 0, color=_colour(summary, target), label=target.name) for target in summary.targets]
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
        target = io.BytesIO()
        figure.savefig(target, format="svg", metadata={"Date": None})
    return target.getvalue()


def _draw(axes: Axes, summary: Summary, group: str) -> None:
    panel = PANELS[group]
    cases = [case for case in summary.results.cases if case.group == group]
    width = 0.8 / max(1, len(summary.targets))
    for number, target in enumerate(summary.targets):
        for place, case in enumerate(cases):
            found = summary.spread(target, case, lambda one, case=case: panel.value(case, one))  # type: ignore[misc]
            if found is not None:
                at = place + (number - (len(summary.targets) - 1) / 2) * width
                axes.bar(at, found.median, width, color=_colour(summary, target))
                axes.vlines(at, found.low, found.high, color="#333333", linewidth=0.8)
    axes.set_xticks(range(len(cases)), [panel.tick(case) for case in cases])
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(panel.ylabel)
    axes.set_title(panel.title)
    if panel.is_log:
        axes.set_yscale("log")


def _colour(summary: Summary, target: TargetSpec) -> str:
    family = [other.name for other in summary.targets if other.family == target.family]
    colours = COLOURS[target.family]
    return colours[family.index(target.name) % len(colours)]
