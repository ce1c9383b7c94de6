"""A text classification run, from the recipe to the published folder, as one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from training.export.publish import Publication, read_example_instances
from training.export.quantize import TRIAL_BATCHES, TRIAL_ROWS, Trial
from training.fitting.fit import FitResult
from training.fitting.losses import Batch, classify_loss
from training.network.heads.classify import ClassifyHead, ClassifySpec
from training.network.network import Network
from training.network.spec import NetworkSpec
from training.recipe import ClassifyRecipe, RecipeError
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
from training.scoring.classify import classify_baseline, classify_rows
from training.scoring.evaluate import Graph, Scores
from training.scoring.labels import confusion_counts, score_labels

TOKENIZER_FILE = "tokenizer.json"


def run(recipe: ClassifyRecipe, *, data: Path | None, folder: Path, resume: bool, console: Console) -> tuple[Publication, Report]:
    """Load → split by group → learn the tokenizer on the training part → build → fit → verify → score beside baselines.

    Checkpoints go to `folder`; nothing is published yet.
    """
    settings, (head, tail) = recipe.fit, recipe.truncation

    split = read_texts(recipe.data, data, recipe.seed)
    console.print(f"data        {_describe(split)}", highlight=False)

    with progress_line(console, "learning the tokenizer and encoding the texts"):
        tokenizer = learn_tokenizer(split.train.texts, recipe.tokenizer)
        rows = encode(tokenizer, split.train.texts, head, tail)
        validation = {name: encode(tokenizer, part.texts, head, tail) for name, part in split.validation.items()}
        tests = {name: encode(tokenizer, part.texts, head, tail) for name, part in split.tests.items()}

    torch.manual_seed(recipe.seed)
    network = Network(network_spec(recipe, tokenizer.get_vocab_size(), split.labels))
    if recipe.streaming and not network.can_stream:
        raise RecipeError("streaming: these layers cannot go on from piece to piece: one direction, and concat_pooling at most")
    check_network(network, recipe, console)

    def batches(epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng([recipe.seed, epoch])
        noise, unknown = settings.word_dropout, unknown_id(tokenizer)
        gather = batches_in_order if network.is_stateful else batches_by_length
        epoch_batches = gather(rows, split.train.labels, recipe.rows_per_batch, rng, word_dropout=noise, unknown=unknown)
        for number, batch in enumerate(epoch_batches):
            if number == num_batches:
                return
            yield _tensors(batch)

    def validate(network: Network) -> float:
        """Mean share of wrong answers over the validation sets."""
        wrong = [_error(network, validation[name], part.labels, recipe) for name, part in split.validation.items()]
        return float(np.mean(wrong))

    num_batches = num_batches_by_length(len(rows), recipe.rows_per_batch)
    num_batches = min(num_batches, settings.steps_per_epoch or num_batches)
    fitted = fit_network(
        network,
        recipe,
        classify_loss(settings.loss, settings.label_smoothing),
        batches,
        len(rows),
        num_batches,
        validate,
        "validation error",
        folder=folder,
        resume=resume,
        console=console,
    )

    graph = write_verified_graph(network, recipe.seed)

    answers = {name: classify_rows(graph.session, tests[name], recipe.evaluate.batch_size) for name in tests}
    results = _write_results(folder, split, answers)
    console.print(f"results     {results}", highlight=False, soft_wrap=True)
    instances = _example_texts(split.tests, tests, head + tail)
    outcome = Outcome(
        metrics=_score(split.tests, answers),
        baselines=_score_baselines(recipe, split, folder, console),
        contents=split.contents,
        instances=instances,
        block={
            "labels": list(split.labels),
            "tokenizer": TOKENIZER_FILE,
            "max_length": head + tail,
            "truncation": {"head": head, "tail": tail},
            "language": recipe.language,
            **({"subject": recipe.subject} if recipe.subject else {}),
            **({"streaming": True} if recipe.streaming else {}),
        },
        files={TOKENIZER_FILE: tokenizer.to_str()},
        pictures=_pictures(recipe, split, fitted, answers),
    )
    trial = _trial(recipe, split, tokenizer, network, rows, tests, instances)
    return prepare_publication(recipe, network, graph, fitted, trial, outcome)


def open_trial(recipe: ClassifyRecipe, folder: Path, data: Path | None) -> Trial:
    """What a further graph of a published folder is measured with."""
    split, (head, tail) = read_texts(recipe.data, data, recipe.seed), recipe.truncation
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    some = np.random.default_rng(recipe.seed).permutation(len(split.train))[: TRIAL_ROWS * TRIAL_BATCHES]
    rows = encode(tokenizer, [split.train.texts[index] for index in some], head, tail)
    tests = {name: encode(tokenizer, part.texts, head, tail) for name, part in split.tests.items()}
    network = Network(network_spec(recipe, tokenizer.get_vocab_size(), split.labels))
    return _trial(recipe, split, tokenizer, network, rows, tests, read_example_instances(folder))


def network_spec(recipe: ClassifyRecipe, vocabulary_size: int, labels: Sequence[str]) -> NetworkSpec:
    """The recipe's network for ids below `vocabulary_size`, and these labels."""
    return ClassifySpec(
        layers=tuple(recipe.layers),
        members=recipe.ensemble.members,
        combine=recipe.ensemble.combine,
        vocabulary_size=vocabulary_size,
        labels=tuple(labels),
    )


def spec_of_recipe(recipe: ClassifyRecipe, data: Path | None) -> tuple[NetworkSpec, tuple[str, ...]]:
    """The network of a recipe. Reads the texts only where the recipe names no labels, or bounds no vocabulary."""
    given = recipe.data.labels
    labels = tuple(dict.fromkeys(given.values() if isinstance(given, dict) else given))
    most = recipe.tokenizer.max_tokens
    if labels and most is not None:
        embedding = next((table for table in recipe.layers if table.get("type") == "embedding"), {})
        is_fixed = embedding.get("input_dim") is not None
        note = f"The vocabulary is learned from the texts: {most:,} tokens at most, and so many are counted here."
        return network_spec(recipe, most, labels), () if is_fixed else (note,)
    split = read_texts(recipe.data, data, recipe.seed)
    tokenizer = learn_tokenizer(split.train.texts, recipe.tokenizer)
    return network_spec(recipe, tokenizer.get_vocab_size(), split.labels), ()


def spec_of_manifest(recipe: ClassifyRecipe, manifest: Mapping[str, Any], folder: Path) -> NetworkSpec:
    """The network of a published folder."""
    block = manifest["classify"]
    tokenizer = Tokenizer.from_file(str(folder / block["tokenizer"]))
    return network_spec(recipe, tokenizer.get_vocab_size(), block["labels"])


def layers_without_steps(recipe: ClassifyRecipe) -> LayerTables:
    """Of texts of any length the mean of the steps; of padded ones all steps, one after the other."""
    return [{"type": "flatten"}] if recipe.layers[0].get("type") == "pad_sequences" else [{"type": "global_average_pooling1d"}]


def _trial(
    recipe: ClassifyRecipe,
    split: TextSplit,
    tokenizer: Tokenizer,
    network: Network,
    rows: Sequence[Int64],
    tests: Mapping[str, Sequence[Int64]],
    instances: Sequence[str],
) -> Trial:
    head, tail = recipe.truncation
    parts = trial_parts(len(rows), recipe.seed)
    batches = [collate([rows[index] for index in part], np.zeros(len(part), np.int64)) for part in parts]

    def score(graph: Graph) -> Scores:
        return _score(split.tests, {name: classify_rows(graph, tests[name], recipe.evaluate.batch_size) for name in tests})

    def answer(graph: Graph) -> list[Any]:
        predictions = []
        for text in instances:
            ids = encode(tokenizer, [text], head, tail)
            is_truncated = len(tokenizer.encode(text, add_special_tokens=False).ids) > head + tail
            predictions.append(format_classify(classify_rows(graph, ids, 1)[0], split.labels, is_truncated))
        return predictions

    return Trial(network, [{"tokens": batch.tokens, "lengths": batch.lengths} for batch in batches], score, answer)


def _tensors(batch: Tokens) -> Batch:
    return {
        "tokens": torch.from_numpy(batch.tokens),
        "lengths": torch.from_numpy(batch.lengths),
        "labels": torch.from_numpy(batch.labels),
    }


def _error(network: Network, rows: Sequence[Int64], labels: Int64, recipe: ClassifyRecipe) -> float:
    order = np.argsort([len(row) for row in rows], kind="stable")
    num_wrong = 0
    for start in range(0, len(order), recipe.evaluate.batch_size):
        chosen = order[start : start + recipe.evaluate.batch_size]
        batch = on_device_of(network, _tensors(collate([rows[i] for i in chosen], labels[chosen])))
        probabilities = network({name: batch[name] for name in ("tokens", "lengths")})["probabilities"]
        num_wrong += int((probabilities.argmax(1) != batch["labels"]).sum())
    return num_wrong / len(rows)


def _pictures(recipe: ClassifyRecipe, split: TextSplit, fitted: FitResult, answers: Mapping[str, Any]) -> dict[str, bytes]:
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
        scores |= {f"{prefix}{measure}": score for measure, score in score_labels(part.labels, answers[name]).items()}
    return scores


def _score_baselines(recipe: ClassifyRecipe, split: TextSplit, folder: Path, console: Console) -> dict[str, Scores]:
    replacements = recipe.tokenizer.replacements

    def score(name: str) -> Scores:
        with progress_line(console, f"baseline {name}"):
            answers = classify_baseline(name, split.train, split.tests, len(split.labels), replacements)
        return _score(split.tests, answers)

    facts = [recipe.data.model_dump(mode="json"), recipe.seed, replacements, [content.sha256 for content in split.contents]]
    return score_baselines(recipe.baselines, score, folder / "baselines.json", facts)


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


TASK = Task(
    recipe_type=ClassifyRecipe,
    head=ClassifyHead,
    run=run,
    open_trial=open_trial,
    spec_of_recipe=spec_of_recipe,
    spec_of_manifest=spec_of_manifest,
    layers_without_steps=layers_without_steps,
    larger_is_better=("accuracy", "f1", "auroc"),
)
