"""Whether a server's response holds the graph's own outputs. Sends nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.runtime.tensors import Array

TOLERANCE = 1e-4


class ResponseMismatch(Exception):
    """A server's prediction differs from the graph's output."""


def parse_sluice_predictions(response: bytes) -> list[dict[str, Any]]:
    """Sluice's response as the graph's outputs: one dict per instance."""
    outputs = []
    for prediction in json.loads(response)["predictions"]:
        if "probabilities" in prediction:
            outputs.append({"probabilities": list(prediction["probabilities"].values())})
        else:
            levels = list(prediction.get("quantiles", {}).values())  # each (H,)
            outputs.append({"mean": prediction["mean"]} | ({"quantiles": np.transpose(levels)} if levels else {}))
    return outputs


def verify(predictions: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Array]]) -> None:
    """Compare predictions with the graph's outputs for each instance, by output name; axes of size one do not matter.

    The tolerance is relative where values are above 1. Raises ResponseMismatch that names the instance and the output.
    """
    if len(predictions) != len(expected):
        raise ResponseMismatch(f"{len(predictions)} predictions for {len(expected)} instances")
    for index, (prediction, outputs) in enumerate(zip(predictions, expected, strict=True)):
        for name, output in outputs.items():
            if name not in prediction:
                raise ResponseMismatch(f'instance {index}: no "{name}"')
            found = np.squeeze(np.asarray(prediction[name], np.float64))
            wanted = np.squeeze(output)
            if found.shape != wanted.shape:
                raise ResponseMismatch(f'instance {index}: "{name}" has the shape {found.shape}, expected {wanted.shape}')
            error = float(np.max(np.abs(found - wanted) / np.maximum(1, np.abs(wanted))))
            if not error <= TOLERANCE:
                raise ResponseMismatch(f'instance {index}: "{name}" differs from the graph\'s output by {error:.2g}')
