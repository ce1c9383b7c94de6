"""Steps of Keras's layers of attention; which steps may be read follows from the masks that the tensors carry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.importers.keras.masked_tensor import MaskedTensor, Result, flat
from training.importers.keras.step import Axes, Step, arrays_of, step


@step("Attention", "AdditiveAttention")
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


@step("MultiHeadAttention")
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
