"""The second graph of a folder: int8, verified, scored on the test part beside the first, and held against the recipe's bounds.

Writes no ONNX (`int8_graph.py`), trains nothing, and decides nothing about serving: the manifest carries the degradation with
its bounds, and the service compares them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.errors import TrainingError
from training.export.graph import describe_tensors, write_graph
from training.export.int8_graph import NotQuantizable, Range, find_ranged_tensors, quantize_graph, with_outputs
from training.export.publish import GRAPH_FILE, INT8_FILE, TOLERANCE, add_graph, describe_graph
from training.export.verify import Verification, verify
from training.network.network import Network
from training.recipe import Quantize
from training.scoring.evaluate import Graph, Scores

Tensors = Mapping[str, NDArray[Any]]
# Values in use may be a little beyond those of the training part; what is further out is clipped.
MARGIN = 0.1
RELATIVE_MEASURES = ("owa", "mae", "pinball")
# Scores of one graph on the same data differ by the rounding of another batch size or processor, not by more.
SAME_SCORE = 1e-3
SPEED_ROWS = 16
INT8_RELATIVE = 0.01
TINY = 1e-12
TRIAL_ROWS, TRIAL_BATCHES = 64, 16


class QuantizeError(TrainingError):
    """There will be no second graph, for this reason."""


@dataclass(frozen=True)
class Trial:
    """What a graph of one model is measured with."""

    network: Network  # its shape alone counts, not its weights
    rows: Sequence[Tensors]  # batches of the training part, as the graph takes them
    score: Callable[[Graph], Scores]  # on the test part
    answer: Callable[[Graph], list[Any]]  # the example's predictions
    # Batches of the training part as requests look, for its statistics; None: they look as `rows` do.
    samples: Sequence[Tensors] | None = None
    unknown_id: int | None = None  # the tokenizer's


@dataclass(frozen=True)
class Degradation:
    """How much worse than the first graph in one measure: a share less (absolute), or an error grown by a share (relative)."""

    measure: str
    kind: Literal["absolute", "relative"]
    value: float
    bound: float

    @property
    def is_within(self) -> bool:
        return self.value <= self.bound

    def __str__(self) -> str:
        unit = "points" if self.kind == "absolute" else "%"
        return f"{self.measure} {100 * self.value:+.3f} {unit} (bound {100 * self.bound:g})"


@dataclass(frozen=True)
class SecondGraph:
    """An int8 graph with its measurements."""

    payload: bytes
    score: Scores
    degradations: tuple[Degradation, ...]
    tolerance: Mapping[str, float]  # of its answers to the example, which are the first graph's
    verification: Verification  # graph_vs_torch is its distance from the first graph at random rows
    quantized: tuple[str, ...]
    kept: tuple[str, ...]
    speed: float  # rows per second, in those of the first graph

    @property
    def entry(self) -> dict[str, Any]:
        """As the manifest lists it."""
        losses = [asdict(degradation) for degradation in self.degradations]
        return describe_graph(INT8_FILE, self.payload, "int8", self.score, loss=losses, tolerance=dict(self.tolerance))


def require_quantizable(network: Network) -> None:
    """Raise QuantizeError if no weight of the network can be int8; for a check before hours of training."""
    payload = write_graph(network).SerializeToString()
    try:
        quantize_graph(payload, {tensor.values: (-1.0, 1.0) for tensor in find_ranged_tensors(payload)})
    except NotQuantizable as exc:
        raise QuantizeError(f"the recipe has the table [quantize], but {exc}") from exc


def make_second_graph(
    first: bytes, trial: Trial, scores: Scores, predictions: Sequence[Any], bounds: Quantize, seed: int
) -> SecondGraph:
    """Quantise `first`, verify the result, and measure what it loses on the test part.

    `scores` and `predictions` (of the example) are the first graph's. Raises QuantizeError where nothing can be quantised or
    the example gets another label, and VerificationFailed where a row's answer depends on other rows or on its padding.
    """
    try:
        int8 = quantize_graph(first, measure_ranges(first, trial.rows))
    except NotQuantizable as exc:
        raise QuantizeError(str(exc)) from exc
    verification = verify(trial.network, int8.payload, seed, original=first)
    graph = Graph(int8.payload)
    score = trial.score(graph)
    return SecondGraph(
        payload=int8.payload,
        score=score,
        degradations=measure_degradations(scores, score, bounds),
        tolerance=_tolerance(trial.answer(graph), predictions),
        verification=verification,
        quantized=int8.quantized,
        kept=int8.kept,
        speed=measure_speed(first, int8.payload, trial.rows[0]),
    )


def measure_degradations(first: Scores, second: Scores, bounds: Quantize) -> tuple[Degradation, ...]:
    """Of the second graph, in the measures that decide: every accuracy, OWA, MAE and the pinball loss."""
    found: list[Degradation] = []
    for measure, score in first.items():
        if measure not in second:
            raise QuantizeError(f"the int8 graph has no {measure}: its answers are not finite")
        if measure.endswith("accuracy"):
            found.append(Degradation(measure, "absolute", score - second[measure], bounds.max_points_lost / 100))
        elif measure in RELATIVE_MEASURES:
            growth = (second[measure] - score) / max(abs(score), TINY)
            found.append(Degradation(measure, "relative", growth, bounds.max_error_gained / 100))
    return tuple(found)


def measure_ranges(graph: bytes, rows: Iterable[Tensors]) -> dict[str, Range]:
    """The lowest and the highest value of what LSTMs read, padding left out, with a margin."""
    tensors = find_ranged_tensors(graph)
    if not tensors:
        return {}
    session = Graph(with_outputs(graph, [name for tensor in tensors for name in (tensor.values, tensor.lengths) if name]))
    ends: dict[str, list[float]] = {tensor.values: [] for tensor in tensors}
    for batch in rows:
        outputs = session.run(batch)
        for tensor in tensors:
            values = outputs[tensor.values]  # (T, B, features)
            if tensor.lengths:
                values = values[np.arange(len(values))[:, None] < outputs[tensor.lengths]]
            ends[tensor.values] += [float(values.min()), float(values.max())]
    ranges = {}
    for name, found in ends.items():
        margin = MARGIN * max(max(found) - min(found), TINY)
        ranges[name] = (min(found) - margin, max(found) + margin)
    return ranges


def measure_speed(first: bytes, second: bytes, batch: Tensors, *, duration_s: float = 1.0) -> float:
    """Rows per second of the second graph in those of the first, on one thread: medians of alternating runs."""
    rows = {name: values[:SPEED_ROWS] for name, values in batch.items()}
    graphs = [Graph(payload, num_threads=1) for payload in (first, second)]
    times: list[list[float]] = [[], []]
    end = time.perf_counter() + duration_s
    while time.perf_counter() < end or not times[1]:
        for graph, taken in zip(graphs, times, strict=True):
            # The thread's own time: other processes of the machine do not count.
            started = time.thread_time()
            graph.run(rows)
            taken.append(time.thread_time() - started)
    return float(np.median(times[0]) / np.median(times[1]))


def quantize_folder(folder: Path, trial: Trial, bounds: Quantize, seed: int) -> SecondGraph:
    """Measure an int8 graph beside the first one of a published folder, and add it there, or replace an older one.

    Raises QuantizeError, also where the first graph's score by `trial` is not the manifest's: then both would be compared on
    other data.
    """
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    first = (folder / GRAPH_FILE).read_bytes()
    entry = next(entry for entry in manifest["graphs"] if entry["file"] == GRAPH_FILE)
    found = [output["name"] for output in manifest["outputs"]]
    expected = [output["name"] for output in describe_tensors(trial.network)["outputs"]]
    if found != expected:
        raise QuantizeError(
            f"{folder}: its graph gives {', '.join(found)}, the recipe's network now gives {', '.join(expected)}: "
            "another version wrote it; train it again, or leave it as it is"
        )
    scores = trial.score(Graph(first))
    for measure, score in entry["score"].items():
        if abs(scores.get(measure, np.inf) - score) > SAME_SCORE * max(1.0, abs(score)):
            raise QuantizeError(
                f"{folder}: {measure} is {scores.get(measure)} on these data, in the manifest it is {score}: "
                "what int8 loses would be measured on other data"
            )
    predictions = json.loads((folder / "example.json").read_text(encoding="utf-8"))["response"]["predictions"]
    second = make_second_graph(first, trial, entry["score"], predictions, bounds, seed)
    add_graph(folder, INT8_FILE, second.payload, second.entry)
    return second


def _tolerance(found: Sequence[Any], expected: Sequence[Any]) -> dict[str, float]:
    """Twice the largest distance from the first graph's answers, and a share: other processors round to another of 8 bits."""
    largest = max((_distance(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)
    return {"absolute": float(f"{max(TOLERANCE['absolute'], 2 * largest):.3g}"), "relative": INT8_RELATIVE}


def _distance(found: Any, expected: Any) -> float:
    """The largest difference of two JSON values' numbers. Raises QuantizeError where anything else differs."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        return max((_distance(found[key], expected[key]) for key in found), default=0.0)
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return max((_distance(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)
    if isinstance(found, int | float) and isinstance(expected, int | float) and not isinstance(found, bool):
        return abs(found - expected)
    if found != expected:
        raise QuantizeError(f"the int8 graph answers the example with {found!r}, the first one with {expected!r}")
    return 0.0
