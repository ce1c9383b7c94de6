"""A linear classifier of 1- to n-grams of token ids, in torch and as ONNX nodes: one 8-bit weight per bucket and logit.

The logit of a text is the sum of the weights of its different n-grams, over the square root of how many those are. An n-gram's
bucket is the remainder of a hash in whole numbers, so that torch and graph agree to the last bit, and no n-gram reaches beyond a
row's length. Fits nothing (`fitting/ngrams.py`).
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn

from training.graph.builder import GraphBuilder
from training.layers.registry import Symbol

MODULUS = 2**31 - 1
MULTIPLIERS = (1_540_483_477, 668_265_263, 374_761_393, 1_274_126_177, 461_845_907)
"""Of the tokens of an n-gram, odd and without a common pattern; with ids below 2**24 no sum of products leaves 64 bits."""
MAX_VOCABULARY = 2**24
LARGEST_CODE = 127
NOWHERE = -1
"""The bucket of an n-gram that would reach beyond its row."""


class NgramSpec(BaseModel):
    """How n-grams become buckets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: int = Field(ge=1, le=len(MULTIPLIERS))
    buckets: PositiveInt


class NgramTable(nn.Module):
    """The weights of all buckets: 8-bit codes (buckets, logits), with a scale and a shift for each logit.

    They are no parameters, and are not in checkpoints: they are fitted when the layers are.
    """

    codes: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, spec: NgramSpec, num_logits: int) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("codes", torch.zeros(spec.buckets, num_logits, dtype=torch.int8), persistent=False)
        self.register_buffer("scale", torch.ones(num_logits), persistent=False)
        self.register_buffer("shift", torch.zeros(num_logits), persistent=False)

    @torch.no_grad()
    def set_weights(self, weights: Tensor, shift: Tensor, limits: Tensor | None = None) -> None:
        """Take weights (buckets, logits) on a grid of 255 values, and the shift (logits,).

        The grid ends at plus and minus `limits` (logits,), to which larger weights are clipped; None: at the largest weight.
        """
        limits = weights.abs().amax(0) if limits is None else limits
        scale = (limits / LARGEST_CODE).clamp(min=torch.finfo(torch.float32).tiny)
        self.codes.copy_((weights / scale).round().clamp(-LARGEST_CODE, LARGEST_CODE).to(torch.int8))
        self.scale.copy_(scale)
        self.shift.copy_(shift)

    def buckets(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The buckets of all n-grams of ids (B, T), INT64 (B, order · T), NOWHERE for those that reach beyond their row."""
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        padded = nn.functional.pad(tokens, (0, self.spec.order - 1))
        found, hashed = [], torch.zeros_like(tokens)
        for offset in range(self.spec.order):
            hashed = hashed + (padded[:, offset : offset + tokens.shape[1]] + 1) * MULTIPLIERS[offset]
            bucket = hashed % MODULUS % self.spec.buckets
            found.append(bucket.masked_fill(steps + offset >= lengths.unsqueeze(1), NOWHERE))
        return torch.cat(found, 1)

    def different_buckets(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """`buckets` in falling order, each row's only once; NOWHERE in the places of the others."""
        ordered = self.buckets(tokens, lengths).sort(1, descending=True).values
        is_repeated = torch.cat([torch.zeros_like(ordered[:, :1], dtype=torch.bool), ordered[:, 1:] == ordered[:, :-1]], 1)
        return ordered.masked_fill(is_repeated, NOWHERE)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, logits) of token ids (B, T) with their lengths (B,)."""
        found = self.different_buckets(tokens, lengths)
        is_there = found != NOWHERE
        # The codes of a row are added as whole numbers: exact in any order.
        weights = self.codes[found.clamp(min=0)].to(self.scale.dtype).masked_fill(~is_there.unsqueeze(2), 0.0)
        size = is_there.sum(1, keepdim=True).to(self.scale.dtype).sqrt()
        return weights.sum(1) / size * self.scale + self.shift

    def write(self, graph: GraphBuilder, symbol: Symbol) -> str:
        """`forward` in the graph."""
        assert symbol.lengths is not None
        order, tokens = self.spec.order, symbol.values
        num_steps = graph.add("Shape", tokens, start=1, end=2)
        steps = graph.add("Range", graph.constant(0), graph.add("Squeeze", num_steps, graph.constant([0])), graph.constant(1))
        lengths = graph.add("Unsqueeze", symbol.lengths, graph.constant([1]))  # (B, 1)
        padded = graph.add("Pad", tokens, graph.constant([0, 0, 0, order - 1])) if order > 1 else tokens
        nowhere, zero, one = graph.constant(NOWHERE), graph.constant([0]), graph.constant([1])
        found, hashed = [], ""
        for offset in range(order):
            end = graph.add("Add", num_steps, graph.constant([offset]))
            shifted = graph.add("Slice", padded, graph.constant([offset]), end, one) if order > 1 else tokens
            part = graph.add("Mul", graph.add("Add", shifted, graph.constant(1)), graph.constant(MULTIPLIERS[offset]))
            hashed = graph.add("Add", hashed, part) if hashed else part
            bucket = graph.add("Mod", graph.add("Mod", hashed, graph.constant(MODULUS)), graph.constant(self.spec.buckets))
            is_within = graph.add("Less", graph.add("Add", steps, graph.constant(offset)), lengths)
            found.append(graph.add("Where", is_within, bucket, nowhere))
        every = graph.add("Concat", *found, axis=1) if order > 1 else found[0]  # (B, order * T)
        ordered, _ = graph.add_many("TopK", every, graph.add("Shape", every, start=1, end=2), num_outputs=2, axis=1)
        first = graph.add("Slice", ordered, zero, one, one)
        before = graph.add(
            "Concat",
            graph.add("Add", first, graph.constant(1)),
            graph.add("Slice", ordered, zero, graph.constant([-1]), one),
            axis=1,
        )
        is_new = graph.add("Not", graph.add("Equal", ordered, before))
        is_there = graph.add("And", is_new, graph.add("GreaterOrEqual", ordered, graph.constant(0)))
        codes = graph.constant(self.codes.cpu().numpy(), "codes")
        values = graph.add("Cast", graph.add("Gather", codes, graph.add("Max", ordered, graph.constant(0)), axis=0), to=1)
        weights = graph.add("Where", graph.add("Unsqueeze", is_there, graph.constant([2])), values, graph.constant(0.0))
        total = graph.add("ReduceSum", weights, one, keepdims=0)  # (B, logits)
        size = graph.add("Sqrt", graph.add("ReduceSum", graph.add("Cast", is_there, to=1), one, keepdims=1))
        mean = graph.add("Div", total, size)
        scaled = graph.add("Mul", mean, graph.constant(self.scale.cpu().numpy(), "scale"))
        return graph.add("Add", scaled, graph.constant(self.shift.cpu().numpy(), "shift"))
