"""The run of the toy task: rows of a CSV file in, their sums out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from tests.toy_task.head import SumHead, SumSpec
from tests.toy_task.recipe import SumRecipe
from training.data.series import Float32, numbers
from training.data.sources import Content, read_table
from training.export.publish import Publication, read_example_instances
from training.export.quantize import Trial
from training.fitting.losses import Batch, tensor_loss
from training.network.network import Network
from training.network.spec import NetworkSpec
from training.reporting.report import Report
from training.runs.steps import Outcome, check_network, fit_network, prepare_publication, write_verified_graph
from training.runs.task import LayerTables, Task
from training.scoring.evaluate import Graph, Scores


def run(recipe: SumRecipe, *, data: Path | None, folder: Path, resume: bool, console: Console) -> tuple[Publication, Report]:
    """Load → build → fit → verify → score; the rows are training, validation and test part in one."""
    contents: list[Content] = []
    rows = _read(recipe, data, contents)
    torch.manual_seed(recipe.seed)
    network = Network(network_spec(recipe))
    check_network(network, recipe, console)
    batch = {"row": torch.from_numpy(rows), "answers": torch.from_numpy(_sums(rows))}
    loss = tensor_loss(recipe.fit.loss)

    def batches(epoch: int) -> Iterator[Batch]:
        return iter([batch])

    def validate(network: Network) -> float:
        return float(loss(network, network.predict(batch), batch))

    fitted = fit_network(
        network, recipe, loss, batches, len(rows), 1, validate, "loss", folder=folder, resume=resume, console=console
    )
    graph = write_verified_graph(network, recipe.seed)
    instances = rows[:2].tolist()
    trial = _trial(network, rows, instances)
    outcome = Outcome(trial.score(graph.session), {}, contents, instances, {"num_columns": recipe.sum.num_columns})
    return prepare_publication(recipe, network, graph, fitted, trial, outcome)


def open_trial(recipe: SumRecipe, folder: Path, data: Path | None) -> Trial:
    """What a further graph of a published folder is measured with."""
    return _trial(Network(network_spec(recipe)), _read(recipe, data, []), read_example_instances(folder))


def network_spec(recipe: SumRecipe) -> NetworkSpec:
    """The recipe's network."""
    return SumSpec(layers=tuple(recipe.layers), num_columns=recipe.sum.num_columns)


def layers_without_steps(recipe: SumRecipe) -> LayerTables:
    """All steps, one after the other."""
    return [{"type": "flatten"}]


def _read(recipe: SumRecipe, data: Path | None, contents: list[Content]) -> Float32:
    table, name = read_table(recipe.data.train[0], data, contents)
    return numbers(table.select(table.columns[: recipe.sum.num_columns]), name).astype(np.float32)


def _sums(rows: Float32) -> Float32:
    sums: Float32 = rows.sum(1, keepdims=True)
    return sums


def _trial(network: Network, rows: Float32, instances: Sequence[Any]) -> Trial:
    def score(graph: Graph) -> Scores:
        return {"mae": float(np.abs(graph.run({"row": rows})["sum"] - _sums(rows)).mean())}

    def answer(graph: Graph) -> list[Any]:
        return [values.tolist() for values in graph.run({"row": np.array(instances, np.float32)})["sum"]]

    return Trial(network, [{"row": rows}], score, answer)


def _spec_of_recipe(recipe: SumRecipe, data: Path | None) -> tuple[NetworkSpec, tuple[str, ...]]:
    return network_spec(recipe), ()


def _spec_of_manifest(recipe: SumRecipe, manifest: Mapping[str, Any], folder: Path) -> NetworkSpec:
    return network_spec(recipe)


TASK = Task(
    recipe_type=SumRecipe,
    head=SumHead,
    run=run,
    open_trial=open_trial,
    spec_of_recipe=_spec_of_recipe,
    spec_of_manifest=_spec_of_manifest,
    layers_without_steps=layers_without_steps,
)
