"""Whether a server answered what the graph itself answers. Asks nobody."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.runtime.tensors import Array

TOLERANCE = 1e-4


class WrongAnswer(Exception):
    """A server's answer is not the graph's."""


def sluice_predictions(answer: bytes) -> list[dict[str, Any]]:
    """Sluice's answer as the graph's outputs: one dict per instance."""
    outputs = []
    for prediction in json.loads(answer)["predictions"]:
        if "probabilities" in prediction:
            outputs.append({"probabilities": list(prediction["probabilities"].values())})
        else:
            levels = list(prediction.get("quantiles", {}).values())  # each (H,)
            point = prediction["forecast"]  # graphs call it so, those of older folders `mean`
            outputs.append({"forecast": point, "mean": point} | ({"quantiles": np.transpose(levels)} if levels else {}))
    return outputs


def check(predictions: Sequence[Mapping[str, Any]], truth: Sequence[Mapping[str, Array]]) -> None:
    """Compare predictions with what the graph gave for each instance, outputs by name; axes of size one do not matter.

    The tolerance is relative where values are above 1. Raises WrongAnswer that names the instance and the output.
    """
    if len(predictions) != len(truth):
        raise WrongAnswer(f"{len(predictions)} predictions for {len(truth)} instances")
    for index, (prediction, outputs) in enumerate(zip(predictions, truth, strict=True)):
        for name, wanted in outputs.items():
            if name not in prediction:
                raise WrongAnswer(f'instance {index}: no "{name}"')
            found = np.squeeze(np.asarray(prediction[name], np.float64))
            expected = np.squeeze(wanted)
            if found.shape != expected.shape:
                raise WrongAnswer(f'instance {index}: "{name}" has the shape {found.shape}, expected {expected.shape}')
            error = float(np.max(np.abs(found - expected) / np.maximum(1, np.abs(expected))))
            if not error <= TOLERANCE:
                raise WrongAnswer(f'instance {index}: "{name}" differs from the graph\'s answer by {error:.2g}')
