"""Calibration: logits that are too sure become frequencies, and of two answers the better one weighs more."""

from __future__ import annotations

import pytest
import torch

from training.fitting.calibration import fit_calibration


def drawn(num_rows: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, 1) that are right, and labels drawn by them."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(num_rows, 1, generator=generator)
    labels = (torch.rand(num_rows, generator=generator) < torch.sigmoid(logits[:, 0])).long()
    return logits, labels


def test_logits_that_are_three_times_too_sure_are_divided_by_three() -> None:
    logits, labels = drawn()
    found = fit_calibration(3 * logits + 1.5, None, labels, torch.ones(len(labels)))
    assert found.factors.tolist() == pytest.approx([1 / 3, 0.0], abs=0.02)
    assert found.shift.tolist() == pytest.approx([-0.5], abs=0.05)


def test_an_answer_that_says_nothing_weighs_nothing() -> None:
    logits, labels = drawn()
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    found = fit_calibration(noise, logits, labels, torch.ones(len(labels)))
    assert found.factors.tolist() == pytest.approx([0.0, 1.0], abs=0.05)


def test_several_logits_share_a_factor() -> None:
    logits, labels = drawn()
    both = torch.cat([torch.zeros_like(logits), 5 * logits], 1)
    found = fit_calibration(both, None, labels, torch.ones(len(labels)))
    assert float(found.factors[0]) == pytest.approx(0.2, abs=0.01)


def test_rows_count_by_their_weights() -> None:
    logits = torch.zeros(30, 1)
    labels = torch.tensor([1] * 10 + [0] * 20)
    even = fit_calibration(logits, None, labels, torch.tensor([2.0] * 10 + [1.0] * 20))
    assert float(even.shift) == pytest.approx(0.0, abs=1e-3)


def test_a_shift_that_grows_with_the_length_is_found_where_lengths_are_given() -> None:
    logits, labels = drawn()
    lengths = torch.randint(1, 1000, (len(labels),), generator=torch.Generator().manual_seed(3))
    biased = logits + 0.5 * lengths.log().unsqueeze(1) - 2
    found = fit_calibration(biased, None, labels, torch.ones(len(labels)), lengths)
    assert found.factors[0].item() == pytest.approx(1.0, abs=0.03)
    assert found.slope.tolist() == pytest.approx([-0.5], abs=0.05)
    assert found.shift.tolist() == pytest.approx([2.0], abs=0.3)


def test_without_lengths_the_shift_is_the_same_for_all() -> None:
    logits, labels = drawn()
    assert fit_calibration(logits, None, labels, torch.ones(len(labels))).slope.tolist() == [0.0]
