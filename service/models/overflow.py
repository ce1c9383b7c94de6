"""Whether an answer that is not finite is the fault of the numbers that were asked about, or of the model. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.errors import InferenceFailed, InvalidInput
from service.runtime.tensors import Item, Tensors

LARGEST_NUMBER = 1e18
"""The square of more is near the end of float32 (3.4e38): a sound model may overflow too. Most such numbers have an answer."""


def find_row(items: Sequence[Item], exc: InferenceFailed) -> Tensors:
    """The tensors of the row that an error names, without the batch axis; nothing where it names none of these."""
    for item in items:
        rows = item.instances or range(item.rows)
        if exc.facts.get("instance") in rows:
            row = rows.index(exc.facts["instance"])
            return {name: array[row] for name, array in item.tensors.items()}
    return {}


def expect_in_range(exc: InferenceFailed, row: Tensors) -> None:
    """Raise InvalidInput where the row whose answer is not finite holds numbers from LARGEST_NUMBER on."""
    for name, array in row.items():
        if array.dtype.kind != "f" or not array.size:
            continue
        largest = float(np.nan_to_num(np.abs(array.astype(np.float64))).max())
        if largest >= LARGEST_NUMBER:
            raise InvalidInput(
                f"{exc.message}, for {name} holds {largest:.3g}: expected numbers below {LARGEST_NUMBER:g}",
                reason="nonfinite",
                instance=exc.facts["instance"],
                where=name,
                found=f"{largest:.3g}",
                expected=f"numbers below {LARGEST_NUMBER:g}",
            ) from exc
