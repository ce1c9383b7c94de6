"""What a model card says, by what the manifest says."""

from __future__ import annotations

from typing import Any

from training.export.model_card import render_card
from training.scoring.measures import MEASURES

FORECAST: dict[str, Any] = {
    "name": "toy",
    "version": "2",
    "task": "forecast",
    "description": "Toys sold by the day.",
    "licence": "CC0",
    "graphs": [
        {"file": "model.onnx", "precision": "fp32", "score": {"mae": 1.5}},
        {"file": "model.int8.onnx", "precision": "int8", "score": {"mae": 1.625}},
    ],
    "cannot_stream": "it reads a whole week",
    "forecast": {
        "context_length": 1200,
        "min_length": 7,
        "horizon": 14,
        "frequencies": ["D"],
        "quantiles": [0.1, 0.5, 0.9],
        "point": "median",
        "points": ["median", "mape"],
        "features": ["y"],
        "targets": ["y"],
    },
    "training": {
        "recipe": {"data": {"train": [{"path": "toys.csv"}]}, "limits": ["Not for Christmas."]},
        "data": [{"name": "toys.csv", "origin": "a | b", "licence": "CC0", "sha256": "0123456789abcdef" * 4}],
        "metrics": {"mae": 1.5, "owa": 0.5, "one_step_coverage_80": 0.7512, "num_things": 3.0},
        "baselines": {"seasonal_naive": {"mae": 1.25, "owa": 1.0}, "theta": {"mae": 2.0, "num_things": 1.0}},
        "seed": 4,
        "created": "2026-01-02T03:04:05+00:00",
        "epochs": 3,
        "best_epoch": 2,
        "num_parameters": 12345,
        "versions": {"torch": "2.1"},
    },
}
CLASSIFY: dict[str, Any] = {
    "name": "moods",
    "version": "1",
    "task": "classify",
    "graphs": [{"file": "model.onnx", "precision": "fp32", "score": {}}],
    "state": [{"input": "h", "output": "h_next"}],
    "classify": {
        "labels": ["bad", "good"],
        "subject": "mood",
        "language": "en",
        "max_length": 400,
        "truncation": {"head": 300, "tail": 100},
    },
    "training": {"metrics": {"accuracy": 0.75, "ece": 0.031}, "baselines": {"majority": {"accuracy": 0.8, "ece": 0.5}}},
}
TENSOR: dict[str, Any] = {
    "name": "import",
    "version": "1",
    "task": "tensor",
    "graphs": [{"file": "model.onnx", "precision": "fp32"}],
    "inputs": [{"name": "x", "datatype": "FP32", "shape": ["batch", "time", 3]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": ["batch", 1]}],
    "training": {"recipe": {"import": {"format": "onnx", "file": "net.onnx", "tried": ["a"]}}},
}


def section(card: str, title: str) -> str:
    """What stands below a heading."""
    return card.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_a_card_says_what_a_forecaster_reads_and_gives() -> None:
    card = render_card(FORECAST)
    assert card.startswith("# toy, version 2\n\nToys sold by the day.\n")
    purpose = section(card, "What it is for")
    assert "| Series | daily |" in purpose
    assert "| History | 7 values at least; the last 1,200 of more are read |" in purpose
    assert "| Horizon | 14 steps in one run |" in purpose
    assert '| Point forecast | median, or on request `"point": "mape"` |' in purpose
    assert "| Quantiles | 0.1, 0.5, 0.9 |" in purpose
    assert "| Sequences in pieces | no: it reads a whole week |" in purpose
    assert "models/toy/2/example.json" in purpose


def test_data_stand_with_origin_licence_and_checksum_and_break_no_table() -> None:
    data = section(render_card(FORECAST), "Data and licence")
    assert "Licence of the data: CC0." in data
    assert "| toys.csv | a \\| b | CC0 | `0123456789ab` |" in data


def test_scores_stand_beside_those_of_other_graphs_and_of_baselines() -> None:
    scores = section(render_card(FORECAST), "Scores")
    assert "| measure | this model | its int8 graph | seasonal naive | theta |" in scores
    assert "| mae | **1.5** | 1.625 | 1.25 | 2 |" in scores
    assert f"* mae: {MEASURES['mae']}" in scores
    assert "* ece" not in scores


def test_calibration_is_that_of_bands_and_of_probabilities_or_said_to_be_unknown() -> None:
    assert "The 80 % band (one step) holds 75.1 % of the values" in section(render_card(FORECAST), "Calibration")
    assert "3.1 points" in section(render_card(CLASSIFY), "Calibration")
    assert section(render_card(TENSOR), "Calibration").strip() == "Not measured."


def test_a_baseline_that_is_better_is_a_limit_whichever_way_the_measure_goes() -> None:
    limits = section(render_card(FORECAST), "Limits")
    assert "The baseline seasonal naive is better by mae." in limits
    assert "theta is better" not in limits  # of a measure of which nothing is known
    assert "* Not for Christmas." in limits
    limits = section(render_card(CLASSIFY), "Limits")
    assert "The baseline majority is better by accuracy." in limits
    assert "the first 300 and the last 100 are read alone" in limits


def test_what_a_model_reads_of_long_texts_and_knows_of_foreign_ones_is_a_limit() -> None:
    block = {**CLASSIFY["classify"], "long_texts": "pieces", "min_known": 0.5}
    limits = section(render_card({**CLASSIFY, "classify": block}), "Limits")
    assert "pieces are read one by one" in limits
    assert "Below a share of 0.5 of known tokens" in limits


def test_what_a_forecaster_knows_ahead_is_a_fact_and_a_limit() -> None:
    assert "It knows the history alone" in section(render_card(FORECAST), "Limits")
    block = {**FORECAST["forecast"], "calendar": ["hour"]}
    assert "the history and the calendar alone" in section(render_card({**FORECAST, "forecast": block}), "Limits")
    card = render_card({**FORECAST, "forecast": {**block, "covariates": ["heat", "rain"]}})
    assert "| Known ahead | `heat`, `rain` |" in section(card, "What it is for")
    assert "| Calendar, from timestamps | `hour` |" in section(card, "What it is for")
    assert "alone" not in section(card, "Limits")
    assert "`heat`, `rain` have to be known for each step" in section(card, "Limits")


def test_features_that_are_not_forecast_end_the_horizon() -> None:
    block = {**FORECAST["forecast"], "features": ["y", "heat"], "horizon": 1}
    assert "no more than 1 step: `heat` would have to be known" in section(render_card({**FORECAST, "forecast": block}), "Limits")


def test_what_becomes_of_longer_horizons_is_a_limit() -> None:
    block = FORECAST["forecast"]
    found = section(render_card(FORECAST), "Limits")
    assert "goes on from its own forecasts; its bands widen as if the errors of its runs were independent" in found
    found = section(render_card({**FORECAST, "forecast": {**block, "recursive_errors": "correlated"}}), "Limits")
    assert "as if the errors of its runs were correlated" in found
    found = section(render_card({**FORECAST, "forecast": {**block, "quantiles": []}}), "Limits")
    assert "goes on from its own forecasts." in found
    found = section(render_card({**FORECAST, "forecast": {**block, "streaming": True}}), "Limits")
    assert "a stream goes on from what was observed" in found


def test_a_run_can_be_made_again_and_an_import_says_where_it_comes_from() -> None:
    again = section(render_card(FORECAST), "How to make it again")
    assert "sluice train models/toy/2 --models again" in again
    assert "12,345 parameters, 3 epochs (the weights of epoch 2), seed 4, made at 2026-01-02T03:04:05+00:00." in again
    imported = section(render_card(TENSOR), "How to make it again")
    assert "It was imported (format onnx, file net.onnx)." in imported
    assert "sluice train" not in imported


def test_a_manifest_without_a_task_block_shows_its_tensors() -> None:
    purpose = section(render_card(TENSOR), "What it is for")
    assert "| Inputs | `x` FP32 [batch, time, 3] |" in purpose
    assert "| Outputs | `y` FP32 [batch, 1] |" in purpose
