"""Rows made up from a signature, to measure a graph and to check a device with: the right shapes and types, no meaning. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.runtime.tensors import LENGTHS, Array, Signature, Tensors, TensorSpec

MAX_ROWS = 256
"""The largest batch that a graph is shown before it serves."""
USUAL_STEPS = 64
"""How long a long row is taken to be where a model does not say."""


def synthetic(signature: Signature, lengths: Sequence[int], *, seed: int = 0) -> Tensors:
    """One item of a row per length, as long as the longest.

    Numbers lie between 0.5 and 1.5; whole numbers are 0 or 1, which every vocabulary has; open axes other than `batch`
    and `time` are as long as the longest row. Zeros fill the rest of a shorter row where the model is ragged.
    """
    draw = np.random.default_rng(seed)
    tensors = {spec.name: _values(spec, lengths, draw) for spec in signature.inputs}
    if signature.is_ragged:
        for spec in signature.inputs:
            if spec.time_axis is not None and spec.dtype.kind in "iuf":
                rows = np.moveaxis(tensors[spec.name], spec.time_axis, 1)  # a view: (B, T, ...)
                for row, length in zip(rows, lengths, strict=True):
                    row[length:] = 0
    return tensors


def _values(spec: TensorSpec, lengths: Sequence[int], draw: np.random.Generator) -> Array:
    if spec.name == LENGTHS:
        return np.array(lengths, spec.dtype)
    shape = [max(lengths) if isinstance(size, str) else size for size in spec.shape]
    shape[0] = len(lengths)
    match spec.dtype.kind:
        case "f":
            return draw.uniform(0.5, 1.5, shape).astype(spec.dtype)
        case "i" | "u":
            return draw.integers(0, 2, shape).astype(spec.dtype)
        case "b":
            return np.ones(shape, spec.dtype)
        case _:
            return np.full(shape, "", spec.dtype)
