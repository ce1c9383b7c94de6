"""Whether a server's response holds the graph's own outputs. Sends nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.protocol_requests import read_binary_answer
from service.runtime.tensors import Array

TOLERANCE = 1e-4

Prediction = Sequence[NDArray[np.float64]]
"""The numbers predicted for one instance: one array per output of the graph, in the graph's order."""


class ResponseMismatch(Exception):
    """A server's prediction differs from the graph's output."""


def parse_sluice_predictions(response: bytes) -> list[Prediction]:
    """The numbers of Sluice's predictions, or of its tensors at `/v2`, one per instance, whatever their names are."""
    try:
        content = json.loads(response)
    except ValueError:  # there is more behind the JSON
        return _rows([(shape, values) for _, shape, values in read_binary_answer(response)])
    if "outputs" in content:
        return _rows([(output["shape"], output["data"]) for output in content["outputs"]])
    return [_arrays(prediction.values()) for prediction in content["predictions"]]


def _rows(tensors: Sequence[tuple[list[int], Any]]) -> list[Prediction]:
    arrays = [np.array(values, np.float64).reshape(shape) for shape, values in tensors]
    return [list(rows) for rows in zip(*arrays, strict=True)]


def _arrays(values: Iterable[Any]) -> Prediction:
    """Lists of numbers, and objects of such lists (quantiles) or of numbers (probabilities); the rest is not the graph's."""
    arrays = []
    for value in values:
        if isinstance(value, dict) and value:
            arrays.append(np.moveaxis(np.array(list(value.values()), np.float64), 0, -1))
        elif isinstance(value, list) and not isinstance(value[0], str):  # strings are timestamps
            arrays.append(np.array(value, np.float64))
    return arrays


def verify(predictions: Sequence[Prediction], expected: Sequence[Mapping[str, Array]]) -> None:
    """Compare predictions with the graph's outputs for each instance, in the graph's order; axes of size one do not matter.

    The tolerance is relative where values are above 1. Raises ResponseMismatch that names the instance and the output.
    """
    if len(predictions) != len(expected):
        raise ResponseMismatch(f"{len(predictions)} predictions for {len(expected)} instances")
    for index, (prediction, outputs) in enumerate(zip(predictions, expected, strict=True)):
        if len(prediction) != len(outputs):
            raise ResponseMismatch(f"instance {index}: {len(prediction)} outputs, expected {', '.join(outputs)}")
        for values, (name, output) in zip(prediction, outputs.items(), strict=True):
            found, wanted = np.squeeze(values), np.squeeze(output)
            if found.shape != wanted.shape:
                raise ResponseMismatch(f'instance {index}: "{name}" has the shape {found.shape}, expected {wanted.shape}')
            error = float(np.max(np.abs(found - wanted) / np.maximum(1, np.abs(wanted))))
            if not error <= TOLERANCE:
                raise ResponseMismatch(f'instance {index}: "{name}" differs from the graph\'s output by {error:.2g}')
