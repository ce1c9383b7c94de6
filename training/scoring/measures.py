"""The measures by name: what each says, which way is better, and which baselines a model is behind. Computes no score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.scoring.evaluate import Scores

MEASURES = {
    "accuracy": "share of right labels; larger is better",
    "auroc": "area under the ROC curve; larger is better",
    "coverage": "share of true values between the outermost quantiles; best at the nominal share",
    "ece": "expected calibration error; smaller is better",
    "f1": "mean F1 of the labels; larger is better",
    "mae": "mean absolute error, in the units of the data; smaller is better",
    "mape": "mean absolute percentage error, in percent; smaller is better",
    "mase": "absolute error over that of the seasonal naive forecast within the history; smaller is better",
    "mse": "mean squared error; smaller is better",
    "owa": "mean of sMAPE and MASE over Naive2's, as in the M4 competition; smaller is better",
    "pinball": "mean quantile loss, in the units of the data; smaller is better",
    "r2": "share of the variance that is explained; larger is better",
    "rmse": "root of the mean squared error, in the units of the data; smaller is better",
    "smape": "symmetric mean absolute percentage error, 0 to 200; smaller is better",
}
"""By kind, the word that a measure's name ends with, a number behind it left out."""
LARGER_IS_BETTER = ("accuracy", "auroc", "f1", "r2")
WITHOUT_RANK = ("coverage", "ece")
"""Of two coverages the one nearer to its nominal share is better; a guess that never changes is calibrated."""


def kind_of(measure: str) -> str:
    """The kind of a measure: `coverage` of `one_step_coverage_80`; its last word where it is of no kind that is known."""
    words = [word for word in measure.split("_") if not word.isdigit()]
    return next((word for word in reversed(words) if word in MEASURES), words[-1] if words else measure)


def is_better(measure: str, one: float, other: float) -> bool:
    """Whether `one` is the better score of the two; False of measures that have no rank or are not known."""
    kind = kind_of(measure)
    if kind not in MEASURES or kind in WITHOUT_RANK:
        return False
    return one > other if kind in LARGER_IS_BETTER else one < other


def decisive_measures(metrics: Scores, kinds: Sequence[str]) -> list[str]:
    """The measures of the first of these kinds that there is."""
    return next((found for kind in kinds if (found := [measure for measure in metrics if kind_of(measure) == kind])), [])


def baselines_ahead(metrics: Scores, baselines: Mapping[str, Scores], measures: Sequence[str]) -> dict[str, list[str]]:
    """The baselines that the model does not beat, each with the measures by which it is no better."""
    found = {
        name: [
            measure
            for measure in measures
            if measure in scores and measure in metrics and not is_better(measure, metrics[measure], scores[measure])
        ]
        for name, scores in baselines.items()
    }
    return {name: ahead for name, ahead in found.items() if ahead}
