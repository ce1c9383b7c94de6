"""A plain stack of layers: one named input of numbers or token ids, and what the last layer gives as named outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from training.layers.registry import Layer, LayerError, Shape
from training.network.heads.head import Head
from training.network.spec import NetworkSpec


class TensorInput(BaseModel):
    """The input: its name, and the axes behind the batch.

    ("time", 3) are rows of any length, (10, 3) rows of ten steps, (3,) vectors; token ids have one axis, ("time",) or (10,),
    and lie below `vocabulary_size` (by default the first layer's `input_dim`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "input"
    kind: Literal["floats", "tokens"] = "floats"
    shape: Annotated[tuple[PositiveInt | Literal["time"], ...], Field(min_length=1)]
    vocabulary_size: PositiveInt | None = None

    @model_validator(mode="after")
    def _check_axes(self) -> TensorInput:
        if "time" in self.shape[1:]:
            raise ValueError(f'only the first axis may be "time", got {list(self.shape)}')
        if self.kind == "tokens" and len(self.shape) != 1:
            raise ValueError(f"token ids have one axis, the steps, got {list(self.shape)}")
        if self.kind == "floats" and self.shape == ("time",):
            raise ValueError('floats with a time axis need features, as in ["time", 1]')
        if self.kind == "floats" and self.vocabulary_size is not None:
            raise ValueError('option "vocabulary_size" belongs to kind "tokens"')
        return self

    @property
    def is_open(self) -> bool:
        """Whether rows may have different lengths; then there is an input `lengths` too."""
        return self.shape[0] == "time"


class TensorSpec(NetworkSpec):
    """What the last layer gives is the answer, called `output`; further results of it are `output_hidden` and the like."""

    task: Literal["tensor"] = "tensor"
    input: TensorInput
    output: str = "output"


class TensorHead(Head):
    """The spec's input, with `lengths` if its time axis is open → its outputs."""

    Spec: ClassVar[type[NetworkSpec]] = TensorSpec
    spec: TensorSpec

    @classmethod
    def from_spec(cls, spec: TensorSpec) -> TensorHead:
        given = spec.input
        if given.kind == "floats":
            return cls(spec, given.name, Shape(given.shape))
        first = spec.layers[0]
        vocabulary = given.vocabulary_size or first.get("input_dim")
        if not isinstance(vocabulary, int):
            raise LayerError("layers[0]", str(first.get("type", "")), "input_dim", "is missing: how many ids there are")
        return cls(spec, given.name, Shape(given.shape, vocabulary=vocabulary))

    def check(self, layers: Sequence[Layer]) -> None:
        last = layers[-1]
        if last.output.is_open and last.output.axes[0] != "time":
            message = f"the answer {last.output} has another number of steps than the input: pool, or return the last step only"
            raise LayerError(f"layers[{len(layers) - 1}]", last.config.type, None, message)

    def outputs(self, last: Layer) -> dict[str, Shape]:
        return {self.spec.output: last.output, **{f"{self.spec.output}_{name}": shape for name, shape in last.others}}

    def error_scale(self, name: str, expected: NDArray[Any], inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Sums of many terms cannot be better than their size."""
        size: NDArray[Any] = np.maximum(1.0, np.abs(expected).reshape(len(expected), -1).max(axis=1))
        return size
