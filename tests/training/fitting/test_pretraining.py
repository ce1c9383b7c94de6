"""Pretraining: what layers learn of texts without labels, and which layers can."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.training.network.networks import DENSE, EMBEDDING, classify
from training.fitting.pretraining import count_pretrained, pretrain
from training.network.network import Network
from training.network.spec import NetworkError
from training.recipe import Fit, PretrainingSettings

SETTINGS = PretrainingSettings(epochs=6, window=1, negatives=8, subsample=1.0, block=64, learning_rate=0.02)
FIT = Fit(loss="binary_crossentropy", clip_norm=1.0)
READER: dict[str, Any] = {"type": "lstm", "units": 8, "return_sequences": True}
BOTH_WAYS: dict[str, Any] = {"type": "bidirectional", "layer": READER}
POOLING: dict[str, Any] = {"type": "concat_pooling"}


def texts(num_texts: int = 120) -> list[np.ndarray]:
    """Ids 2 to 6 in a circle, from anywhere: each tells the next and the one before. 7 and 8 never occur."""
    random = np.random.default_rng(0)
    return [2 + (np.arange(random.integers(6, 14)) + random.integers(5)) % 5 for _ in range(num_texts)]


def learn(network: Network, rows: list[np.ndarray], settings: PretrainingSettings = SETTINGS, seed: int = 1) -> list[float]:
    losses: list[float] = []
    pretrain(network, rows, settings, FIT, seed, progress=lambda epoch, loss: losses.append(loss))
    return losses


def weights_of(network: Network, member: int = 0) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for layer in network.members[member] for parameter in layer.parameters()])


@pytest.mark.parametrize("reader", [READER, BOTH_WAYS], ids=["one direction", "both"])
def test_a_layer_learns_which_token_follows_from_those_before_it(reader: dict[str, Any]) -> None:
    network = classify(EMBEDDING, {"type": "dropout", "rate": 0.0}, reader, POOLING, DENSE)
    losses = learn(network, texts())
    assert len(losses) == SETTINGS.epochs
    assert losses[-1] < 0.25 * np.log(5)
    assert not network.training


def test_what_follows_at_random_cannot_be_predicted_by_reading_it() -> None:
    """A part of the output that saw what it is asked for would learn this by heart."""
    random = np.random.default_rng(0)
    rows = [random.integers(2, 7, 12) for _ in range(200)]
    losses = learn(classify(EMBEDDING, BOTH_WAYS, POOLING, DENSE), rows)
    assert losses[-1] > 0.8 * np.log(5)


def test_the_layers_behind_are_left_as_they_are() -> None:
    network = classify(EMBEDDING, READER, POOLING, DENSE)
    before = [parameter.clone() for layer in network.stack for parameter in layer.parameters()]
    learn(network, texts(20))
    after = [parameter for layer in network.stack for parameter in layer.parameters()]
    is_same = [torch.equal(*pair) for pair in zip(before, after, strict=True)]
    assert is_same == [
        count >= 2 or not parameter.requires_grad for count, layer in enumerate(network.stack) for parameter in layer.parameters()
    ]


def test_the_same_seed_gives_the_same_weights_and_members_differ() -> None:
    networks = [classify(EMBEDDING, READER, POOLING, DENSE, members=2) for _ in range(3)]
    for network, seed in zip(networks, (1, 1, 2), strict=True):
        learn(network, texts(20), seed=seed)
    first, again, other = (weights_of(network) for network in networks)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, weights_of(networks[0], 1))


def test_long_texts_are_cut_and_those_too_short_left_out() -> None:
    rows = [np.array([2]), np.empty(0, np.int64), 2 + np.arange(100) % 5]
    losses = learn(classify(EMBEDDING, READER, POOLING, DENSE), rows, SETTINGS.model_copy(update={"max_length": 8, "window": 3}))
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    "layers",
    [
        (EMBEDDING, {"type": "lstm", "units": 3}, DENSE),
        (EMBEDDING, {"type": "conv1d", "filters": 3, "kernel_size": 2}, READER, POOLING, DENSE),
        (EMBEDDING, {**READER, "go_backwards": True}, POOLING, DENSE),
        (EMBEDDING, {**BOTH_WAYS, "merge_mode": "sum"}, POOLING, DENSE),
        (EMBEDDING, {"type": "global_average_pooling1d"}, DENSE),
    ],
    ids=["the last step alone", "a convolution before", "backward", "a sum of both", "no recurrent layer"],
)
def test_layers_whose_steps_know_what_follows_or_are_none_are_refused(layers: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(NetworkError, match="pretraining needs an embedding"):
        count_pretrained(classify(*layers))
