"""The Theta method: its published forecast where one rate is the best, the same in the graph, never read from the padding."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from training.evaluation import naive
from training.graph.builder import GraphBuilder
from training.layers.base import Signal, Symbol
from training.layers.theta import theta, write_theta

GARBAGE = -1e5
HORIZON = 5


def signal(*rows: Tensor, num_padding: int = 3) -> Signal:
    """Rows (T, F), with garbage behind each."""
    lengths = torch.tensor([len(row) for row in rows])
    values = torch.full((len(rows), int(lengths.max()) + num_padding, rows[0].shape[1]), GARBAGE)
    for number, row in enumerate(rows):
        values[number, : len(row)] = row
    return Signal(values, lengths)


def walks(*lengths: int, num_features: int = 2) -> Signal:
    generator = torch.Generator().manual_seed(1)
    return signal(*(torch.randn(length, num_features, generator=generator).cumsum(0) for length in lengths))


def graph_of(history: Signal) -> onnxruntime.InferenceSession:
    graph = GraphBuilder("theta")
    source = Symbol(
        graph.input("history", "FP32", ["batch", "time", history.values.shape[2]]), graph.input("lengths", "INT64", ["batch"])
    )
    graph.output(write_theta(graph, source, HORIZON), "forecast", "FP32", ["batch", HORIZON, history.values.shape[2]])
    return onnxruntime.InferenceSession(graph.build().SerializeToString(), providers=["CPUExecutionProvider"])


def test_a_line_is_followed_at_half_its_slope_from_the_last_value() -> None:
    history = signal(3 + 0.5 * torch.arange(20.0).unsqueeze(1))
    found = theta(history, HORIZON)[0, :, 0]
    # A rate of 0.99 is behind a line by a hundredth of a step.
    torch.testing.assert_close(found, 3 + 0.5 * 19 + 0.25 * torch.arange(1.0, HORIZON + 1) + 0.125, atol=0.13, rtol=0)
    torch.testing.assert_close(found.diff(), torch.full((HORIZON - 1,), 0.25), atol=1e-4, rtol=0)


def test_a_constant_history_and_a_single_value_go_on() -> None:
    history = signal(torch.full((9, 1), 7.0), torch.full((1, 1), 4.0))
    torch.testing.assert_close(theta(history, 2)[..., 0], torch.tensor([[7.0, 7.0], [4.0, 4.0]]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_near_the_method_with_the_one_best_rate(seed: int) -> None:
    level = np.random.default_rng(seed).normal(size=60).cumsum()
    expected = torch.from_numpy(naive.theta(level, HORIZON, 1)).float()
    found = theta(signal(torch.from_numpy(level).float().unsqueeze(1)), HORIZON)[0, :, 0]
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0)


def test_each_row_and_feature_is_forecast_by_itself() -> None:
    history = walks(30, 1, 2, 12)
    together = theta(history, HORIZON)
    for row, length in enumerate(history.lengths.tolist()):
        for feature in range(2):
            alone = theta(signal(history.values[row, :length, feature : feature + 1], num_padding=0), HORIZON)
            torch.testing.assert_close(together[row, :, feature], alone[0, :, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lengths", [(30, 1, 2, 12), (1,), (2, 2)], ids=str)
def test_the_graph_gives_what_torch_gives(lengths: tuple[int, ...]) -> None:
    history = walks(*lengths)
    inputs = {"history": history.values.numpy(), "lengths": history.lengths.numpy()}
    (found,) = graph_of(history).run(None, inputs)
    np.testing.assert_allclose(found, theta(history, HORIZON).numpy(), atol=1e-4, rtol=1e-4)
