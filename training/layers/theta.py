"""The Theta method, a forecast of a history by itself: half its linear trend, half its smoothed level.

As a torch function and as nodes of the graph. Rows may have any length, the padding behind it is never read. In all shapes B is
batch, T time (padded), F features, H the horizon, K smoothing rates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.base import Signal, Symbol

RATES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.99)
SHARPNESS = 8.0
"""A rate weighs its mean squared error ** -SHARPNESS: nearly the best one alone, yet a small change of the history moves the
forecast by little."""
TINY = 1e-9
"""Keeps the logarithm of an error finite that is zero."""


def theta(history: Signal, horizon: int) -> Tensor:
    """Forecasts (B, H, F) of values (B, T, F).

    The mean of two lines (Assimakopoulos and Nikolopoulos 2000): the least-squares line, drawn on, and the level at the end of
    what has twice the history's distance from it, by simple exponential smoothing from the first value on. Instead of the one
    rate that forecasts the history best one step ahead, several are averaged, weighed by how well they do. A history of one value
    has that as its forecast.
    """
    within = ragged.mask(history.values, history.lengths)  # (B, T, 1)
    values = history.values.masked_fill(~within, 0.0)
    steps = torch.arange(values.shape[1], device=values.device)
    count = history.lengths.view(-1, 1, 1).to(values.dtype)
    centred = (steps.view(1, -1, 1) - (count - 1) / 2) * within.to(values.dtype)  # (B, T, 1)
    mean = values.sum(1, keepdim=True) / count  # (B, 1, F)
    slope = (centred * (values - mean)).sum(1, keepdim=True) / (centred**2).sum(1, keepdim=True).clamp(min=TINY)
    curved = 2 * values - mean - slope * centred
    first = curved[:, :1]
    # Relative to the first value smoothing starts from zero: a weighted sum of the steps so far.
    rises = (curved - first) * within.to(values.dtype)
    ages = (steps.unsqueeze(1) - steps).to(values.dtype)  # (T, T)
    rates, logs = (torch.tensor(part, dtype=values.dtype, device=values.device).view(-1, 1, 1) for part in (RATES, _LOGS))
    weights = rates * (ages.clamp(min=0) * logs).exp() * (ages >= 0)  # (K, T, T)
    levels = torch.matmul(weights, rises.unsqueeze(1))  # (B, K, T, F)
    is_forecast = within[:, 1:].to(values.dtype)
    misses = (rises[:, 1:].unsqueeze(1) - levels[:, :, :-1]) * is_forecast.unsqueeze(1)
    errors = (misses**2).sum(2) / (count - 1).clamp(min=1)  # (B, K, F)
    shares = ((errors + TINY).log() * -SHARPNESS).softmax(1)
    ends = history.lengths.view(-1, 1, 1) - 1 == steps.view(1, 1, -1)  # (B, 1, T)
    last = torch.matmul(ends.to(values.dtype).unsqueeze(1), levels).squeeze(2)  # (B, K, F)
    level = first + (shares * last).sum(1, keepdim=True)
    ahead = (count + 1) / 2 + torch.arange(horizon, dtype=values.dtype, device=values.device).view(1, -1, 1)  # (B, H, 1)
    return (mean + slope * ahead + level) / 2


def write_theta(graph: GraphBuilder, history: Symbol, horizon: int) -> str:
    """`theta` in the graph."""
    assert history.lengths is not None
    zero, one, two = (graph.constant(float(value)) for value in (0, 1, 2))
    axis_1, axis_2 = graph.constant([1]), graph.constant([2])
    within = ragged.write_mask(graph, history.values, history.lengths)
    is_within = graph.add("Cast", within, to=1)
    values = graph.add("Where", within, history.values, zero)
    steps = ragged.write_range(graph, ragged.write_num_steps(graph, values))
    count = graph.add("Cast", graph.add("Unsqueeze", history.lengths, graph.constant([1, 2])), to=1)
    numbers = graph.add("Unsqueeze", graph.add("Cast", steps, to=1), axis_1)  # (T, 1)
    middle = graph.add("Div", graph.add("Sub", count, one), two)
    centred = graph.add("Mul", graph.add("Sub", numbers, middle), is_within)
    mean = graph.add("Div", graph.add("ReduceSum", values, axis_1, keepdims=1), count)
    product = graph.add("Mul", centred, graph.add("Sub", values, mean))
    square = graph.add("ReduceSum", graph.add("Mul", centred, centred), axis_1, keepdims=1)
    square = graph.add("Max", square, graph.constant(TINY))
    slope = graph.add("Div", graph.add("ReduceSum", product, axis_1, keepdims=1), square)
    curved = graph.add("Sub", graph.add("Mul", two, values), mean)
    curved = graph.add("Sub", curved, graph.add("Mul", slope, centred))
    first = graph.add("Slice", curved, graph.constant([0]), axis_1, axis_1)
    rises = graph.add("Mul", graph.add("Sub", curved, first), is_within)
    # A convolution with the weights of all ages: their matrix over pairs of steps would cost more than the rest.
    num_steps, num_features = ragged.write_num_steps(graph, values), graph.add("Shape", values, start=2, end=3)
    oldest = graph.add("Sub", num_steps, graph.constant([1]))
    ages = graph.add("Cast", graph.add("Sub", oldest, steps), to=1)  # (T,)
    logs = graph.constant(torch.tensor(_LOGS).view(-1, 1, 1).numpy(), "logs")
    rates = graph.constant(torch.tensor(RATES).view(-1, 1, 1).numpy(), "rates")
    weights = graph.add("Mul", rates, graph.add("Exp", graph.add("Mul", ages, logs)))  # (K, 1, T)
    before_all = graph.add("Concat", graph.constant([0, 0]), oldest, graph.constant([0, 0, 0]), axis=0)
    turned = graph.add("Transpose", rises, perm=[0, 2, 1])
    single = graph.add("Reshape", turned, graph.add("Concat", graph.constant([-1, 1]), num_steps, axis=0))
    levels = graph.add("Conv", graph.add("Pad", single, before_all), weights)  # (B · F, K, T)
    shape = graph.add("Concat", graph.constant([-1]), num_features, graph.constant([len(RATES)]), num_steps, axis=0)
    levels = graph.add("Transpose", graph.add("Reshape", levels, shape), perm=[0, 2, 3, 1])
    past, behind = graph.constant([-1]), graph.constant([2**63 - 1])
    before = graph.add("Slice", levels, graph.constant([0]), past, axis_2)
    misses = graph.add("Slice", rises, axis_1, behind, axis_1)
    misses = graph.add("Sub", graph.add("Unsqueeze", misses, axis_1), before)
    is_forecast = graph.add("Unsqueeze", graph.add("Slice", is_within, axis_1, behind, axis_1), axis_1)
    misses = graph.add("Mul", misses, is_forecast)
    num_misses = graph.add("Max", graph.add("Sub", count, one), one)
    errors = graph.add("Div", graph.add("ReduceSum", graph.add("Mul", misses, misses), axis_2, keepdims=0), num_misses)
    errors = graph.add("Log", graph.add("Add", errors, graph.constant(TINY)))
    shares = graph.add("Softmax", graph.add("Mul", errors, graph.constant(-SHARPNESS)), axis=1)
    end = graph.add("Sub", ragged.write_column(graph, history.lengths), graph.constant([1]))
    ends = graph.add("Cast", graph.add("Equal", end, steps), to=1)  # (B, T)
    last = graph.add("MatMul", graph.add("Unsqueeze", ends, graph.constant([1, 2])), levels)
    last = graph.add("Squeeze", last, axis_2)
    level = graph.add("Add", first, graph.add("ReduceSum", graph.add("Mul", shares, last), axis_1, keepdims=1))
    offsets = graph.constant(torch.arange(horizon).view(1, -1, 1).float().numpy(), "ahead")
    ahead = graph.add("Add", graph.add("Div", graph.add("Add", count, one), two), offsets)
    drawn = graph.add("Add", mean, graph.add("Mul", slope, ahead))
    return graph.add("Div", graph.add("Add", drawn, level), two)


_LOGS = tuple(math.log(1 - rate) for rate in RATES)
