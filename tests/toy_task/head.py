"""The head of the toy task: a row of numbers in, one number out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import PositiveInt

from training.layers.registry import Layer, LayerError, Shape
from training.network.heads.head import Head
from training.network.spec import NetworkSpec


class SumSpec(NetworkSpec):
    """A network that reads rows of `num_columns`."""

    task: Literal["sum"] = "sum"
    num_columns: PositiveInt


class SumHead(Head):
    """`row` (B, columns) → `sum` (B, 1)."""

    Spec: ClassVar[type[NetworkSpec]] = SumSpec

    @classmethod
    def from_spec(cls, spec: SumSpec) -> SumHead:
        return cls(spec, "row", Shape((spec.num_columns,)))

    def check(self, layers: Sequence[Layer]) -> None:
        if layers[-1].output.axes != (1,):
            raise LayerError(f"layers[{len(layers) - 1}]", layers[-1].config.type, None, "a sum is one number per row")

    def outputs(self, last: Layer) -> dict[str, Shape]:
        return {"sum": last.output}
