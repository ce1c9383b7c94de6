"""The pictures of a run, as PNG bytes: losses, forecasts beside what came, confusions, comparisons.

Computes no scores and writes no files. The only file that imports matplotlib, and without its global state.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.fitting.fit import FitResult

Floats = npt.NDArray[np.floating[Any]]

# Okabe and Ito's colours, which differ for any colour vision.
TRUTH, FORECAST, SECOND = "#333333", "#0072B2", "#D55E00"
DPI = 120
BESIDE = "outside lower left"
"""Where legends stand: beside the axes, since peaks may be anywhere within."""
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "font.size": 10,
    "grid.alpha": 0.25,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.9,
}


LOSSES = {
    "mse": "mean squared error, scaled",
    "mae": "mean absolute error, scaled",
    "huber": "Huber loss, scaled",
    "quantile": "quantile loss, scaled",
    "smape": "loss of the symmetric relative error",
    "binary_crossentropy": "crossentropy, nats",
    "categorical_crossentropy": "crossentropy, nats",
}


@dataclass(frozen=True)
class Panel:
    """One series (or target) of a forecast's picture: what was known, what came, what was forecast; `times` of all steps."""

    title: str
    past: Floats  # (P,), before the first forecast
    truth: Floats  # (N,)
    forecast: Floats  # (N,)
    bands: Sequence[tuple[str, Floats, Floats]] = ()  # label, lower and upper (N,), the widest first
    times: npt.NDArray[Any] | None = None  # (P + N,), datetime64; None: steps are numbered
    first: int = 0  # number of the first step of `truth`

    def last(self, num_steps: int) -> Panel:
        """The end of it, larger."""
        bands = [(label, low[-num_steps:], high[-num_steps:]) for label, low, high in self.bands]
        times = None if self.times is None else self.times[-num_steps:]
        start = self.first + len(self.truth) - num_steps
        title = f"{self.title + ': ' if self.title else ''}the last {num_steps} steps"
        return Panel(title, self.past[:0], self.truth[-num_steps:], self.forecast[-num_steps:], bands, times, start)


@dataclass(frozen=True)
class Group:
    """One bar of a comparison: the scores of several seeds."""

    name: str
    scores: Sequence[float]


def loss_picture(name: str, loss: str, fitted: FitResult, validation: str | None = None) -> bytes:
    """The curves of a run; `validation` names its score where that is not the loss itself."""
    measure = LOSSES[loss]
    losses, scores = [epoch.loss for epoch in fitted.epochs], [epoch.validation for epoch in fitted.epochs]
    return loss_curves(losses, scores, fitted.best.number, f"{name}: learning", (measure, validation or measure))


def loss_curves(losses: Sequence[float], validation: Sequence[float], best: int, title: str, names: tuple[str, str]) -> bytes:
    """Both curves over the epochs (from 1), on an axis each where they are different measures; `best` is marked."""
    with rc_context(STYLE):
        return _png(draw_losses(losses, validation, best, title, names))


def draw_losses(losses: Sequence[float], validation: Sequence[float], best: int, title: str, names: tuple[str, str]) -> Figure:
    """`loss_curves` as a figure."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        axes = figure.add_subplot()
        epochs = np.arange(1, len(losses) + 1)
        marker = "o" if len(losses) < 30 else None
        lines = axes.plot(epochs, losses, color=FORECAST, marker=marker, ms=4, label=f"training: {names[0]}")
        axes.set(xlabel="epoch", ylabel=names[0], title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        other = axes
        if names[0] != names[1]:
            other = axes.twinx()
            other.spines["right"].set_visible(True)
            other.grid(visible=False)
            other.set_ylabel(names[1], color=SECOND)
            axes.yaxis.label.set_color(FORECAST)
        lines += other.plot(epochs, validation, color=SECOND, marker=marker, ms=4, label=f"validation: {names[1]}")
        values = [*losses, *(validation if other is axes else [])]
        if min(values) > 0 and max(values) / min(values) > 30:
            axes.set_yscale("log")
        axes.axvline(best, color="#888888", lw=1, ls="--")
        lines += other.plot(best, validation[best - 1], "D", color=SECOND, ms=7, label=f"kept: epoch {best}")
        figure.legend(handles=lines, loc=BESIDE, fontsize=9)
        return figure


def forecasts(panels: Sequence[Panel], title: str, ylabel: str, xlabel: str) -> bytes:
    """What came and what was forecast, one panel under another, with the bands between quantiles shaded."""
    with rc_context(STYLE):
        return _png(draw_forecasts(panels, title, ylabel, xlabel))


def draw_forecasts(panels: Sequence[Panel], title: str, ylabel: str, xlabel: str) -> Figure:
    """`forecasts` as a figure."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 1.2 + 3.2 * len(panels)), layout="constrained")
        figure.suptitle(title, x=0.02, ha="left")
        for axes, panel in zip(np.ravel(figure.subplots(len(panels), squeeze=False)), panels, strict=True):
            _draw(axes, panel)
            axes.set(xlabel=xlabel if panel.times is None else "", ylabel=ylabel)
            if panel.title:
                axes.set_title(panel.title, fontsize=10, fontweight="normal")
        handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc=BESIDE, ncols=len(handles))
        return figure


def confusion(counts: npt.NDArray[np.int64], labels: Sequence[str], title: str) -> bytes:
    """Rows (true label) and columns (predicted), with counts and each row's shares."""
    with rc_context(STYLE | {"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        size = 2.6 + 0.85 * len(labels)
        figure = Figure(figsize=(size + 1.4, size), layout="constrained")
        axes = figure.add_subplot()
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if shares[row, column] > 0.55 else TRUTH
            text = f"{counts[row, column]:,}\n{100 * shares[row, column]:.0f} %"
            axes.text(column, row, text, ha="center", va="center", color=colour)
        ticks = range(len(labels))
        axes.set_xticks(ticks, labels, rotation=0 if len(labels) < 4 else 30, ha="center" if len(labels) < 4 else "right")
        axes.set_yticks(ticks, labels)
        axes.set(xlabel="predicted", ylabel="true")
        axes.tick_params(length=0)
        figure.suptitle(title, x=0.02, ha="left")
        figure.colorbar(image, ax=axes, label="share of the true label", shrink=0.8)
        return _png(figure)


def comparison(measures: Mapping[str, Sequence[Group]], title: str, lines: Mapping[str, Mapping[str, float]]) -> bytes:
    """One panel per measure: each group's mean with every seed as a point; `lines` are baselines, by measure and name."""
    with rc_context(STYLE):
        columns = min(3, len(measures))
        rows = -(-len(measures) // columns)
        figure = Figure(figsize=(0.8 + 3.9 * columns, 0.9 + 3.1 * rows), layout="constrained")
        figure.suptitle(title, x=0.02, ha="left")
        grid = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
        for axes, (measure, groups) in zip(grid, measures.items(), strict=False):
            for place, group in enumerate(groups):
                mean = float(np.mean(group.scores))
                axes.plot([place - 0.28, place + 0.28], [mean, mean], color=FORECAST, lw=3, solid_capstyle="butt")
                axes.plot([place] * len(group.scores), group.scores, "o", color=FORECAST, alpha=0.45, ms=6, mec="none")
            everything = [score for group in groups for score in group.scores]
            span = (max(everything) - min(everything)) or abs(max(everything)) or 1.0
            for style, (name, value) in zip(("--", ":", "-."), lines.get(measure, {}).items(), strict=False):
                # A baseline far away would press all cells into one line: then it is a line of the legend alone.
                is_near = min(everything) - 2 * span <= value <= max(everything) + 2 * span
                height = value if is_near else np.nan
                label = name if is_near else f"{name}: {value:.4g}, off the picture"
                axes.axhline(height, color=SECOND, lw=1.2, ls=style, label=label)
            axes.set_xticks(range(len(groups)), [group.name for group in groups], rotation=20)
            axes.set_xlim(-0.6, len(groups) - 0.4)
            axes.margins(y=0.15)
            axes.set_title(measure, fontsize=10)
            axes.grid(visible=False, axis="x")
            if lines.get(measure):
                axes.legend(fontsize=8)
        for axes in grid[len(measures) :]:
            axes.set_visible(False)
        return _png(figure)


def calibrations(curves: Mapping[str, Sequence[Sequence[float]]]) -> bytes:
    """One panel per curve of (what was promised, what came): on the diagonal both are the same."""
    with rc_context(STYLE):
        columns = min(4, len(curves))
        rows = -(-len(curves) // columns)
        figure = Figure(figsize=(0.6 + 2.7 * columns, 0.6 + 2.7 * rows), layout="constrained")
        grid = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
        for axes, (title, points) in zip(grid, curves.items(), strict=False):
            axes.plot([0, 1], [0, 1], color=TRUTH, lw=1, ls="--")
            axes.plot([x for x, _ in points], [y for _, y in points], color=SECOND, marker="o", ms=4)
            axes.set_title(title, fontsize=10)
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
            axes.set_aspect("equal")
        for axes in grid[len(curves) :]:
            axes.set_visible(False)
        figure.supxlabel("probability as promised", fontsize=10)
        figure.supylabel("share that came", fontsize=10)
        return _png(figure)


def _draw(axes: Axes, panel: Panel) -> None:
    num_past, num_steps = len(panel.past), len(panel.truth)
    steps: npt.NDArray[Any] = panel.first + np.arange(-num_past, num_steps) if panel.times is None else panel.times
    ahead = steps[num_past:]
    # One or few steps: a line alone would not be seen.
    marker = "o" if num_steps < 40 else None
    thin = 1.6 if num_steps < 200 else 1.1
    for index, (label, lower, upper) in enumerate(panel.bands):
        axes.fill_between(ahead, lower, upper, color=SECOND, alpha=0.16 + 0.1 * index, lw=0, label=label)
    axes.plot(steps, np.concatenate([panel.past, panel.truth]), color=TRUTH, lw=thin, label="true")
    axes.plot(ahead, panel.forecast, color=SECOND, lw=thin, marker=marker, ms=3.5, label="forecast")
    if num_past:
        axes.axvline(ahead[0], color="#888888", lw=1, ls="--")
    if panel.times is not None:
        locator = AutoDateLocator()  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.margins(x=0.01)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()
