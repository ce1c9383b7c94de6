"""Steps of layers that make one tensor of several: sums, products, joins, and what becomes of their masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.importers.keras.masked_tensor import MaskedTensor, Result, flat
from training.importers.keras.step import Step, step


class MergeStep(Step):
    """Several tensors of one shape as one; those of lower rank are repeated over the steps."""

    def fold(self, one: Tensor, other: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        self.refuse_options(kwargs, "mask")
        given = list(flat(args))
        rank = max(value.values.dim() for value in given)
        parts = [value.values for value in given]
        for number, part in enumerate(parts):
            for _ in range(rank - part.dim()):
                parts[number] = parts[number].unsqueeze(1)
        return MaskedTensor(self.merge(parts), self.join_masks([value.mask for value in given]))

    def merge(self, parts: list[Tensor]) -> Tensor:
        result = parts[0]
        for part in parts[1:]:
            result = self.fold(result, part)
        return result

    def join_masks(self, masks: Sequence[Tensor | None]) -> Tensor | None:
        """Keras 3: a step counts if it does in one of the tensors, all of which have masks; Keras 2: if it does in every mask."""
        known = [mask for mask in masks if mask is not None]
        if not known or (self.stored.is_keras_3 and len(known) < len(masks)):
            return None
        result = known[0]
        for mask in known[1:]:
            result = result | mask if self.stored.is_keras_3 else result & mask
        return result


@step("Add")
class AddStep(MergeStep):
    """Sums."""

    def fold(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


@step("Subtract")
class SubtractStep(MergeStep):
    """The first without the second."""

    def fold(self, one: Tensor, other: Tensor) -> Tensor:
        return one - other


@step("Multiply")
class MultiplyStep(MergeStep):
    """Products of numbers at one place."""

    def fold(self, one: Tensor, other: Tensor) -> Tensor:
        return one * other


@step("Maximum")
class MaximumStep(MergeStep):
    """The largest at each place."""

    def fold(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.maximum(one, other)


@step("Minimum")
class MinimumStep(MergeStep):
    """The smallest at each place."""

    def fold(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.minimum(one, other)


@step("Average")
class AverageStep(AddStep):
    """The mean at each place."""

    def merge(self, parts: list[Tensor]) -> Tensor:
        return super().merge(parts) / len(parts)


@step("Concatenate")
class ConcatenateStep(Step):
    """Tensors one behind the other along an axis."""

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        self.refuse_options(kwargs, "mask")
        given = list(flat(args))
        rank = given[0].values.dim()
        axis = int(self.option("axis", -1)) % rank
        if axis == 0:
            raise self.refuse("along the rows of the batch: that is not supported")
        return MaskedTensor(torch.cat([value.values for value in given], axis), self._join_masks(given, axis, rank))

    def _join_masks(self, given: Sequence[MaskedTensor], axis: int, rank: int) -> Tensor | None:
        masks = [value.mask for value in given]
        known = [mask for mask in masks if mask is not None]
        if not known or rank == 2:
            return None
        if axis == 1:
            steps = [
                torch.ones_like(value.values[..., 0], dtype=torch.bool) if m is None else m
                for value, m in zip(given, masks, strict=True)
            ]
            return torch.cat(steps, 1)
        if self.stored.is_keras_3 and len(known) < len(masks):
            return None  # a tensor without a mask counts at every step
        result = known[0]
        for mask in known[1:]:
            result = result | mask if self.stored.is_keras_3 else result & mask
        return result


@step("Dot")
class DotStep(Step):
    """Products summed along one axis of each tensor."""

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        one, other = (value.values for value in flat(args))
        if one.dim() > 3 or other.dim() > 3:
            raise self.refuse("tensors of more than three axes are not supported")
        axes = self.option("axes")
        first, second = (axes, axes) if isinstance(axes, int) else axes
        first, second = first % one.dim(), second % other.dim()
        if self.option("normalize"):
            one, other = functional.normalize(one, dim=first), functional.normalize(other, dim=second)
        ranks = one.dim(), other.dim()
        if ranks[0] == 2:
            one, first = one.unsqueeze(1), 2
        if ranks[1] == 2:
            other, second = other.unsqueeze(2), 1
        left = one.transpose(1, 2) if first == 1 else one
        right = other.transpose(1, 2) if second == 2 else other
        result = torch.matmul(left, right)
        return MaskedTensor(result.squeeze(1) if ranks[0] == 2 else result.squeeze(-1) if ranks[1] == 2 else result)
