"""Pictures are drawn from any shape that a run can have, and are PNG."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from training.reporting import plots


def size(png: bytes) -> tuple[int, int]:
    height, width, _ = imread(io.BytesIO(png), format="png").shape
    return width, height


@pytest.mark.parametrize("num_epochs", [1, 5, 60])
@pytest.mark.parametrize("names", [("loss", "loss"), ("loss", "errors")])
def test_losses_are_drawn_for_any_number_of_epochs(num_epochs: int, names: tuple[str, str]) -> None:
    losses = np.geomspace(1, 1e-4, num_epochs).tolist()
    assert size(plots.loss_curves(losses, losses[::-1], 1, "toy", names)) == (900, 504)


@pytest.mark.parametrize("num_steps", [1, 12, 500])
@pytest.mark.parametrize("has_times", [False, True])
def test_forecasts_are_drawn_with_and_without_bands_and_times(num_steps: int, has_times: bool) -> None:
    truth = np.sin(np.arange(num_steps))
    times = np.datetime64("2020-01-01") + np.arange(num_steps + 10) if has_times else None
    band = [("10 to 90 %", truth - 1, truth + 1)]
    panels = [plots.Panel("a", np.ones(10), truth, truth, band, times), plots.Panel("b", np.ones(0), truth, truth)]
    assert size(plots.forecasts(panels, "toy", "y", "steps"))[1] > size(plots.forecasts(panels[:1], "toy", "y", "steps"))[1]


def draw_peaks(num_panels: int) -> Figure:
    truth = np.where(np.arange(60) % 2, 1e6, 0.0)
    bands = [(f"{low} to {100 - low} %", truth - low, truth + low) for low in (10, 25)]
    panels = [plots.Panel(f"panel {index}", truth[:20], truth, truth, bands[: index + 1]) for index in range(num_panels)]
    return plots.draw_forecasts(panels, "toy", "y", "steps")


@pytest.mark.parametrize(
    "figure",
    [
        draw_peaks(1),
        draw_peaks(3),
        plots.draw_losses([3.0, 1.0], [1.0, 3.0], 2, "toy", (plots.LOSSES["smape"], plots.LOSSES["smape"])),
        plots.draw_losses([3.0, 1.0], [1.0, 3.0], 2, "toy", (plots.LOSSES["quantile"], "share of wrong answers")),
    ],
    ids=["one panel", "three panels", "losses on one axis", "losses on two"],
)
def test_a_legend_covers_nothing_that_is_drawn(figure: Figure) -> None:
    figure.draw_without_rendering()
    (legend,) = figure.legends
    place = legend.get_window_extent()
    assert not any(axes.get_legend() for axes in figure.axes)
    assert not any(place.overlaps(axes.get_tightbbox()) for axes in figure.axes)
    assert figure.bbox.x0 <= place.x0 < place.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= place.y0 < place.y1 <= figure.bbox.y1
    labels = [text.get_text() for text in legend.get_texts()]
    assert len(labels) == len(set(labels)) >= 3


def test_the_end_of_a_panel_keeps_its_places() -> None:
    panel = plots.Panel("load", np.ones(3), np.arange(20.0), np.arange(20.0), [("b", np.zeros(20), np.ones(20))], np.arange(23))
    last = panel.last(5)
    assert (last.first, last.truth.tolist(), last.title) == (15, [15, 16, 17, 18, 19], "load: the last 5 steps")
    assert last.times is not None
    assert last.times.tolist() == [18, 19, 20, 21, 22]
    assert len(last.bands[0][1]) == 5


@pytest.mark.parametrize("num_labels", [2, 6])
def test_confusions_are_drawn_even_where_a_label_never_came(num_labels: int) -> None:
    counts = np.diag(np.arange(num_labels)).astype(np.int64)
    width, _ = size(plots.confusion(counts, [f"label {index}" for index in range(num_labels)], "toy"))
    assert width > 400


def test_comparisons_have_a_panel_per_measure() -> None:
    groups = [plots.Group("lstm", [1.0, 1.1]), plots.Group("mlp", [0.9])]
    one = plots.comparison({"mae": groups}, "toy", {"mae": {"naive": 1.2}})
    four = plots.comparison(dict.fromkeys("abcd", groups), "toy", {})
    assert size(four)[0] > size(one)[0]
    assert size(four)[1] > size(one)[1]
