"""The steps that every task's run has in common: fit, graph, and what is published. Knows no task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from training.data.sources import Content
from training.export.graph import describe_tensors, write_graph
from training.export.publish import GRAPH_FILE, MANIFEST_FILE, Publication, PublishError, describe_data, set_statistics
from training.export.quantize import TRIAL_BATCHES, TRIAL_ROWS, Trial, make_second_graph, require_quantizable
from training.export.statistics import collect_statistics
from training.export.verify import Verification, verify
from training.fitting.checkpoints import begin
from training.fitting.fit import Batches, FitResult, Validate, fit
from training.fitting.losses import Batch, LossFunction
from training.network.network import Network
from training.recipe import Recipe
from training.reporting.report import Report
from training.scoring.evaluate import Graph, Scores


@dataclass(frozen=True)
class VerifiedGraph:
    """A graph that computes what the network computes."""

    payload: bytes
    verification: Verification
    session: Graph


@dataclass(frozen=True)
class Outcome:
    """What a run has to publish beside the graph."""

    metrics: Scores
    baselines: Mapping[str, Scores]
    contents: Sequence[Content]  # the files that were read
    instances: Sequence[Any]  # of the example
    block: Mapping[str, Any] = field(default_factory=dict)  # the manifest's block of the task
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)  # more for the manifest's block `training`


def check_network(network: Network, recipe: Recipe, console: Console) -> None:
    """Print the size of a network that is ready to be fitted. Raises QuantizeError if the recipe wants int8 and it cannot be."""
    vocabulary = f", {network.vocabulary_size:,} tokens" if network.vocabulary_size else ""
    console.print(f"network     {network.num_parameters:,} parameters{vocabulary}", highlight=False)
    if recipe.quantize is not None:
        require_quantizable(network)


def fit_network(
    network: Network,
    recipe: Recipe,
    loss: LossFunction,
    batches: Batches,
    num_rows: int,
    num_batches: int,
    validate: Validate,
    score_name: str,
    *,
    folder: Path,
    resume: bool,
    console: Console,
    adversarial: float = 0.0,
) -> FitResult:
    """Fit `network` in place by the recipe, with checkpoints in `folder`; `num_rows` is the size of the training part."""
    settings = recipe.fit
    network.check_batches(min(num_rows, num_batches * recipe.rows_per_batch), recipe.rows_per_batch)
    begin(recipe, folder, resume=resume)
    return fit(
        network,
        loss,
        batches,
        num_batches,
        validate,
        settings,
        seed=recipe.seed,
        folder=folder,
        resume=resume,
        console=console,
        score_name=score_name,
        adversarial=adversarial,
    )


def write_verified_graph(network: Network, seed: int) -> VerifiedGraph:
    """The network as a graph. Raises VerificationFailed where it fails one of the four checks."""
    payload = write_graph(network).SerializeToString()
    return VerifiedGraph(payload, verify(network, payload, seed), Graph(payload))


def prepare_publication(
    recipe: Recipe, network: Network, graph: VerifiedGraph, fitted: FitResult, trial: Trial, outcome: Outcome
) -> tuple[Publication, Report]:
    """All that goes into the folder, with the int8 graph if the recipe wants one, and the report of the run."""
    predictions = trial.answer(graph.session)
    second = None
    if recipe.quantize is not None:
        second = make_second_graph(graph.payload, trial, outcome.metrics, predictions, recipe.quantize, recipe.seed)
    tensors = describe_tensors(network)
    described = {"task": recipe.task, **tensors, recipe.task: outcome.block}
    publication = Publication(
        recipe=recipe,
        graph=graph.payload,
        tensors=tensors,
        spec=outcome.block,
        instances=outcome.instances,
        predictions=predictions,
        metrics=outcome.metrics,
        baselines=outcome.baselines,
        data=describe_data(recipe.data.sources, outcome.contents),
        facts={
            "epochs": len(fitted.epochs),
            "best_epoch": fitted.best.number,
            "num_parameters": network.num_parameters,
            **outcome.facts,
        },
        files=outcome.files,
        pictures=outcome.pictures,
        second=second,
        statistics=measure_training_part(graph.session, trial, described),
    )
    return publication, Report(
        fitted, outcome.metrics, outcome.baselines, graph.verification, second, windows=outcome.facts.get("windows", ())
    )


def measure_training_part(graph: Graph, trial: Trial, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest's statistics of the training part; `manifest` as of `collect_statistics`."""
    return collect_statistics(graph, trial.rows if trial.samples is None else trial.samples, manifest, trial.unknown_id)


def add_statistics(folder: Path, trial: Trial) -> dict[str, Any]:
    """Put the statistics of the training part into the manifest of a published folder, and return them. Raises PublishError."""
    manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    found = measure_training_part(Graph((folder / GRAPH_FILE).read_bytes()), trial, manifest)
    if found is None:
        raise PublishError(f"{folder}: nothing of its rows can be measured")
    set_statistics(folder, found)
    return found


def trial_parts(num_rows: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Random rows of the training part for a `Trial`: the indices of each batch."""
    chosen = np.random.default_rng(seed).permutation(num_rows)[: TRIAL_ROWS * TRIAL_BATCHES]
    return [chosen[start : start + TRIAL_ROWS] for start in range(0, len(chosen), TRIAL_ROWS)]


def on_device_of(network: Network, batch: Batch) -> Batch:
    """The batch on the device where the network's weights are."""
    device = next(network.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}
