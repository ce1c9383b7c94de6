"""Steps of layers that are functions of one tensor: activations with options, pooling, and what rearranges steps and features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.importers.keras.masked_tensor import MaskedTensor, Result, flat
from training.importers.keras.step import Axes, FunctionStep, Step, arrays_of, pair, single, step

NOTHING_IN_A_PREDICTION = (
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "GaussianNoise",
    "GaussianDropout",
    "AlphaDropout",
    "ActivityRegularization",
    "Identity",
)


@step(*NOTHING_IN_A_PREDICTION)
class IdentityStep(Step):
    """A layer that does nothing in a prediction."""

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        self.refuse_options(kwargs, "mask")  # training=True drops in predictions too
        (value,) = flat(args)
        return value


@step("ReLU")
class ReLUStep(FunctionStep):
    """Keras's ReLU with all its options."""

    def compute(self, x: Tensor) -> Tensor:
        slope, threshold = float(self.option("negative_slope") or 0), float(self.option("threshold") or 0)
        largest = self.option("max_value")
        positive = x * (x > threshold).to(x.dtype) if threshold else functional.relu(x)
        if largest is not None:
            positive = positive.clamp(0.0, float(largest))
        return positive - slope * functional.relu(threshold - x) if slope else positive


@step("ThresholdedReLU")
class ThresholdedReLUStep(FunctionStep):
    """x where x > theta, else 0."""

    def compute(self, x: Tensor) -> Tensor:
        return x * (x > float(self.option("theta", 1.0))).to(x.dtype)


@step("Softmax")
class SoftmaxStep(FunctionStep):
    """Softmax over any axis but the rows."""

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        value, *others = flat(args)
        mask = next(iter([*others, *flat(kwargs.get("mask"))]), None)
        axis = self.option("axis", -1)
        if isinstance(axis, list):
            if len(axis) > 1:
                raise self.refuse(f"softmax over several axes {axis} is not supported")
            axis = axis[0]
        if axis in (0, -value.values.dim()):
            raise self.refuse("softmax over the rows of the batch: an answer would depend on the other rows")
        steps = mask.values if mask is not None else value.mask
        if steps is None:
            return MaskedTensor(torch.softmax(value.values, dim=axis))
        if steps.shape != value.values.shape:
            raise self.refuse("reads masked steps: the mask is laid over another axis than the steps")
        scores = torch.softmax(value.values.masked_fill(~steps, -1e9), dim=axis)
        return MaskedTensor(scores.masked_fill(~steps, 0.0) if self.stored.is_keras_3 else scores, steps)


@step("PReLU")
class PReLUStep(Step):
    """relu with a learned slope below zero."""

    def build(self, shapes: Sequence[Axes]) -> None:
        (alpha,) = arrays_of(self.stored, "alpha")
        self.alpha = nn.Parameter(torch.from_numpy(alpha))
        super().build(shapes)

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        (value,) = flat(args)
        x = value.values
        return MaskedTensor(functional.relu(x) - self.alpha * functional.relu(-x), value.mask)


@step("Permute")
class PermuteStep(FunctionStep):
    """The axes behind the batch in another order."""

    keeps_mask = False

    def compute(self, x: Tensor) -> Tensor:
        return x.permute(0, *(int(axis) for axis in self.option("dims")))


@step("Rescaling")
class RescalingStep(FunctionStep):
    """x * scale + offset."""

    def compute(self, x: Tensor) -> Tensor:
        scale, offset = (
            torch.tensor(self.option(name, default), dtype=x.dtype) for name, default in (("scale", 1.0), ("offset", 0.0))
        )
        return x * scale + offset


@step("ZeroPadding1D")
class ZeroPaddingStep(FunctionStep):
    """Zeros before and behind the steps."""

    keeps_mask = False

    def compute(self, x: Tensor) -> Tensor:
        before, after = pair(self.option("padding", 1))
        return functional.pad(x, (0, 0, before, after))


@step("Cropping1D")
class CroppingStep(FunctionStep):
    """Steps cut off at both ends."""

    keeps_mask = False

    def compute(self, x: Tensor) -> Tensor:
        before, after = pair(self.option("cropping", 1))
        return x[:, before:-after] if after else x[:, before:]


@step("UpSampling1D")
class UpSamplingStep(FunctionStep):
    """Every step repeated."""

    keeps_mask = False

    def compute(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(int(self.option("size", 2)), 1)


@step("AveragePooling1D")
class AveragePoolingStep(FunctionStep):
    """The mean of every window of steps; at the ends of "same" only of those that are there."""

    keeps_mask = False

    def build(self, shapes: Sequence[Axes]) -> None:
        self.size = single(self.option("pool_size", 2))
        self.stride = single(self.option("strides") or self.size)
        self.is_same = self.option("padding", "valid") == "same"
        if self.is_same and isinstance(shapes[0][0], str):
            raise self.refuse(
                'padding "same" needs the same number of steps in every row, for where the windows begin depends on it: save the '
                'model with padding="valid", or with Input((steps, features))'
            )
        super().build(shapes)

    def compute(self, x: Tensor) -> Tensor:
        steps = x.transpose(1, 2)
        if not self.is_same:
            return functional.avg_pool1d(steps, self.size, self.stride).transpose(1, 2)
        length = x.shape[1]
        missing = max((math.ceil(length / self.stride) - 1) * self.stride + self.size - length, 0)
        ends = (missing // 2, missing - missing // 2)
        sums = functional.avg_pool1d(functional.pad(steps, ends), self.size, self.stride)
        there = functional.avg_pool1d(functional.pad(torch.ones(1, 1, length), ends), self.size, self.stride)
        return (sums / there.to(x.dtype)).transpose(1, 2)


@step("RepeatVector")
class RepeatStep(FunctionStep):
    """A vector as many steps."""

    keeps_mask = False

    def compute(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1).expand(-1, int(self.option("n")), -1)


@step("Flatten")
class FlattenStep(FunctionStep):
    """All values of a row in one axis, which stays open where only the steps are more than one."""

    keeps_mask = False

    def build(self, shapes: Sequence[Axes]) -> None:
        axes = shapes[0]
        if any(isinstance(axis, str) for axis in axes) and any(axis != 1 for axis in axes[1:]):
            raise self.refuse(f"needs the same number of steps in every row, got {('batch', *axes)}: the time axis is open")
        super().build(shapes)

    def compute(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x
        if all(size == 1 for size in x.shape[2:]):
            return x.squeeze(-1) if x.dim() == 3 else x.flatten(2).squeeze(-1)
        return x.flatten(1)


@step("UnitNormalization")
class UnitNormalizationStep(FunctionStep):
    """Vectors of length one."""

    def compute(self, x: Tensor) -> Tensor:
        axis = self.option("axis", -1)
        return functional.normalize(x, dim=axis[0] if isinstance(axis, list) else axis, eps=1e-6)
