"""The bases of a history: means of its own past, their errors at earlier origins, the same in the graph, never of the padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.graph.builder import GraphBuilder
from training.layers.base import Signal, Symbol
from training.layers.bases import BaseConfig, BaseForecasts

SEASON, HORIZON, CONTEXT = 4, 6, 60
BASES = [BaseConfig(lag=1), BaseConfig(lag=4), BaseConfig(lag=4, cycles=3), BaseConfig(lag=12), BaseConfig(lag=12, cycles=2)]
GARBAGE = -1e5


def own(*bases: BaseConfig, origins: int = 3, num_features: int = 1) -> BaseForecasts:
    return BaseForecasts(
        bases or BASES,
        horizon=HORIZON,
        season_length=SEASON,
        context_length=CONTEXT,
        read_length=24,
        origins=origins,
        num_features=num_features,
    ).eval()


def signal(*rows: NDArray[Any], num_padding: int = 5) -> Signal:
    """Rows (time, features) with garbage behind each."""
    lengths = torch.tensor([len(row) for row in rows])
    values = torch.full((len(rows), int(lengths.max()) + num_padding, rows[0].shape[1]), GARBAGE)
    for number, row in enumerate(rows):
        values[number, : len(row)] = torch.from_numpy(row).float()
    return Signal(values, lengths)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(1, 2, shape)


def expected_base(history: NDArray[Any], lag: int, cycles: int) -> NDArray[Any] | None:
    """The base's forecast of what follows a history (time,); None where that is too short."""
    found = [
        history[len(history) - lag * j : len(history) - lag * (j - 1)] for j in range(1, cycles + 1) if len(history) >= lag * j
    ]
    return np.resize(np.mean(found, axis=0), HORIZON) if found else None


@pytest.mark.parametrize("length", [5, 9, 11, 16, 30, 60])
def test_bases_are_means_of_past_cycles_and_their_errors_are_those_at_earlier_origins(length: int) -> None:
    signs = np.random.default_rng(length).choice([-3, 3], (length, 1))
    history = signs + noise(length, 1, seed=length)  # none of it is an outlier
    part = own()
    measured = part.measure(signal(history))
    values = history[:, 0]
    misses: list[float | None] = []
    for number, base in enumerate(BASES):
        forecast = expected_base(values, base.lag, base.cycles)
        errors = []
        for origin in (length - SEASON * k for k in (1, 2, 3)):
            found = expected_base(values[:origin], base.lag, base.cycles) if origin > 0 else None
            if found is not None:
                true = values[origin : origin + HORIZON]
                errors += np.abs(true - found[: len(true)]).tolist()
        misses.append(float(np.mean(errors)) if errors else None)
        assert bool(measured.is_known[0, 0, 0, number]) == bool(errors)
        if errors:
            assert forecast is not None
            np.testing.assert_allclose(measured.forecasts[0, :, 0, number], forecast, rtol=1e-5)
    known = [miss for miss in misses if miss is not None]
    assert measured.unit.item() == pytest.approx(min(known), rel=1e-4)
    for number, miss in enumerate(misses):
        expected = 12.0 if miss is None else np.log(miss / min(known))
        assert measured.errors[0, 0, 0, number].item() == pytest.approx(expected, abs=1e-3)
    season = np.abs(values[SEASON:] - values[:-SEASON]).mean()
    assert measured.scale.item() == pytest.approx(max(season, min(known) / 2), rel=1e-4)


def test_a_step_has_the_errors_at_its_place_of_the_season_beside_three_of_the_unit() -> None:
    history = np.resize([10.0, 20.0, 30.0, 40.0], 20)
    history[-4:] += [0, 0, 0, 1]  # tried one season ago the base misses by 1 at the last place alone
    history[-8:-4] += [0, 0, 0, 4]  # and before: the 4 come, and go again
    measured = own(BaseConfig(lag=4)).measure(signal(history[:, None]))
    # Of horizon 6: origins of 4, 8 and 12 steps ago see 4, 6 and 6 of their steps; the last place has 3 errors, the first two 5.
    errors = {"last": [3.0, 4.0, 0.0], "first": [0.0] * 5, "third": [0.0] * 3}
    unit = 7 / 16
    assert measured.unit.item() == pytest.approx(unit, rel=1e-4)
    expected = {place: (sum(found) + 3 * unit) / (len(found) + 3) for place, found in errors.items()}
    places = ["first", "first", "third", "last", "first", "first"]
    np.testing.assert_allclose(measured.step_units[0, :, 0, 0], [expected[place] for place in places], rtol=1e-4)


def test_no_step_has_more_than_four_units() -> None:
    history = np.resize([10.0, 20.0, 30.0, 40.0], 40)[:, None] + 1e-3 * noise(40, 1)
    measured = own().measure(signal(history))
    assert measured.errors.max() > 5
    assert (measured.step_units <= 4.0001 * measured.unit.unsqueeze(3)).all()


@pytest.mark.parametrize("length", [12, 15])
def test_a_base_that_cannot_be_tried_is_taken_to_err_as_the_longest_that_can(length: int) -> None:
    history = noise(length, 1)
    measured = own().measure(signal(history))
    assert measured.is_known.all()
    for number in (3, 4):
        np.testing.assert_allclose(measured.forecasts[0, :, 0, number], history[-12:, 0][:HORIZON], rtol=1e-5)
    assert (measured.errors[0, 0, 0, 3:] == measured.errors[0, 0, 0, 1]).all()


def test_no_base_stands_in_for_the_shortest() -> None:
    part = own(BaseConfig(lag=5), BaseConfig(lag=6))
    measured = part.measure(signal(noise(8, 1), noise(9, 1), noise(10, 1)))
    assert measured.is_known[:, 0, 0].tolist() == [[False, False], [True, False], [True, True]]


def combine(part: BaseForecasts, history: Signal) -> Tensor:
    """The bases' mean by their errors alone, of the only feature: (B, H)."""
    measured = part.measure(history)
    return part.combine(measured, torch.zeros(len(history.lengths), HORIZON, 1, len(part.bases)), [0])[0][..., 0]


@torch.no_grad()
def test_a_base_that_is_exact_is_taken_over_as_it_is() -> None:
    long_season = np.resize(noise(12), CONTEXT)[:, None]
    found = combine(own(), signal(long_season, long_season + 1e4))
    following = np.resize(np.resize(long_season[:12, 0], CONTEXT + HORIZON)[CONTEXT:], HORIZON)
    np.testing.assert_allclose(found[0], following, rtol=1e-5)
    np.testing.assert_allclose(found[1], following + 1e4, rtol=1e-6)


@torch.no_grad()
def test_constant_and_zero_histories_go_on() -> None:
    found = combine(own(), signal(np.zeros((30, 1)), np.full((9, 1), 7.0), np.full((60, 1), -1e30)))
    np.testing.assert_allclose(found, np.array([[0.0], [7.0], [-1e30]]).repeat(HORIZON, 1), rtol=1e-5)


@torch.no_grad()
def test_an_outlier_neither_returns_nor_moves_the_scale() -> None:
    usual = 100 + noise(CONTEXT, 1)
    hit = usual.copy()
    hit[-3] *= 100
    part = own()
    found, expected = (combine(part, signal(values)) for values in (hit, usual))
    assert (found - expected).abs().max() < 2  # of an outlier of 10,000
    assert part.measure(signal(hit)).scale.item() < 2 * part.measure(signal(usual)).scale.item()


@torch.no_grad()
def test_what_comes_every_season_is_no_outlier() -> None:
    history = np.resize([0.0, 0.0, 0.0, 500.0], 20)[:, None] + 1e-3 * noise(20, 1)
    found = combine(own(), signal(history))
    np.testing.assert_allclose(found[0], [0, 0, 0, 500, 0, 0], atol=1)


@torch.no_grad()
def test_a_level_far_from_zero_changes_nothing_but_the_level() -> None:
    history = noise(CONTEXT, 1) * 16
    part = own()
    near, far = part.measure(signal(history)), part.measure(signal(history + 2**12))
    np.testing.assert_allclose(far.channels, near.channels, atol=1e-2)
    np.testing.assert_allclose(far.facts, near.facts, atol=1e-2)
    np.testing.assert_allclose(far.scale, near.scale, rtol=1e-3)
    np.testing.assert_allclose(combine(part, signal(history + 2**12)) - 2**12, combine(part, signal(history)), atol=1e-2)


@torch.no_grad()
def test_layers_read_zeros_where_there_is_no_history() -> None:
    measured = own().measure(signal(noise(9, 1)))
    assert measured.channels.shape == (1, 24, 3)
    assert measured.channels[0, :15].abs().max() == 0
    assert measured.channels[0, 15:, 0].abs().min() > 0
    assert measured.channels[0, :19, 1].abs().max() == 0  # of changes over 4 steps the first is at the fifth
    assert measured.channels[0, 19:, 1].abs().min() > 0
    assert measured.channels[0, :, 2].abs().max() == 0


def test_sharpness_learns() -> None:
    part = own()
    found = combine(part, signal(noise(CONTEXT, 1))).square().sum()
    (gradient,) = torch.autograd.grad(found, [part.sharpness])
    assert gradient.abs().item() > 0


@pytest.mark.parametrize("targets", [(0, 1), (1,)])
@torch.no_grad()
def test_the_graph_finds_what_torch_finds(targets: tuple[int, ...]) -> None:
    rows = [noise(length, 2, seed=length) * 10 for length in (5, 8, 17, 40, 60, 75, 12, 15)]
    rows[3][-2] *= 100
    rows += [np.zeros((20, 2)), np.resize(noise(12), (48, 2)), noise(30, 2) - 1.5]
    history = signal(*rows)
    part = own(num_features=2)
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=(len(rows), HORIZON, len(targets), len(BASES)))).float()
    graph = GraphBuilder("parts")
    given = Symbol(graph.input("values", "FP32", ["batch", "time", 2]), graph.input("lengths", "INT64", ["batch"]))
    logits = graph.input("weights", "FP32", ["batch", HORIZON, len(targets), len(BASES)])
    written = part.write_measure(graph, given)
    measured = part.measure(history)
    names = ["level", "scale", "unit", "forecasts", "errors", "step_units", "lowest", "channels", "facts"]
    combined = part.combine(measured, weights, targets), part.write_combine(graph, written, logits, targets)
    expected, values = (
        {name: getattr(whole, name) for name in names} | {"mean": mean, "step_unit": step_unit}
        for whole, (mean, step_unit) in zip((measured, written), combined, strict=True)
    )
    for name, value in values.items():
        graph.output(value, name, "FP32", ["batch", *expected[name].shape[1:]])
    session = onnxruntime.InferenceSession(graph.build().SerializeToString(), providers=["CPUExecutionProvider"])
    given_values = {"values": history.values.numpy(), "lengths": history.lengths.numpy(), "weights": weights.numpy()}
    answers = dict(zip(values, session.run(None, given_values), strict=True))
    for name, tensor in expected.items():
        np.testing.assert_allclose(answers[name], tensor.numpy(), atol=2e-4, rtol=1e-4, err_msg=name)
