"""A run on rows of features, from the recipe to the published folder, as one page. The folder's task is `tensor`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from training.data.rows import Rows, RowSplit, read_rows
from training.export.graph import graph_tensors, write_graph
from training.export.publish import Publication, describe_data, example_instances
from training.export.quantize import TRIAL_BATCHES, TRIAL_ROWS, Trial, require_quantizable, second_graph
from training.export.verify import verify
from training.fitting.checkpoints import begin
from training.fitting.fit import FitResult, fit
from training.fitting.losses import Batch, tensor_loss
from training.layers.preprocessing import Normalization
from training.layers.registry import Layer, LayerError
from training.network.heads.tensor import TensorInput, TensorSpec
from training.network.network import Network
from training.recipe import Recipe
from training.reporting.report import Report, counted
from training.scoring import baselines
from training.scoring.evaluate import Graph, Scores, confusion_counts, score_classify, score_numbers

INPUT = "features"


def run(recipe: Recipe, *, data: Path | None, folder: Path, resume: bool, console: Console) -> tuple[Publication, Report]:
    """Load → cut → fit the normalizations on the training part → build → fit → score beside baselines → verify.

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
    console.print(f"network     {network.num_parameters:,} parameters", highlight=False)
    if recipe.quantize is not None:
        require_quantizable(network)

    def batches(epoch: int) -> Iterator[Batch]:
        order = np.arange(len(split.train))
        if not network.is_stateful:
            order = np.random.default_rng([recipe.seed, epoch]).permutation(order)
        for number in range(num_batches):
            yield _tensors(split.train.take(order[number * settings.batch_size : (number + 1) * settings.batch_size]))

    loss = tensor_loss(settings.loss)

    def validate(network: Network) -> float:
        batch = {name: tensor.to(next(network.parameters()).device) for name, tensor in _tensors(split.validation).items()}
        return float(loss(network, network.predict(batch), batch))

    num_batches = -(-len(split.train) // settings.batch_size)
    num_batches = min(num_batches, settings.steps_per_epoch or num_batches)
    network.check_batches(min(len(split.train), num_batches * settings.batch_size), settings.batch_size)
    begin(recipe, folder, resume=resume)
    fitted = fit(
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
        score_name="validation loss",
    )

    payload = write_graph(network).SerializeToString()
    verification = verify(network, payload, recipe.seed)

    graph = Graph(payload)
    answers = graph.run({INPUT: split.test.values})[recipe.output]
    metrics = _score(split, answers)
    compared = _score_baselines(recipe, split, folder, console)

    instances = split.test.values[:2].astype(np.float64).round(6).tolist()
    trial = _trial(recipe, split, network, instances)
    predictions = trial.answer(graph)
    second = None
    if recipe.quantize is not None:
        second = second_graph(payload, trial, metrics, predictions, recipe.quantize, recipe.seed)
    publication = Publication(
        recipe=recipe,
        graph=payload,
        tensors=graph_tensors(network),
        spec={},
        instances=instances,
        pictures=_pictures(recipe, split, fitted, answers),
        predictions=predictions,
        metrics=metrics,
        baselines=compared,
        data=describe_data([*recipe.data.train, *recipe.data.validation, *recipe.data.test], split.contents),
        facts={
            "epochs": len(fitted.epochs),
            "best_epoch": fitted.best.number,
            "num_parameters": network.num_parameters,
            "features": list(split.features),
            "answers": list(split.labels or split.targets),
        },
        second=second,
    )
    return publication, Report(fitted, metrics, compared, verification, second)


def open_trial(recipe: Recipe, folder: Path, data: Path | None) -> Trial:
    """What a further graph of a published folder is measured with."""
    split = read_rows(recipe.data, data, recipe.seed)
    return _trial(recipe, split, Network(network_spec(recipe, len(split.features))), example_instances(folder))


def _trial(recipe: Recipe, split: RowSplit, network: Network, instances: Sequence[Any]) -> Trial:
    def answers(graph: Graph, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return graph.run({INPUT: values.astype(np.float32)})[recipe.output]

    def score(graph: Graph) -> Scores:
        return _score(split, answers(graph, split.test.values))

    def answer(graph: Graph) -> list[Any]:
        return [[float(f"{value:.7g}") for value in row] for row in answers(graph, np.array(instances))]

    chosen = np.random.default_rng(recipe.seed).permutation(len(split.train))[: TRIAL_ROWS * TRIAL_BATCHES]
    parts = [chosen[start : start + TRIAL_ROWS] for start in range(0, len(chosen), TRIAL_ROWS)]
    return Trial(network, [{INPUT: split.train.take(part).values} for part in parts], score, answer)


def network_spec(recipe: Recipe, num_features: int) -> TensorSpec:
    """What the recipe's network is for rows of so many features."""
    return TensorSpec(
        layers=tuple(recipe.layers),
        input=TensorInput(name=INPUT, shape=(num_features,)),
        output=recipe.output,
    )


def _pictures(recipe: Recipe, split: RowSplit, fitted: FitResult, answers: npt.NDArray[Any]) -> dict[str, bytes]:
    from training.reporting import plots

    pictures = {"loss.png": plots.loss_picture(recipe.name, recipe.fit.loss, fitted)}
    if split.labels:
        counts = confusion_counts(split.test.answers, probabilities(answers))
        pictures["confusion.png"] = plots.confusion(counts, split.labels, f"{recipe.name}: {len(split.test):,} test rows")
    return pictures


def _adapt(network: Network, train: Rows) -> None:
    """Fit a first normalization to the features, and a last inverse one to the numbers that are predicted."""
    for layer, values in ((network.layers[0], train.values), (network.layers[-1], train.answers)):
        if isinstance(layer, Normalization) and not layer.is_given and layer.config.invert == (values is train.answers):
            layer.adapt(torch.from_numpy(values))


def _check_head(network: Network, recipe: Recipe, split: RowSplit) -> None:
    """Raise LayerError unless the last layer gives what the loss compares."""
    head, where = network.layers[-1], f"layers[{len(network.layers) - 1}]"
    assert isinstance(head, Layer)
    found = network.outputs[recipe.output]
    loss = recipe.fit.loss
    owed = 1 if loss == "binary_crossentropy" else split.num_answers
    if found.axes != (owed,):
        what = f"{len(split.labels)} labels" if split.labels else f"the targets {list(split.targets)}"
        raise LayerError(where, head.config.type, None, f'loss "{loss}" and {what} need the answer (batch, {owed}), got {found}')
    wanted = {"binary_crossentropy": "sigmoid", "categorical_crossentropy": "softmax"}.get(loss)
    activation = getattr(getattr(head.config, "activation", None), "name", None)
    if wanted is not None and activation not in (wanted, None):
        raise LayerError(where, head.config.type, "activation", f'loss "{loss}" needs {wanted!r}, got {activation!r}')
    if loss == "binary_crossentropy" and len(split.labels) != 2:
        raise LayerError(where, head.config.type, None, f'loss "{loss}" is for two labels, got {list(split.labels)}')


def _tensors(rows: Rows) -> Batch:
    return {INPUT: torch.from_numpy(rows.values), "answers": torch.from_numpy(rows.answers)}


def probabilities(answers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(N, labels), also where the network gives the second of two alone."""
    return np.concatenate([1 - answers, answers], 1) if answers.shape[1] == 1 else answers


def _score(split: RowSplit, answers: npt.NDArray[Any]) -> Scores:
    if split.labels:
        return score_classify(split.test.answers, probabilities(answers))
    return score_numbers(split.test.answers, answers, split.targets)


def _score_baselines(recipe: Recipe, split: RowSplit, folder: Path, console: Console) -> dict[str, Scores]:
    names = recipe.evaluate.baselines or (baselines.ROW_CLASSIFIERS if split.labels else baselines.ROW_REGRESSORS)

    def score(name: str) -> Scores:
        with counted(console, f"baseline {name}", 1):
            return _score(split, baselines.row_baseline(name, split))

    facts = [recipe.data.model_dump(mode="json"), recipe.seed, [content.sha256 for content in split.contents]]
    compared: dict[str, Scores] = {}
    for name in names:
        scores = baselines.remembered(folder / "baselines.json", name, facts, partial(score, name))
        assert scores is not None
        compared[name] = dict(scores)
    return compared
