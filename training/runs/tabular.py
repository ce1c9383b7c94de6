"""A run on rows of features, from the recipe to the published folder, as one page. The task's name is `tensor`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from training.data.rows import Rows, RowSplit, read_rows
from training.export.publish import Publication, read_example_instances
from training.export.quantize import Trial
from training.fitting.fit import FitResult
from training.fitting.losses import Batch, tensor_loss
from training.layers.registry import LayerError
from training.network.heads.tensor import TensorHead, TensorInput, TensorSpec
from training.network.network import Network
from training.network.spec import NetworkSpec
from training.recipe import TabularRecipe
from training.reporting.progress import progress_line
from training.reporting.report import Report
from training.runs.steps import (
    Outcome,
    check_network,
    fit_network,
    on_device_of,
    prepare_publication,
    trial_parts,
    write_verified_graph,
)
from training.runs.task import LayerTables, Task
from training.scoring.baselines import score_baselines
from training.scoring.evaluate import Graph, Scores
from training.scoring.labels import confusion_counts, score_labels
from training.scoring.tabular import row_baseline, score_numbers

INPUT = "features"


def run(recipe: TabularRecipe, *, data: Path | None, folder: Path, resume: bool, console: Console) -> tuple[Publication, Report]:
    """Load → split → fit the normalizations on the training part → build → fit → verify → score beside baselines.

    Checkpoints go to `folder`; nothing is published yet.
    """
    settings = recipe.fit

    split = read_rows(recipe.data, data, recipe.seed)
    sizes = f"{len(split.train):,} rows to learn from; validation {len(split.validation):,}; test {len(split.test):,}"
    console.print(f"data        {sizes}; {len(split.features)} features", highlight=False)

    torch.manual_seed(recipe.seed)
    network = Network(network_spec(recipe, len(split.features)))
    _check_head(network, recipe, split)
    _adapt(network, split.train)
    check_network(network, recipe, console)

    def batches(epoch: int) -> Iterator[Batch]:
        order = np.arange(len(split.train))
        if not network.is_stateful:
            order = np.random.default_rng([recipe.seed, epoch]).permutation(order)
        for number in range(num_batches):
            yield _tensors(split.train.take(order[number * recipe.rows_per_batch : (number + 1) * recipe.rows_per_batch]))

    loss = tensor_loss(settings.loss)

    def validate(network: Network) -> float:
        batch = on_device_of(network, _tensors(split.validation))
        return float(loss(network, network.predict(batch), batch))

    num_batches = -(-len(split.train) // recipe.rows_per_batch)
    num_batches = min(num_batches, settings.steps_per_epoch or num_batches)
    fitted = fit_network(
        network,
        recipe,
        loss,
        batches,
        len(split.train),
        num_batches,
        validate,
        "validation loss",
        folder=folder,
        resume=resume,
        console=console,
    )

    graph = write_verified_graph(network, recipe.seed)

    answers = graph.session.run({INPUT: split.test.values})[recipe.output]
    instances = split.test.values[:2].astype(np.float64).round(6).tolist()
    outcome = Outcome(
        metrics=_score(split, answers),
        baselines=_score_baselines(recipe, split, folder, console),
        contents=split.contents,
        instances=instances,
        facts={"features": list(split.features), "answers": list(split.labels or split.targets)},
        pictures=_pictures(recipe, split, fitted, answers),
    )
    return prepare_publication(recipe, network, graph, fitted, _trial(recipe, split, network, instances), outcome)


def open_trial(recipe: TabularRecipe, folder: Path, data: Path | None) -> Trial:
    """What a further graph of a published folder is measured with."""
    split = read_rows(recipe.data, data, recipe.seed)
    return _trial(recipe, split, Network(network_spec(recipe, len(split.features))), read_example_instances(folder))


def network_spec(recipe: TabularRecipe, num_features: int) -> TensorSpec:
    """The recipe's network for rows of so many features."""
    return TensorSpec(
        layers=tuple(recipe.layers),
        members=recipe.ensemble.members,
        combine=recipe.ensemble.combine,
        input=TensorInput(name=INPUT, shape=(num_features,)),
        output=recipe.output,
    )


def spec_of_recipe(recipe: TabularRecipe, data: Path | None) -> tuple[NetworkSpec, tuple[str, ...]]:
    """The network of a recipe. Reads the rows only where the recipe does not name the features."""
    num_features = len(recipe.data.train[0].values) or len(read_rows(recipe.data, data, recipe.seed).features)
    return network_spec(recipe, num_features), ()


def spec_of_manifest(recipe: TabularRecipe, manifest: Mapping[str, Any], folder: Path) -> NetworkSpec:
    """The network of a published folder."""
    return network_spec(recipe, manifest["inputs"][0]["shape"][-1])


def layers_without_steps(recipe: TabularRecipe) -> LayerTables:
    """All steps, one after the other."""
    return [{"type": "flatten"}]


def _trial(recipe: TabularRecipe, split: RowSplit, network: Network, instances: Sequence[Any]) -> Trial:
    def answers(graph: Graph, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return graph.run({INPUT: values.astype(np.float32)})[recipe.output]

    def score(graph: Graph) -> Scores:
        return _score(split, answers(graph, split.test.values))

    def answer(graph: Graph) -> list[Any]:
        return [[float(f"{value:.7g}") for value in row] for row in answers(graph, np.array(instances))]

    parts = trial_parts(len(split.train), recipe.seed)
    return Trial(network, [{INPUT: split.train.take(part).values} for part in parts], score, answer)


def _pictures(recipe: TabularRecipe, split: RowSplit, fitted: FitResult, answers: npt.NDArray[Any]) -> dict[str, bytes]:
    from training.reporting import plots

    pictures = {"loss.png": plots.loss_picture(recipe.name, recipe.fit.loss, fitted)}
    if split.labels:
        counts = confusion_counts(split.test.answers, _probabilities(answers))
        pictures["confusion.png"] = plots.confusion(counts, split.labels, f"{recipe.name}: {len(split.test):,} test rows")
    return pictures


def _adapt(network: Network, train: Rows) -> None:
    """Fit a first normalization to the features, and a last inverse one to the numbers that are predicted."""
    for first, *_, last in ([layers[0], *layers] for layers in network.members):
        if first.adapts_to == "inputs":
            first.adapt(torch.from_numpy(train.values))
        if last.adapts_to == "answers":
            last.adapt(torch.from_numpy(train.answers))


def _check_head(network: Network, recipe: TabularRecipe, split: RowSplit) -> None:
    """Raise LayerError unless the last layer gives what the loss compares."""
    head, where = network.stack[-1], f"layers[{len(network.layer_names) - 1}]"
    found = network.outputs[recipe.output]
    loss = recipe.fit.loss
    num_units = 1 if loss == "binary_crossentropy" else split.num_answers
    if found.axes != (num_units,):
        what = f"{len(split.labels)} labels" if split.labels else f"the targets {list(split.targets)}"
        message = f'loss "{loss}" and {what} need the answer (batch, {num_units}), got {found}'
        raise LayerError(where, head.config.type, None, message)
    wanted = {"binary_crossentropy": "sigmoid", "categorical_crossentropy": "softmax"}.get(loss)
    activation = getattr(getattr(head.config, "activation", None), "name", None)
    if wanted is not None and activation not in (wanted, None):
        raise LayerError(where, head.config.type, "activation", f'loss "{loss}" needs {wanted!r}, got {activation!r}')
    if loss == "binary_crossentropy" and len(split.labels) != 2:
        raise LayerError(where, head.config.type, None, f'loss "{loss}" is for two labels, got {list(split.labels)}')


def _tensors(rows: Rows) -> Batch:
    return {INPUT: torch.from_numpy(rows.values), "answers": torch.from_numpy(rows.answers)}


def _probabilities(answers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(N, labels), also where the network gives the probability of the second of two alone."""
    return np.concatenate([1 - answers, answers], 1) if answers.shape[1] == 1 else answers


def _score(split: RowSplit, answers: npt.NDArray[Any]) -> Scores:
    if split.labels:
        return score_labels(split.test.answers, _probabilities(answers))
    return score_numbers(split.test.answers, answers, split.targets)


def _score_baselines(recipe: TabularRecipe, split: RowSplit, folder: Path, console: Console) -> dict[str, Scores]:
    def score(name: str) -> Scores:
        with progress_line(console, f"baseline {name}"):
            return _score(split, row_baseline(name, split))

    facts = [recipe.data.model_dump(mode="json"), recipe.seed, [content.sha256 for content in split.contents]]
    return score_baselines(recipe.baselines, score, folder / "baselines.json", facts)


TASK = Task(
    recipe_type=TabularRecipe,
    head=TensorHead,
    run=run,
    open_trial=open_trial,
    spec_of_recipe=spec_of_recipe,
    spec_of_manifest=spec_of_manifest,
    layers_without_steps=layers_without_steps,
    naive=("majority", "average"),
    decisive=("accuracy", "mae"),
    larger_is_better=("accuracy", "f1", "auroc", "r2"),
)
