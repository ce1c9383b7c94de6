"""What recurrent layers learn of texts before they see a label: to say which tokens come soon.

At each step the part of a layer that read the tokens up to it predicts one of the next few, and the part that read from it on,
backward, one of those before. A language model that starts a classifier is due to Dai and Le (2015, arXiv:1511.01432), the
tokens of a region in place of the very next one to Johnson and Zhang (2016, arXiv:1602.02373). Not all tokens of the vocabulary
are compared, but some that are drawn (sampled softmax, Jean et al. 2015, arXiv:1412.2007), and frequent ones are seldom
predicted: they say little of a text. Reads rows of token ids and knows no labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.fitting.optimizers import rate_factor
from training.fitting.token_frequencies import count_tokens, sampling_probabilities, shares_kept, shares_of
from training.network.network import Network
from training.network.spec import NetworkError
from training.recipe import Fit, PretrainingSettings, names_of_layer

Int64 = npt.NDArray[np.int64]

WARM_UP = 100  # steps in which the learning rate rises, of a tenth of all at most
TINY = 1e-9
NEVER = -1e4  # logit of a drawn token that is the true one
LENGTH_BLUR = 0.2

Progress = Callable[[int, float], None]
"""Called with the number of an epoch, from 1, and its mean loss per predicted token."""


def count_pretrained(network: Network) -> int:
    """The layers of a member that can be pretrained: up to the first recurrent one that returns sequences.

    Raises NetworkError where another kind of layer than an embedding and dropouts stands before it, or none is there.
    """
    first, *others = zip(network.spec.layers, network.members[0], strict=True)
    if first[1].holds_vectors:
        for index, (table, layer) in enumerate(others, 2):
            if layer.directions:
                return index
            if "dropout" not in str(table["type"]):
                break
    raise NetworkError(
        "pretraining needs an embedding and behind it, with dropout between them at most, a recurrent layer with "
        "return_sequences = true that reads forward, or both ways with merge_mode concat"
    )


def pretrain(
    network: Network,
    rows: Sequence[Int64],
    settings: PretrainingSettings,
    fit: Fit,
    seed: int,
    *,
    progress: Progress = lambda epoch, loss: None,
) -> None:
    """Give the first layers of each member weights learned from `rows` of ids, one member after the other.

    Of `fit` the layers' `rates`, `precision` and `clip_norm` hold here too. The same seed gives the same weights. Raises
    NetworkError as `count_pretrained` does.
    """
    count = count_pretrained(network)
    pieces = _cut(rows, settings)
    sizes = _sizes(pieces, settings.block)
    for number in range(len(network.members)):
        torch.manual_seed(seed * 1_000_003 + 7 * number + 5)
        random = np.random.default_rng([seed, 11, number])
        reader = _Reader(network, number, count)
        model = _Predictor(reader, count_tokens(pieces, len(network.vectors)), settings, random)
        network.train()
        _learn(model, pieces, sizes, settings, fit, random, progress)
    network.eval()


def _cut(rows: Sequence[Int64], settings: PretrainingSettings) -> list[Int64]:
    """Rows of at most `max_length` ids; those too short for a prediction are left out."""
    pieces = [piece for row in rows for piece in np.array_split(row, max(1, -(-len(row) // settings.max_length)))]
    return [piece for piece in pieces if len(piece) > settings.window]


def _sizes(pieces: Sequence[Int64], block: int) -> list[int]:
    """How many pieces make a batch of at most `block` ids with their padding, in rising order of length."""
    lengths = np.sort([len(piece) for piece in pieces])[::-1]
    sizes, start = [], 0
    while start < len(lengths):
        sizes.append(min(max(1, block // int(lengths[start])), len(lengths) - start))
        start += sizes[-1]
    return sizes[::-1]


def _batches(pieces: Sequence[Int64], sizes: Sequence[int], random: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids (B, T), padded with zeros, and lengths (B,): every piece once, beside others of about its length."""
    lengths = np.array([len(piece) for piece in pieces])
    order = np.argsort(lengths * (1 + LENGTH_BLUR * random.random(len(pieces))), kind="stable")
    ends = np.cumsum([0, *sizes])
    for number in random.permutation(len(sizes)):
        chosen = order[ends[number] : ends[number + 1]]
        found = torch.from_numpy(lengths[chosen])
        ids = nn.utils.rnn.pad_sequence([torch.from_numpy(pieces[index]) for index in chosen], batch_first=True)
        yield ids, found


@dataclass(frozen=True)
class _Reader:
    """The first `count` layers of one member."""

    network: Network
    member: int
    count: int

    @property
    def layers(self) -> Sequence[Any]:
        return self.network.members[self.member][: self.count]

    def read(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """What the last of the layers gives for each step, (B, T, F)."""
        given = self.network.head.read({"tokens": ids, "lengths": lengths})
        signal = given.signal
        for layer in self.layers:
            signal, _ = layer(signal.with_values(signal.values), given.source, ())
        return signal.values

    def groups(self, fit: Fit, rate: float) -> list[dict[str, Any]]:
        """The layers' parameters with their learning rates: `rate` times the factor of `fit.rates`."""
        groups = []
        for index, (table, layer) in enumerate(zip(self.network.spec.layers, self.layers, strict=False)):
            kind, name = names_of_layer(table, index)
            parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
            factor = rate_factor(fit, kind, name)
            groups += [{"params": parameters, "lr": rate * factor}] if parameters else []
        return groups


class _Predictor(nn.Module):
    """Predicts tokens from what a reader gives; its targets start as the reader's own vectors."""

    def __init__(
        self, reader: _Reader, counts: npt.NDArray[np.float64], settings: PretrainingSettings, random: np.random.Generator
    ) -> None:
        super().__init__()
        vectors = reader.network.members[reader.member][0].weights[0].read().detach()
        self.directions = reader.layers[-1].directions
        self.projections = nn.ModuleList(nn.Linear(units, vectors.shape[1]) for units, _ in self.directions)
        self.targets = nn.Parameter(vectors.clone())
        shares = shares_of(counts)
        self.shift = nn.Parameter(torch.from_numpy(np.log(np.maximum(shares, TINY))).float())
        self._drawn = sampling_probabilities(counts)
        self._logarithm = torch.from_numpy(np.log(np.maximum(self._drawn * settings.negatives, TINY))).float()
        self._kept = torch.from_numpy(shares_kept(shares, settings.subsample)).float()
        self._settings, self._random, self.reader = settings, random, reader

    def loss(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, int]:
        """Sum over the predicted tokens of a batch, and how many those were."""
        values = self.reader.read(ids, lengths)
        is_real = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
        distance = int(self._random.integers(1, self._settings.window + 1))
        losses, count, start = [], 0, 0
        for (units, direction), projection in zip(self.directions, self.projections, strict=True):
            part = values[:, :, start : start + units]
            start += units
            if direction > 0:
                part, targets, is_target = part[:, :-distance], ids[:, distance:], is_real[:, distance:]
            else:
                part, targets, is_target = part[:, distance:], ids[:, :-distance], is_real[:, distance:]
            is_target = is_target & (torch.rand(targets.shape) < self._kept[targets])
            losses.append(self._compare(projection(part[is_target]), targets[is_target]))
            count += int(is_target.sum())
        return torch.stack(losses).sum(), count

    def _compare(self, found: Tensor, targets: Tensor) -> Tensor:
        """The summed loss of predictions (N, D) of `targets` (N,) against tokens that are drawn for all of them."""
        drawn = torch.from_numpy(self._random.choice(len(self._drawn), self._settings.negatives, p=self._drawn))
        bias = self.shift - self._logarithm
        true = (found.float() * functional.embedding(targets, self.targets)).sum(1, keepdim=True) + bias[targets].unsqueeze(1)
        others = (found @ functional.embedding(drawn, self.targets).T).float() + bias[drawn]  # (N, K)
        others = others.masked_fill(targets.unsqueeze(1) == drawn, NEVER)
        return (torch.logsumexp(torch.cat([true, others], 1), 1, keepdim=True) - true).sum()


def _learn(
    model: _Predictor,
    pieces: Sequence[Int64],
    sizes: Sequence[int],
    settings: PretrainingSettings,
    fit: Fit,
    random: np.random.Generator,
    progress: Progress,
) -> None:
    rate = settings.learning_rate
    slow = fit.rates.get("embedding", 1.0)  # the targets are vectors of tokens, too
    groups = [
        *model.reader.groups(fit, rate),
        {"params": [model.targets], "lr": rate * slow},
        {"params": [*model.projections.parameters(), model.shift], "lr": rate},
    ]
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.Adam(groups, fused=True)
    num_steps = max(1, settings.epochs * len(sizes))
    warm_up = max(1, min(WARM_UP, num_steps // 10))

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warm_up) * (1 + math.cos(math.pi * min(1.0, step / num_steps))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for epoch in range(settings.epochs):
        total, num_predicted = 0.0, 0
        for ids, lengths in _batches(pieces, sizes, random):
            with torch.autocast("cpu", torch.bfloat16, enabled=fit.precision == "bfloat16"):
                loss, count = model.loss(ids, lengths)
            optimizer.zero_grad()
            (loss / max(1, count)).backward()  # type: ignore[no-untyped-call]
            if fit.clip_norm:
                nn.utils.clip_grad_norm_(parameters, fit.clip_norm)
            optimizer.step()
            schedule.step()
            total, num_predicted = total + float(loss.detach()), num_predicted + count
        progress(epoch + 1, total / max(1, num_predicted))
