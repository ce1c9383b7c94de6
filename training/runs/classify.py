"""A text classification run, from the recipe to the published folder, as one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from rich.console import Console
from tokenizers import Tokenizer

from training.data.series import Float32, Int64
from training.data.texts import (
    Rows,
    Texts,
    TextSplit,
    Tokens,
    batches_by_length,
    batches_by_tokens,
    batches_in_order,
    collate,
    encode_rows,
    label_shares,
    learn_tokenizer,
    num_batches_by_length,
    read_texts,
    sizes_by_tokens,
    unknown_id,
)
from training.export.answers import format_classify
from training.export.publish import Publication, read_example_instances
from training.export.quantize import TRIAL_BATCHES, TRIAL_ROWS, Trial
from training.fitting.calibration import fit_calibration
from training.fitting.checkpoints import LAST, is_same, remove_checkpoints
from training.fitting.fit import FitResult
from training.fitting.losses import Batch, classify_loss
from training.fitting.ngrams import fit_ngrams
from training.fitting.pretraining import count_pretrained, pretrain
from training.fitting.word_vectors import learn_vectors
from training.network.heads.classify import ClassifyHead, ClassifySpec
from training.network.heads.head import Prediction
from training.network.heads.ngrams import NgramSpec
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
from training.scoring.classify import classify_baseline, classify_rows, join_pieces
from training.scoring.evaluate import Graph, Scores
from training.scoring.labels import calibration_error, confusion_counts, score_labels

TOKENIZER_FILE = "tokenizer.json"
SELF_TRAINING = "self_training"
"""The folder of the second fit's checkpoints, in that of the first."""


def run(recipe: ClassifyRecipe, *, data: Path | None, folder: Path, resume: bool, console: Console) -> tuple[Publication, Report]:
    """Load → split by group → learn the tokenizer → build → fit → calibrate → learn on from own answers → verify → score.

    Checkpoints go to `folder`; nothing is published yet.
    """
    split = read_texts(recipe.data, data, recipe.seed)
    console.print(f"data        {_describe(split)}", highlight=False)

    with progress_line(console, "learning the tokenizer and encoding the texts"):
        tokenizer = learn_tokenizer((*split.train.texts, *split.unlabelled), recipe.tokenizer)
        learned = _encode(recipe, tokenizer, split.train.texts)
        rows, labels = learned.ids, split.train.labels[learned.texts]
        validation = {name: _encode(recipe, tokenizer, part.texts) for name, part in split.validation.items()}
        tests = {name: _encode(recipe, tokenizer, part.texts) for name, part in split.tests.items()}

    torch.manual_seed(recipe.seed)
    network = Network(network_spec(recipe, tokenizer.get_vocab_size(), split.labels))
    if recipe.streaming and not network.can_stream:
        raise RecipeError("streaming: these layers cannot go on from piece to piece: one direction, and concat_pooling at most")
    check_network(network, recipe, console)
    if recipe.pretraining is not None:
        count_pretrained(network)  # raises where it cannot be
    if not (resume and (folder / LAST).exists()) and (recipe.vectors is not None or recipe.pretraining is not None):
        _start_without_labels(network, recipe, [*rows, *_encode(recipe, tokenizer, split.unlabelled).ids], console)

    training = _Rows(rows, label_shares(labels, len(split.labels)), unknown_id(tokenizer))
    if not resume:
        remove_checkpoints(folder / SELF_TRAINING)
    fitted = _fit(network, recipe, training, split.validation, validation, folder=folder, resume=resume, console=console)
    calibration = {}
    if recipe.ngrams is not None or recipe.calibrate:
        calibration = _calibrate(network, recipe, training, split.validation, validation, console)
    if recipe.self_training is not None:
        with progress_line(console, "labelling the texts without labels"):
            others = _encode(recipe, tokenizer, split.unlabelled)
            training = training.with_more(others.ids, _classify(network, others, recipe)[others.texts])
        fitted = _fit_again(
            network, recipe, fitted, training, split.validation, validation, folder=folder, resume=resume, console=console
        )
        calibration = _calibrate(network, recipe, training, split.validation, validation, console)
    graph = write_verified_graph(network, recipe.seed)

    answers = _answers(graph.session, tests, recipe)
    results = _write_results(folder, split, answers)
    console.print(f"results     {results}", highlight=False, soft_wrap=True)
    head, tail = recipe.truncation
    instances = _example_texts(split.tests, tests, head + tail)
    outcome = Outcome(
        metrics=_score(split, answers),
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
            **({"long_texts": "pieces"} if recipe.tokenizer.piece_length is not None else {}),
            **({"min_known": recipe.tokenizer.min_known} if recipe.tokenizer.min_known else {}),
        },
        files={TOKENIZER_FILE: tokenizer.to_str()},
        pictures=_pictures(recipe, split, fitted, answers),
        facts=calibration,
    )
    trial = _trial(recipe, split, tokenizer, network, rows, tests, instances)
    return prepare_publication(recipe, network, graph, fitted, trial, outcome)


@dataclass(frozen=True)
class _Rows:
    """What a network learns from: rows of token ids, the probability of each label (rows, labels), and the unknown token's id."""

    ids: Sequence[Int64]
    shares: npt.NDArray[np.floating[Any]]
    unknown: int

    def with_more(self, ids: Sequence[Int64], shares: npt.NDArray[np.floating[Any]]) -> _Rows:
        return _Rows([*self.ids, *ids], np.concatenate([self.shares, shares]), self.unknown)


def _fit(
    network: Network,
    recipe: ClassifyRecipe,
    training: _Rows,
    parts: Mapping[str, Texts],
    validation: Mapping[str, Rows],
    *,
    folder: Path,
    resume: bool,
    console: Console,
) -> FitResult:
    """Fit the network's layers in place, by the share of wrong answers on the validation sets, each of which counts the same."""
    rows, settings = training.ids, recipe.fit
    shares = torch.from_numpy(training.shares).float()
    numbers = np.arange(len(rows))

    def batches(epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng([recipe.seed, epoch])
        noise: dict[str, Any] = {"word_dropout": settings.word_dropout, "unknown": training.unknown}
        if sizes:
            epoch_batches = batches_by_tokens(rows, numbers, sizes, rng, **noise)
        else:
            gather = batches_in_order if network.is_stateful else batches_by_length
            epoch_batches = gather(rows, numbers, recipe.rows_per_batch, rng, **noise)
        for batch in islice(epoch_batches, num_batches):
            yield {**_tensors(batch), "shares": shares[torch.from_numpy(batch.labels)]}

    def validate(network: Network) -> float:
        wrong = [
            float((_classify(network, validation[name], recipe).argmax(1) != part.labels).mean()) for name, part in parts.items()
        ]
        return float(np.mean(wrong))

    has_sizes = settings.batch_tokens is not None and not network.is_stateful
    num_tokens = (settings.batch_tokens or 0) * recipe.ensemble.members
    sizes = sizes_by_tokens(rows, recipe.rows_per_batch, num_tokens) if has_sizes else []
    num_batches = len(sizes) or num_batches_by_length(len(rows), recipe.rows_per_batch)
    num_batches = min(num_batches, settings.steps_per_epoch or num_batches)
    return fit_network(
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
        adversarial=settings.adversarial,
    )


def _fit_again(
    network: Network,
    recipe: ClassifyRecipe,
    first: FitResult,
    training: _Rows,
    parts: Mapping[str, Texts],
    validation: Mapping[str, Rows],
    *,
    folder: Path,
    resume: bool,
    console: Console,
) -> FitResult:
    """Self-training: the layers learn on, with checkpoints of their own. Returns the epochs of both fits, one after the other."""
    assert isinstance(network.head, ClassifyHead)
    assert recipe.self_training is not None
    network.head.forget_calibration()
    settings, own = recipe.self_training, folder / SELF_TRAINING
    rate = settings.learning_rate or recipe.fit.learning_rate
    again = recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"epochs": settings.epochs, "learning_rate": rate})})
    # Checkpoints of another recipe, or of before an older run's first fit was begun anew, are left behind.
    can_resume = resume and (own / LAST).exists() and is_same(again, own)
    second = _fit(network, again, training, parts, validation, folder=own, resume=can_resume, console=console)
    num_first = len(first.epochs)
    epochs = [replace(epoch, number=epoch.number + num_first) for epoch in second.epochs]
    best = epochs[second.epochs.index(second.best)]
    return FitResult((*first.epochs, *epochs), best, first.duration_s + second.duration_s)


def open_trial(recipe: ClassifyRecipe, folder: Path, data: Path | None) -> Trial:
    """What a further graph of a published folder is measured with."""
    split = read_texts(recipe.data, data, recipe.seed)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    some = np.random.default_rng(recipe.seed).permutation(len(split.train))[: TRIAL_ROWS * TRIAL_BATCHES]
    rows = _encode(recipe, tokenizer, [split.train.texts[index] for index in some]).ids
    tests = {name: _encode(recipe, tokenizer, part.texts) for name, part in split.tests.items()}
    network = Network(network_spec(recipe, tokenizer.get_vocab_size(), split.labels))
    return _trial(recipe, split, tokenizer, network, rows, tests, read_example_instances(folder))


def network_spec(recipe: ClassifyRecipe, vocabulary_size: int, labels: Sequence[str]) -> NetworkSpec:
    """The recipe's network for ids below `vocabulary_size`, and these labels."""
    ngrams = None if recipe.ngrams is None else NgramSpec(order=recipe.ngrams.order, buckets=recipe.ngrams.buckets)
    return ClassifySpec(
        layers=tuple(recipe.layers),
        members=recipe.ensemble.members,
        combine=recipe.ensemble.combine,
        vocabulary_size=vocabulary_size,
        labels=tuple(labels),
        ngrams=ngrams,
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
    tokenizer = learn_tokenizer((*split.train.texts, *split.unlabelled), recipe.tokenizer)
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
    tests: Mapping[str, Rows],
    instances: Sequence[str],
) -> Trial:
    settings, max_length = recipe.tokenizer, sum(recipe.truncation)
    unknown = unknown_id(tokenizer)
    parts = trial_parts(len(rows), recipe.seed)
    batches = [collate([rows[index] for index in part], np.zeros(len(part), np.int64)) for part in parts]

    def score(graph: Graph) -> Scores:
        return _score(split, _answers(graph, tests, recipe))

    def answer(graph: Graph) -> list[Any]:
        predictions = []
        for text in instances:
            found = _encode(recipe, tokenizer, [text])
            is_longer = len(tokenizer.encode(text, add_special_tokens=False).ids) > max_length
            ids = np.concatenate(found.ids)
            known = int((ids != unknown).sum()) if settings.min_known else None
            prediction = format_classify(
                join_pieces(classify_rows(graph, found.ids, 1), found.texts)[0],
                split.labels,
                is_longer and settings.piece_length is None,
                known=known,
                is_uncertain=known is not None and known < settings.min_known * len(ids),
            )
            predictions.append(prediction)
        return predictions

    return Trial(
        network, [{"tokens": batch.tokens, "lengths": batch.lengths} for batch in batches], score, answer, unknown_id=unknown
    )


def _tensors(batch: Tokens) -> Batch:
    return {
        "tokens": torch.from_numpy(batch.tokens),
        "lengths": torch.from_numpy(batch.lengths),
    }


def _encode(recipe: ClassifyRecipe, tokenizer: Tokenizer, texts: Sequence[str]) -> Rows:
    """The rows of texts, as the recipe reads long ones."""
    return encode_rows(tokenizer, texts, recipe.truncation, recipe.tokenizer.piece_length)


def _answers(graph: Graph, tests: Mapping[str, Rows], recipe: ClassifyRecipe) -> dict[str, Any]:
    """The graph's probabilities of each test set's texts."""
    batch_size = recipe.evaluate.batch_size
    return {name: join_pieces(classify_rows(graph, rows.ids, batch_size), rows.texts) for name, rows in tests.items()}


def _classify(network: Network, rows: Rows, recipe: ClassifyRecipe) -> Float32:
    """The network's probabilities of texts (N, labels)."""
    found = [(index, network.head.answer(prediction)[0]) for index, prediction in _predict(network, rows.ids, recipe)]
    return join_pieces(_in_order(found).numpy(), rows.texts)


def _predict(network: Network, rows: Sequence[Int64], recipe: ClassifyRecipe) -> Iterator[tuple[Int64, Prediction]]:
    """Batches of rows of similar length: their numbers, and what the network predicts."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    for start in range(0, len(order), recipe.evaluate.batch_size):
        chosen = order[start : start + recipe.evaluate.batch_size]
        batch = _tensors(collate([rows[index] for index in chosen], np.zeros(len(chosen), np.int64)))
        yield chosen, network.predict(on_device_of(network, {name: batch[name] for name in ("tokens", "lengths")}))


def _in_order(parts: Sequence[tuple[Int64, torch.Tensor]]) -> torch.Tensor:
    """The rows of batches (indices, values) in the order of their indices."""
    indices = np.concatenate([index for index, _ in parts])
    return torch.cat([values.detach().cpu() for _, values in parts])[np.argsort(indices)]


def _start_without_labels(network: Network, recipe: ClassifyRecipe, rows: Sequence[Int64], console: Console) -> None:
    """What the layers learn of rows without labels: the embedding its vectors, then the first recurrent layer to predict."""
    if recipe.vectors is not None:
        _start_with_vectors(network, recipe, rows, console)
    if recipe.pretraining is not None:

        def show(epoch: int, loss: float) -> None:
            console.print(f"pretraining epoch {epoch}  loss {loss:.4f}", highlight=False)

        pretrain(network, rows, recipe.pretraining, recipe.fit, recipe.seed, progress=show)


def _start_with_vectors(network: Network, recipe: ClassifyRecipe, rows: Sequence[Int64], console: Console) -> None:
    """Learn token vectors from rows and give them to the embedding, which the recipe has."""
    assert recipe.vectors is not None
    layers = [next(layer for layer in member if layer.holds_vectors) for member in network.members]
    num_ids, dimensions = layers[0].weights[0].shape

    def show(epoch: int, loss: float) -> None:
        console.print(f"vectors     epoch {epoch}  loss {loss:.4f}", highlight=False)

    vectors = learn_vectors(rows, num_ids, dimensions, recipe.vectors, recipe.seed, progress=show)
    for layer in layers:
        layer.load_keras_weights([vectors.numpy()])


@torch.no_grad()
def _calibrate(
    network: Network,
    recipe: ClassifyRecipe,
    training: _Rows,
    parts: Mapping[str, Texts],
    validation: Mapping[str, Rows],
    console: Console,
) -> dict[str, Any]:
    """Fit the n-grams to the training rows, and the head's calibration to the validation sets, each of which counts the same."""
    head = network.head
    assert isinstance(head, ClassifyHead)
    if head.ngrams is not None:
        assert recipe.ngrams is not None
        with progress_line(console, "fitting the n-grams"):
            fit_ngrams(head.ngrams, training.ids, training.shares.astype(np.float64), recipe.ngrams)
    logits, ngrams, truth, weights, lengths = [], [], [], [], []
    for name, given in validation.items():
        found, counted = [], []
        for index, prediction in _predict(network, given.ids, recipe):
            found.append((index, prediction.values))
            if head.ngrams is not None:
                batch = collate([given.ids[row] for row in index], np.zeros(len(index), np.int64))
                counted.append((index, head.ngrams(torch.from_numpy(batch.tokens), torch.from_numpy(batch.lengths))))
        logits.append(_in_order(found))
        ngrams += [_in_order(counted)] if counted else []
        truth.append(torch.from_numpy(parts[name].labels[given.texts]))
        weights.append(torch.full((len(given),), 1 / len(given)))
        lengths.append(torch.tensor([len(ids) for ids in given.ids]))
    both = torch.cat(ngrams) if ngrams else None
    with torch.enable_grad():
        by_length = torch.cat(lengths) if recipe.calibrate == "by_length" else None
        calibration = fit_calibration(torch.cat(logits), both, torch.cat(truth), torch.cat(weights), by_length)
    head.calibrate(calibration.factors, calibration.shift, calibration.slope)
    facts: dict[str, Any] = {"layers": float(calibration.factors[0])}
    if ngrams:
        facts["ngrams"] = float(calibration.factors[1])
    facts["shift"] = calibration.shift.tolist()
    if by_length is not None:
        facts["slope"] = calibration.slope.tolist()
    console.print(f"calibration {', '.join(f'{name} {value}' for name, value in facts.items())}", highlight=False)
    return {"calibration": facts}


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


def _score(split: TextSplit, answers: Mapping[str, Any]) -> Scores:
    """Measures of all test sets, each named after its set where there are several."""
    scores: Scores = {}
    for name, part in split.tests.items():
        prefix = f"{name}_" if len(split.tests) > 1 else ""
        is_seen = split.seen[name]
        if is_seen.any() and not is_seen.all():
            labels, given = part.labels[~is_seen], answers[name][~is_seen]
            scores[f"{prefix}unseen_accuracy"] = float((given.argmax(1) == labels).mean())
            scores[f"{prefix}unseen_ece"] = calibration_error(labels, given)
        scores |= {f"{prefix}{measure}": score for measure, score in score_labels(part.labels, answers[name]).items()}
    return scores


def _score_baselines(recipe: ClassifyRecipe, split: TextSplit, folder: Path, console: Console) -> dict[str, Scores]:
    replacements = recipe.tokenizer.replacements

    def score(name: str) -> Scores:
        with progress_line(console, f"baseline {name}"):
            answers = classify_baseline(name, split.train, split.tests, len(split.labels), replacements)
        return _score(split, answers)

    facts = [recipe.data.model_dump(mode="json"), recipe.seed, replacements, [content.sha256 for content in split.contents]]
    return score_baselines(recipe.baselines, score, folder / "baselines.json", facts)


def _example_texts(tests: Mapping[str, Texts], rows: Mapping[str, Rows], max_length: int) -> list[str]:
    """A short text, a longer one, and one that is cut, or read in pieces: the longer one repeated."""
    pairs = []
    for name, part in tests.items():
        counts = np.bincount(rows[name].texts, [len(ids) for ids in rows[name].ids]).astype(int)
        pairs += list(zip(counts.tolist(), part.texts, strict=True))
    pairs.sort(key=lambda pair: pair[0])
    short = pairs[len(pairs) // 20][1]
    longer = next((text for length, text in pairs if length > len(short.split()) + 5), pairs[-1][1])
    over_long = " ".join([longer] * (2 + max_length // max(1, len(longer.split()))))
    return [short, longer, over_long]


def _describe(split: TextSplit) -> str:
    def counts(parts: Mapping[str, Texts]) -> str:
        return ", ".join(f"{name} {len(part):,}" for name, part in parts.items())

    notes = [f"{len(split.train):,} texts to learn from", f"validation {counts(split.validation)}", f"test {counts(split.tests)}"]
    if split.unlabelled:
        notes.append(f"{len(split.unlabelled):,} without labels")
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
    naive=("majority",),
    decisive=("accuracy",),
    larger_is_better=("accuracy", "f1", "auroc"),
)
