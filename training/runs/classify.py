"""A text classification run, from the recipe to the published folder, as one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console
from tokenizers import Tokenizer

from training.data.series import Int64
from training.data.texts import (
    Texts,
    TextSplit,
    Tokens,
    batches_by_length,
    batches_in_order,
    collate,
    encode,
    learn_tokenizer,
    num_batches_by_length,
    read_texts,
    unknown_id,
)
from training.export.answers import format_classify
from training.export.graph import graph_tensors, write_graph
from training.export.publish import Publication, describe_data, example_instances
from training.export.quantize import TRIAL_BATCHES, TRIAL_ROWS, Trial, require_quantizable, second_graph
from training.export.verify import verify
from training.fitting.checkpoints import begin
from training.fitting.fit import FitResult, fit
from training.fitting.losses import Batch, classify_loss
from training.network.heads.classify import ClassifySpec
from training.network.network import Network
from training.recipe import Recipe
from training.reporting.report import Report, counted
from training.scoring import baselines
from training.scoring.evaluate import Graph, Scores, confusion_counts, score_classify

TOKENIZER_FILE = "tokenizer.json"


def run(recipe: Recipe, *, data: Path | None, folder: Path, resume: bool, console: Console) -> tuple[Publication, Report]:
    """Load → cut by group → learn the tokenizer on the training part → build → fit → score beside baselines → verify.

    Checkpoints go to `folder`; nothing is published yet.
    """
    settings, (head, tail) = recipe.fit, recipe.cut

    split = read_texts(recipe.data, data, recipe.seed)
    console.print(f"data        {_describe(split)}", highlight=False)

    with counted(console, "learning the tokenizer and reading the texts", 1):
        tokenizer = learn_tokenizer(split.train.texts, recipe.tokenizer)
        rows = encode(tokenizer, split.train.texts, head, tail)
        validation = {name: encode(tokenizer, part.texts, head, tail) for name, part in split.validation.items()}
        tests = {name: encode(tokenizer, part.texts, head, tail) for name, part in split.tests.items()}

    torch.manual_seed(recipe.seed)
    network = Network(_spec(recipe, split, tokenizer))
    console.print(f"network     {network.num_parameters:,} parameters, {tokenizer.get_vocab_size():,} tokens", highlight=False)
    if recipe.quantize is not None:
        require_quantizable(network)

    def batches(epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng([recipe.seed, epoch])
        noise, unknown = settings.word_dropout, unknown_id(tokenizer)
        gather = batches_in_order if network.is_stateful else batches_by_length
        epoch_batches = gather(rows, split.train.labels, settings.batch_size, rng, word_dropout=noise, unknown=unknown)
        for number, batch in enumerate(epoch_batches):
            if number == num_batches:
                return
            yield _tensors(batch)

    def validate(network: Network) -> float:
        """Mean share of wrong answers over the validation sets."""
        wrong = [_error(network, validation[name], part.labels, recipe) for name, part in split.validation.items()]
        return float(np.mean(wrong))

    num_batches = num_batches_by_length(len(rows), settings.batch_size)
    num_batches = min(num_batches, settings.steps_per_epoch or num_batches)
    network.check_batches(min(len(rows), num_batches * settings.batch_size), settings.batch_size)
    begin(recipe, folder, resume=resume)
    fitted = fit(
        network,
        classify_loss(settings.loss, settings.label_smoothing),
        batches,
        num_batches,
        validate,
        settings,
        seed=recipe.seed,
        folder=folder,
        resume=resume,
        console=console,
        score_name="validation error",
    )

    payload = write_graph(network).SerializeToString()
    verification = verify(network, payload, recipe.seed)

    graph = Graph(payload)
    answers = {name: graph.classify(tests[name], recipe.evaluate.batch_size) for name in tests}
    metrics = _score(split.tests, answers)
    compared = _score_baselines(recipe, split, folder, console)

    results = _write_results(folder, split, answers)
    console.print(f"results     {results}", highlight=False, soft_wrap=True)

    max_length = head + tail
    instances = _example_texts(split.tests, tests, max_length)
    trial = _trial(recipe, split, tokenizer, network, rows, tests, instances)
    predictions = trial.answer(graph)
    second = None
    if recipe.quantize is not None:
        second = second_graph(payload, trial, metrics, predictions, recipe.quantize, recipe.seed)
    publication = Publication(
        recipe=recipe,
        graph=payload,
        tensors=graph_tensors(network),
        spec={
            "labels": list(split.labels),
            "tokenizer": TOKENIZER_FILE,
            "max_length": max_length,
            "truncation": {"head": head, "tail": tail},
            "language": recipe.language,
        },
        instances=instances,
        predictions=predictions,
        metrics=metrics,
        baselines=compared,
        data=describe_data([*recipe.data.train, *recipe.data.validation, *recipe.data.test], split.contents),
        facts={"epochs": len(fitted.epochs), "best_epoch": fitted.best.number, "num_parameters": network.num_parameters},
        files={TOKENIZER_FILE: tokenizer.to_str()},
        pictures=_pictures(recipe, split, fitted, answers),
        second=second,
    )
    return publication, Report(fitted, metrics, compared, verification, second)


def open_trial(recipe: Recipe, folder: Path, data: Path | None) -> Trial:
    """What a further graph of a published folder is measured with."""
    split, (head, tail) = read_texts(recipe.data, data, recipe.seed), recipe.cut
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    some = np.random.default_rng(recipe.seed).permutation(len(split.train))[: TRIAL_ROWS * TRIAL_BATCHES]
    rows = encode(tokenizer, [split.train.texts[index] for index in some], head, tail)
    tests = {name: encode(tokenizer, part.texts, head, tail) for name, part in split.tests.items()}
    return _trial(recipe, split, tokenizer, Network(_spec(recipe, split, tokenizer)), rows, tests, example_instances(folder))


def _spec(recipe: Recipe, split: TextSplit, tokenizer: Tokenizer) -> ClassifySpec:
    size = tokenizer.get_vocab_size()
    return ClassifySpec(layers=tuple(recipe.layers), vocabulary_size=size, labels=split.labels)


def _trial(
    recipe: Recipe,
    split: TextSplit,
    tokenizer: Tokenizer,
    network: Network,
    rows: Sequence[Int64],
    tests: Mapping[str, Sequence[Int64]],
    instances: Sequence[str],
) -> Trial:
    head, tail = recipe.cut
    chosen = np.random.default_rng(recipe.seed).permutation(len(rows))[: TRIAL_ROWS * TRIAL_BATCHES]
    parts = [chosen[start : start + TRIAL_ROWS] for start in range(0, len(chosen), TRIAL_ROWS)]
    batches = [collate([rows[index] for index in part], np.zeros(len(part), np.int64)) for part in parts]

    def score(graph: Graph) -> Scores:
        return _score(split.tests, {name: graph.classify(tests[name], recipe.evaluate.batch_size) for name in tests})

    def answer(graph: Graph) -> list[Any]:
        predictions = []
        for text in instances:
            ids = encode(tokenizer, [text], head, tail)
            is_truncated = len(tokenizer.encode(text, add_special_tokens=False).ids) > head + tail
            predictions.append(format_classify(graph.classify(ids, 1)[0], split.labels, is_truncated))
        return predictions

    return Trial(network, [{"tokens": batch.tokens, "lengths": batch.lengths} for batch in batches], score, answer)


def _tensors(batch: Tokens) -> Batch:
    return {
        "tokens": torch.from_numpy(batch.tokens),
        "lengths": torch.from_numpy(batch.lengths),
        "labels": torch.from_numpy(batch.labels),
    }


def _error(network: Network, rows: Sequence[Int64], labels: Int64, recipe: Recipe) -> float:
    device = next(network.parameters()).device
    order = np.argsort([len(row) for row in rows], kind="stable")
    num_wrong = 0
    for start in range(0, len(order), recipe.evaluate.batch_size):
        chosen = order[start : start + recipe.evaluate.batch_size]
        batch = _tensors(collate([rows[i] for i in chosen], labels[chosen]))
        probabilities = network({name: batch[name].to(device) for name in ("tokens", "lengths")})["probabilities"]
        num_wrong += int((probabilities.argmax(1).cpu() != batch["labels"]).sum())
    return num_wrong / len(rows)


def _pictures(recipe: Recipe, split: TextSplit, fitted: FitResult, answers: Mapping[str, Any]) -> dict[str, bytes]:
    from training.reporting import plots

    pictures = {"loss.png": plots.loss_picture(recipe.name, recipe.fit.loss, fitted, "share of wrong answers")}
    for name, part in split.tests.items():
        title = f"{recipe.name}: {len(part):,} test texts{f' of {name}' if len(split.tests) > 1 else ''}"
        file = f"confusion_{name}.png" if len(split.tests) > 1 else "confusion.png"
        pictures[file] = plots.confusion(confusion_counts(part.labels, answers[name]), split.labels, title)
    return pictures


def _write_results(folder: Path, split: TextSplit, answers: Mapping[str, Any]) -> Path:
    """Every test text with its label, the answer, and the probabilities: `results.csv` beside the checkpoints."""
    parts = []
    for name, part in split.tests.items():
        columns: dict[str, Any] = {
            "set": [name] * len(part),
            "text": list(part.texts),
            "label": [split.labels[label] for label in part.labels],
            "predicted": [split.labels[label] for label in answers[name].argmax(1)],
        }
        probabilities = {f"p_{label}": answers[name][:, index].round(6) for index, label in enumerate(split.labels)}
        parts.append(pl.DataFrame(columns | {"is_right": answers[name].argmax(1) == part.labels} | probabilities))
    path = folder / "results.csv"
    pl.concat(parts).write_csv(path)
    return path


def _score(tests: Mapping[str, Texts], answers: Mapping[str, Any]) -> Scores:
    """Measures of all test sets, each named after its set where there are several."""
    scores: Scores = {}
    for name, part in tests.items():
        prefix = f"{name}_" if len(tests) > 1 else ""
        scores |= {f"{prefix}{measure}": score for measure, score in score_classify(part.labels, answers[name]).items()}
    return scores


def _score_baselines(recipe: Recipe, split: TextSplit, folder: Path, console: Console) -> dict[str, Scores]:
    replacements = recipe.tokenizer.replacements

    def score(name: str) -> Scores:
        with counted(console, f"baseline {name}", 1):
            given = baselines.classify_baseline(name, split.train, split.tests, len(split.labels), replacements)
        return _score(split.tests, given)

    facts = [recipe.data.model_dump(mode="json"), recipe.seed, replacements, [content.sha256 for content in split.contents]]
    compared: dict[str, Scores] = {}
    for name in recipe.evaluate.baselines or baselines.CLASSIFIERS:
        scores = baselines.remembered(folder / "baselines.json", name, facts, partial(score, name))
        assert scores is not None
        compared[name] = dict(scores)
    return compared


def _example_texts(tests: Mapping[str, Texts], rows: Mapping[str, Sequence[Int64]], max_length: int) -> list[str]:
    """A short text, a longer one, and one that is cut: its own, or the longer one repeated."""
    pairs = [(len(ids), text) for name, part in tests.items() for ids, text in zip(rows[name], part.texts, strict=True)]
    pairs.sort(key=lambda pair: pair[0])
    short = pairs[len(pairs) // 20][1]
    longer = next((text for length, text in pairs if length > len(short.split()) + 5), pairs[-1][1])
    over_long = " ".join([longer] * (2 + max_length // max(1, len(longer.split()))))
    return [short, longer, over_long]


def _describe(split: TextSplit) -> str:
    def counts(parts: Mapping[str, Texts]) -> str:
        return ", ".join(f"{name} {len(part):,}" for name, part in parts.items())

    notes = [f"{len(split.train):,} texts to learn from", f"validation {counts(split.validation)}", f"test {counts(split.tests)}"]
    if split.num_shared:
        notes.append(f"{split.num_shared:,} left out that stand in validation or test too")
    return "; ".join(notes)
