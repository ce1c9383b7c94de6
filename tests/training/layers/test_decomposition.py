"""Season, level and unit of a history: found where they are known, the same in the graph, and never read from the padding."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from training.graph.builder import GraphBuilder
from training.layers.base import Signal, Symbol
from training.layers.decomposition import Centring, SeasonalDecomposition

GARBAGE = -1e5


def signal(*rows: Tensor, num_padding: int = 5) -> Signal:
    """Rows of one feature, with garbage behind each."""
    lengths = torch.tensor([len(row) for row in rows])
    values = torch.full((len(rows), int(lengths.max()) + num_padding, 1), GARBAGE)
    for number, row in enumerate(rows):
        values[number, : len(row), 0] = row
    return Signal(values, lengths)


def seasonal(num_steps: int, pattern: list[float], slope: float = 0.5) -> Tensor:
    """A line with a season whose last step is the pattern's last."""
    steps = torch.arange(num_steps, dtype=torch.float32)
    return 10 + slope * steps + torch.tensor(pattern)[(torch.arange(num_steps) - num_steps) % len(pattern)]


def decomposition(season_length: int, *, gate: float = 50.0, num_features: int = 1) -> SeasonalDecomposition:
    """With a gate that is open."""
    found = SeasonalDecomposition(season_length, num_features).eval()
    torch.nn.init.constant_(found.gate_out.bias, gate)
    return found


@pytest.mark.parametrize("pattern", [[1.0, -2.0, 4.0, -3.0], [2.0, -3.0, 1.0]])
@torch.no_grad()
def test_the_season_of_a_line_is_found_whatever_the_length(pattern: list[float]) -> None:
    size = len(pattern)
    history = signal(*(seasonal(length, pattern) for length in (2 * size, 2 * size + 1, 5 * size - 1, 40)))
    part = decomposition(size)
    season = part.measure(history)
    torch.testing.assert_close(season[..., 0], torch.tensor([pattern] * 4), atol=1e-4, rtol=0)
    rest = history.values - part.at_steps(season, history)
    for row, length in enumerate(history.lengths.tolist()):
        torch.testing.assert_close(rest[row, :length, 0].diff(), torch.full((length - 1,), 0.5), atol=1e-4, rtol=0)
    ahead = part.ahead(season, 2 * size + 1)[0, :, 0]
    torch.testing.assert_close(ahead, torch.tensor([*pattern, *pattern, pattern[0]]), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_history_of_less_than_two_seasons_has_none() -> None:
    history = signal(seasonal(7, [1.0, -2.0, 4.0, -3.0]), seasonal(3, [1.0, -2.0, 4.0, -3.0]))
    assert decomposition(4).measure(history).abs().max() == 0


@torch.no_grad()
def test_the_gate_shrinks_the_season_between_nothing_and_all_of_it() -> None:
    history = signal(seasonal(20, [1.0, -2.0, 4.0, -3.0]))
    whole, closed = decomposition(4).measure(history), decomposition(4, gate=-50.0).measure(history)
    fresh = SeasonalDecomposition(4, 1).measure(history)
    assert closed.abs().max() < 1e-6
    torch.testing.assert_close(fresh, whole * torch.tensor(2.0).sigmoid())


def test_the_gate_learns() -> None:
    part = SeasonalDecomposition(4, 1)
    found = part.measure(signal(seasonal(20, [1.0, -2.0, 4.0, -3.0]))).square().sum()
    (gradient,) = torch.autograd.grad(found, [part.gate_out.bias])
    assert gradient.abs().item() > 0


def test_level_and_unit_are_the_last_value_and_the_mean_step() -> None:
    history = signal(torch.tensor([1.0, 4.0, 2.0]), torch.tensor([7.0, 7.0]), torch.tensor([5.0]))
    centre = Centring().measure(history)
    assert centre.level[:, 0, 0].tolist() == [2, 7, 5]
    assert centre.unit[:, 0, 0].tolist() == pytest.approx([2.5, 1e-5, 1e-5])


def test_without_a_unit_a_history_is_relative_to_its_last_value_alone() -> None:
    centre = Centring(has_unit=False).measure(signal(torch.tensor([1.0, 4.0, 2.0]), torch.tensor([7.0])))
    assert centre.level.flatten().tolist() == [2, 7]
    assert centre.unit.flatten().tolist() == [1, 1]


@pytest.mark.parametrize("season_length", [2, 3, 4, 12])
@torch.no_grad()
def test_the_graph_finds_what_torch_finds(season_length: int) -> None:
    torch.manual_seed(season_length)
    part = SeasonalDecomposition(season_length, 2).eval()
    for parameter in part.parameters():
        torch.nn.init.uniform_(parameter, -1, 1)
    lengths = torch.tensor([1, 2 * season_length - 1, 2 * season_length, 7 * season_length + 1, 30])
    values = torch.randn(5, int(lengths.max()) + 3, 2)
    for row, length in enumerate(lengths.tolist()):
        values[row, length:] = GARBAGE
    history = Signal(values, lengths)
    graph = GraphBuilder("parts")
    given = Symbol(graph.input("values", "FP32", ["batch", "time", 2]), graph.input("lengths", "INT64", ["batch"]))
    season = part.write_measure(graph, given)
    centre = Centring().write_measure(graph, given)
    found = {
        "season": season,
        "at_steps": part.write_at_steps(graph, season, given),
        "ahead": part.write_ahead(graph, season, 5),
        "level": centre.level,
        "unit": centre.unit,
    }
    for name, value in found.items():
        graph.output(value, name, "FP32", ["batch", f"{name}_steps", 2])
    session = onnxruntime.InferenceSession(graph.build().SerializeToString(), providers=["CPUExecutionProvider"])
    answers = dict(zip(found, session.run(None, {"values": values.numpy(), "lengths": lengths.numpy()}), strict=True))
    own = part.measure(history)
    measured = Centring().measure(history)
    expected = {
        "season": own,
        "at_steps": part.at_steps(own, history),
        "ahead": part.ahead(own, 5),
        "level": measured.level,
        "unit": measured.unit,
    }
    for name, tensor in expected.items():
        np.testing.assert_allclose(answers[name], tensor.numpy(), atol=1e-5, rtol=1e-5, err_msg=name)
