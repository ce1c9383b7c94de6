"""Keras's layers as steps of a graph of calls: what each computes of its tensors, and what becomes of their masks.

Layers that recipes have are run by their own code (`leaf.py`); here are those that join branches, attend, or rearrange. Reads
no file: weights are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.importers.keras.entry import Entry, KerasFileError, name_of, place_of
from training.importers.keras.keras_file import StoredLayer, StoredWeight
from training.importers.keras.layers import from_keras_config
from training.importers.keras.leaf import run_layer
from training.importers.keras.masked_tensor import MaskedTensor, Result, flat, plain
from training.importers.keras.operations import find_operation, in_our_words
from training.importers.keras.weights import load_weights
from training.importers.model import SourceLayer
from training.layers.named import snake_case
from training.layers.registry import LAYERS, Layer, Shape, build_layer

Axes = tuple[int | str, ...]
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
# Ended by a sentence of their own: their code is not in the file, or this is no network over one sequence.
REFUSED = {
    "Lambda": "its code is Python that the file holds only compiled: write it with layers (a sum over steps is "
    "keras.ops.sum(x, axis=1)), or publish the network from torch",
    "ConvLSTM1D": "a convolution inside a recurrent step has no node in ONNX",
    "ConvLSTM2D": "a convolution inside a recurrent step has no node in ONNX",
    "Conv2D": "layers of images are not supported: this serves networks over sequences",
    "Conv3D": "layers of images are not supported: this serves networks over sequences",
    "MaxPooling2D": "layers of images are not supported: this serves networks over sequences",
    "AveragePooling2D": "layers of images are not supported: this serves networks over sequences",
}


@dataclass(frozen=True)
class VersionedLayer:
    """A layer of the file: its configuration, its weights, and the version of Keras that wrote it."""

    entry: Entry
    weights: tuple[StoredWeight, ...]
    keras_version: str

    @property
    def config(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.entry["config"]
        return config

    @property
    def place(self) -> str:
        return place_of(self.entry)

    @property
    def is_keras_3(self) -> bool:
        return self.keras_version.split(".")[0] not in ("1", "2")


class Step(nn.Module):
    """One layer. `build` is called once, with the axes of its tensors behind the batch ("time" where one is open)."""

    def __init__(self, stored: VersionedLayer) -> None:
        super().__init__()
        self.stored = stored
        self.is_built = False

    def build(self, shapes: Sequence[Axes]) -> None:
        """Raises KerasFileError or LayerError where the layer cannot read such tensors."""
        self.is_built = True

    def part_name(self, part: int) -> str:
        """What result `part` of several is called behind the layer's name; the first has none."""
        return str(part) if part else ""

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        raise NotImplementedError

    def option(self, name: str, default: Any = None) -> Any:
        """An option of the layer's configuration."""
        return self.stored.config.get(name, default)

    def refuse(self, message: str) -> KerasFileError:
        return KerasFileError(f"{self.stored.place}: {message}")

    def refuse_options(self, kwargs: Mapping[str, Any], *known: str) -> None:
        """Raise KerasFileError for an argument of the call that changes the answer and is not `known`."""
        for name, value in kwargs.items():
            if name not in known and not (value is None or value is False or (isinstance(value, list) and not value)):
                raise self.refuse(f'is called with "{name}": that is not supported')


class LayerStep(Step):
    """A layer that recipes have."""

    layer: Layer
    _MASKED: ClassVar[tuple[str, ...]] = ("mask", "initial_state")

    def build(self, shapes: Sequence[Axes]) -> None:
        self.table = self.read_table()
        shape = Shape(shapes[0])
        if LAYERS[self.table["type"]].reads_tokens:
            shape = Shape(shapes[0], vocabulary=int(self.table["input_dim"]))
        self.layer = build_layer(self.table, shape, shape, self.stored.place).eval()
        self.load()
        super().build(shapes)

    def read_table(self) -> dict[str, Any]:
        """The layer's table as a recipe has it."""
        return table_of(self.stored.entry, self.stored.keras_version)

    def load(self) -> None:
        """Give the layer its weights."""
        entry = self.stored.entry
        held = StoredLayer(name_of(entry), str(entry["class_name"]), entry, self.stored.weights)
        load_weights(self.layer, SourceLayer(self.table, self.stored.place, held))

    def part_name(self, part: int) -> str:
        return self.layer.others[part - 1][0] if 0 < part <= len(self.layer.others) else super().part_name(part)

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        self.refuse_options(kwargs, *self._MASKED)
        given = list(flat(args))
        value, states = given[0], [*given[1:], *flat(kwargs.get("initial_state"))]
        own = next(flat(kwargs.get("mask")), None)
        mask = own.values if own is not None else value.mask
        if states and not self.layer.is_recurrent and self.table["type"] != "bidirectional":
            raise self.refuse(f"reads {len(given)} tensors")
        is_read = mask is not None and self.layer.mask_use(self.layer.config) != "ignored"
        found = run_layer(value.values, mask if is_read else None, *(state.values for state in states), layer=self.layer)
        first = MaskedTensor(found[0], self._mask_of(value.values, mask, found[0]))
        return first if len(found) == 1 else (first, *(MaskedTensor(part) for part in found[1:]))

    def _mask_of(self, values: Tensor, mask: Tensor | None, result: Tensor) -> Tensor | None:
        if self.table["type"] == "embedding":
            return values != 0 if self.table.get("mask_zero") else None
        if self.layer.mask_value is not None:
            return (values != self.layer.mask_value).any(-1)
        carries = self.layer.mask_use(self.layer.config) == "carried"
        return mask if carries and mask is not None and result.dim() > 2 else mask if carries and result.dim() == 1 else None


class CudnnStep(LayerStep):
    """CuDNNLSTM and CuDNNGRU: the same layers, whose weights lie gate by gate transposed."""

    def read_table(self) -> dict[str, Any]:
        kind = self.stored.entry["class_name"].removeprefix("CuDNN")
        config = {key: value for key, value in self.stored.config.items() if key not in ("reset_after", "time_major")}
        entry = {"class_name": kind, "config": {**config, **({"reset_after": True} if kind == "GRU" else {})}}
        return from_keras_config(entry, keras_version="2")

    def load(self) -> None:
        gates = 4 if self.table["type"] == "lstm" else 3
        if len(self.stored.weights) != 3:
            raise self.refuse(
                f"weights are missing: expected kernel, recurrent_kernel and bias, found {len(self.stored.weights)}"
            )
        kernel, recurrent, bias = (weight.values for weight in self.stored.weights)
        arrays = [
            np.hstack([part.T.reshape(part.shape, order="F") for part in np.hsplit(kernel, gates)]),
            np.hstack([part.T for part in np.hsplit(recurrent, gates)]),
            bias.reshape(2, -1).sum(0) if gates == 4 else bias.reshape(2, -1),
        ]
        self.layer.load_keras_weights(arrays)


class CellsStep(Step):
    """RNN(cell) and RNN([cells]): the layer of each cell, one over the other."""

    def build(self, shapes: Sequence[Axes]) -> None:
        cell = self.option("cell")
        cells = cell["config"]["cells"] if cell["class_name"] == "StackedRNNCells" else [cell]
        weights = list(self.stored.weights)
        self.layers = nn.ModuleList()
        shape = Shape(shapes[0])
        for number, own in enumerate(cells):
            kind = str(own["class_name"]).removesuffix("Cell")
            if snake_case(kind) not in LAYERS:
                raise self.refuse(f'cell "{own["class_name"]}" is not supported; LSTMCell, GRUCell and SimpleRNNCell are')
            is_last = number == len(cells) - 1
            config = {
                **own["config"],
                "return_sequences": self.option("return_sequences", False) if is_last else True,
                "return_state": self.option("return_state", False),
                "go_backwards": self.option("go_backwards", False) if number == 0 else False,
            }
            table = table_of({"class_name": kind, "config": config}, self.stored.keras_version)
            layer = build_layer(table, shape, shape, self.stored.place).eval()
            arrays = [weight.values for weight in weights[: len(layer.weights)]]
            del weights[: len(layer.weights)]
            layer.load_keras_weights(arrays)
            self.layers.append(layer)
            shape = layer.output
        if weights:
            raise self.refuse(f"the file holds {len(weights)} weights more than the cells have")
        super().build(shapes)

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        self.refuse_options(kwargs, "mask")
        (value,) = flat(args)
        own = next(flat(kwargs.get("mask")), None)
        mask = own.values if own is not None else value.mask
        result, states = value.values, []
        for layer in self.layers:
            assert isinstance(layer, Layer)
            result, *final = run_layer(result, mask, layer=layer)
            states += [MaskedTensor(part) for part in final]
        first = MaskedTensor(result, mask if self.option("return_sequences") else None)
        return (first, *states) if self.option("return_state") else first


class OperationStep(Step):
    """An operation on tensors, which Keras 3 keeps beside the layers."""

    def build(self, shapes: Sequence[Axes]) -> None:
        found = find_operation(str(self.stored.entry["class_name"]), self.stored.config, kind_of(self.stored.entry))
        if found is None:
            what = self.option("function") or self.stored.entry["class_name"]
            raise self.refuse(f'the operation "{what}" is not supported')
        self.operation, self.options = found
        super().build(shapes)

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        given = {**self.options, **in_our_words(plain(dict(kwargs)))}
        try:
            return MaskedTensor(self.operation(*plain(list(args)), **given))
        except (TypeError, ValueError) as exc:
            raise self.refuse(str(exc)) from exc


class IdentityStep(Step):
    """A layer that does nothing in a prediction."""

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        self.refuse_options(kwargs, "mask")  # training=True drops in predictions too
        (value,) = flat(args)
        return value


class FunctionStep(Step):
    """A layer without weights that is one torch function of one tensor; `keeps_mask` as in Keras."""

    keeps_mask: ClassVar[bool] = True

    def compute(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        self.refuse_options(kwargs, "mask")
        (value,) = flat(args)
        return MaskedTensor(self.compute(value.values), value.mask if self.keeps_mask else None)


class ReLUStep(FunctionStep):
    """Keras's ReLU with all its options."""

    def compute(self, x: Tensor) -> Tensor:
        slope, threshold = float(self.option("negative_slope") or 0), float(self.option("threshold") or 0)
        largest = self.option("max_value")
        positive = x * (x > threshold).to(x.dtype) if threshold else functional.relu(x)
        if largest is not None:
            positive = positive.clamp(0.0, float(largest))
        return positive - slope * functional.relu(threshold - x) if slope else positive


class ThresholdedReLUStep(FunctionStep):
    """x where x > theta, else 0."""

    def compute(self, x: Tensor) -> Tensor:
        return x * (x > float(self.option("theta", 1.0))).to(x.dtype)


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


class PermuteStep(FunctionStep):
    """The axes behind the batch in another order."""

    keeps_mask = False

    def compute(self, x: Tensor) -> Tensor:
        return x.permute(0, *(int(axis) for axis in self.option("dims")))


class RescalingStep(FunctionStep):
    """x * scale + offset."""

    def compute(self, x: Tensor) -> Tensor:
        scale, offset = (
            torch.tensor(self.option(name, default), dtype=x.dtype) for name, default in (("scale", 1.0), ("offset", 0.0))
        )
        return x * scale + offset


class ZeroPaddingStep(FunctionStep):
    """Zeros before and behind the steps."""

    keeps_mask = False

    def compute(self, x: Tensor) -> Tensor:
        before, after = pair(self.option("padding", 1))
        return functional.pad(x, (0, 0, before, after))


class CroppingStep(FunctionStep):
    """Steps cut off at both ends."""

    keeps_mask = False

    def compute(self, x: Tensor) -> Tensor:
        before, after = pair(self.option("cropping", 1))
        return x[:, before:-after] if after else x[:, before:]


class UpSamplingStep(FunctionStep):
    """Every step repeated."""

    keeps_mask = False

    def compute(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(int(self.option("size", 2)), 1)


class AveragePoolingStep(FunctionStep):
    """The mean of every window of steps; at the ends of "same" only of those that are there."""

    keeps_mask = False

    def build(self, shapes: Sequence[Axes]) -> None:
        self.size = single(self.option("pool_size", 2))
        self.stride = single(self.option("strides") or self.size)
        self.is_same = self.option("padding", "valid") == "same"
        if self.is_same and isinstance(shapes[0][0], str):
            raise self.refuse('padding "same" over an open number of steps is not supported')
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


class RepeatStep(FunctionStep):
    """A vector as many steps."""

    keeps_mask = False

    def compute(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1).expand(-1, int(self.option("n")), -1)


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


class UnitNormalizationStep(FunctionStep):
    """Vectors of length one."""

    def compute(self, x: Tensor) -> Tensor:
        axis = self.option("axis", -1)
        return functional.normalize(x, dim=axis[0] if isinstance(axis, list) else axis, eps=1e-6)


# --------------------------------------------------------------------------------------------------------------- joins


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


class AddStep(MergeStep):
    """Sums."""

    def fold(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


class SubtractStep(MergeStep):
    """The first without the second."""

    def fold(self, one: Tensor, other: Tensor) -> Tensor:
        return one - other


class MultiplyStep(MergeStep):
    """Products of numbers at one place."""

    def fold(self, one: Tensor, other: Tensor) -> Tensor:
        return one * other


class MaximumStep(MergeStep):
    """The largest at each place."""

    def fold(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.maximum(one, other)


class MinimumStep(MergeStep):
    """The smallest at each place."""

    def fold(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.minimum(one, other)


class AverageStep(AddStep):
    """The mean at each place."""

    def merge(self, parts: list[Tensor]) -> Tensor:
        return super().merge(parts) / len(parts)


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


# ----------------------------------------------------------------------------------------------------------- attention


class AttentionStep(Step):
    """Attention (Luong's: products) and AdditiveAttention (Bahdanau's: tanh of sums)."""

    def build(self, shapes: Sequence[Axes]) -> None:
        self.is_additive = self.stored.entry["class_name"] == "AdditiveAttention"
        is_concat = self.option("score_mode", "dot") == "concat"
        names = ["scale"] * bool(self.option("use_scale", self.is_additive)) + ["concat_score_weight"] * is_concat
        arrays = dict(zip(names, arrays_of(self.stored, *names), strict=True))
        self.scale = nn.Parameter(torch.from_numpy(arrays["scale"])) if "scale" in arrays else None
        self.weight = nn.Parameter(torch.from_numpy(arrays["concat_score_weight"])) if is_concat else None
        super().build(shapes)

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        self.refuse_options(kwargs, "mask", "return_attention_scores", "use_causal_mask")
        given = list(flat(args))
        query, value = given[0], given[1]
        key = given[2] if len(given) > 2 else value
        masks = kwargs.get("mask") or [query, value]
        query_mask, value_mask = (_mask_in(part) for part in masks[:2])
        scores = self._score(query.values, key.values)
        if value_mask is not None:
            scores = torch.where(value_mask.unsqueeze(1), scores, scores - 1e9)
        if kwargs.get("use_causal_mask") or self.option("causal"):
            scores = torch.where(causal(scores), scores, scores - 1e9)
        weights = torch.softmax(scores, dim=-1)
        result = torch.matmul(weights, value.values)
        if query_mask is not None:
            result = torch.where(query_mask.unsqueeze(-1), result, 0.0)
        first = MaskedTensor(result, query_mask)
        return (first, MaskedTensor(weights)) if kwargs.get("return_attention_scores") else first

    def _score(self, query: Tensor, key: Tensor) -> Tensor:
        if not self.is_additive and self.weight is None:
            scores = torch.matmul(query, key.transpose(1, 2))
            return scores if self.scale is None else scores * self.scale
        sums = query.unsqueeze(2) + key.unsqueeze(1)
        if self.is_additive:
            terms = torch.tanh(sums)
            return (terms if self.scale is None else self.scale * terms).sum(-1)
        scores = torch.tanh(sums if self.scale is None else self.scale * sums).sum(-1)
        return scores if self.weight is None else self.weight * scores


class MultiHeadAttentionStep(Step):
    """Attention of several heads over one sequence, of itself or of another."""

    def build(self, shapes: Sequence[Axes]) -> None:
        if self.option("attention_axes") not in (None, [1], (1,), 1):
            raise self.refuse(f'option "attention_axes": only the steps are supported, got {self.option("attention_axes")}')
        for name in ("use_gate", "sliding_window"):
            if self.option(name):
                raise self.refuse(f'option "{name}" is not supported')
        parts = ("query", "key", "value", "output")
        kinds = ("kernel", "bias") if self.option("use_bias", True) else ("kernel",)
        names = [f"{part}_{kind}" for part in parts for kind in kinds]
        arrays = dict(zip(names, arrays_of(self.stored, *names), strict=True))
        self.heads, self.key_size = arrays["query_kernel"].shape[1:]
        self.projections = nn.ModuleDict()
        for part in parts:
            kernel = arrays[f"{part}_kernel"]
            flat_kernel = kernel.reshape(-1, kernel.shape[-1]) if part == "output" else kernel.reshape(kernel.shape[0], -1)
            linear = nn.Linear(*flat_kernel.shape, bias="bias" in kinds)
            linear.weight = nn.Parameter(torch.from_numpy(np.ascontiguousarray(flat_kernel.T)))
            if "bias" in kinds:
                linear.bias = nn.Parameter(torch.from_numpy(arrays[f"{part}_bias"].reshape(-1)))
            self.projections[part] = linear
        super().build(shapes)

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        known = ("query", "value", "key", "query_mask", "value_mask", "key_mask", "attention_mask")
        self.refuse_options(kwargs, *known, "return_attention_scores", "use_causal_mask")
        given = list(flat([*args, *(kwargs[name] for name in known[:3] if name in kwargs)]))
        query, value = given[0], given[1]
        key = given[2] if len(given) > 2 else value
        split = {name: self._heads(name, part.values) for name, part in {"query": query, "key": key, "value": value}.items()}
        scores = torch.matmul(split["query"] * (1 / math.sqrt(self.key_size)), split["key"].transpose(2, 3))  # (B, heads, T, S)
        mask = self._mask(scores, kwargs, query, value, key if len(given) > 2 else None)
        if mask is None:
            weights = torch.softmax(scores, dim=-1)
        elif self.stored.is_keras_3:
            # A step that may read nothing reads all alike, but gives zeros where the scores are asked for too.
            weights = torch.softmax(torch.where(mask, scores, -1e9), dim=-1)
            weights = torch.where(mask, weights, 0.0) if kwargs.get("return_attention_scores") else weights
        else:
            weights = torch.softmax(torch.where(mask, scores, scores - 1e9), dim=-1)
        joined = torch.matmul(weights, split["value"]).transpose(1, 2).flatten(2)
        first = MaskedTensor(self.projections["output"](joined), _mask_in(query))
        return (first, MaskedTensor(weights)) if kwargs.get("return_attention_scores") else first

    def _heads(self, name: str, x: Tensor) -> Tensor:
        """(B, T, heads · size) as (B, heads, T, size)."""
        found: Tensor = self.projections[name](x).unflatten(-1, (self.heads, -1))
        return found.transpose(1, 2)

    def _mask(
        self, scores: Tensor, kwargs: Mapping[str, Any], query: MaskedTensor, value: MaskedTensor, key: MaskedTensor | None
    ) -> Tensor | None:
        """What a query may read, to be broadcast to (B, heads, T, S)."""
        found: list[Tensor] = []
        for name, own, axis in (("query_mask", query, 2), ("value_mask", value, 1), ("key_mask", key, 1)):
            mask = _mask_in(kwargs[name]) if kwargs.get(name) is not None else own.mask if own is not None else None
            if mask is not None:
                found.append(mask.unsqueeze(axis).unsqueeze(1))  # (B, 1, T, 1) or (B, 1, 1, S)
        if kwargs.get("attention_mask") is not None:
            given = next(flat(kwargs["attention_mask"])).values.to(torch.bool)
            found.append(given.unsqueeze(1) if given.dim() == 3 else given)
        if kwargs.get("use_causal_mask"):
            found.append(causal(scores))
        result = None
        for mask in found:
            result = mask if result is None else result & mask
        return result


def causal(scores: Tensor) -> Tensor:
    """(T, S), true where a step is not later than the one that reads it."""
    rows, columns = (torch.arange(scores.shape[place]) for place in (-2, -1))
    return columns.unsqueeze(0) <= rows.unsqueeze(1)


def _mask_in(value: Any) -> Tensor | None:
    """The mask that a tensor carries, or that it is."""
    if not isinstance(value, MaskedTensor):
        return None
    return value.values if value.values.dtype == torch.bool else value.mask


# ------------------------------------------------------------------------------------------------------------- choosing

_STEPS: dict[str, type[Step]] = {
    "ReLU": ReLUStep,
    "ThresholdedReLU": ThresholdedReLUStep,
    "Softmax": SoftmaxStep,
    "PReLU": PReLUStep,
    "Permute": PermuteStep,
    "Rescaling": RescalingStep,
    "ZeroPadding1D": ZeroPaddingStep,
    "Cropping1D": CroppingStep,
    "UpSampling1D": UpSamplingStep,
    "AveragePooling1D": AveragePoolingStep,
    "RepeatVector": RepeatStep,
    "Flatten": FlattenStep,
    "UnitNormalization": UnitNormalizationStep,
    "Add": AddStep,
    "Subtract": SubtractStep,
    "Multiply": MultiplyStep,
    "Average": AverageStep,
    "Maximum": MaximumStep,
    "Minimum": MinimumStep,
    "Concatenate": ConcatenateStep,
    "Dot": DotStep,
    "Attention": AttentionStep,
    "AdditiveAttention": AttentionStep,
    "MultiHeadAttention": MultiHeadAttentionStep,
    "CuDNNLSTM": CudnnStep,
    "CuDNNGRU": CudnnStep,
    "RNN": CellsStep,
    **dict.fromkeys(NOTHING_IN_A_PREDICTION, IdentityStep),
}


def graph_classes() -> tuple[str, ...]:
    """Keras's names of the layers that a graph of calls may have."""
    recipes = [layer.keras_class for layer in LAYERS.values() if layer.keras_class is not None]
    return tuple(dict.fromkeys([*recipes, *_STEPS]))


def make_step(stored: VersionedLayer) -> Step:
    """The step of a layer. Raises KerasFileError for a class that is not known, before any weight is looked at."""
    kind = str(stored.entry["class_name"])
    require_float32(stored)
    if is_operation(stored.entry):
        return OperationStep(stored)
    if kind in _STEPS:
        return _STEPS[kind](stored)
    if kind == "Activation" and stored.config.get("activation") == "softmax":
        return SoftmaxStep(stored)  # over the steps too, where they are the last axis
    if any(layer.keras_class == kind for layer in LAYERS.values()) or kind in ("LeakyReLU", "ELU"):
        return LayerStep(stored)
    if kind in REFUSED:
        raise KerasFileError(f"{stored.place} cannot be imported: {REFUSED[kind]}")
    raise KerasFileError(f"{stored.place}: there is no such layer; there are {', '.join(graph_classes())}")


def is_operation(entry: Entry) -> bool:
    """Whether an entry is an operation on tensors, and no layer."""
    if entry["class_name"] in ("TFOpLambda", "SlicingOpLambda"):
        return True
    module = str(entry.get("module") or "")
    if module:
        return ".ops." in f".{module}."
    # An .h5 file of Keras 3 says no module: layers have options that every layer has, operations have none of them.
    return "trainable" not in entry["config"] and find_operation(str(entry["class_name"]), {}, kind_of(entry)) is not None


def kind_of(entry: Entry) -> str:
    """The name of an operation."""
    return snake_case(str(entry["class_name"]))


def require_float32(stored: VersionedLayer) -> None:
    """Raise KerasFileError where a layer computes in another type."""
    value = stored.config.get("dtype")
    policy = value.get("config", {}).get("name") if isinstance(value, Mapping) else value
    is_ours = policy in (None, "float32") or (is_operation(stored.entry) or policy in ("int32", "int64", "bool"))
    if not is_ours:
        raise KerasFileError(f'{stored.place}: option "dtype": only "float32" is supported, got {policy!r}')


def table_of(entry: Entry, keras_version: str) -> dict[str, Any]:
    """A layer's table as a recipe has it. Raises LayerError."""
    if entry["class_name"] == "GRU" and keras_version.split(".")[0] in ("1", "2"):
        # Files older than the option were written by a GRU that resets before the product.
        entry = {**entry, "config": {"reset_after": False, **entry["config"]}}
    return from_keras_config(entry, keras_version=keras_version)


def arrays_of(stored: VersionedLayer, *names: str) -> list[NDArray[Any]]:
    """The weights of a layer, as many as it must have. Raises KerasFileError."""
    found = [weight.values for weight in stored.weights]
    if len(found) != len(names):
        raise KerasFileError(f"{stored.place}: expected {len(names)} weights ({', '.join(names)}), the file holds {len(found)}")
    return found


def pair(value: Any) -> tuple[int, int]:
    """One number for both ends, or one for each."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def single(value: Any) -> int:
    """A number that Keras writes in a list of one."""
    return int(value[0] if isinstance(value, list | tuple) else value)
