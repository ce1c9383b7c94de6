"""Fit a small network in so many processes, and write its weights: `python two_processes.py PROCESSES AVERAGE FOLDER OUTPUT`."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console

from training.fitting.fit import fit
from training.fitting.losses import Batch, forecast_loss
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network
from training.recipe import Fit

NUM_BATCHES = 4
NUM_ROWS = (8, 8, 7, 1)
"""Of each batch: one that is not even, and one that two processes cannot share."""
LOSS = forecast_loss("mse", ())


def batches(epoch: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    for num_rows in NUM_ROWS:
        yield make_batch(generator, num_rows)


def make_batch(generator: torch.Generator, num_rows: int) -> Batch:
    start = torch.rand(num_rows, 1, 1, generator=generator)
    steps = start + 0.1 * torch.arange(8).view(1, 8, 1)
    return {"history": steps[:, :6], "lengths": torch.full((num_rows,), 6), "future": steps[:, 6:]}


def validate(network: Network) -> float:
    batch = make_batch(torch.Generator().manual_seed(1000), 8)
    return float(LOSS(network, network.predict(batch), batch).detach())


def main(num_processes: int, average: float, folder: Path, output: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = Network(ForecastSpec(layers=({"type": "lstm", "units": 4}, {"type": "dense"}), horizon=2))
    settings = Fit.model_validate(
        {"loss": "mse", "epochs": 3, "learning_rate": 0.01, "clip_norm": 1.0, "average": average, "devices": num_processes}
    )
    console = Console(file=io.StringIO())
    fitted = fit(
        network, LOSS, batches, NUM_BATCHES, validate, settings, seed=3, folder=folder, console=console, accelerator="cpu"
    )
    assert not output.exists(), "the first process alone comes here"
    torch.save({"weights": network.state_dict(), "losses": [epoch.loss for epoch in fitted.epochs]}, output)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
