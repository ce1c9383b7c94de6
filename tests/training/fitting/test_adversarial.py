"""Adversarial training: where vectors are moved to, and that both losses' gradients reach the weights."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tests.training.network.networks import DENSE, EMBEDDING, LSTM, classify, tokens
from training.fitting.adversarial import add_adversarial_loss, adversarial_perturbation, zero_perturbation
from training.fitting.fit import fit
from training.fitting.losses import Batch, classify_loss
from training.network.network import Network
from training.recipe import Fit

LOSS = classify_loss("binary_crossentropy")


def make_network() -> Network:
    torch.manual_seed(0)
    return classify(EMBEDDING, LSTM, {**DENSE, "units": 1})


def make_batch() -> Batch:
    return {**tokens([3, 5, 1]), "shares": torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])}


def gradient_of(network: Network, batch: Batch) -> torch.Tensor:
    start = zero_perturbation(network, batch)
    (gradient,) = torch.autograd.grad(LOSS(network, network.predict(batch, start), batch), start)
    return gradient


def test_each_row_is_moved_by_the_same_length_in_units_of_the_vectors() -> None:
    network, batch = make_network(), make_batch()
    moved = adversarial_perturbation(network, batch, gradient_of(network, batch), 0.5)
    real = torch.cat([row[:length] for row, length in zip(batch["tokens"], batch["lengths"], strict=True)])
    unit = network.vectors[real].square().mean().sqrt()
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), (0.5 * unit).expand(3))


def test_padding_is_not_moved_and_a_row_without_gradient_stays() -> None:
    network, batch = make_network(), make_batch()
    gradient = gradient_of(network, batch)
    assert not gradient[0, 3:].any()
    gradient[1] = 0
    assert not adversarial_perturbation(network, batch, gradient, 0.5)[1].any()


def test_the_adversarial_perturbation_raises_the_loss_more_than_any_of_many_at_random() -> None:
    network, batch = make_network(), make_batch()
    gradient = gradient_of(network, batch)

    def raised(direction: torch.Tensor) -> float:
        with torch.no_grad():
            return float(LOSS(network, network.predict(batch, adversarial_perturbation(network, batch, direction, 0.1)), batch))

    others = [torch.randn(gradient.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert raised(gradient) > max(raised(other) for other in others)


def test_the_gradients_of_both_losses_reach_the_weights() -> None:
    network, batch = make_network(), make_batch()
    moved = adversarial_perturbation(network, batch, gradient_of(network, batch), 0.5)
    plain = LOSS(network, network.predict(batch), batch) + LOSS(network, network.predict(batch, moved), batch)
    expected = torch.autograd.grad(plain, list(network.parameters()))
    start = zero_perturbation(network, batch)
    predict = partial(network.predict, batch)
    loss = add_adversarial_loss(LOSS, network, batch, predict, predict(start), start, 0.5)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close([parameter.grad for parameter in network.parameters()], list(expected))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_loop_learns_from_both(tmp_path: Path, precision: str) -> None:
    def batches(epoch: int) -> Iterator[Batch]:
        yield from [make_batch()] * 20

    network = make_network()
    settings = Fit.model_validate({"loss": "binary_crossentropy", "epochs": 3, "learning_rate": 0.05, "precision": precision})

    def validate(network: Network) -> float:
        return float(LOSS(network, network.predict(make_batch()), make_batch()).detach())

    before = validate(network)
    console = Console(file=io.StringIO())
    fitted = fit(
        network, LOSS, batches, 20, validate, settings,
        seed=1, folder=tmp_path, console=console, accelerator="cpu", adversarial=0.5,
    )  # fmt: skip
    assert fitted.best.validation < before / 4
    assert fitted.best.loss > 2 * fitted.best.validation
