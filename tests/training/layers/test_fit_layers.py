"""What layers ask of the loop: penalties in the loss, constraints after each step, states from batch to batch."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from training.fitting.fit import FitResult, fit
from training.fitting.losses import Batch, forecast_loss
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network
from training.recipe import Fit

ROWS, STEPS = 8, 6


def train(network: Network, folder: Path, epochs: int = 2) -> FitResult:
    generator = torch.Generator().manual_seed(0)
    history = torch.rand(ROWS, STEPS, 1, generator=generator)
    future = torch.rand(ROWS, 1, 1, generator=generator)

    def batches(_: int) -> Iterator[Batch]:
        for start in (0, 4):
            rows = slice(start, start + 4)
            yield {"history": history[rows], "lengths": torch.full((4,), STEPS), "future": future[rows]}

    settings = Fit(loss="mse", epochs=epochs, batch_size=4)
    console = Console(file=io.StringIO())
    loss = forecast_loss("mse", ())
    return fit(network, loss, batches, 2, lambda _: 0.0, settings, seed=1, folder=folder, console=console, accelerator="cpu")


def forecast(**options: Any) -> Network:
    torch.manual_seed(0)
    layers = ({"type": "lstm", "units": 3, **options}, {"type": "dense"})
    return Network(ForecastSpec(layers=layers))


def test_the_penalty_is_part_of_the_loss(tmp_path: Path) -> None:
    plain = train(forecast(), tmp_path).epochs[0].loss
    heavy = {"kernel_regularizer": {"name": "l2", "l2": 10.0}, "activity_regularizer": "l1"}
    assert train(forecast(**heavy), tmp_path).epochs[0].loss > plain + 1


def test_constraints_hold_after_the_last_step(tmp_path: Path) -> None:
    network = forecast(kernel_constraint={"name": "max_norm", "max_value": 0.01}, recurrent_constraint="non_neg")
    train(network, tmp_path)
    kernel, recurrent, _ = network.layers[0].keras_weights()  # type: ignore[operator]
    assert (kernel**2).sum(0).max() <= 0.01**2 + 1e-8
    assert recurrent.min() >= 0


def test_a_stateful_network_carries_its_state_through_an_epoch_and_starts_the_next_from_zeros(tmp_path: Path) -> None:
    network = forecast(stateful=True)
    starts: list[bool] = []
    network.layers[0].register_forward_pre_hook(lambda layer, given: starts.append(not given[2][0].any()))
    train(network, tmp_path)
    assert starts == [True, False, True, False]
