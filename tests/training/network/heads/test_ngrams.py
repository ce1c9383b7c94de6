"""The table of n-grams: what it sums, that no n-gram reaches into padding, and that the graph sums the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.training.network.networks import DENSE, EMBEDDING, LSTM, classify, run, tokens
from training.export.graph import write_graph
from training.export.verify import verify
from training.network.heads.classify import ClassifyHead
from training.network.heads.ngrams import MAX_VOCABULARY, MODULUS, MULTIPLIERS, NgramSpec, NgramTable
from training.network.network import Network


def make_table(order: int = 3, buckets: int = 101, num_logits: int = 2) -> NgramTable:
    table = NgramTable(NgramSpec(order=order, buckets=buckets), num_logits)
    generator = torch.Generator().manual_seed(0)
    table.set_weights(torch.randn(buckets, num_logits, generator=generator), torch.tensor([0.5] * num_logits))
    return table


def bucket_of(ngram: list[int], buckets: int) -> int:
    return sum((token + 1) * multiplier for token, multiplier in zip(ngram, MULTIPLIERS, strict=False)) % MODULUS % buckets


def logits_by_definition(table: NgramTable, ids: list[int]) -> list[float]:
    order, buckets = table.spec.order, table.spec.buckets
    grams = [ids[start : start + n] for n in range(1, order + 1) for start in range(len(ids) - n + 1)]
    found = {bucket_of(gram, buckets) for gram in grams}
    total = sum(table.codes[bucket].double() for bucket in found)
    assert isinstance(total, torch.Tensor)
    logits: list[float] = (total / np.sqrt(len(found)) * table.scale.double() + table.shift.double()).tolist()
    return logits


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_weights_of_a_rows_different_n_grams_are_summed_within_its_length(order: int) -> None:
    table = make_table(order)
    inputs = tokens([1, 2, 7, 4])
    found = table(inputs["tokens"], inputs["lengths"])
    for row, ids, length in zip(found.tolist(), inputs["tokens"].tolist(), inputs["lengths"].tolist(), strict=True):
        assert row == pytest.approx(logits_by_definition(table, ids[:length]), rel=1e-5)


def test_a_repeated_n_gram_counts_once() -> None:
    table = make_table(order=1)
    once, often = (table(torch.tensor([ids]), torch.tensor([len(ids)])) for ids in ([3], [3, 3, 3, 3]))
    assert torch.equal(once, often)


def test_weights_are_kept_in_eight_bits_of_their_logits_own_scale() -> None:
    table = NgramTable(NgramSpec(order=1, buckets=4), 2)
    table.set_weights(torch.tensor([[1.0, 100.0], [0.5, -50.0], [0.0, 0.0], [-1.0, 25.0]]), torch.zeros(2))
    assert table.codes.tolist() == [[127, 127], [64, -64], [0, 0], [-127, 32]]
    torch.testing.assert_close(table.scale, torch.tensor([1 / 127, 100 / 127]))


def test_weights_beyond_the_limit_are_clipped_and_the_others_rounded_the_finer() -> None:
    table = NgramTable(NgramSpec(order=1, buckets=3), 1)
    table.set_weights(torch.tensor([[10.0], [-0.5], [0.1]]), torch.zeros(1), torch.tensor([0.5]))
    assert table.codes.flatten().tolist() == [127, -127, 25]


def make_network(units: int, order: int) -> Network:
    network = classify(EMBEDDING, LSTM, {**DENSE, "units": units}, ngrams=NgramSpec(order=order, buckets=101))
    head = network.head
    assert isinstance(head, ClassifyHead)
    assert head.ngrams is not None
    generator = torch.Generator().manual_seed(1)
    head.ngrams.set_weights(torch.randn(101, units, generator=generator), torch.zeros(units))
    return network


def calibrate(network: Network, factors: tuple[float, float], shift: float, slope: float = 0.0) -> None:
    head = network.head
    assert isinstance(head, ClassifyHead)
    head.calibrate(torch.tensor(factors), torch.full((head.num_logits,), shift), torch.full((head.num_logits,), slope))


@pytest.mark.parametrize("slope", [0.0, 0.3])
@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("units", [1, 2])
def test_the_graph_of_layers_and_n_grams_passes_the_four_checks(units: int, order: int, slope: float) -> None:
    network = make_network(units, order)
    calibrate(network, (0.7, 1.3), 0.1, slope)
    verification = verify(network, write_graph(network).SerializeToString(), seed=0)
    assert verification.graph_vs_torch < 1e-5
    assert verification.row_vs_batch < 1e-5


def test_the_layers_answer_alone_until_the_head_is_calibrated() -> None:
    network, inputs = make_network(1, 2), tokens([3, 5])
    plain = network.predict(inputs).values
    calibrate(network, (1.0, 0.0), 0.0)
    torch.testing.assert_close(network.predict(inputs).values, plain)
    calibrate(network, (2.0, 0.0), 1.0)
    torch.testing.assert_close(network.predict(inputs).values, 2 * plain + 1)
    calibrate(network, (0.0, 1.0), 0.0)
    assert isinstance(network.head, ClassifyHead)
    assert network.head.ngrams is not None
    torch.testing.assert_close(network.predict(inputs).values, network.head.ngrams(inputs["tokens"], inputs["lengths"]))
    torch.testing.assert_close(run(network, inputs)["probabilities"].sum(1), torch.ones(2))


def test_the_slope_is_times_the_logarithm_of_the_number_of_tokens() -> None:
    network, inputs = make_network(1, 2), tokens([2, 1])
    plain = network.predict(inputs).values
    calibrate(network, (1.0, 0.0), 0.0, 2.0)
    torch.testing.assert_close(network.predict(inputs).values - plain, torch.tensor([[2 * math.log(2)], [0.0]]))


def test_neither_table_nor_calibration_is_in_checkpoints() -> None:
    assert make_network(1, 2).state_dict().keys() == classify(EMBEDDING, LSTM, {**DENSE, "units": 1}).state_dict().keys()


@pytest.mark.parametrize("options", [{"order": 0, "buckets": 9}, {"order": 6, "buckets": 9}, {"order": 1, "buckets": 0}])
def test_tables_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NgramSpec(**options)


def test_a_vocabulary_whose_hashes_would_overflow_is_refused() -> None:
    spec: dict[str, Any] = classify(EMBEDDING, LSTM, DENSE).spec.model_dump()
    with pytest.raises(ValidationError, match="n-grams need a vocabulary of"):
        type(make_network(1, 1).spec)(**{**spec, "vocabulary_size": MAX_VOCABULARY + 1, "ngrams": {"order": 1, "buckets": 9}})
