"""How far a network's own answers are from exact ones, and what a graph's may differ for that reason.

Every order of summation rounds in its own way. Where a network amplifies that (relu in a recurrent layer over many steps), two
right float32 results may lie far apart, and for rows at a kink of the network as far as one likes. How far is measured row by
row: the network in float64, with weights that are moved by a few roundings. Runs no graph and verifies none.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

NUM_MOVED = 8
MOVE = 1e-6
"""How far weights are moved, relative to themselves: 16 roundings of float32, as sums of many terms gather."""
USUAL = 1e-4
"""What answers move by in networks that amplify nothing; up to here the tolerance stays what it is."""
LARGEST = 0.1
"""An answer that moves further, relative to its size, says nothing about a graph."""

M = TypeVar("M", bound=nn.Module)


def in_double(network: M) -> M:
    """A copy that computes in float64, to be run within `double_by_default`."""
    return copy.deepcopy(network).cpu().double()


@torch.no_grad()
def move_weights(network: M, number: int) -> M:
    """A copy in float64 whose weights and statistics are moved by `MOVE`, each copy in its own direction."""
    moved = in_double(network)
    generator = torch.Generator().manual_seed(number)
    for tensor in [*moved.parameters(), *moved.buffers()]:
        if tensor.is_floating_point():
            tensor.mul_(1 + MOVE * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    return moved


@contextmanager
def double_by_default() -> Iterator[None]:
    """Tensors that a network makes itself are float64 too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def allow(tolerance: float, reach: NDArray[Any]) -> NDArray[np.float64]:
    """The error that a graph may have at rows whose answers move by `reach`; infinite where they say nothing."""
    moves = np.nan_to_num(np.asarray(reach, np.float64), nan=np.inf)
    bounds: NDArray[np.float64] = np.where(moves > USUAL, np.maximum(tolerance, moves), tolerance)
    return np.where(moves > LARGEST, np.inf, bounds)


@contextmanager
def one_thread() -> Iterator[None]:
    """A few small rows gain nothing from several threads of torch, and lose much where other processes have the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
