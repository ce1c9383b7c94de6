"""Whether an answer that is not finite is the fault of the numbers that were asked about, or of the model. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.errors import InferenceFailed, InvalidInput
from service.runtime.tensors import Item, Tensors

LARGEST_NUMBER = 1e18
"""The square of more is near the end of float32 (3.4e38): a sound model may overflow too. Most such numbers have an answer."""


def expect_items_in_range(exc: InferenceFailed, items: Sequence[Item]) -> None:
    """`expect_in_range` where the rows are those of items; does nothing where the error names none of them."""
    for item in items:
        for row, instance in enumerate(item.instances or range(item.rows)):
            if instance == exc.facts.get("instance"):
                expect_in_range(exc, item.tensors, row, instance)


def expect_in_range(exc: InferenceFailed, tensors: Tensors, row: int, instance: int) -> None:
    """Raise InvalidInput where this row, whose answer is not finite, holds numbers from LARGEST_NUMBER on."""
    for name, rows in tensors.items():
        array = rows[row]
        if array.dtype.kind != "f" or not array.size:
            continue
        largest = float(np.nan_to_num(np.abs(array.astype(np.float64))).max())
        if largest >= LARGEST_NUMBER:
            raise InvalidInput(
                f"{exc.message}, for {name} holds {largest:.3g}: expected numbers below {LARGEST_NUMBER:g}",
                reason="nonfinite",
                instance=instance,
                where=name,
                found=f"{largest:.3g}",
                expected=f"numbers below {LARGEST_NUMBER:g}",
            ) from exc
