"""Seconds per epoch of a recipe's network here and of the same network in Keras 3 on torch, interleaved, on one thread.

    python benchmarks/train_speed.py close-price
    python benchmarks/train_speed.py embedding-lstm --steps 10

Both train on the same arrays with the same batches; an epoch is everything that `fit` does except validation. Computes no
scores, publishes nothing. Needs Keras and $SLUICE_DATA.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from training.data.series import read_series, sample_windows
from training.data.texts import encode, label_shares, learn_tokenizer, read_texts
from training.fitting.fit import fit
from training.fitting.losses import Batch, LossFunction, classify_loss, forecast_loss
from training.network.heads.classify import ClassifySpec
from training.network.network import Network
from training.recipe import ClassifyRecipe, ForecastRecipe, Recipe, find_recipe, read_recipe
from training.runs.forecast import network_spec


def main() -> None:
    """Measure and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=["close-price", "embedding-lstm", "sentiments"])
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each, after one to warm up")
    parser.add_argument("--steps", type=int, help="batches per epoch; default: all")
    options = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "torch"
    torch.set_num_threads(1)
    recipe = read_recipe(find_recipe(options.recipe))
    folder = Path(os.environ["SLUICE_DATA"])
    network, loss, x, y = _of_series(recipe, folder) if isinstance(recipe, ForecastRecipe) else _of_texts(recipe, folder)
    num_rows = min(len(y), (options.steps or len(y)) * recipe.fit.batch_size)
    ours = _our_epoch(recipe, network, loss, x[:num_rows], y[:num_rows])
    theirs = _keras_epoch(recipe, x[:num_rows], y[:num_rows])
    times: dict[str, list[float]] = {"here": [], "keras": []}
    for number in range(options.rounds + 1):
        for name, epoch in (("here", ours), ("keras", theirs)):
            seconds = epoch()
            if number:  # the first is the warm-up
                times[name].append(seconds)
    here, keras = statistics.median(times["here"]), statistics.median(times["keras"])
    num_steps = -(-num_rows // recipe.fit.batch_size)
    print(f"{recipe.name}: {num_rows} rows, {num_steps} steps per epoch, one thread, torch {torch.__version__}")
    for name, measured in times.items():
        print(f"  {name:6} median {statistics.median(measured):.2f} s per epoch, {min(measured):.2f} to {max(measured):.2f}")
    print(f"  {keras / here:.1f} times as fast as Keras")


def _of_series(recipe: ForecastRecipe, folder: Path) -> tuple[Network, LossFunction, Any, Any]:
    """The network, its loss, all training windows (N, T, F) and futures (N, horizon) as they are in the file."""
    series = read_series(recipe.data, recipe.forecast, folder)
    network = Network(network_spec(recipe, len(series.features), series.target_indices))
    network.set_statistics(torch.from_numpy(series.training_values()).float())
    rng = np.random.default_rng(0)
    windows = list(sample_windows(series, recipe.forecast, batch_size=512, num_batches=None, short_share=0.0, rng=rng))
    history, future = (np.concatenate([getattr(part, name) for part in windows]) for name in ("history", "future"))
    return network, forecast_loss(recipe.fit.loss, ()), history, future


def _of_texts(recipe: Recipe, folder: Path) -> tuple[Network, LossFunction, Any, Any]:
    """The network, its loss, and the training texts' ids (N, maxlen), padded in front, with the shares of their labels."""
    assert isinstance(recipe, ClassifyRecipe)
    split = read_texts(recipe.data, folder, recipe.seed)
    tokenizer = learn_tokenizer(split.train.texts, recipe.tokenizer)
    maxlen = sum(recipe.truncation)
    tokens = np.zeros((len(split.train), maxlen), np.int64)
    for row, ids in enumerate(encode(tokenizer, split.train.texts, *recipe.truncation)):
        tokens[row, maxlen - len(ids) :] = ids
    size = tokenizer.get_vocab_size()
    spec = ClassifySpec(layers=tuple(recipe.layers), vocabulary_size=size, labels=split.labels)
    return Network(spec), classify_loss(recipe.fit.loss), tokens, label_shares(split.train.labels, len(split.labels))


def _our_epoch(recipe: Recipe, network: Network, loss: LossFunction, x: Any, y: Any) -> Callable[[], float]:
    names = ("history", "future") if recipe.task == "forecast" else ("tokens", "shares")
    size = recipe.fit.batch_size
    settings = recipe.fit.model_copy(update={"epochs": 1, "patience": None})

    def batches(epoch: int) -> Iterator[Batch]:
        order = np.random.default_rng(epoch).permutation(len(y))
        for start in range(0, len(y), size):
            rows = order[start : start + size]
            lengths = torch.full((len(rows),), x.shape[1])
            yield {names[0]: torch.from_numpy(x[rows]), names[1]: torch.from_numpy(y[rows]), "lengths": lengths}

    def epoch() -> float:
        # The whole of `fit`, with its checkpoint: the time that a run takes for an epoch.
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            fit(
                network,
                loss,
                batches,
                -(-len(y) // size),
                lambda _: 0.0,
                settings,
                seed=1,
                folder=Path(folder),
                console=Console(quiet=True),
                accelerator="cpu",
            )
            return time.perf_counter() - started

    return epoch


def _keras_epoch(recipe: Recipe, x: Any, y: Any) -> Callable[[], float]:
    keras: Any = importlib.import_module("keras")  # after its backend is chosen

    made = {"lstm": "LSTM", "dropout": "Dropout", "dense": "Dense", "embedding": "Embedding"}
    tables = [dict(table) for table in recipe.layers if table["type"] != "pad_sequences"]
    stack = [getattr(keras.layers, made[table.pop("type")])(**table) for table in tables]
    model = keras.Sequential([keras.Input(x.shape[1:]), *stack])
    model.compile(loss=recipe.fit.loss, optimizer=recipe.fit.optimizer)
    if recipe.task == "forecast":
        # Scaling is part of our network; for Keras it is done before, as tutorials do, and not measured.
        low, high = x.min(), x.max()
        x, y = (x - low) / (high - low), ((y - low) / (high - low)).reshape(len(y), -1)

    def epoch() -> float:
        started = time.perf_counter()
        model.fit(x, y, batch_size=recipe.fit.batch_size, epochs=1, verbose=0)
        return time.perf_counter() - started

    return epoch


if __name__ == "__main__":
    main()
